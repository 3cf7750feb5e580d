"""Pictures of a run, or of the weights in a file of somebody else's, as in the paper's Figures 1 to 3.

    python -m mimetic_min.figures runs/vit-digits                          into the folder of the run
    python -m mimetic_min.figures runs/vit-digits --pretrained FILE        with a pretrained model's layers beside it
    python -m mimetic_min.figures vit_tiny.pth                             into the folder of the file

Only this needs matplotlib (python -m pip install matplotlib). What is signed is symmetric around zero, with one scale
for all panels of a picture, dark for negative and light for positive, so that it reads without colour.
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
from .report import METRICS, checkpoint, listed, metric_of, write
from .training import new_model
from .vit import ViT, ViTConfig, require

CROP = 64                        # rows and columns of a product that are drawn, so that a single entry can be seen
STYLES = dict(default=("C7", ":"), xavier=("C2", (0, (1, 3))), noise=("C1", "--"), simple=("C4", "-."),
              mimetic=("C0", "-"))


def draw(folder, pretrained=None, heads=None):
    """Write the pictures of a run into its folder, and return their paths; beside its layers, those of a file.

    Raises ValueError if matplotlib is missing, or the folder or the file is something else.
    """
    new_figure(1, 1)                                           # before anything is loaded
    results, which, models, batch = _read(Path(folder))
    layers = {name: [block.attention for block in model.blocks] for name, model in models.items()}
    maps = {name: attention_maps(model, batch) for name, model in models.items()}
    if pretrained is not None:
        layers["pretrained"] = layouts.read_checkpoint(pretrained, heads)
        with suppress(Exception):                              # no maps of another project's model, or of other images
            own = model_of(torch.load(pretrained, map_location="cpu", weights_only=True))
            maps["pretrained"] = attention_maps(own, batch)
    pictures = product_pictures(layers, which) | {
        "attention.png": panels(f"Attention maps, mean of a batch and all heads ({which}).\nLook for a pattern before "
                                "training. (row: the token that looks,\ncolumn: the one looked at; number: how much a "
                                "token looks at itself)", maps, signed=False),
        "diagonals.png": diagonals(layers, which),
        "curves.png": curves(results["runs"]),
    }
    return save(pictures, Path(folder))


def draw_file(path, heads=None):
    """Write pictures of the products in a file of weights beside it; returns and raises what `draw` does."""
    path = Path(path)
    pictures = product_pictures({"": layouts.read_checkpoint(path, heads)}, path.name.replace("$", r"\$"))
    return save(pictures, path.parent, path.name + "-")


def save(pictures, folder, prefix=""):
    paths = {folder / (prefix + name): picture for name, picture in pictures.items()}
    for path, picture in paths.items():
        picture.savefig(file := io.BytesIO(), format="png")
        write(path, file.getvalue())
    return list(paths)


def _read(folder):
    """(results, "seed 0, lr 0.002", {"mimetic\\nbefore": model, ...} of the seed and rate most finished, a batch)."""
    path = folder / "results.json"
    try:
        results, models = json.loads(path.read_text()), {}
        finished = [run for run in results["runs"] if "final" in run]
        grid = [(run["seed"], run["lr"]) for run in finished]
        seed, lr = max(grid, key=grid.count, default=(None, None))
        for run in finished:
            if (run["seed"], run["lr"]) == (seed, lr):
                path = checkpoint(folder, run)
                state = torch.load(path, map_location="cpu", weights_only=True)
                models[f"{run['init']}\nbefore"] = model_of(state, trained=False)
                models[f"{run['init']}\ntrained"] = model_of(state)
    except Exception:                                          # whatever is missing, or something else
        require(False, "run", str(folder), f"the folder of a run, but its {path.name} is missing or damaged")
    require(models, "run", str(folder), "the folder of a run of which something is finished")
    batch, fingerprint = example(state)
    right = f"of a run whose data are what they were, but {results['data']} has changed since"
    require(fingerprint == results.get("fingerprint"), "run", str(folder), right)
    return results, f"seed {seed}, lr {lr:g}", models, batch


def model_of(state, trained=True):
    """The model of a checkpoint, or as it was before the training: seed and init make the same weights again."""
    kind, shape = (ViT, ViTConfig) if state["task"] == "vit" else (GPT, GPTConfig)
    model = new_model(lambda: kind(shape(**state["config"])), state["run"], Namespace(**state["options"]))
    if trained:
        model.load_state_dict(state["model"])
    return model.eval()


def example(state):
    """64 test images, or 16 windows of the text, for the model of a checkpoint; and the fingerprint of all its data."""
    o = Namespace(**state["options"])
    if state["task"] == "vit":
        arrays = data.load_images(o.data, o.limit, o.data_dir)
        mean, deviation = data.moments(arrays[0])
        return (arrays[2][:64] - mean) / deviation, data.fingerprint(*arrays)
    text, validation = data.load_text(o.data, o.context)
    windows = np.array(validation[: min(16, len(validation) // o.context) * o.context]).reshape(-1, o.context)
    return torch.from_numpy(windows).long(), data.fingerprint(text, validation)


@torch.no_grad()
def attention_maps(model, batch):
    """[(title, map (tokens, tokens), mean of its diagonal)] of an early, a middle and a late layer."""
    inputs = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, _, output: inputs.append(output))
    model(batch)
    maps = {i: model.blocks[i].attention.attention_map(inputs[i]).mean((0, 1))
            for i in dict.fromkeys((0, len(inputs) // 2, len(inputs) - 1))}
    return [(f"layer {i + 1}", A.numpy(), A.diag().mean().item()) for i, A in maps.items()]


@torch.no_grad()
def product(attention, which):
    """W_Q W_K^T of each head ("query-key"), or W_V W_proj as if of a single one: (heads, dim, dim)."""
    return attention.qk_product() if which == "query-key" else attention.vp_product()[None]


def diagonal(product):
    """The mean of the diagonals of all heads."""
    return product.diagonal(dim1=-2, dim2=-1).mean().item()


def tile(product):
    """The upper left corners of the products of some heads (heads, d, d), in as square a grid as may be."""
    corners = [*np.pad(product[:, :CROP, :CROP].numpy(), ((0, 0), (0, 2), (0, 2)), constant_values=np.nan)]
    across = math.ceil(math.sqrt(len(corners)))
    corners += [np.full_like(corners[0], np.nan)] * (-len(corners) % across)
    return np.block([corners[i : i + across] for i in range(0, len(corners), across)])[:-2, :-2]


def product_pictures(layers, of):
    """{file name: picture} of both products, of {row: [Attention of each layer]}; of more than 12 layers, 12."""
    cut = max(len(attentions[0].W_V) for attentions in layers.values()) > CROP
    pictures, corner = {}, f", rows and columns 1 to {CROP}" if cut else ""
    for which, what in (("query-key", "$W_Q W_K^T$ of each head"), ("value-projection", "$W_V W_{proj}$")):
        rows = {}
        for name, attentions in layers.items():
            chosen = sorted({round(i) for i in np.linspace(0, len(attentions) - 1, 12)})
            products = {f"layer {i + 1}": product(attentions[i], which) for i in chosen}
            rows[name] = [(layer, tile(P), diagonal(P)) for layer, P in products.items()]
        title = f"{what} ({of}{corner}). Look for a diagonal:\nlight is positive, dark negative, grey near 0"
        pictures[which + ".png"] = panels(f"{title} (number: mean)", rows, signed=True)
    return pictures


def new_figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        require(False, "matplotlib", None, "installed for pictures: python -m pip install matplotlib")
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
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", parse_math=False)
        for (column, matrix, number), axis in zip(row, line):
            image = axis.imshow(matrix, cmap="cividis" if signed else "gray_r", vmin=-top if signed else 0, vmax=top,
                                interpolation="auto")
            axis.set_title(f"{column}\n{number:+.3f}" if signed else f"{column}\n{number:.3f}", fontsize=8)
    picture.colorbar(image, ax=axes, shrink=0.5, extend="both" if signed else "max")
    picture.suptitle(title, fontsize=11)
    return picture


def diagonals(layers, of):
    """The mean of both diagonals, layer by layer, before the training (hollow) and after it."""
    picture = new_figure(9.2, 3.6)
    for which, axis in zip(("query-key", "value-projection"), picture.subplots(1, 2)):
        axis.axhline(0, color="0.8", zorder=0)
        for name, attentions in layers.items():
            init, _, when = name.partition("\n")
            if when:                                           # and not the pretrained one's, of another depth
                means = [diagonal(product(attention, which)) for attention in attentions]
                color, style = STYLES[init]
                axis.plot(range(1, len(means) + 1), means, linestyle=style, color=color, label=f"{init}, {when}",
                          marker="o", markerfacecolor="none" if when == "before" else color)
        axis.set(title=which, xlabel="layer", xticks=range(1, len(means) + 1))
    picture.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    picture.suptitle(f"Mean of the diagonal ({of}). Do networks that start without it grow one?", fontsize=11)
    return picture


def curves(runs):
    """The metric against the steps, a panel a rate; a line is the mean over seeds, its band goes from least to most.

    A line ends in a cross where the first of its seeds diverged.
    """
    metric = metric_of(next(run["curve"][0] for run in runs if run["curve"]))
    name, unit, factor, _, _ = METRICS[metric]
    rates = sorted({run["lr"] for run in runs})
    picture = new_figure(max(5, min(3.4 * len(rates), 8) + 1.6), 3.6)
    axes = picture.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for lr, axis in zip(rates, axes):
        for init in dict.fromkeys(run["init"] for run in runs):
            same = [run for run in runs if (run["init"], run["lr"]) == (init, lr)]
            points = list(zip(*(run["curve"] for run in same)))        # as far as all of them go
            steps = [point[0]["step"] for point in points]
            values = [[factor * one[metric] for one in point] for point in points]
            means, (color, style) = [*map(statistics.mean, values)], STYLES[init]
            axis.plot(steps, means, linestyle=style, color=color, label=init)
            axis.fill_between(steps, [*map(min, values)], [*map(max, values)], color=color, alpha=0.2, lw=0)
            if any("diverged" in run for run in same):
                axis.plot(steps[-1:], means[-1:], "x", color=color)
        axis.set(title=f"lr {lr:g}", xlabel="step")
    axes[0].set_ylabel(f"{name}, {unit}")
    axes[0].legend(fontsize=8)
    picture.suptitle(f"Which start is ahead, and where?\n(seeds {listed({run['seed'] for run in runs})})", fontsize=11)
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
    print(*(draw(o.run, o.pretrained, o.heads) if is_run else draw_file(o.run, o.heads)), sep="\n")


if __name__ == "__main__":
    options.script(main, PARSER)
