"""From finished runs to every table and picture of README.md and docs/.

    python docs/report.py add runs/text runs/cifar     finished runs into the .csv files here
    python docs/report.py pages                        the tables and pictures, from the .csv files
    python docs/report.py streams                      streams.png, from new models
    python docs/report.py trained DINOV2 SMOLLM2       trained.png, from two published weight files

`add` writes two files. A run is identified by its experiment (the name of its folder), its init,
its seed and its peak learning rate. A result is an accuracy (0 to 1) or a loss (nats per byte), or
nan if the run diverged.

    results.csv      a row per finished run: its result after the last step
    curves.csv       a row per evaluation, for the runs that curves.png draws

`pages` replaces everything between <!-- table NAME --> and <!-- end --> in the pages. The lists
below say which runs go into which table and picture.
"""

import csv
import math
import re
import statistics
import sys
from collections import defaultdict, namedtuple
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import torch

import train_lm
import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, linear, plot
from mimetic_min.runs import Run
from mimetic_min.table import STYLE, difference, is_finite, spread

PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]

# ---------------------------------------------------------------------------------------------
# What is in the tables and the pictures

# These two seeds are for choosing the rate of an init or the strengths of an experiment. Since each
# choice favors the seeds that made it, results are reported only from other seeds.
CHOOSING = {10, 11}

# An experiment that varies another one, and trains only the inits that change. Tables borrow the
# others, at the seeds that both have trained.
VARIES = {
    "text-parts": "text",
    "text-qk-flipped": "text",
    "text-vp-flipped": "text",
    "cifar-wide-quarter": "cifar-wide",
    "cifar-deep-quarter": "cifar-deep",
    "text-deep-quarter": "text-deep",
}

# A line of a table: its first cell, experiment, rate and metric. With the rate "best", each init
# has its own. The column "minus mimetic" is about the `init` of the line.
Line = namedtuple("Line", "name experiment lr metric init", defaults=[""])

INITS = ["off", "default", "xavier", "shuffled", "mimetic"]
GAINS = ["mimetic minus default", "mimetic minus shuffled"]
COMPARED = [*INITS[1:], "mimetic minus shuffled"]

# The tables: the title of the first column, the other columns, the lines. Every column is named for
# what it shows, and `cell` reads these names.
TABLES = {
    "summary": (
        "data",
        ["default", "shuffled", "mimetic", "seeds", "command"],
        [
            Line("text, 500 steps, rate 0.004", "text", 4e-3, "loss"),
            Line("CIFAR-10, 4 layers, rate 0.002", "cifar-rates", 2e-3, "accuracy"),
            Line("CIFAR-10, 12 layers, rate 0.001", "cifar-deep", 1e-3, "accuracy"),
            Line("the same, value-projection quartered", "cifar-deep-quarter", 1e-3, "accuracy"),
            Line("shifted digits, rate 0.002", "digits", 2e-3, "accuracy"),
        ],
    ),
    "shares": (
        "experiment",
        ["share of the gain over default", "share of the gain over xavier"],
        [
            Line("`text`", "text", 4e-3, "loss"),
            Line("`text-rates`", "text-rates", "best", "loss"),
            Line("`text-long`", "text-long", 4e-3, "loss"),
            Line("`text-large`", "text-large", 2e-3, "loss"),
            Line("`shakespeare`", "shakespeare", 4e-3, "loss"),
            Line("`cifar`", "cifar", 1e-3, "accuracy"),
            Line("`cifar-rates`", "cifar-rates", "best", "accuracy"),
            Line("`cifar-learned`", "cifar-learned", 1e-3, "accuracy"),
            Line("`cifar-wide`", "cifar-wide", 1e-3, "accuracy"),
            Line("`cifar-wide-quarter`", "cifar-wide-quarter", 1e-3, "accuracy"),
            Line("`cifar-all`", "cifar-all", 1e-3, "accuracy"),
            Line("`cifar-deep-quarter`", "cifar-deep-quarter", 1e-3, "accuracy"),
            Line("`text-deep`", "text-deep", 2e-3, "loss"),
            Line("`text-deep-quarter`", "text-deep-quarter", 2e-3, "loss"),
        ],
    ),
    "text": (
        "text",
        ["experiment", *COMPARED],
        [
            Line("500 steps", "text", 4e-3, "loss"),
            Line("1,000 steps, best rate", "text-rates", "best", "loss"),
            Line("4,000 steps", "text-long", 4e-3, "loss"),
            Line(
                "1,000 steps, width 256, 6 layers, 8 heads, context 128, rate 0.002",
                "text-large",
                2e-3,
                "loss",
            ),
            Line("Tiny Shakespeare, 2,000 steps", "shakespeare", 4e-3, "loss"),
        ],
    ),
    "cifar": (
        "CIFAR-10",
        ["experiment", *COMPARED],
        [
            Line("20 epochs", "cifar", 1e-3, "accuracy"),
            Line("20 epochs, best rate", "cifar-rates", "best", "accuracy"),
            Line("100 epochs", "cifar-long", 1e-3, "accuracy"),
            Line("learned positions", "cifar-learned", 1e-3, "accuracy"),
            Line("50,000 images, 10 epochs, batches of 100", "cifar-all", 1e-3, "accuracy"),
        ],
    ),
    "digits": (
        "shifted digits",
        ["experiment", *COMPARED],
        [
            Line("20 epochs", "digits", 2e-3, "accuracy"),
            Line("40 epochs, best rate", "digits-rates", "best", "accuracy"),
        ],
    ),
    "positions": (
        "positions, stream, rate",
        GAINS,
        [
            Line(f"{position}, {stream}, {lr}", f"{position}-{stream}", lr, "loss")
            for lr in (1e-3, 4e-3)
            for stream in ("unit", "gpt2")
            for position in ("sincos", "learned")
        ],
    ),
    "deep": (
        "layers, value-projection",
        ["experiment", "shuffled", "mimetic", *GAINS],
        [
            Line("ViT, 6 layers, (0.4, -0.4)", "cifar-wide", 1e-3, "accuracy"),
            Line("ViT, 6 layers, (0.1, -0.1)", "cifar-wide-quarter", 1e-3, "accuracy"),
            Line("ViT, 12 layers, (0.4, -0.4)", "cifar-deep", 1e-3, "accuracy"),
            Line("ViT, 12 layers, (0.1, -0.1)", "cifar-deep-quarter", 1e-3, "accuracy"),
            Line("GPT, 12 layers, (0.1, -0.4)", "text-deep", 2e-3, "loss"),
            Line("GPT, 12 layers, (0.025, -0.1)", "text-deep-quarter", 2e-3, "loss"),
        ],
    ),
    "text-parts": (
        "text, 500 steps",
        ["minus mimetic"],
        [
            Line("query-key only", "text-parts", 4e-3, "loss", "query-key"),
            Line("value-projection only", "text-parts", 4e-3, "loss", "value-projection"),
            Line("query-key negative", "text-qk-flipped", 4e-3, "loss", "mimetic"),
            Line("value-projection positive", "text-vp-flipped", 4e-3, "loss", "mimetic"),
            Line("simple form (lesson, exercise 1)", "text-parts", 4e-3, "loss", "simple"),
            Line("language", "text-parts", 4e-3, "loss", "language"),
        ],
    ),
}

# The pictures: title, file, x axis, inits, seeds, and the panels: title, experiment and metric.
PICTURES = {
    "rates.png": (
        "Mean of the two seeds that choose a rate",
        "results.csv",
        "lr",
        INITS[1:],
        CHOOSING,
        [
            ("text, 1,000 steps", "text-rates", "loss"),
            ("shifted digits, 40 epochs", "digits-rates", "accuracy"),
            ("CIFAR-10, 4 layers", "cifar-rates", "accuracy"),
            ("CIFAR-10, 12 layers", "cifar-deep", "accuracy"),
        ],
    ),
    "curves.png": (
        "Training curves, mean of three seeds",
        "curves.csv",
        "step",
        ["default", "shuffled", "mimetic"],
        [0, 1, 2],
        [
            ("text, 4,000 steps", "text-long", "loss"),
            ("CIFAR-10, 5,000 images, 100 epochs", "cifar-long", "accuracy"),
        ],
    ),
}

# The names of the four weights of layer {} in two published files
DINOV2 = [
    "encoder.layer.{}.attention.attention.query.weight",
    "encoder.layer.{}.attention.attention.key.weight",
    "encoder.layer.{}.attention.attention.value.weight",
    "encoder.layer.{}.attention.output.dense.weight",
]
SMOLLM2 = [f"model.layers.{{}}.self_attn.{name}_proj.weight" for name in "qkvo"]

# The lines of streams.png: label, init, what alpha and beta of value-projection are multiplied by,
# and the init whose color and dashes the line uses
STREAMS = [
    ("default", "default", 1, 1, "default"),
    ("shuffled", "shuffled", 1, 1, "shuffled"),
    ("mimetic", "mimetic", 1, 1, "mimetic"),
    ("mimetic, a third of beta", "mimetic", 1, 1 / 3, "simple"),
    ("mimetic, a quarter of alpha and beta", "mimetic", 1 / 4, 1 / 4, "value-projection"),
]

# A table in a page
MARKED = r"<!-- table (\S+) -->\n(?:\|.*\n)*<!-- end -->"

# ---------------------------------------------------------------------------------------------
# The .csv files. Here, a row is a dict with these types.

TYPES = {"experiment": str, "init": str, "seed": int, "step": int}

# How many columns identify a row
KEYS = {"results.csv": 4, "curves.csv": 5}


def read(path):
    """The rows of a .csv file."""
    with open(path) as file:
        return [
            {column: TYPES.get(column, float)(text) for column, text in row.items()}
            for row in csv.DictReader(file)
        ]


def write(name, new):
    """Put new rows into one of our .csv files. Each replaces the row with the same keys."""
    rows = {tuple(row.values())[: KEYS[name]]: row for row in read(DOCS / name) + new}
    rows = [rows[key] for key in sorted(rows)]
    with open(DOCS / name, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([rows[0], *map(dict.values, rows)])


def evaluations(path):
    """The evaluations of a run, as rows of curves.csv, from the .csv that its script wrote."""
    # An init may contain a hyphen: query-key-seed0-lr0.002.csv
    init, seed, lr = re.fullmatch(r"(.+)-seed(\d+)-lr(.+)\.csv", path.name).groups()
    run = {"experiment": path.parent.name, "init": init, "seed": int(seed), "lr": float(lr)}
    rows = []
    for row in read(path):
        step, _, result = row.values()
        rows.append(run | {"step": step, "result": result if is_finite(row) else math.nan})
    return rows


def add(*folders):
    """Put the finished runs of run folders into our .csv files.

    A run is finished if it was evaluated eight times, or if it diverged.
    """
    drawn = {panel[1] for panel in PICTURES["curves.png"][-1]}
    for folder in [Path(name).resolve() for name in folders]:
        every_run = [evaluations(path) for path in folder.glob("*-seed*-lr*.csv")]
        finished = [run for run in every_run if len(run) == 8 or math.isnan(run[-1]["result"])]
        write("results.csv", [run[-1] for run in finished])
        if folder.name in drawn:
            write("curves.csv", [row for run in finished for row in run])
        print(f"{folder}: {len(finished)} of {len(every_run)} runs are finished, and were added")


# ---------------------------------------------------------------------------------------------
# Tables. Here, `results` is what by_run returns.


def by_run(rows):
    """The rows of results.csv as {(experiment, init, rate): {seed: result}}."""
    results = defaultdict(dict)
    for row in rows:
        results[row["experiment"], row["init"], row["lr"]][row["seed"]] = row["result"]
    return results


def best_rate(results, line, init):
    """The rate of an init with the best mean over the CHOOSING seeds, or None without such runs."""
    means = {
        lr: statistics.mean(found[seed] for seed in CHOOSING)
        for (*which, lr), found in results.items()
        if which == [line.experiment, init] and CHOOSING <= found.keys()
    }
    finite = [lr for lr in means if math.isfinite(means[lr])]
    better = max if line.metric == "accuracy" else min
    return better(finite, key=means.get, default=None)


def values(results, line, init):
    """What a line reports for an init: {seed: result}, and a note on its rate."""
    lr = best_rate(results, line, init) if line.lr == "best" else line.lr
    note = f" at {lr}" if line.lr == "best" else ""
    found = results.get((line.experiment, init, lr), {})
    if line.experiment in VARIES and not found:
        seeds = set().union(*(results[run] for run in results if run[0] == line.experiment))
        found = results.get((VARIES[line.experiment], init, lr), {})
        found = {seed: found[seed] for seed in found if seed in seeds}
    return {seed: found[seed] for seed in found if seed not in CHOOSING}, note


def shared(results, *lines_and_inits):
    """For each line and init, the list of its results at the seeds that all of them have."""
    found = [values(results, line, init)[0] for line, init in lines_and_inits]
    seeds = sorted(set.intersection(*map(set, found)))
    return [[each[seed] for seed in seeds] for each in found]


def cell(results, line, column):
    """One cell of a table, as text. Without results, it is empty."""
    if column == "experiment":
        return f"`{line.experiment}`"
    if column == "command":
        return f"`bash docs/experiments.sh {line.experiment}`"
    if column == "seeds":
        return str(len(values(results, line, "mimetic")[0]))
    if column.startswith("share "):
        # What is left of mimetic's gain over this init when shuffled is subtracted instead. If one
        # of them has no results, the cell is empty, as below.
        base = column.split()[-1]
        lists = shared(results, (line, "mimetic"), (line, "shuffled"), (line, base))
        if lists[0]:
            mimetic, shuffled, base = map(statistics.mean, lists)
            return f"{(mimetic - shuffled) / (mimetic - base):.0%}"
    if "minus " in column:
        init, base = column.split("minus ")
        first, second = (line, init.strip()), (line, base)
        if not init:
            # A part of the method is compared with the experiment that it varies.
            varied = line._replace(experiment=VARIES[line.experiment])
            first, second = (line, line.init), (varied, base)
        ours, theirs = shared(results, first, second)
        # A difference on a single seed has no standard error, so it is left out.
        return "" if len(ours) < 2 or ours == theirs else difference(ours, theirs, line.metric)
    found, note = values(results, line, column)
    return spread([*found.values()], STYLE[line.metric]) + note if found else ""


def fill(text, results):
    """The text of a page, with its tables made from the results."""

    def make(match):
        title, columns, lines = TABLES[match[1]]
        table = [[line.name, *(cell(results, line, each) for each in columns)] for line in lines]
        table = [[title, *columns], ["---"] * (1 + len(columns)), *table]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
        return f"<!-- table {match[1]} -->\n{text}<!-- end -->"

    return re.sub(MARKED, make, text)


# ---------------------------------------------------------------------------------------------
# Pictures


def draw(name, title, file, x, inits, seeds, panels):
    """Draw one of the PICTURES. A line goes through the means over the seeds."""
    rows = [row for row in read(DOCS / file) if row["seed"] in seeds]
    figure = plot.new_figure(max(9, 3 * len(panels)), 4.1)
    for axes, (panel_title, experiment, metric) in zip(figure.subplots(1, len(panels)), panels):
        ylabel, factor, _ = plot.METRICS[metric]
        for init in inits:
            points = defaultdict(list)
            for row in rows:
                if (row["experiment"], row["init"]) == (experiment, init):
                    points[row[x]].append(factor * row["result"])
            # A rate that some of the seeds have not tried is left out.
            ticks = [tick for tick in sorted(points) if len(points[tick]) == len(seeds)]
            means = [statistics.mean(points[tick]) for tick in ticks]
            axes.plot(ticks, means, label=init, **plot.STYLES[init])
        axes.set(title=panel_title, ylabel=ylabel, xlabel="training steps")
        if x == "lr":
            axes.set(xlabel="peak learning rate", xscale="log")
            axes.minorticks_off()
            axes.set_xticks(ticks, map("{:g}".format, ticks))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3
    )
    print(plot.save(figure, DOCS / name, title))


def pages():
    """Draw the PICTURES, and replace the tables of the pages."""
    for name, picture in PICTURES.items():
        draw(name, *picture)
    results = by_run(read(DOCS / "results.csv"))
    for page in PAGES:
        page.write_text(fill(page.read_text(), results))


# ---------------------------------------------------------------------------------------------
# New and trained networks


@torch.no_grad()
def streams():
    """Plot how much of its input is left in the residual stream of a new model: streams.png.

    The input is what enters the first layer, for random pixels from N(0, 1) or random bytes. From
    it and from the stream after each layer we subtract the mean over the batch, at each position,
    which leaves what tells the images or texts apart. The similarity is the cosine between these
    two differences: at 1 the layers have only scaled the input, and at 0 none of it is left. It is
    a mean over three seeds, and is printed, too.
    """
    generator = torch.Generator().manual_seed(0)
    panels = [
        (
            train_vit,
            ViTConfig(image_size=32, patch_size=4, channels=3, dim=192, depth=12, heads=3),
            (0.7, 0.7, 0.4, -0.4),
            torch.randn(32, 3, 32, 32, generator=generator),
        ),
        (
            train_lm,
            GPTConfig(dim=192, depth=12, heads=3),
            (0.1, 0.7, 0.1, -0.4),
            torch.randint(256, (32, 64), generator=generator),
        ),
    ]
    figure = plot.new_figure(9, 4.1)
    for axes, (script, config, (*qk, alpha, beta), batch) in zip(figure.subplots(1, 2), panels):
        for label, init, alpha_factor, beta_factor, style in STREAMS:
            cosines = []
            for seed in range(3):
                strengths = (*qk, alpha_factor * alpha, beta_factor * beta)
                model = script.new_model(Run(init, seed, 0.0), config, strengths)
                # Each block notes what it reads.
                stream = []
                for block in [*model.blocks, model.norm]:
                    block.register_forward_pre_hook(lambda _, x, stream=stream: stream.append(x[0]))
                model(batch)
                contents = [(x - x.mean(0)).flatten() for x in stream]
                cosines.append([torch.cosine_similarity(contents[0], x, 0) for x in contents])
            means = torch.tensor(cosines).mean(0).tolist()
            print(f"{script.__name__} {label:37}", *map("{:.2f}".format, means[1:]))
            axes.plot(means, label=label, **plot.STYLES[style])
        axes.set(
            title=f"new {type(config).__name__[:3]}, value-projection ({alpha}, {beta})",
            xlabel="layer",
            ylabel="similarity to the input",
            ylim=(-0.35, 1.05),
        )
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3
    )
    print(plot.save(figure, DOCS / "streams.png", "How much of its input a new network keeps"))


def read_layers(path, names, heads):
    """The attention layers in a published file of weights: a list of Attention.

    `names` are the names of the four weights, with {} for the layer number. Raises ValueError for
    a file without them.
    """
    from safetensors.torch import load_file

    weights = {name: W.float() for name, W in load_file(path).items()}
    layers = []
    while names[0].format(len(layers)) in weights:
        q, k, v, proj = (weights[name.format(len(layers))] for name in names)
        # Several heads may share a head of keys and values. Each of them gets a copy.
        shares = heads * len(k) // len(q)
        k, v = (
            W.unflatten(0, (shares, -1)).repeat_interleave(heads // shares, 0).flatten(0, 1)
            for W in (k, v)
        )
        # LayerScale multiplies what comes out of the projection, the rows of an nn.Linear.
        scale = weights.get(f"encoder.layer.{len(layers)}.layer_scale1.lambda1", torch.ones(1))
        layers.append(linear.read(q, k, v, scale[:, None] * proj, heads))
    if not layers:
        raise ValueError(f"{path} has no {names[0].format(0)}")
    return layers


@torch.no_grad()
def trained(dinov2, smollm2):
    """Draw both products in two trained networks, and in new ones of the same shapes: trained.png.

    `dinov2` and `smollm2` are the files model.safetensors of facebook/dinov2-small and of
    HuggingFaceTB/SmolLM2-135M-Instruct. W_Q W_K^T is averaged over the heads. Prints the mean of
    each diagonal, too. Raises ValueError for the file of another network.
    """
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=384, depth=12, heads=6)).mimetic_init_()
    gpt = GPT(GPTConfig(dim=576, depth=30, heads=9)).mimetic_init_()
    networks = [
        ("trained: DINOv2 ViT-S/14", read_layers(dinov2, DINOV2, heads=6), (3, 7, 11)),
        ("trained: SmolLM2-135M", read_layers(smollm2, SMOLLM2, heads=9), (6, 16, 26)),
        ("new: ViT.mimetic_init_", [block.attention for block in vit.blocks], (3, 7, 11)),
        ("new: GPT.mimetic_init_", [block.attention for block in gpt.blocks], (6, 16, 26)),
    ]
    figure = plot.new_figure(9.6, 7.6)
    for part, (name, attentions, layers) in zip(figure.subfigures(2, 2).flat, networks):
        part.suptitle(name, fontweight="bold")
        for i, line in enumerate(part.subplots(2, 3)):
            # The networks' weights differ in size. In standard deviations, they are comparable.
            products = (plot.two_products(attention)[i] for attention in attentions)
            matrices = [product / product.std() for product in products]
            means = [f"{matrix.diagonal().mean():.1f}" for matrix in matrices]
            print(f"{name}, {plot.PRODUCTS[i]}, layer by layer: {' '.join(means)}")
            line[0].set_ylabel(plot.PRODUCTS[i])
            for axes, layer in zip(line, layers):
                corner = matrices[layer - 1][: plot.CORNER, : plot.CORNER]
                axes.imshow(corner, "cividis", vmin=-6, vmax=6, interpolation="nearest")
                axes.set(title=f"layer {layer}", xlabel=means[layer - 1], xticks=[], yticks=[])
    title = (
        "Upper-left corners, $W_Q W_K^T$ averaged over heads. Light is positive, dark negative.\n"
        "Below: the mean of the diagonal, in standard deviations of the entries. Colors end at ±6."
    )
    print(plot.save(figure, DOCS / "trained.png", title))


COMMANDS = {"add": add, "streams": streams, "pages": pages, "trained": trained}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    except (TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"report.py: {error}")
