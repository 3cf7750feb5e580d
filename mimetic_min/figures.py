"""Pictures of a run, or of the weights in a file of somebody else's, as in the paper's Figures 1 to 3.

    python -m mimetic_min.figures runs/vit-digits                          into the folder of the run
    python -m mimetic_min.figures runs/vit-digits --pretrained FILE        with a pretrained model's layers beside it
    python -m mimetic_min.figures vit_tiny.pth                             into the folder of the file

All that needs matplotlib (python -m pip install matplotlib) is here. What is signed is drawn symmetric around zero,
with one scale for all panels of a picture, dark for negative and light for positive, so that it reads without colour.
"""
import io
import json
import math
import statistics
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from . import data, layouts, options
from .gpt import GPT, GPTConfig
from .report import METRICS, metric_of, write
from .training import new_model
from .vit import ViT, ViTConfig, require

CROP = 64                        # rows and columns of a product that are drawn, so that a single entry can be seen
STYLES = {"default": ("C7", ":"), "xavier": ("C2", (0, (1, 3))), "noise": ("C1", "--"), "simple": ("C4", "-."),
          "mimetic": ("C0", "-")}


def draw(folder, pretrained=None, heads=None):
    """Write the pictures of a run into its folder, and return their paths; beside its layers, those of a file.

    Raises ValueError if matplotlib is missing, or the folder or the file is something else.
    """
    new_figure(1, 1)
    runs, states = _read(Path(folder))
    models = {}
    for init, state in states.items():
        models[f"{init}\nbefore"], models[f"{init}\ntrained"] = model_of(state, trained=False), model_of(state)
    layers = {name: [block.attention for block in model.blocks] for name, model in models.items()}
    batch = example(state)
    maps = {name: attention_maps(model, batch) for name, model in models.items()}
    if pretrained is not None:
        layers["pretrained"] = layouts.read_checkpoint(pretrained, heads)
        with suppress(Exception):                              # no maps of another project's model, or of other images
            own = model_of(torch.load(pretrained, map_location="cpu", weights_only=True))
            maps["pretrained"] = attention_maps(own, batch)
    pictures = product_pictures(layers) | {
        "attention.png": panels("Attention maps, mean of a batch and all heads.\nLook for a pattern before training.\n"
                                "(row: the token that looks, column: the one looked at;\n"
                                "number: how much a token looks at itself)", maps, signed=False),
        "diagonals.png": diagonals(layers, list(states)),
        "curves.png": curves(runs),
    }
    return save(pictures, Path(folder), "")


def draw_file(path, heads=None):
    """Write pictures of the products in a file of weights beside it; returns and raises what `draw` does."""
    new_figure(1, 1)
    path = Path(path)
    return save(product_pictures({path.name: layouts.read_checkpoint(path, heads)}), path.parent, path.stem + "-")


def save(pictures, folder, prefix):
    paths = [folder / (prefix + name) for name in pictures]
    for path, picture in zip(paths, pictures.values()):
        file = io.BytesIO()
        picture.savefig(file, format="png")
        write(path, file.getvalue())
    return paths


# ---- what is drawn

def _read(folder):
    """The runs in a folder, and the last checkpoint of the first finished one of each init."""
    states = {}
    try:
        runs = json.loads((folder / "results.json").read_text())["runs"]
        for run in runs:
            if run["init"] not in states and "final" in run:
                path = folder / f"{run['init']}-seed{run['seed']}-lr{run['lr']}.pt"
                states[run["init"]] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:   # whatever is missing, or something else
        require(False, "run", str(folder), f"the folder of a run, with its results.json and checkpoints ({error})")
    require(states, "run", str(folder), "the folder of a run of which something is finished")
    return runs, states


def model_of(state, trained=True):
    """The model of a checkpoint, or as it was before the training: seed and init make the same weights again."""
    make = (lambda: ViT(ViTConfig(**state["config"]))) if state["task"] == "vit" else (
        lambda: GPT(GPTConfig(**state["config"])))
    model = new_model(make, state["run"], Namespace(**state["options"]))
    if trained:
        model.load_state_dict(state["model"])
    return model.eval()


def example(state):
    """A batch that the model of a checkpoint has not been trained on: 64 test images, or 16 windows of the text."""
    o = Namespace(**state["options"])
    if state["task"] == "vit":
        train_images, _, test_images, _ = data.load_images(o.data, o.limit, o.data_dir)
        mean, deviation = data.moments(train_images)
        return (test_images[:64] - mean) / deviation
    _, text = data.load_text(o.data, o.context)
    count = min(16, len(text) // o.context)
    return torch.from_numpy(np.array(text[: count * o.context])).long().view(count, o.context)


@torch.no_grad()
def attention_maps(model, batch):
    """[(title, map (tokens, tokens), mean of its diagonal)] of an early, a middle and a late layer."""
    inputs = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, _, output: inputs.append(output))
    model(batch)
    chosen = dict.fromkeys((0, len(inputs) // 2, len(inputs) - 1))
    maps = {i: model.blocks[i].attention.attention_map(inputs[i]).mean((0, 1)) for i in chosen}
    return [(f"layer {i + 1}", A.numpy(), A.diag().mean().item()) for i, A in maps.items()]


@torch.no_grad()
def diagonal(attention, which):
    """Mean of the diagonal of W_Q W_K^T over all heads ("query-key"), or of W_V W_proj ("value-projection")."""
    product = attention.qk_product() if which == "query-key" else attention.vp_product()
    return product.float().diagonal(dim1=-2, dim2=-1).mean().item()


@torch.no_grad()
def tile(product):
    """The upper left corners of the products of some heads (heads, d, d), in as square a grid as may be."""
    corners = np.pad(product[:, :CROP, :CROP].float().numpy(), ((0, 0), (0, 2), (0, 2)), constant_values=np.nan)
    across = math.ceil(math.sqrt(len(corners)))
    blank = np.full((-len(corners) % across, *corners.shape[1:]), np.nan)
    rows = np.concatenate([corners, blank]).reshape(-1, across, *corners.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])[:-2, :-2]


def product_pictures(layers):
    """{file name: picture} of both products, {row: [Attention of each layer]}."""
    pictures = {}
    for which, what in (("query-key", "$W_Q W_K^T$ of each head"), ("value-projection", "$W_V W_{proj}$")):
        rows = {}
        for name, attentions in layers.items():
            products = [a.qk_product() if which == "query-key" else a.vp_product()[None] for a in attentions]
            rows[name] = [(f"layer {i + 1}", tile(product.detach()), diagonal(attention, which))
                          for i, (product, attention) in enumerate(zip(products, attentions))]
        corner = f" (rows and columns 1 to {CROP})" if len(attentions[0].W_V) > CROP else ""
        title = f"{what}{corner}.\nLook for a diagonal: light is positive, dark negative. (number: its mean)"
        pictures[which + ".png"] = panels(title, rows, signed=True)
    return pictures


# ---- how it is drawn

def new_figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        require(False, "plot", True, "left out, or matplotlib installed: python -m pip install matplotlib")
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def panels(title, rows, signed):
    """A grid of matrices with one scale, {row: [(column, matrix, number)]}, the number above each."""
    columns = max(map(len, rows.values()))
    side = min(1.55, 8.2 / columns)                             # of a panel, in inches
    picture = new_figure(max(5.5, side * columns + 1.8), (side + 0.3) * len(rows) + 0.8)
    axes = picture.subplots(len(rows), columns, squeeze=False)
    top = max(np.nanquantile(abs(matrix), 0.995) for row in rows.values() for _, matrix, _ in row)
    for axis in axes.flat:
        axis.set_axis_off()
    for (name, row), line in zip(rows.items(), axes):
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
        for (column, matrix, number), axis in zip(row, line):
            image = axis.imshow(matrix, cmap="cividis" if signed else "gray_r", vmin=-top if signed else 0, vmax=top,
                                interpolation="auto")
            axis.set_title(f"{column}\n{number:+.3f}" if signed else f"{column}\n{number:.3f}", fontsize=8)
    picture.colorbar(image, ax=axes, shrink=0.5, extend="both" if signed else "max")
    picture.suptitle(title, fontsize=11)
    return picture


def diagonals(layers, inits):
    """The mean of both diagonals, layer by layer, before the training (hollow) and after it."""
    picture = new_figure(8, 3.6)
    for which, axis in zip(("query-key", "value-projection"), picture.subplots(1, 2)):
        axis.axhline(0, color="0.8", zorder=0)
        for init in inits:
            for when, marker in (("before", "none"), ("trained", "full")):
                means = [diagonal(attention, which) for attention in layers[f"{init}\n{when}"]]
                color, style = STYLES[init]
                axis.plot(range(1, len(means) + 1), means, style, color=color, marker="o", fillstyle=marker,
                          alpha=0.5 if when == "before" else 1, label=f"{init}, {when}")
        axis.set(title=which, xlabel="layer", xticks=range(1, len(means) + 1))
    axis.legend(fontsize=8)
    title = "Mean of the diagonal. Do networks that start without one grow it? (hollow: before training)"
    picture.suptitle(title, fontsize=11)
    return picture


def curves(runs):
    """The metric against the steps, a panel a rate; a line is the mean over seeds, its band goes from least to most."""
    metric = metric_of(next(run["curve"][0] for run in runs if run["curve"]))
    name, unit, factor, _, _ = METRICS[metric]
    rates = sorted({run["lr"] for run in runs})
    picture = new_figure(3.4 * len(rates) + 1.6, 3.6)
    axes = picture.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for lr, axis in zip(rates, axes):
        for init in dict.fromkeys(run["init"] for run in runs):
            by_step = {}
            for run in runs:
                for point in run["curve"]:
                    if (run["init"], run["lr"]) == (init, lr):
                        by_step.setdefault(point["step"], []).append(factor * point[metric])
            color, style = STYLES[init]
            values = by_step.values()
            axis.plot(list(by_step), [*map(statistics.mean, values)], style, color=color, label=init)
            axis.fill_between(list(by_step), [*map(min, values)], [*map(max, values)], color=color, alpha=0.2, lw=0)
        axis.set(title=f"lr {lr:g}", xlabel="step")
    axes[0].set_ylabel(f"{name}, {unit}")
    axes[-1].legend(fontsize=8)
    seeds = len({run["seed"] for run in runs})
    title = f"Which start is ahead, and where?\n({seeds} seed{'s: mean, least and most' if seeds > 1 else ''})"
    picture.suptitle(title, fontsize=11)
    return picture


PARSER = options.Parser(prog="figures.py", description=__doc__.splitlines()[0])
PARSER.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="the folder of a run, or a file of weights")
PARSER.add_argument("--pretrained", metavar="FILE", help="a file of weights to draw beside the run")
PARSER.add_argument("--heads", type=options.COUNT, help="of a file of weights; without it, its width / 64")


def main(argv=None):
    """Draw what the command line asks for. Raises ValueError for what is wrong with it."""
    o = PARSER.parse_args(argv)
    is_run = Path(o.run).is_dir()
    require(is_run or o.pretrained is None, "pretrained", o.pretrained, "left out, as there is no run beside it")
    for path in draw(o.run, o.pretrained, o.heads) if is_run else draw_file(o.run, o.heads):
        print(path)


if __name__ == "__main__":
    options.script(main, PARSER)
