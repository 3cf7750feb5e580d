"""Pictures: how the training went, and what it did to the attention weights.

    curves            accuracy or loss against the training steps
    products          W_Q W_K^T and W_V W_proj, untrained and trained
    attention_maps    what the tokens attend to, untrained and trained
    draw              these three, for --plot

Each of the first three draws one picture (PNG) into the file `path` and returns `path`. `models` is
{init: (untrained, trained)}, where a model is anything with `.blocks[i].attention`, and an
attention layer anything with `qk_product()`, `vp_product()` and `attention_map(x)`, as in vit.py.

Only this file needs matplotlib. It needs no display.
"""

import copy
from math import ceil, log

import numpy as np
import torch

# The line of each init, in Okabe and Ito's colorblind-safe colors, plus gray, and with brown
# instead of yellow, which is too faint on white. In grayscale, dashes and markers still differ.
STYLES = {
    "off": {"color": "#777777", "linestyle": (0, (1, 2)), "marker": "x"},
    "default": {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "s"},
    "xavier": {"color": "#009E73", "linestyle": (0, (7, 2, 1, 2)), "marker": "^"},
    "shuffled": {"color": "#E69F00", "linestyle": (0, (2, 1)), "marker": "D"},
    "mimetic": {"color": "#0072B2", "linestyle": "solid", "marker": "o"},
    "simple": {"color": "#56B4E9", "linestyle": (0, (6, 1, 1, 1, 1, 1)), "marker": "v"},
    "query-key": {"color": "#D55E00", "linestyle": (0, (3, 1, 1, 1)), "marker": "<"},
    "value-projection": {"color": "#7A4B00", "linestyle": (0, (9, 1, 1, 1)), "marker": ">"},
    "language": {"color": "#CC79A7", "linestyle": (0, (9, 2)), "marker": "P"},
}

# A metric's name in a picture, the factor that converts to its unit, and the highest value. A model
# that knows nothing gives every byte the same probability, and its loss is log(256). A higher loss
# is drawn at this value, so that a run on its way to diverge does not flatten the other lines.
METRICS = {
    "accuracy": ("accuracy on the test images, %", 100, 100),
    "loss": ("validation loss, nats per byte", 1, log(256)),
}

PRODUCTS = ("$W_Q W_K^T$", "$W_V W_{proj}$")

# Only this many rows and columns of a wide product are drawn. In a larger picture the diagonal, one
# entry wide, would be lost.
CORNER = 64


def new_figure(width, height):
    """An empty figure of this size in inches. Raises ValueError if matplotlib is missing."""
    try:
        # Not pyplot, which may look for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: python -m pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path, title):
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=120)
    return path


# ---------------------------------------------------------------------------------------------
# Lines


def curves(path, rows, metric, title):
    """Draw `metric` against the training steps: a panel for each learning rate, a line per init.

    `rows` are dicts with init, seed, lr, step and the metric: "accuracy" (0 to 1) or "loss" (nats
    per byte). A line is the mean over the seeds. It ends where the first of them diverges.
    """
    name, factor, highest = METRICS[metric]
    rates = sorted({row["lr"] for row in rows})
    figure = new_figure(3.5 * len(rates) + 2.5, 3.8)
    panels = figure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for rate, axes in zip(rates, panels):
        for init in dict.fromkeys(row["init"] for row in rows):
            found = {}  # step -> one value per seed
            for row in rows:
                if (row["init"], row["lr"]) == (init, rate):
                    found.setdefault(row["step"], []).append(min(factor * row[metric], highest))
            # A run that diverged has no rows after that, so later steps would lack its seed.
            steps = [step for step in sorted(found) if len(found[step]) == len(found[min(found)])]
            axes.plot(
                steps,
                [np.mean(found[step]) for step in steps],
                label=init,
                # An init of your own gets one of matplotlib's styles.
                **STYLES.get(init, {}),
            )
        axes.set(title=f"learning rate {rate:g}", xlabel="training steps")
    panels[0].set_ylabel(f"{name}, mean over the seeds")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", handlelength=4)
    return save(figure, path, title)


# ---------------------------------------------------------------------------------------------
# Matrices


def two_products(attention):
    """W_Q W_K^T, averaged over the heads, and W_V W_proj: two arrays (dim, dim)."""
    products = (attention.qk_product().mean(0), attention.vp_product())
    return [product.detach().float().cpu().numpy() for product in products]


def matrices(path, columns, rows, title, label, colors, signed):
    """Draw square matrices in a grid. The number below each is the mean of its diagonal.

    `columns` are the titles above the grid, and `rows` is {name: one matrix per column}. All share
    one color scale, titled `label`, in matplotlib's colormap `colors`: from 0 up, or symmetric
    around 0 if `signed`. A matrix larger than CORNER is cropped to its upper-left corner, but the
    number covers its whole diagonal.
    """
    figure = new_figure(1.4 * len(columns) + 2, 1.65 * len(rows) + 1.2)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    sizes = np.concatenate([abs(matrix).ravel() for row in rows.values() for matrix in row])
    # If the scale ended at the largest entry, little else could be seen.
    top = np.nanquantile(sizes, 0.995) or 1
    lowest, extend = (-top, "both") if signed else (0, "max")
    for line, (name, row) in zip(grid, rows.items()):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, column, matrix in zip(line, columns, row):
            image = axes.imshow(matrix[:CORNER, :CORNER], cmap=colors, vmin=lowest, vmax=top)
            axes.set(
                title=column if axes in grid[0] else "",
                # The z turns -0.00 into 0.00.
                xlabel=f"{matrix.diagonal().mean():z.2f}",
                xticks=[],
                yticks=[],
            )
    figure.colorbar(image, ax=grid, label=label, extend=extend, aspect=10 * len(rows))
    return save(figure, path, f"{title}\nbelow each matrix: the mean of its diagonal")


def products(path, models, title):
    """Draw both products of the first layer. W_Q W_K^T is averaged over the heads."""
    columns = [f"{product}\n{when}" for product in PRODUCTS for when in ("untrained", "trained")]
    rows = {
        init: [two_products(model.blocks[0].attention)[i] for i in (0, 1) for model in pair]
        for init, pair in models.items()
    }
    # Cividis goes from dark to light, so that a grayscale print shows the sign, too.
    return matrices(path, columns, rows, f"{title}, first layer", "entry", "cividis", signed=True)


@torch.no_grad()
def mean_maps(model, batch):
    """The attention map of each layer while the model reads `batch`: a list of (tokens, tokens).

    Each is the mean over the batch and the heads.
    """
    maps = []

    def keep(attention, inputs):
        maps.append(attention.attention_map(*inputs).mean((0, 1)).float().cpu().numpy())

    hooks = [block.attention.register_forward_pre_hook(keep) for block in model.blocks]
    model(batch)
    for hook in hooks:
        hook.remove()
    return maps


def attention_maps(path, models, batch, title):
    """Draw what the tokens attend to while the models read `batch`, in at most four layers."""
    maps = {init: [mean_maps(model, batch) for model in pair] for init, pair in models.items()}
    depth = len(next(iter(maps.values()))[0])
    layers = range(0, depth, ceil(depth / 4))
    columns = [f"layer {i + 1}\n{when}" for when in ("untrained", "trained") for i in layers]
    rows = {init: [model[i] for model in pair for i in layers] for init, pair in maps.items()}
    return matrices(
        path,
        columns,
        rows,
        f"{title}; each row's token attends to each column's token",
        "attention",
        "gray_r",
        signed=False,
    )


# ---------------------------------------------------------------------------------------------
# All three, for a script


def draw(folder, rows, untrained, metric, batch):
    """Save all three pictures in a run folder, and print their paths.

    `rows` are all runs, {Run: its rows}. `untrained` are the models whose weights are drawn, {Run:
    model}, all with the same seed and rate. `batch` is what they read.
    """
    models = {}
    for run, model in untrained.items():
        trained = copy.deepcopy(model)
        folder.load(run, model=trained)
        models[run.init] = (model, trained)
    title = f"{folder.path.name}, seed {run.seed}, lr {run.lr:g}"
    every_row = [{**run._asdict(), **row} for run in rows for row in rows[run]]
    print(curves(folder.path / "curves.png", every_row, metric, folder.path.name))
    print(products(folder.path / "products.png", models, title))
    print(attention_maps(folder.path / "attention.png", models, batch, title))
