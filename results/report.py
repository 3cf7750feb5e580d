"""Makes the tables and pictures of results/README.md and README.md out of the raw results.

    python results/report.py

A table stands between two comments, <!-- NAME --> and <!-- end -->. What is between them is written
anew. A test holds both files and the pictures to the results. Pictures need matplotlib.

An experiment may be unfinished: then only the seeds that all of its starts and rates have are used.
"""

import hashlib
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "results/raw"
PAGES = [ROOT / "README.md", ROOT / "results/README.md"]
sys.path.insert(0, str(ROOT))

from mimetic_min.lab import figures, table
from results.experiments import CHOICES, EXPERIMENTS, QK_ALPHAS, QK_BETAS, VP_ALPHAS, VP_BETAS

# ---------------------------------------------------------------------------------------------
# Reading


def load(name):
    """The runs of an experiment, of the seeds that are complete."""
    path = RAW / f"{name}.json"
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    config = results["config"]
    per_seed = len(config["init"]) * len(config["lr"])
    runs = results["runs"]
    seeds = [run["seed"] for run in runs]
    return [run for run in runs if seeds.count(run["seed"]) == per_seed]


def select(runs, **wanted):
    """The runs whose init, lr or seed are among those that are wanted."""
    return [run for run in runs if all(run[key] in values for key, values in wanted.items())]


def metric_of(runs):
    return table.METRICS[table.metric_of_runs(runs)]


def values_of(runs, init, lr):
    """The results of a start at a rate, in the unit of the metric, one per seed."""
    best, _, _ = table.best_of(select(runs, init=[init], lr=[lr]))
    return best[init].values


# ---------------------------------------------------------------------------------------------
# Writing


def markdown(rows):
    """A table in Markdown. The first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def command(name):
    """The command line of an experiment, as a block."""
    return f"    python {EXPERIMENTS[name]}\n"


def seeds_in_words(seeds):
    return f"Seed{'s' if len(seeds) > 1 else ''} {table.listed(seeds)}"


def seeds_line(runs):
    """Which seeds chose the rates, and which ones are reported."""
    _, choosing, reported = table.best_of(runs)
    rates = sorted({run["lr"] for run in runs})
    text = seeds_in_words(reported)
    if len(rates) > 1:
        chosen_on = seeds_in_words(choosing).lower()
        text += f"; each rate is the best of {table.listed(rates)} on {chosen_on}"
    return text + "."


def starts_table(name):
    """Each start of an experiment at its best rate, and its gains over default and noise."""
    runs = load(name)
    if not runs:
        return command(name) + "\nNot measured yet."
    best, _, _ = table.best_of(runs)
    metric = metric_of(runs)
    others = [other for other in ("default", "noise") if other in best]
    header = ["start", "lr", f"{metric.title}, {metric.unit}"]
    rows = [header + [f"against {other}" for other in others]]
    for init, of_init in best.items():
        row = [init, f"{of_init.lr:g}", table.spread(of_init.values, metric.decimals)]
        for other in others:
            same = init == other
            gain = table.gain(of_init.values, best[other].values, metric.decimals)
            row.append("" if same else gain)
        rows.append(row)
    return f"{command(name)}\n{markdown(rows)}\n\n{seeds_line(runs)}"


def rates_table(name):
    """Each start at each rate, over all seeds."""
    runs = load(name)
    if not runs:
        return "Not measured yet."
    metric = metric_of(runs)
    rates = sorted({run["lr"] for run in runs})
    rows = [["start", *(f"{lr:g}" for lr in rates)]]
    for init in dict.fromkeys(run["init"] for run in runs):
        cells = [table.spread(values_of(runs, init, lr), metric.decimals) for lr in rates]
        rows.append([init, *cells])
    seeds = sorted({run["seed"] for run in runs})
    return f"{markdown(rows)}\n\n{seeds_in_words(seeds)}; {metric.title} in {metric.unit}."


def steps_table(name):
    """After how many steps the mean of each start reaches the final mean of default."""
    runs = load(name)
    if not runs:
        return "Not measured yet."
    best, _, reported = table.best_of(runs)
    key = table.metric_of_runs(runs)
    higher_is_better = table.METRICS[key].higher_is_better
    curves = {}
    for init, of_init in best.items():
        chosen = select(runs, init=[init], lr=[of_init.lr], seed=reported)
        points = zip(*(run["curve"] for run in chosen))
        curves[init] = [
            (point[0]["step"], statistics.mean(one[key] for one in point)) for point in points
        ]
    goal = curves["default"][-1][1]
    row = []
    for curve in curves.values():
        reached = [
            step for step, mean in curve if (mean >= goal) == higher_is_better or mean == goal
        ]
        row.append(f"{reached[0]:,}" if reached else "not reached")
    return markdown([["start", *curves], ["steps", *row]])


def parts_table(base, lr, parts):
    """Variants of the mimetic start beside the starts of the experiment `base`, all at one rate.

    `parts` are (what it is, the experiment, the start in it).
    """
    base_runs = select(load(base), lr=[lr])
    rows_of = [(init, base_runs, init) for init in ("default", "xavier", "noise", "mimetic")]
    rows_of += [(what, load(name), init) for what, name, init in parts]
    # Only seeds that every row has.
    seeds = {run["seed"] for run in base_runs}
    for _, runs, _ in rows_of:
        if runs:
            seeds &= {run["seed"] for run in runs}
    seeds = sorted(seeds)
    if not seeds:
        return "Not measured yet."
    metric = metric_of(base_runs)

    def values(runs, init):
        chosen = select(runs, init=[init], lr=[lr], seed=seeds)
        return values_of(chosen, init, lr) if chosen else None

    noise = values(base_runs, "noise")
    mimetic = values(base_runs, "mimetic")
    header = ["start", f"{metric.title}, {metric.unit}", "against noise", "against mimetic"]
    rows = [header]
    for what, runs, init in rows_of:
        found = values(runs, init)
        if found is None:
            rows.append([what, "not measured yet", "", ""])
            continue
        row = [what, table.spread(found, metric.decimals)]
        for name, other in (("noise", noise), ("mimetic", mimetic)):
            row.append("" if what == name else table.gain(found, other, metric.decimals))
        rows.append(row)
    return f"{markdown(rows)}\n\nAll at a rate of {lr:g}, seeds {table.listed(seeds)}."


SHIFTED_PARTS = [
    ("query-key only", "shifted-alone", "query-key"),
    ("value-projection only", "shifted-alone", "value-projection"),
    ("query-key flipped", "shifted-qk-flipped", "mimetic"),
    ("value-projection flipped", "shifted-vp-flipped", "mimetic"),
    ("both flipped", "shifted-both-flipped", "mimetic"),
    ("W_V and W_proj transposed", "shifted-transposed", "mimetic"),
    ("noise of mimetic's size", "shifted-matched", "noise"),
]

DOCS_PARTS = [
    ("off", "docs-alone", "off"),
    ("simple", "docs-alone", "simple"),
    ("language", "docs-alone", "language"),
    ("query-key only", "docs-alone", "query-key"),
    ("value-projection only", "docs-alone", "value-projection"),
    ("query-key flipped", "docs-qk-flipped", "mimetic"),
    ("value-projection flipped", "docs-vp-flipped", "mimetic"),
    ("both flipped", "docs-both-flipped", "mimetic"),
    ("value-projection, first to last layer: -0.4 to 0.4", "docs-ramp", "mimetic"),
    ("W_V and W_proj transposed", "docs-transposed", "mimetic"),
    ("noise of mimetic's size", "docs-matched", "noise"),
    ("noise with the alphas of vision", "docs-vision", "noise"),
    ("mimetic with the alphas of vision", "docs-vision", "mimetic"),
]


def choices_table():
    """The strengths that the GPT's defaults were chosen from."""
    rows = [["query-key alpha, beta", "value-projection alpha, beta", "loss, nats per byte"]]
    for n, (qk_alpha, qk_beta, vp_alpha, vp_beta) in enumerate(CHOICES, 1):
        runs = load(f"choice-{n}")
        found = table.spread(values_of(runs, "mimetic", 0.004), 3) if runs else "not measured yet"
        rows.append([f"{qk_alpha}, {qk_beta}", f"{vp_alpha}, {vp_beta}", found])
    return f"{command('choice-1')}\n{markdown(rows)}\n\nA rate of 0.004, seeds 10, 11."


ANSWERS = {
    "shifted": "shifted digits, 1,000 images",
    "shifted-500": "shifted digits, 500 images",
    "shifted-200": "shifted digits, 200 images",
    "digits": "digits, not shifted",
    "cifar-short": "CIFAR-10 (JPEG copy), 5,000 images, 10 epochs",
    "cifar-middle-0.4": "CIFAR-10 (JPEG copy), 5,000 images, 20 epochs, query-key at 0.4",
    "cifar": "CIFAR-10 (JPEG copy), 5,000 images, 60 epochs",
    "cifar-all": "CIFAR-10 (JPEG copy), 50,000 images, 20 epochs",
    "docs": "Python reference",
    "docs-learned": "Python reference, learned positions",
    "shakespeare": "Tiny Shakespeare",
    "shakespeare-learned": "Tiny Shakespeare, learned positions",
    "large": "Python reference, 4.8 million weights",
}

# The rows of the README. results/README.md has all.
README_ANSWERS = [
    "shifted",
    "cifar-middle-0.4",
    "cifar",
    "docs",
    "shakespeare",
    "large",
    "docs-learned",
]


def answers_table(names):
    """How much it helps on what: each start at its best rate, mimetic against each control.

    A gain is in brackets where no difference is seen. One row has many cells, so they are short.
    """
    starts = ("off", "default", "xavier", "noise", "mimetic")
    against = ["against default", "against xavier", "against noise"]
    rows = [["data", *starts, *against, "seeds shown", "experiment"]]
    for name in names:
        runs = load(name)
        if not runs:
            continue
        best, _, reported = table.best_of(runs)
        metric = metric_of(runs)
        row = [f"{ANSWERS[name]}, {metric.unit}"]
        for init in starts:
            cell = ""
            if init in best:
                cell = table.spread(best[init].values, metric.decimals)
            row.append(cell)
        for other in ("default", "xavier", "noise"):
            gain = ""
            if other in best:
                pair = best["mimetic"].values, best[other].values
                gain = table.gain(*pair, metric.decimals, unclear="({})")
            row.append(gain)
        row += [str(len(reported)), f"`{name}`"]
        rows.append(row)
    return markdown(rows)


def printed(name, **chosen):
    """The closing table that a script prints, as a block."""
    runs = select(load(name), **chosen)
    if not runs:
        return "    not measured yet"
    return "\n".join(("    " + line).rstrip() for line in table.closing_table(runs).split("\n"))


VIT_INITS = ["off", "default", "noise", "mimetic"]
LM_INITS = ["default", "xavier", "noise", "mimetic"]

TABLES = {
    "train_vit": lambda: printed("shifted", init=VIT_INITS, lr=[0.002], seed=[0, 1, 2]),
    "train_lm": lambda: printed("docs", init=LM_INITS, lr=[0.004], seed=[0, 1, 2]),
    "shifted-default": lambda: printed("shifted-default"),
    "docs-default": lambda: printed("docs-default"),
    "answers": lambda: answers_table(README_ANSWERS),
    "all-answers": lambda: answers_table(ANSWERS),
    "shifted": lambda: starts_table("shifted"),
    "shifted-rates": lambda: rates_table("shifted"),
    "shifted-steps": lambda: steps_table("shifted"),
    "shifted-500": lambda: starts_table("shifted-500"),
    "shifted-200": lambda: starts_table("shifted-200"),
    "shifted-parts": lambda: parts_table("shifted", 0.002, SHIFTED_PARTS),
    "shifted-learned": lambda: starts_table("shifted-learned"),
    "digits": lambda: starts_table("digits"),
    "cifar": lambda: starts_table("cifar"),
    "cifar-short": lambda: starts_table("cifar-short"),
    "cifar-middle-04": lambda: starts_table("cifar-middle-0.4"),
    "cifar-middle-04-slow": lambda: starts_table("cifar-middle-0.4-slow"),
    "cifar-middle-04-fast": lambda: starts_table("cifar-middle-0.4-fast"),
    "cifar-04": lambda: starts_table("cifar-0.4"),
    "docs": lambda: starts_table("docs"),
    "docs-rates": lambda: rates_table("docs"),
    "choices": choices_table,
    "docs-learned": lambda: starts_table("docs-learned"),
    "docs-learned-small": lambda: starts_table("docs-learned-small"),
    "docs-parts": lambda: parts_table("docs", 0.004, DOCS_PARTS),
    "shakespeare": lambda: starts_table("shakespeare"),
    "shakespeare-learned": lambda: starts_table("shakespeare-learned"),
    "shakespeare-rates": lambda: rates_table("shakespeare"),
    "shakespeare-learned-rates": lambda: rates_table("shakespeare-learned"),
    "docs-learned-rates": lambda: rates_table("docs-learned"),
    "large": lambda: starts_table("large"),
}


def filled(text):
    """The text of a page, with its tables as the results have them."""

    def fill(match):
        return f"<!-- {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


# ---------------------------------------------------------------------------------------------
# Pictures


def rates_data():
    """{title: {start: [(lr, mean, standard deviation)]}} of the experiments with many rates."""
    found = {}
    for title, name in (("shifted digits", "shifted"), ("Python reference", "docs")):
        runs = load(name)
        if not runs:
            continue
        metric = metric_of(runs)
        lines = {}
        for init in dict.fromkeys(run["init"] for run in runs):
            lines[init] = []
            for lr in sorted({run["lr"] for run in runs}):
                values = values_of(runs, init, lr)
                if all(abs(value) < 1e6 for value in values) and len(values) > 1:
                    point = (lr, statistics.mean(values), statistics.stdev(values))
                    lines[init].append(point)
        found[f"{title}: {metric.title}, {metric.unit}"] = lines
    return found


def diagonals_data():
    """For each network and product, the mean diagonal in each layer, over the seeds.

    {network: {product: {"default, start": [mean in layer 1, ...]}}}
    """
    found = {}
    wanted = (("shifted digits", "shifted", 0.002), ("Python reference", "docs", 0.004))
    for title, name, lr in (*wanted, ("CIFAR-10 (JPEG copy), 60 epochs", "cifar", 0.001)):
        products = {}
        for init in ("default", "noise", "mimetic"):
            runs = select(load(name), init=[init], lr=[lr])
            runs = [run for run in runs if "diagonals_start" in run]
            for when in ("start", "trained") if runs else ():
                for product in ("query-key", "value-projection"):
                    layers = zip(*(run[f"diagonals_{when}"][product] for run in runs))
                    means = [statistics.mean(layer) for layer in layers]
                    products.setdefault(product, {})[f"{init}, {when}"] = means
        if products:
            found[title] = products
    return found


def strengths_data():
    """{product: rows of losses, one per beta, one column per alpha}. None is not measured."""

    def loss(name):
        runs = load(name)
        return runs[0]["final"]["loss"] if runs and "final" in runs[0] else None

    scales = (("qk", QK_ALPHAS, QK_BETAS), ("vp", VP_ALPHAS, VP_BETAS))
    found = {}
    for product, alphas, betas in scales:
        found[product] = [
            [loss(f"strength-{product}{alpha}{beta:+}") for alpha in alphas] for beta in betas
        ]
    is_measured = any(loss is not None for rows in found.values() for row in rows for loss in row)
    return found if is_measured else {}


def draw_rates(data):
    """Each start's result against the rate, one panel per data set."""
    figure = figures.new_figure(5 * len(data) + 1, 4)
    panels = figure.subplots(1, len(data), squeeze=False)[0]
    for axes, (title, lines) in zip(panels, data.items()):
        for init, points in lines.items():
            if points:
                rates, means, deviations = zip(*points)
                color, dash = figures.STYLES[init]
                look = {"color": color, "linestyle": dash, "capsize": 2}
                axes.errorbar(rates, means, deviations, label=init, **look)
        axes.set_title(title)
        axes.set_xlabel("learning rate")
        axes.set_xscale("log")
        rates = sorted({lr for points in lines.values() for lr, _, _ in points})
        axes.set_xticks(rates, [f"{lr:g}" for lr in rates])
        axes.minorticks_off()
    # The first panel has every start. The legend stands beside the last, where it covers nothing.
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    return figure


def draw_strengths(data):
    """The loss for each alpha and beta of one product, with the other product at its default."""
    figure = figures.new_figure(9, 4.4)
    names = {"qk": "query-key", "vp": "value-projection"}
    scales = {"qk": (QK_ALPHAS, QK_BETAS), "vp": (VP_ALPHAS, VP_BETAS)}
    known = [loss for rows in data.values() for row in rows for loss in row if loss is not None]
    low = min(known)
    # Where alpha and beta are both 0, the loss is so large that the others would have one color.
    high = low + 0.3
    for axes, (product, rows) in zip(figure.subplots(1, 2), data.items()):
        numbers = [[float("nan") if loss is None else loss for loss in row] for row in rows]
        image = axes.imshow(numbers, cmap="cividis_r", vmin=low, vmax=high, origin="lower")
        for y, row in enumerate(rows):
            for x, loss in enumerate(row):
                if loss is not None:
                    color = "black" if loss < (low + high) / 2 else "white"
                    axes.text(x, y, f"{loss:.2f}", ha="center", va="center", color=color)
        alphas, betas = scales[product]
        axes.set_title(names[product])
        axes.set_xlabel("alpha, the random part")
        axes.set_ylabel("beta, the diagonal")
        axes.set_xticks(range(len(alphas)), alphas)
        axes.set_yticks(range(len(betas)), betas)
    figure.colorbar(image, label="validation loss, nats per byte", extend="max")
    return figure


def draw_diagonals(data):
    """The mean of the diagonals by layer, at the start (hollow) and after the training (filled)."""
    figure = figures.new_figure(3.6 * len(data), 6)
    for axes_pair, (network, products) in zip(
        figure.subplots(2, len(data), squeeze=False).T, data.items()
    ):
        for axes, (product, lines) in zip(axes_pair, products.items()):
            axes.axhline(0, color="0.8", zorder=0)
            for label, means in lines.items():
                init, when = label.split(", ")
                color, dash = figures.STYLES[init]
                face = "none" if when == "start" else color
                look = {"color": color, "linestyle": dash, "marker": "o", "markerfacecolor": face}
                layers = range(1, len(means) + 1)
                axes.plot(layers, means, label=label, **look)
            axes.set_title(f"{network}:\n{product}", fontsize=10)
            axes.set_xlabel("layer")
            axes.set_xticks(layers)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


PICTURES = {
    "rates.png": (rates_data, draw_rates),
    "strengths.png": (strengths_data, draw_strengths),
    "diagonals.png": (diagonals_data, draw_diagonals),
}


def fingerprint(data):
    """Tells what a picture was drawn from. It stands in the file of the picture."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def main():
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    for name, (read, draw) in PICTURES.items():
        data = read()
        if data:
            metadata = {"Source": fingerprint(data)}
            draw(data).savefig(ROOT / "results" / name, metadata=metadata)


if __name__ == "__main__":
    main()
