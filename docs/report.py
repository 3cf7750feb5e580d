"""From finished runs to every table and picture of README.md and docs/results.md.

    python docs/report.py add runs/text runs/cifar     finished runs into the .csv files here
    python docs/report.py pages                        the tables and pictures, from the .csv files
    python docs/report.py trained DINOV2 SMOLLM2       trained.png, from two files of weights

`add` writes three files. A run is named by its experiment (which is the name of its folder), its
init, its seed and its peak learning rate. A result is an accuracy (0 to 1) or a loss (nats per
byte). It is nan if the run diverged.

    results.csv      a row per finished run: its result after the last step
    curves.csv       a row per evaluation, for the experiments in KEPT, of seed 0
    diagonals.csv    the mean of each diagonal, untrained and trained, for the same runs, if their
                     checkpoints are in the folder

`pages` replaces what stands between <!-- table NAME --> and <!-- end --> in the two pages. Which
runs go into which table and picture is said in the lists below.
"""

import csv
import json
import math
import re
import statistics
import sys
from argparse import Namespace
from collections import defaultdict, namedtuple
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import torch

import train_lm
import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, layouts, plot
from mimetic_min.runs import STYLE, Run, difference, is_finite, spread

PAGES = [DOCS.parent / "README.md", DOCS / "results.md"]

# ---------------------------------------------------------------------------------------------
# What is in the tables and the pictures

# These two seeds choose a rate for each init. What is reported comes from other seeds.
CHOOSING = {10, 11}

INITS = ["off", "default", "xavier", "shuffled", "mimetic"]
GAINS = [("mimetic", "default"), ("mimetic", "shuffled")]

# The lines of the tables that compare inits: first cell, experiment, rate or "best", metric.
TEXT = [
    ("500 steps", "text", 4e-3, "loss"),
    ("1,000 steps, best rate", "text-rates", "best", "loss"),
    ("1,000 steps, width 256, 6 layers", "text-large", 2e-3, "loss"),
    ("Tiny Shakespeare, 2,000 steps", "shakespeare", 4e-3, "loss"),
]
POSITIONS = [
    ("sincos, unit, rate 0.001", "sincos-unit", 1e-3, "loss"),
    ("sincos, unit, rate 0.004", "sincos-unit", 4e-3, "loss"),
    ("learned, unit, rate 0.001", "learned-unit", 1e-3, "loss"),
    ("learned, unit, rate 0.004", "learned-unit", 4e-3, "loss"),
    ("sincos, gpt2, rate 0.001", "sincos-gpt2", 1e-3, "loss"),
    ("sincos, gpt2, rate 0.004", "sincos-gpt2", 4e-3, "loss"),
    ("learned, gpt2, rate 0.001", "learned-gpt2", 1e-3, "loss"),
    ("learned, gpt2, rate 0.004", "learned-gpt2", 4e-3, "loss"),
]
DIGITS = [
    ("20 epochs", "digits", 2e-3, "accuracy"),
    ("40 epochs, best rate", "digits-rates", "best", "accuracy"),
]
CIFAR = [
    ("5,000 images, 20 epochs, rate 0.001", "cifar", 1e-3, "accuracy"),
    ("the same, best rate", "cifar-rates", "best", "accuracy"),
    ("width 96, 6 layers, 3 heads, rate 0.001", "cifar-wide", 1e-3, "accuracy"),
    ("12 layers, 2 heads, rate 0.001", "cifar-deep", 1e-3, "accuracy"),
    ("50,000 images, 10 epochs, rate 0.001", "cifar-all", 1e-3, "accuracy"),
    ("50,000 images, 30 epochs, ViT-Tiny", "vit-tiny", 1e-3, "accuracy"),
]
FIRST = [
    ("text, 500 steps, rate 0.004", "text", 4e-3, "loss"),
    ("shifted digits, 20 epochs, rate 0.002", "digits", 2e-3, "accuracy"),
]
SUMMARY = [
    ("text, 1,000 steps, rate 0.004", "text-rates", 4e-3, "loss"),
    ("Tiny Shakespeare, 2,000 steps, rate 0.004", "shakespeare", 4e-3, "loss"),
    ("shifted digits, 40 epochs, rate 0.002", "digits-rates", 2e-3, "accuracy"),
    ("CIFAR-10, 5,000 images, 20 epochs, rate 0.002", "cifar-rates", 2e-3, "accuracy"),
    ("CIFAR-10, 50,000 images, 10 epochs, rate 0.001", "cifar-all", 1e-3, "accuracy"),
]

# The tables that compare inits: title, lines, a column per init, a column per difference.
INIT_TABLES = {
    "first": ("data", FIRST, INITS, GAINS[1:]),
    "summary": ("data", SUMMARY, INITS[1:], GAINS[1:]),
    "text": ("text", TEXT, INITS, GAINS),
    "positions": ("positions and stream", POSITIONS, INITS[1:], GAINS),
    "digits": ("shifted digits", DIGITS, INITS, GAINS),
    "cifar": ("CIFAR-10", CIFAR, INITS, GAINS),
}

# The tables of the parts of the method: rate, metric, and (first cell, experiment, init) per line.
# Each line is compared with the first three.
PART_TABLES = {
    "text-parts": (
        4e-3,
        "loss",
        [
            ("default", "text", "default"),
            ("shuffled", "text", "shuffled"),
            ("mimetic", "text", "mimetic"),
            ("query-key only", "text-parts", "query-key"),
            ("value-projection only", "text-parts", "value-projection"),
            ("query-key negative", "text-qk-flipped", "mimetic"),
            ("value-projection positive", "text-vp-flipped", "mimetic"),
            ("simple", "text-parts", "simple"),
            ("language", "text-parts", "language"),
        ],
    ),
    "cifar-parts": (
        1e-3,
        "accuracy",
        [
            ("default", "cifar", "default"),
            ("shuffled", "cifar", "shuffled"),
            ("mimetic", "cifar", "mimetic"),
            ("query-key only", "cifar-parts", "query-key"),
            ("value-projection only", "cifar-parts", "value-projection"),
            ("query-key negative", "cifar-qk-flipped", "mimetic"),
            ("value-projection positive", "cifar-vp-flipped", "mimetic"),
            ("simple", "cifar-parts", "simple"),
        ],
    ),
}

# The experiments whose curves and diagonals are kept, for seed 0.
KEPT = ("text", "text-rates", "cifar", "cifar-all")

# The panels of the pictures: title, experiment, rate (None: all of them), metric.
RATES = [
    ("text, 1,000 steps", "text-rates", None, "loss"),
    ("shifted digits, 40 epochs", "digits-rates", None, "accuracy"),
    ("CIFAR-10, 5,000 images, 20 epochs", "cifar-rates", None, "accuracy"),
]
CURVES = [
    ("text, rate 0.004", "text", 4e-3, "loss"),
    ("CIFAR-10, 5,000 images, rate 0.001", "cifar", 1e-3, "accuracy"),
]
DIAGONALS = [
    ("text, 1,000 steps", "text-rates", 4e-3),
    ("CIFAR-10, 50,000 images, 10 epochs", "cifar-all", 1e-3),
]
PRODUCTS = ("query-key", "value-projection")

# A table in a page.
MARKED = r"<!-- table (\S+) -->\n(?:\|.*\n)*<!-- end -->"

# ---------------------------------------------------------------------------------------------
# The .csv files

Result = namedtuple("Result", "experiment init seed lr step result")
Diagonal = namedtuple("Diagonal", "experiment init seed lr layer product untrained trained")

# What a row of each file is, and how many of its columns say which row it is.
FILES = {"results.csv": (Result, 4), "curves.csv": (Result, 5), "diagonals.csv": (Diagonal, 6)}

# The types of the columns. Others have floats.
TYPES = {"experiment": str, "init": str, "product": str, "seed": int, "step": int, "layer": int}


def read(name):
    """The rows of one of the FILES. There are none if there is no such file yet."""
    kind, _ = FILES[name]
    if not (DOCS / name).exists():
        return []
    with open(DOCS / name) as file:
        rows = list(csv.reader(file))[1:]
    types = [TYPES.get(column, float) for column in kind._fields]
    return [kind(*(type(text) for type, text in zip(types, row))) for row in rows]


def write(name, new):
    """Put new rows into one of the FILES. They replace those of the same run, step and layer."""
    kind, columns = FILES[name]
    rows = {row[:columns]: row for row in [*read(name), *new]}
    with open(DOCS / name, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kind._fields)
        writer.writerows(sorted(rows.values()))
    print(f"{name}: {len(rows)} rows")


def finished_runs(folder):
    """The finished runs of a run folder: {(init, seed, lr): [a Result per evaluation]}.

    A run is finished if it was evaluated eight times, or if it diverged.
    """
    runs = defaultdict(dict)
    with open(folder / "log.csv") as file:
        for line in list(csv.reader(file))[1:]:
            init, seed, lr, step, train_loss, result = line
            measured = {"train_loss": float(train_loss), "result": float(result)}
            result = measured["result"] if is_finite(measured) else math.nan
            row = Result(folder.name, init, int(seed), float(lr), int(step), result)
            # A run that was trained again has two rows for a step. The later one counts.
            runs[row.init, row.seed, row.lr][row.step] = row
    evaluations = {run: [*by_step.values()] for run, by_step in runs.items()}
    return {
        run: rows
        for run, rows in evaluations.items()
        if len(rows) == 8 or math.isnan(rows[-1].result)
    }


def diagonals(folder, run):
    """The rows for the layers of a run, from its checkpoint. There are none without one."""
    path = folder / f"{run}.pt"
    if not path.exists():
        return []
    # The untrained model is made again, as its script made it.
    options = Namespace(**json.loads((folder / "options.json").read_text()))
    script, Config = (train_lm, GPTConfig) if "stream" in options else (train_vit, ViTConfig)
    config = torch.load(path, map_location="cpu", weights_only=True)["config"]
    untrained = script.new_model(run, options, Config(**config)).blocks
    rows = []
    for layer, trained in enumerate(layouts.read_checkpoint(path)):
        pair = (untrained[layer].attention, trained)
        for i, product in enumerate(PRODUCTS):
            means = [round(float(plot.two_products(a)[i].diagonal().mean()), 4) for a in pair]
            rows.append(
                Diagonal(folder.name, run.init, run.seed, run.lr, layer + 1, product, *means)
            )
    return rows


def add(*folders):
    """Put the finished runs of run folders into the three files."""
    new = {name: [] for name in FILES}
    for folder in map(Path, folders):
        runs = finished_runs(folder)
        new["results.csv"] += [rows[-1] for rows in runs.values()]
        for (init, seed, lr), rows in runs.items():
            if folder.name in KEPT and seed == 0:
                new["curves.csv"] += rows
                new["diagonals.csv"] += diagonals(folder, Run(init, seed, lr))
    for name, rows in new.items():
        write(name, rows)


# ---------------------------------------------------------------------------------------------
# Tables


def select(results, experiment, lr, metric):
    """The results that are reported: {init: {seed: result}}; and the rate of each init.

    With the rate "best", each init has its own. The seeds that choose it are left out, here and in
    all tables.
    """
    found = defaultdict(lambda: defaultdict(dict))
    for row in results:
        if row.experiment == experiment:
            found[row.init][row.lr][row.seed] = row.result
    selected = defaultdict(dict)
    chosen = {}
    for init, rates in found.items():
        chosen[init] = best_rate(rates, metric) if lr == "best" else lr
        values = rates.get(chosen[init], {})
        selected[init] = {seed: value for seed, value in values.items() if seed not in CHOOSING}
    return selected, chosen


def best_rate(rates, metric):
    """The rate with the best mean over the seeds that choose, from {rate: {seed: result}}.

    None if one of these seeds is still missing at one of the rates.
    """
    if not all(CHOOSING <= values.keys() for values in rates.values()):
        return None
    means = {lr: statistics.mean(rates[lr][seed] for seed in CHOOSING) for lr in rates}
    means = {lr: mean for lr, mean in means.items() if math.isfinite(mean)}
    best = max if metric == "accuracy" else min
    return best(means, key=means.get, default=None)


def show(values, metric):
    """The mean of {seed: result} ± its standard deviation, as text. Empty without results."""
    return spread([*values.values()], STYLE[metric]) if values else ""


def show_gain(values, base, metric):
    """`values` minus `base`, both {seed: result}, as text, on the seeds that they share."""
    seeds = sorted(values.keys() & base.keys())
    if values is base or not seeds:
        return ""
    return difference([values[seed] for seed in seeds], [base[seed] for seed in seeds], metric)


def init_table(results, title, lines, inits, gains):
    """One of INIT_TABLES."""
    table = [
        [title, "experiment", "seeds", *inits, *(f"{init} minus {base}" for init, base in gains)]
    ]
    for name, experiment, lr, metric in lines:
        selected, chosen = select(results, experiment, lr, metric)
        seeds = max(len(selected[init]) for init in inits)
        cells = [name, f"`{experiment}`", str(seeds or "not measured yet")]
        for init in inits:
            text = show(selected[init], metric)
            if text and lr == "best":
                text += f" at {chosen[init]:g}"
            if text and len(selected[init]) < seeds:
                text += f" (seeds: {len(selected[init])})"
            cells.append(text)
        cells += [show_gain(selected[init], selected[base], metric) for init, base in gains]
        table.append(cells)
    return markdown(table)


def part_table(results, lr, metric, lines):
    """One of PART_TABLES."""
    # The parts have three seeds. The inits that they are compared with have more.
    results = [row for row in results if row.seed < 3]
    found = {}
    for name, experiment, init in lines:
        found[name] = select(results, experiment, lr, metric)[0][init]
    bases = [*found][:3]
    table = [["init", "seeds", "result", *(f"minus {base}" for base in bases)]]
    for name, values in found.items():
        gains = [show_gain(values, found[base], metric) for base in bases]
        seeds = str(len(values) or "not measured yet")
        table.append([name, seeds, show(values, metric), *gains])
    return markdown(table)


def markdown(table):
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def fill(text, results):
    """The text of a page, with every table made anew."""

    def make(match):
        name = match[1]
        if name in INIT_TABLES:
            table = init_table(results, *INIT_TABLES[name])
        else:
            table = part_table(results, *PART_TABLES[name])
        return f"<!-- table {name} -->\n{table}<!-- end -->"

    return re.sub(MARKED, make, text)


# ---------------------------------------------------------------------------------------------
# Pictures


def draw(name, title, xlabel, panels, rows=1):
    """Draw panels of lines, row by row, into the picture `name`.

    A panel is (title, label of the y axis, lines). A line is (label, {x: values}, style), and it
    goes through the means. A panel of which nothing is measured is left out.
    """
    panels = [panel for panel in panels if any(points for _, points, _ in panel[2])]
    figure = plot.new_figure(4 * len(panels) / rows + 0.8, 2.9 * rows + 1.2)
    grid = figure.subplots(rows, len(panels) // rows, squeeze=False)
    for axes, (panel_title, ylabel, lines) in zip(grid.flat, panels):
        for label, points, style in lines:
            # Where a run diverged, there is no point.
            means = [statistics.mean(values) for values in points.values()]
            axes.plot([f"{x:g}" for x in points], means, label=label, **style)
        axes.set(title=panel_title, ylabel=ylabel, xlabel=xlabel)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3
    )
    print(plot.save(figure, DOCS / name, title))


def init_panels(panels, rows, x):
    """For `draw`: a panel for each of `panels`, with the results against the column x of `rows`,
    and a line per init.
    """
    drawn = []
    for title, experiment, lr, metric in panels:
        ylabel, factor, _ = plot.METRICS[metric]
        lines = []
        for init in INITS:
            points = defaultdict(list)
            for row in sorted(rows, key=lambda row: getattr(row, x)):
                if row[:2] == (experiment, init) and lr in (None, row.lr):
                    points[getattr(row, x)].append(factor * row.result)
            lines.append((init, points, plot.STYLES[init]))
        drawn.append((title, ylabel, lines))
    return drawn


def diagonal_panels(panels, rows):
    """For `draw`: the means of both diagonals, a row of panels for each."""
    drawn = []
    for product, symbol in zip(PRODUCTS, plot.PRODUCTS):
        for title, *experiment_and_lr in panels:
            lines = []
            for init in ("default", "mimetic"):
                run = [row for row in rows if [row.experiment, row.lr] == experiment_and_lr]
                run = [row for row in run if (row.init, row.product) == (init, product)]
                for when, line, face in (("untrained", ":", "white"), ("trained", "-", None)):
                    points = {row.layer: [getattr(row, when)] for row in run}
                    style = {**plot.STYLES[init], "linestyle": line, "markerfacecolor": face}
                    lines.append((f"{init}, {when}", points, style))
            drawn.append((f"{title}\n{product}, {symbol}", "mean of the diagonal", lines))
    return drawn


def pages():
    """Make the pictures anew that need no weights, and the tables of the pages."""
    results = read("results.csv")
    draw(
        "rates.png",
        "Mean of the two seeds that choose a rate",
        "peak learning rate",
        init_panels(RATES, [row for row in results if row.seed in CHOOSING], "lr"),
    )
    draw(
        "curves.png",
        "Five inits, one seed",
        "training steps",
        init_panels(CURVES, read("curves.csv"), "step"),
    )
    draw(
        "diagonals.png",
        "Both diagonals before and after the training, one seed",
        "layer",
        diagonal_panels(DIAGONALS, read("diagonals.csv")),
        rows=2,
    )
    for page in PAGES:
        page.write_text(fill(page.read_text(), results))
        print(page)


@torch.no_grad()
def trained(dinov2, smollm2):
    """Draw both products in two trained networks, and in new ones of the same shapes: trained.png.

    `dinov2` and `smollm2` are the weight files of facebook/dinov2-small and of
    HuggingFaceTB/SmolLM2-135M-Instruct. W_Q W_K^T is the mean of the heads. Prints the mean of each
    diagonal, too.
    """
    # matplotlib needs Pillow, too.
    from PIL import Image

    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=384, depth=12, heads=6)).mimetic_init_()
    gpt = GPT(GPTConfig(dim=576, depth=30, heads=9)).mimetic_init_()
    networks = [
        ("trained: DINOv2 ViT-S/14", layouts.read_checkpoint(dinov2, heads=6), (3, 7, 11)),
        ("trained: SmolLM2-135M", layouts.read_checkpoint(smollm2, heads=9), (6, 16, 26)),
        ("new: ViT.mimetic_init_", [block.attention for block in vit.blocks], (3, 7, 11)),
        ("new: GPT.mimetic_init_", [block.attention for block in gpt.blocks], (6, 16, 26)),
    ]
    figure = plot.new_figure(9.6, 7.6)
    for part, (name, attentions, layers) in zip(figure.subfigures(2, 2).flat, networks):
        part.suptitle(name, fontweight="bold")
        grid = part.subplots(2, 3)
        for i, line in enumerate(grid):
            # The weights of the networks differ in size. In standard deviations, they compare.
            matrices = [plot.two_products(attention)[i] for attention in attentions]
            matrices = [matrix / matrix.std() for matrix in matrices]
            means = [f"{matrix.diagonal().mean():.1f}" for matrix in matrices]
            print(f"{name}, {PRODUCTS[i]}, layer by layer: {' '.join(means)}")
            line[0].set_ylabel(plot.PRODUCTS[i])
            for axes, layer in zip(line, layers):
                corner = matrices[layer - 1][: plot.CORNER, : plot.CORNER]
                axes.imshow(corner, "cividis", vmin=-6, vmax=6, interpolation="nearest")
                axes.set(title=f"layer {layer}", xlabel=means[layer - 1], xticks=[], yticks=[])
    path = plot.save(
        figure,
        DOCS / "trained.png",
        "Light is positive and dark is negative. Below each matrix: the mean of its diagonal.\n"
        "The unit is the standard deviation of its entries. Colors end at ±6.",
    )
    # With 256 colors, the file is less than half as large.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(path)


COMMANDS = {"add": add, "pages": pages, "trained": trained}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    except (TypeError, ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")
