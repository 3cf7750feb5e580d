"""Fills in the tables of README.md and draws its pictures out of assets/results, so that nobody types a figure.

    python assets/readme.py                       (the pictures need matplotlib)

A table stands between <!-- its name --> and <!-- end -->. A picture carries a fingerprint of what is drawn in it.
"""
import hashlib
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "assets")]
from experiments import ALPHAS, BETAS, EXPERIMENTS, RESULTS  # noqa: E402
from mimetic_min import figures, report  # noqa: E402

CONTROLS, THREE = ("default", "noise"), ("default", "noise", "mimetic")


# ---- what is read

def runs(name, label=None, **chosen):
    """The runs of an experiment, of which only those with a `lr`, `seed` or `init` in `chosen`, as of init `label`."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return [run | {"init": label or run["init"]} for run in found if all(run[key] in chosen[key] for key in chosen)]


def diagonals(name, lr):
    """{"init, product, when": the diagonal's mean in each layer, as a mean over the seeds}."""
    rows = [row for row in json.loads((RESULTS / f"{name}-diagonals.json").read_text()) if row["lr"] == lr]
    return {f"{init}, {key}": [*map(statistics.mean, zip(*(row[key] for row in rows if row["init"] == init)))]
            for init in ("default", "mimetic") for key in rows[0] if ", " in key}


# ---- tables

def command(name, options=""):
    return f"    python {EXPERIMENTS[name]}{options}\n"


def printed(runs):
    """The table that a script prints at its end."""
    return "".join(f"    {line}".rstrip() + "\n" for line in report.table(runs))


def markdown(head, *rows):
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def seeds(runs):
    _, choosing, reporting = report.best(runs)
    chosen = f"; seeds {report.listed(choosing)} chose the rate" if choosing != reporting else ""
    return f"mean ± standard deviation over seeds {report.listed(reporting)}{chosen}"


def of_inits(first, *runs):
    """A row an init, each at its best rate."""
    runs = sum(runs, [])
    rows, decimals = report.best(runs)[0], report.METRICS[report.metric_of(runs[0]["final"])][3]
    return markdown([first, "rate", "accuracy, %", *(f"against {init}" for init in CONTROLS)], *(
        [init, f"{lr:g}", report.spread(values, decimals),
         *(report.gain(values, rows[base][1], decimals) if init != base else "" for base in CONTROLS)]
        for init, (lr, values) in rows.items()))

def of_settings(first, **settings):
    """A row a setting, with default, noise and mimetic at the best rate of each."""
    table = []
    for name, runs in settings.items():
        best, _, reporting = report.best(runs)
        decimals = report.METRICS[report.metric_of(runs[0]["final"])][3]
        (_, default), (_, noise), (_, mimetic) = (best[init] for init in ("default", "noise", "mimetic"))
        table.append([name, *(f"{report.spread(values, decimals)} ({lr:g})" for lr, values in best.values()),
                      report.gain(mimetic, default, decimals), report.gain(mimetic, noise, decimals),
                      str(len(reporting))])
    return markdown([first, "default", "noise", "mimetic", "mimetic against default", "against noise", "seeds"], *table)


def by_rate(name, **chosen):
    rates = sorted({run["lr"] for run in runs(name)})
    return of_settings("rate", **{f"{lr:g}": runs(name, init=THREE, lr=[lr]) for lr in rates})


def steps_to_default(name):
    """At which evaluation the mean of an init's reported runs, at its best rate, reaches the default's last one."""
    best, _, reporting = report.best(runs(name))
    def curve(init):
        same = runs(name, init=[init], lr=[best[init][0]], seed=reporting)
        return [(points[0]["step"], statistics.mean(point["accuracy"] for point in points))
                for points in zip(*(run["curve"] for run in same))]
    goal = curve("default")[-1][1]
    reached = {init: next((f"{step:,}" for step, accuracy in curve(init) if accuracy >= goal), "never") for init in best}
    return markdown(["", *reached], ["steps", *reached.values()])


def answers():
    return of_settings("", **{
        "digits, 1,000 images": runs("digits", init=THREE),
        **{f"digits, {n} images": runs(f"images-{n}") for n in (500, 200, 100)},
        "CIFAR-10, 5,000 images": runs("cifar10"),
        "Python reference": runs("docs"),
        "Tiny Shakespeare": runs("shakespeare"),
    }) + "\nmean ± standard deviation (rate)"


def parts():
    both = {"lr": [2e-3, 4e-3]}
    return of_inits("init", runs("digits", init=THREE, **both), *(runs(name, label) for name, label in (
        ("qk-alone", "query-key alone"), ("vp-alone", "value-projection alone"),
        ("qk-alone-flipped", "query-key alone, flipped"), ("vp-alone-flipped", "value-projection alone, flipped"),
        ("both-flipped", "both flipped"), ("transposed", "V and proj transposed"))))


TABLES = {
    "vit": lambda: printed(runs("digits", init=THREE, lr=[2e-3], seed=[0])),
    "vit-seeds": lambda: printed(runs("digits", init=THREE, lr=[2e-3], seed=[0, 1, 2])),
    "lm": lambda: printed(runs("docs", lr=[1e-3], seed=[0])),
    "lm-seeds": lambda: printed(runs("docs", lr=[1e-3], seed=[0, 1, 2])),
    "answers": answers,
    "digits": lambda: command("digits") + "\n" + of_inits("init", runs("digits")) + "\n" + seeds(runs("digits")),
    "digits-steps": lambda: steps_to_default("digits"),
    "digits-rates": lambda: by_rate("digits"),
    "parts": parts,
    "docs": lambda: command("docs") + "\n" + by_rate("docs"),
    "shakespeare": lambda: command("shakespeare") + "\n" + by_rate("shakespeare"),
}


# ---- pictures

def rates():
    """{title: {init: [(rate, mean, deviation)]}} of each experiment with a grid of rates."""
    found = {}
    for name, title in (("digits", "digits"), ("docs", "Python reference"), ("shakespeare", "Tiny Shakespeare")):
        every = runs(name)
        _, unit, factor, _, _ = report.METRICS[metric := report.metric_of(every[0]["final"])]
        values = {}
        for run in every:
            values.setdefault(run["init"], {}).setdefault(run["lr"], []).append(factor * run["final"][metric])
        found[f"{title}: {metric}, {unit}"] = {
            init: [(lr, statistics.mean(of), statistics.stdev(of)) for lr, of in by_lr.items()]
            for init, by_lr in values.items()}
    return found


def draw_rates(found):
    picture = figures.new_figure(4 * len(found), 3.6)
    for (title, inits), axis in zip(found.items(), picture.subplots(1, len(found), squeeze=False)[0]):
        for init, points in inits.items():
            rates, means, deviations = zip(*points)
            color, style = figures.STYLES[init]
            axis.errorbar(rates, means, deviations, linestyle=style, color=color, label=init, capsize=2)
        axis.set(title=title, xlabel="learning rate", xscale="log", xticks=rates, xticklabels=[f"{r:g}" for r in rates])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    return picture


def strengths():
    """{product: [[accuracy, %, mean over the seeds] for each alpha] for each beta}."""
    return {product: [[100 * statistics.mean(run["final"]["accuracy"] for run in runs(f"strength/{product}{alpha}{beta:+}"))
                       for alpha in ALPHAS] for beta in BETAS] for product in ("qk", "vp")}


def draw_strengths(found):
    picture = figures.new_figure(9, 4)
    low, high = (choice(value for grid in found.values() for row in grid for value in row) for choice in (min, max))
    for (product, grid), axis in zip(found.items(), picture.subplots(1, 2)):
        image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, origin="lower")
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                axis.text(x, y, f"{value:.1f}", ha="center", va="center", color="w" if value < (low + high) / 2 else "k")
        axis.set(title={"qk": "query-key", "vp": "value-projection"}[product], xlabel="alpha, the noise",
                 ylabel="beta, the diagonal", xticks=range(len(ALPHAS)), xticklabels=ALPHAS,
                 yticks=range(len(BETAS)), yticklabels=BETAS)
    picture.colorbar(image, label="accuracy, %")
    return picture


NETWORKS = {"digits": 2e-3, "cifar10": 1e-3, "docs": 1e-3, "shakespeare": 1e-3}


def kept():
    """{network: {"init, product, when": the diagonal's mean in each layer}}, means over the seeds."""
    return {name: diagonals(name, lr) for name, lr in NETWORKS.items()}


def draw_kept(found):
    picture = figures.new_figure(3.2 * len(found), 5.5)
    for column, (name, lines) in zip(picture.subplots(2, len(found), squeeze=False).T, found.items()):
        for axis, which in zip(column, ("query-key", "value-projection")):
            axis.axhline(0, color="0.8", zorder=0)
            for key, means in lines.items():
                init, product, when = key.split(", ")
                if product == which:
                    color, style = figures.STYLES[init]
                    axis.plot(range(1, len(means) + 1), means, linestyle=style, color=color, label=f"{init}, {when}",
                              marker="o", markerfacecolor="none" if when == "before" else color)
            axis.set(title=f"{name}: {which}", xticks=range(1, len(means) + 1))
    axis.set_xlabel("layer")
    picture.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return picture


PICTURES = {  # name: (what is drawn, how)
    "curves.png": (lambda: runs("digits", init=["default", "mimetic"], lr=[2e-3], seed=[0, 1, 2]), figures.curves),
    "rates.png": (rates, draw_rates),
    "strength.png": (strengths, draw_strengths),
    "diagonals.png": (kept, draw_kept),
}


def filled(text):
    """README.md's text with its tables as the results have them."""
    return re.sub(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)",
                  lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", text, flags=re.S)


def fingerprint(drawn):
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def main():
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
    for name, (read, draw) in PICTURES.items():
        drawn = read()
        draw(drawn).savefig(ROOT / "assets" / name, metadata={"Source": fingerprint(drawn)})


if __name__ == "__main__":
    main()
