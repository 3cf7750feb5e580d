"""Pictures of models, of arrays and of how training went.

    draw_run            all pictures of an experiment, into its folder
    matrices            a grid of matrices with one scale
    diagonals           the two products of attention weights, layer by layer
    attention_maps      what the tokens of a model attend to
    curves              accuracy or loss against the step
    trained_networks    the two products in networks that somebody has trained

This file draws what it is given: it trains nothing and reads no run folder. A model is anything
with `.blocks[i].attention` and `.blocks[i].norm1`, and an attention is anything with `qk_product()`
(heads, dim, dim), `vp_product()` (dim, dim) and `attention_map(x)`, as in vit.py and gpt.py.

Only this file needs matplotlib. It uses no display.
"""

import io
import math
import textwrap
from pathlib import Path

import numpy as np
import torch

from .files import write
from .table import METRICS, listed, metric_of

# Of a wide product, only so many rows and columns are drawn. In a larger picture the diagonal, one
# entry wide, would be lost.
CORNER = 64

# The line of each start: a colour and a dash. Most colours are those of Okabe and Ito, which
# colour-blind people can tell apart; the dashes differ in black and white, too.
STYLES = {
    "off": ("#777777", (0, (1, 3))),
    "default": ("#000000", (0, (4, 2))),
    "xavier": ("#009E73", (0, (6, 2, 1, 2))),
    "noise": ("#E69F00", (0, (1, 1))),
    "simple": ("#56B4E9", (0, (6, 1, 1, 1, 1, 1))),
    "mimetic": ("#0072B2", (0, ())),
    "query-key": ("#D55E00", (0, (3, 1, 1, 1))),
    "value-projection": ("#7A4B00", (0, (8, 1, 1, 1))),
    "language": ("#CC79A7", (0, (8, 2))),
}
OTHER_STYLE = ("#555555", (0, (12, 3)))

PRODUCTS = {
    "query-key": "$W_QW_K^T$, the mean of the heads",
    "value-projection": "$W_VW_{proj}$",
}


# ---------------------------------------------------------------------------------------------
# Figures and files


def new_figure(width, height, layout="constrained"):
    """An empty figure of this size in inches. Raises ValueError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: python -m pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=110, layout=layout)


def check():
    """Raise ValueError if matplotlib is missing: better before the training than after it."""
    new_figure(1, 1)


def set_title(figure, *sentences):
    """Write sentences over the figure, each in as many lines as the width asks for."""
    characters = int(13 * figure.get_figwidth())
    lines = []
    for sentence in sentences:
        lines += textwrap.wrap(sentence, characters, break_long_words=False, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), fontsize=10)


def save(figure, path):
    """Write the figure to `path` as a PNG, whole or not at all."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write(path, file.getvalue())


# ---------------------------------------------------------------------------------------------
# What is drawn of a model


def some_layers(depth, most):
    """The indices of at most so many layers: those in the middle of as many equal parts."""
    indices = [(2 * part + 1) * depth // (2 * most) for part in range(most)]
    return list(dict.fromkeys(indices))


@torch.no_grad()
def product(attention, which):
    """W_Q W_K^T of each head ("query-key"), or W_V W_proj as if of one head: (heads, dim, dim)."""
    if which == "query-key":
        return attention.qk_product().float()
    return attention.vp_product().float()[None]


def mean_of_diagonal(matrix):
    return matrix.diagonal().mean().item()


@torch.no_grad()
def mean_maps(model, batch):
    """[(title, map (tokens, tokens), mean of its diagonal)] of an early, a middle and a late layer.

    A map is the mean over the batch and the heads. Each of its rows sums to 1.
    """
    inputs = []
    hooks = [
        block.norm1.register_forward_hook(lambda module, args, output: inputs.append(output))
        for block in model.blocks
    ]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    columns = []
    for i in some_layers(len(model.blocks), most=3):
        attention_map = model.blocks[i].attention.attention_map(inputs[i]).mean((0, 1))
        columns.append((f"layer {i + 1}", attention_map.numpy(), mean_of_diagonal(attention_map)))
    return columns


# ---------------------------------------------------------------------------------------------
# One figure each


def matrices(title, rows, signed):
    """A grid of matrices with one scale. Under each stands a number.

    `rows` is {row name: [(column title, matrix, number), ...]}, with matrices of NumPy. With
    `signed`, the scale is symmetric around 0: light is positive, dark is negative. Without it the
    matrices are attention maps: 0 is white, and black is five times the mean, or more.
    """
    columns = max(len(row) for row in rows.values())
    side = min(7.5 / columns, 1.6 if len(rows) <= 4 else 1.2)  # of a matrix, in inches
    width = max(6, (side + 0.1) * columns + 2)
    figure = new_figure(width, (side + 0.25) * len(rows) + 1, layout="compressed")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    every_matrix = [matrix for row in rows.values() for _, matrix, _ in row]
    top = scale_of(every_matrix, signed)

    for axes in grid.flat:
        axes.set_visible(False)
    for i, (name, row) in enumerate(rows.items()):
        for j, (column, matrix, number) in enumerate(row):
            axes = grid[i, j]
            axes.set_visible(True)
            image = draw_matrix(axes, matrix, top, signed)
            # Adding 0 turns -0.0 into 0.0.
            axes.set_xlabel(
                f"{round(number, 2) + 0:+.2f}" if signed else f"{number:.3f}", fontsize=8
            )
            if i == 0:
                axes.set_title(column, fontsize=9)
            if j == 0:
                write_row_name(axes, name)
    # About as high as two rows, beside the first of them.
    shrink = min(1, 2 / len(rows))
    extend = "both" if signed else "max"
    figure.colorbar(image, ax=grid, shrink=shrink, aspect=20, anchor=(0, 1), extend=extend)
    set_title(figure, title)
    return figure


def scale_of(matrices, signed):
    """The value that gets the last colour of the scale."""
    if not signed:
        return 5 * np.mean([matrix.mean() for matrix in matrices])
    # The few largest values of a matrix would leave no contrast for the others.
    largest = max(np.quantile(np.abs(matrix), 0.995) for matrix in matrices)
    return largest if largest > 0 else 1


def draw_matrix(axes, matrix, top, signed):
    """Draw a matrix on the scale from -top to top, or without `signed` from 0 to top."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.7")
    colours = "cividis" if signed else "gray_r"
    lowest = -top if signed else 0
    return axes.imshow(matrix, cmap=colours, vmin=lowest, vmax=top)


def write_row_name(axes, name):
    """Write the name of a row to the left of its first matrix."""
    axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, parse_math=False)


def product_matrices(which, layers, of=""):
    """One product, "query-key" or "value-projection", in at most six layers of each model.

    `layers` is {(init, "start" or "trained"): [attention, ...]}.
    """
    rows = {}
    for (init, when), attentions in layers.items():
        row = []
        for i in some_layers(len(attentions), most=6):
            mean = product(attentions[i], which).mean(0)
            corner = mean[:CORNER, :CORNER].numpy()
            row.append((f"layer {i + 1}", corner, mean_of_diagonal(mean)))
        rows[f"{init}\n{when}"] = row
    title = (
        f"{which}: {PRODUCTS[which]}{in_brackets(of)}. Look for a diagonal: light is positive, dark"
        " is negative. The number is the mean of the diagonal."
    )
    if len(mean) > CORNER:
        title += f" (Drawn: rows and columns 1 to {CORNER}.)"
    return matrices(title, rows, signed=True)


def in_brackets(text):
    return f" ({text})" if text else ""


MAPS_TITLE = (
    "Attention maps, mean of a batch and of all heads{of}. Row: the token that looks. Column: the"
    " token it attends to. Look for a pattern before training. The number is how much a token"
    " attends to itself."
)


def attention_maps(model, batch):
    """What the tokens of a batch attend to, in an early, a middle and a late layer of one model."""
    return matrices(MAPS_TITLE.format(of=""), {"": mean_maps(model, batch)}, signed=False)


def diagonals(title, layers):
    """The mean of the diagonal of both products, layer by layer: at the start with hollow markers,
    trained with filled ones.

    `layers` is {(init, "start" or "trained"): [attention, ...]}.
    """
    figure = new_figure(9.5, 3.6)
    for which, axes in zip(PRODUCTS, figure.subplots(1, 2)):
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        for (init, when), attentions in layers.items():
            color, dash = STYLES.get(init, OTHER_STYLE)
            means = [mean_of_diagonal(product(a, which).mean(0)) for a in attentions]
            is_trained = when == "trained"
            axes.plot(
                range(1, len(means) + 1),
                means,
                color=color,
                linestyle=dash,
                linewidth=1.8 if is_trained else 0.9,
                marker="o",
                # A hollow marker can be seen around a filled one.
                markersize=4 if is_trained else 7,
                markerfacecolor=color if is_trained else "none",
                label=f"{init}, {when}",
            )
        axes.set_title(which, fontsize=10)
        axes.set_xlabel("layer")
        axes.set_xticks(marks_of_layers(max(map(len, layers.values()))))
    figure.axes[0].set_ylabel("mean of the diagonal")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    set_title(figure, title)
    return figure


def marks_of_layers(depth):
    """The layers that are written at the axis: at most twelve."""
    return range(1, depth + 1, math.ceil(depth / 12))


# ---------------------------------------------------------------------------------------------
# Curves


def curves(runs):
    """Accuracy or loss against the step. Each learning rate has a panel, and each start a line.

    `runs` are the entries of results.json. A line is the mean over the seeds; its band goes from
    the least to the most. It ends in a cross where the first of its seeds diverged. A loss that
    explodes leaves the picture, and a note says so. Raises ValueError if no run was evaluated.
    """
    evaluated = [run for run in runs if run["curve"]]
    if not evaluated:
        raise ValueError("there are no curves to draw, because no run was evaluated")
    name = metric_of(evaluated[0]["curve"][0])
    lowest, highest = limits([values(run, name) for run in evaluated], name)

    inits = list(dict.fromkeys(run["init"] for run in runs))
    rates = sorted({run["lr"] for run in runs})
    lines = math.ceil(len(rates) / 3)
    columns = math.ceil(len(rates) / lines)
    figure = new_figure(max(5.5, 2.6 * columns + 1.7), 2.6 * lines + 1)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(rates) :]:
        axes.set_axis_off()

    legend = {}
    for lr, axes in zip(rates, grid.flat):
        notes = [f"learning rate {lr:g}"]
        for init in inits:
            seeds = [run for run in runs if (run["init"], run["lr"]) == (init, lr)]
            if not seeds:
                continue
            if not all(run["curve"] for run in seeds):
                notes.append(f"{init} diverged at once")
                continue
            draw_curve(axes, seeds, name)
            drawn = np.concatenate([values(run, name) for run in seeds])
            if drawn.min() < lowest or drawn.max() > highest:
                notes.append(f"{init} leaves the picture")
        axes.set_title("\n".join(notes), fontsize=9)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", integer=True, nbins=5, min_n_ticks=1)
        handles, labels = axes.get_legend_handles_labels()
        legend.update(zip(labels, handles))
    margin = 0.05 * (highest - lowest) or 1
    grid[0, 0].set_ylim(lowest - margin, highest + margin)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{METRICS[name].title}, {METRICS[name].unit}")
    figure.legend(legend.values(), legend.keys(), fontsize=8, loc="outside right center")

    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) == 1:
        of = f"Seed {seeds[0]}."
    else:
        of = f"Mean of the seeds {listed(seeds)}; the band goes from the least to the most."
    set_title(figure, "Which start is ahead, and for how long?", of)
    return figure


def values(run, name):
    """The curve of a run in the metric's unit."""
    return [METRICS[name].factor * point[name] for point in run["curve"]]


def draw_curve(axes, seeds, name):
    """Draw one start: the mean and the band of its runs `seeds`, as far as all of them go."""
    init = seeds[0]["init"]
    color, dash = STYLES.get(init, OTHER_STYLE)
    length = min(len(run["curve"]) for run in seeds)
    steps = [point["step"] for point in seeds[0]["curve"][:length]]
    curves = np.array([values(run, name)[:length] for run in seeds])  # (seeds, evaluations)
    mean = curves.mean(0)
    # A single point has no line to be seen.
    marker = "." if length == 1 else ""
    axes.plot(steps, mean, color=color, linestyle=dash, marker=marker, label=init)
    axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.2, linewidth=0)
    if any("diverged" in run for run in seeds):
        cross = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": "none"}
        axes.plot(steps[-1:], mean[-1:], color=color, label="a seed diverged", **cross)


def limits(curves, name):
    """The lowest and the highest value to show. `curves` has the values of each run.

    An accuracy cannot explode, so all of it is shown. For a loss, the runs that ended better than
    they began set the scale: what is more than three times as far from the best loss as the worst
    point of an ordinary run is left out.
    """
    everything = np.concatenate(curves)
    lowest = everything.min()
    learned = [curve for curve in curves if curve[-1] < curve[0]]
    if METRICS[name].higher_is_better or not learned:
        return lowest, everything.max()
    farthest = sorted(max(curve) - lowest for curve in learned)
    # The median, or the lower of the middle two.
    ordinary = farthest[(len(farthest) - 1) // 2]
    return lowest, everything[everything <= lowest + 3 * ordinary].max()


# ---------------------------------------------------------------------------------------------
# Trained networks


def in_deviations(attention, which):
    """The product, of query-key the mean of the heads, divided by the standard deviation of all its
    entries: (dim, dim).

    So networks of any size can be compared: an ordinary entry is about 1 in size, and the mean of a
    diagonal without structure is near 0.
    """
    mean = product(attention, which).mean(0)
    return mean / mean.std(correction=0).clamp(min=1e-30)


# The scale of the matrices of trained networks.
DEVIATIONS = 6


def trained_networks(networks, reference=None):
    """Both products of trained networks: an early, a middle and a late layer as matrices, and the
    mean of the diagonal in every layer.

    `networks` is {name: [attention, ...]}, first layer first. `reference`, if given, is likewise:
    models after mimetic_init_, drawn in a second row. Everything is in units of the standard
    deviation of all entries of a product.
    """
    groups = [networks] + ([reference] if reference else [])
    columns = max(len(group) for group in groups)
    figure = new_figure(max(5.5, 4.6 * columns), 5.6 * len(groups) + 0.9)
    blocks = figure.subfigures(len(groups), columns, squeeze=False)
    for group, blocks_of_row in zip(groups, blocks):
        plots = []
        for (name, attentions), block in zip(group.items(), blocks_of_row):
            plots.append(draw_network(block, name, attentions))
        # One scale per row.
        lowest = min(axes.get_ylim()[0] for axes in plots)
        highest = max(axes.get_ylim()[1] for axes in plots)
        for axes in plots:
            axes.set_ylim(lowest, highest)
    set_title(
        figure,
        "The two products of attention weights. Look for the diagonals:",
        "light is positive, dark is negative, in standard deviations of all entries"
        f" (the scale ends at ±{DEVIATIONS}).",
    )
    return figure


def draw_network(block, name, attentions):
    """Draw one network into a part of a figure. Returns the axes of its diagonals."""
    block.suptitle(name, fontsize=10, fontweight="bold")
    chosen = some_layers(len(attentions), most=3)
    grid = block.add_gridspec(3, len(chosen), height_ratios=[1, 1, 1.4])
    plot = block.add_subplot(grid[2, :])
    plot.axhline(0, color="0.6", linewidth=1, zorder=0)
    lines = {"query-key": ("#0072B2", "-", "o"), "value-projection": ("#D55E00", "--", "s")}
    for row, which in enumerate(PRODUCTS):
        products = [in_deviations(attention, which) for attention in attentions]
        for column, i in enumerate(chosen):
            axes = block.add_subplot(grid[row, column])
            corner = products[i][:CORNER, :CORNER].numpy()
            draw_matrix(axes, corner, DEVIATIONS, signed=True)
            if row == 0:
                axes.set_title(f"layer {i + 1}", fontsize=8)
            if column == 0:
                write_row_name(axes, which.replace("-", "-\n"))
        color, dash, marker = lines[which]
        means = [mean_of_diagonal(matrix) for matrix in products]
        layers = range(1, len(means) + 1)
        plot.plot(layers, means, dash, color=color, marker=marker, markersize=4, label=which)
    plot.set_xlabel("layer")
    plot.set_ylabel("mean of the diagonal,\nin standard deviations")
    plot.margins(y=0.1)
    plot.set_xticks(marks_of_layers(len(attentions)))
    # Above the axes, where it cannot cover a line.
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=9)
    return plot


# ---------------------------------------------------------------------------------------------
# All pictures of an experiment


def draw_run(folder, runs, models, batch, of=""):
    """Draw an experiment into `folder`, and return the paths of its pictures.

    runs      the entries of results.json
    models    {(init, "start" or "trained"): model}, on the CPU
    batch     an input of these models
    of        which models these are, for the titles: "seed 0, lr 0.002"

    Without a model only curves are drawn, and without an evaluated run there are none of them.
    """
    pictures = {}
    if models:
        layers = {key: [block.attention for block in model.blocks] for key, model in models.items()}
        for which in PRODUCTS:
            pictures[f"{which}.png"] = product_matrices(which, layers, of)
        maps = {
            f"{init}\n{when}": mean_maps(model, batch) for (init, when), model in models.items()
        }
        title = MAPS_TITLE.format(of=in_brackets(of))
        pictures["attention.png"] = matrices(title, maps, signed=False)
        title = f"Do networks that start without a diagonal grow one?{in_brackets(of)}"
        pictures["diagonals.png"] = diagonals(title, layers)
    if any(run["curve"] for run in runs):
        pictures["curves.png"] = curves(runs)
    paths = []
    for name, figure in pictures.items():
        path = Path(folder) / name
        save(figure, path)
        paths.append(path)
    return paths
