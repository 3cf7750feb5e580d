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
from experiments import ALPHAS, BETAS, DOCS_PART, EXPERIMENTS, PART, RESULTS  # noqa: E402
from mimetic_min import figures, report  # noqa: E402

CONTROLS, THREE = ("default", "noise"), ("default", "noise", "mimetic")
TRANSPOSED = "`W_V` and `W_proj` transposed"


# ---- what is read

def runs(name, label=None, **chosen):
    """The runs of an experiment, of which only those with a `lr`, `seed` or `init` in `chosen`, as of init `label`."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return [run | {"init": label or run["init"]} for run in found if all(run[key] in chosen[key] for key in chosen)]


def docs(**chosen):
    """The grid on the Python reference, whose controls were run beside the negative query-key."""
    return runs("docs-negative", init=CONTROLS, **chosen) + runs("docs", **chosen)


def diagonals(lr, **names):
    """{"init, product, when": the diagonal's mean in each layer, as a mean over the seeds} of init=experiment."""
    found = {}
    for init, name in names.items():
        rows = json.loads((RESULTS / f"{name}-diagonals.json").read_text())
        rows = [row for row in rows if (row["init"], row["lr"]) == (init, lr)]
        found |= {f"{init}, {key}": [*map(statistics.mean, zip(*(row[key] for row in rows)))]
                  for key in rows[0] if ", " in key}
    return found


# ---- tables

def command(name):
    return f"    python {EXPERIMENTS[name]}\n\n"


def printed(runs):
    """The table that a script prints at its end."""
    return "".join(f"    {line}".rstrip() + "\n" for line in report.table(runs))


def markdown(head, *rows):
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows)).replace("  no ", ", no ")


def seeds(runs):
    """What stands below a table: which seeds it is of, and how the rates were chosen."""
    _, choosing, reporting = report.best(runs)
    rates = sorted({run["lr"] for run in runs})
    chosen = f"; each rate is the best of {report.listed(rates)} by seeds {report.listed(choosing)}" * (len(rates) > 1)
    return f"\nMean ± standard deviation over seeds {report.listed(reporting)}{chosen}.\n"


def unit(runs):
    """(title, decimals) of what the runs are compared by."""
    title, unit, _, decimals, _ = report.METRICS[report.metric_of(runs[0]["final"])]
    return f"{title}, {unit}", decimals


def of_inits(*runs):
    """A row an init, each at its best rate."""
    runs = sum(runs, [])
    (title, decimals), rows = unit(runs), report.best(runs)[0]
    return markdown(["", "rate", title, *(f"against {init}" for init in CONTROLS)], *(
        [init, f"{lr:g}", report.spread(values, decimals),
         *(report.gain(values, rows[base][1], decimals) if init != base else "" for base in CONTROLS)]
        for init, (lr, values) in rows.items())) + seeds(runs)


def of_settings(settings):
    """A row for each of {setting: runs}: default, noise and mimetic; the best of several rates in brackets."""
    rows = []
    for setting, runs in settings.items():
        best, decimals, several = report.best(runs)[0], unit(runs)[1], len({run["lr"] for run in runs}) > 1
        cells = {init: report.spread(best[init][1], decimals) + f" ({best[init][0]:g})" * several for init in THREE}
        gains = [report.gain(best["mimetic"][1], best[init][1], decimals) for init in CONTROLS]
        rows.append([setting, *cells.values(), *gains, str(len(best["mimetic"][1]))])
    return markdown(["", *THREE, "mimetic against default", "mimetic against noise", "seeds"], *rows)


def by_rate(every):
    rates = sorted({run["lr"] for run in every})
    return of_settings({f"rate {lr:g}": [run for run in every if run["lr"] == lr] for lr in rates})


def steps_to_default(name):
    """At which evaluation the mean of an init's reported runs, at its best rate, reaches the default's last one."""
    best, _, reporting = report.best(runs(name))
    curves = {init: [(points[0]["step"], statistics.mean(point["accuracy"] for point in points)) for points in zip(
        *(run["curve"] for run in runs(name, init=[init], lr=[lr], seed=reporting)))] for init, (lr, _) in best.items()}
    goal = curves["default"][-1][1]
    reached = [next((f"{step:,}" for step, mean in curve if mean >= goal), "not reached") for curve in curves.values()]
    return markdown(["", *curves], ["steps", *reached])


SIZES = (500, 200, 100)


def fewer():
    return {f"digits, {n} images": runs(f"images-{n}") for n in SIZES}


def less_data():
    return "".join(command(f"images-{n}") for n in SIZES) + of_settings(fewer()) + seeds(runs(f"images-{SIZES[0]}"))


def answers():
    return of_settings({
        "digits, 1,000 images": runs("digits"), **fewer(), "CIFAR-10, 5,000 images": runs("cifar10"),
        "Python reference": docs(), "Tiny Shakespeare": runs("shakespeare")})


def variant(name, what, **chosen):
    """The mimetic runs of an experiment, which are called by what they are and the options that make them so."""
    words = EXPERIMENTS[name].split("mimetic")[1].strip()
    return runs(name, f"{what}, `{words}`", init=["mimetic"], **chosen)


def parts():
    return f"    python {PART} ...\n\n" + of_inits(
        runs("digits", init=THREE, lr=[2e-3, 4e-3]),
        variant("qk-alone", "query-key alone"),
        variant("vp-alone", "value-projection alone"),
        variant("both-flipped", "both flipped"),
        variant("qk-alone-flipped", "query-key alone, flipped"),
        variant("vp-alone-flipped", "value-projection alone, flipped"),
        runs("transposed", TRANSPOSED))


def docs_parts():
    same = dict(lr=[4e-3], seed=[3, 4, 5])
    return f"    python {DOCS_PART} mimetic ...\n\n" + of_inits(
        docs(**same),
        variant("docs-qk-alone", "query-key alone"),
        variant("docs-vp-alone", "value-projection alone"),
        variant("docs-negative", "query-key flipped", **same),
        variant("docs-vp-flipped", "value-projection flipped"),
        variant("docs-ramped", "value-projection from negative to positive"),
        variant("docs-paper", "the paper's signs"),
        variant("docs-vision", "vision's strengths"))


def positions():
    return command("learned") + of_settings({
        "sincos": runs("digits", init=THREE, lr=[2e-3, 4e-3]), "learned": runs("learned")})


def docs_positions():
    return command("docs-sincos") + of_settings({
        "learned": docs(lr=[4e-3], seed=[3, 4, 5]), "sincos": runs("docs-sincos")})


TABLES = {
    "vit": lambda: printed(runs("digits", init=THREE, lr=[2e-3], seed=[0])),
    "vit-seeds": lambda: printed(runs("digits", init=THREE, lr=[2e-3], seed=[0, 1, 2])),
    "lm": lambda: printed(docs(lr=[1e-3], seed=[0])),
    "lm-seeds": lambda: printed(docs(lr=[1e-3], seed=[0, 1, 2])),
    "answers": answers,
    "digits": lambda: command("digits") + of_inits(runs("digits")),
    "digits-steps": lambda: steps_to_default("digits"),
    "digits-rates": lambda: by_rate(runs("digits", init=THREE)),
    "parts": parts,
    "less-data": less_data,
    "positions": positions,
    "cifar10": lambda: command("cifar10") + of_inits(
        runs("cifar10"), runs("cifar10-transposed", TRANSPOSED)),
    "docs": lambda: command("docs-negative") + command("docs") + by_rate(docs()),
    "shakespeare": lambda: command("shakespeare") + by_rate(runs("shakespeare")),
    "docs-parts": docs_parts,
    "docs-positions": docs_positions,
}


# ---- pictures

def rates():
    """{title: {init: [(rate, mean, deviation)]}} of each experiment with a grid of rates."""
    found = {}
    for title, every in (("digits", runs("digits")), ("Python reference", docs()),
                         ("Tiny Shakespeare", runs("shakespeare"))):
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
    def accuracy(name):
        return 100 * statistics.mean(run["final"]["accuracy"] for run in runs(name))
    return {product: [[accuracy(f"strength/{product}{alpha}{beta:+}") for alpha in ALPHAS] for beta in BETAS]
            for product in ("qk", "vp")}


def draw_strengths(found):
    picture = figures.new_figure(9, 4)
    low, high = (choice(value for grid in found.values() for row in grid for value in row) for choice in (min, max))
    for (product, grid), axis in zip(found.items(), picture.subplots(1, 2)):
        image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, origin="lower")
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                color = "w" if value < (low + high) / 2 else "k"
                axis.text(x, y, f"{value:.1f}", ha="center", va="center", color=color)
        axis.set(title={"qk": "query-key", "vp": "value-projection"}[product], xlabel="alpha, the noise",
                 ylabel="beta, the diagonal", xticks=range(len(ALPHAS)), xticklabels=ALPHAS,
                 yticks=range(len(BETAS)), yticklabels=BETAS)
    picture.colorbar(image, label="accuracy, %")
    return picture


def kept():
    """{network: {"init, product, when": the diagonal's mean in each layer}}, means over the seeds."""
    return {"digits": diagonals(2e-3, default="digits", mimetic="digits"),         # at the rate of each command
            "CIFAR-10": diagonals(1e-3, default="cifar10", mimetic="cifar10"),
            "Python reference": diagonals(1e-3, default="docs-negative", mimetic="docs"),
            "Shakespeare": diagonals(1e-3, default="shakespeare", mimetic="shakespeare")}


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
            axis.set(title=f"{name}: {which}", xlabel="layer", xticks=range(1, len(means) + 1))
    picture.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return picture


PICTURES = {  # name: (what is drawn, how)
    "curves.png": (lambda: runs("digits", init=THREE, lr=[2e-3], seed=[0, 1, 2]), figures.curves),
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
