"""The pictures of README.md that need no experiment, or the models of one.

    python results/pictures.py positions
    python results/pictures.py trained dinov2-small.safetensors smollm2-135m-instruct.safetensors
    python results/pictures.py maps runs/cifar

`positions` needs nothing. `trained` needs the two weight files of facebook/dinov2-small and of
HuggingFaceTB/SmolLM2-135M-Instruct. `maps` needs the run folder of an experiment on images, and
draws what the tokens attend to in an early, a middle and a late layer, before and after the
training. Each writes a picture of that name beside this file.
"""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, layouts
from mimetic_min.lab import figures


@torch.no_grad()
def positions():
    """Sinusoidal and learned positions: which positions are alike, and what an untrained layer
    sees.
    """
    figure = figures.new_figure(7.5, 6.6)
    panels = figure.subplots(2, 2)
    # Noise images, so that only the position tells two patches apart.
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = {"sincos": "sines and cosines", "learned": "learned, before training"}
    for row, (position, name) in zip(panels, names.items()):
        torch.manual_seed(0)
        model = ViT(ViTConfig(patch_size=1, position=position)).mimetic_init_()
        P = model.positions
        alike = P @ P.T / P.square().sum(1).mean()
        row[0].imshow(alike, cmap="cividis")
        row[0].set_title("$P P^T$: which positions are alike?")
        row[0].set_ylabel(name, fontsize=11)
        mean_map = figures.mean_maps(model, images)[0][1]
        row[1].imshow(mean_map, cmap="gray_r", vmin=0, vmax=5 / len(P))
        row[1].set_title("untrained attention map, layer 1")
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def trained(dinov2, smollm2):
    """Both products in two trained networks, beside what mimetic_init_ makes."""
    networks = {
        "DINOv2 ViT-S/14 (vision)": layouts.read_checkpoint(dinov2),
        "SmolLM2-135M-Instruct (language)": layouts.read_checkpoint(smollm2),
    }
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=384, depth=12, heads=6)).mimetic_init_()
    gpt = GPT(GPTConfig(dim=576, depth=30, heads=9)).mimetic_init_()
    references = {
        "ViT.mimetic_init_": [block.attention for block in vit.blocks],
        "GPT.mimetic_init_": [block.attention for block in gpt.blocks],
    }
    return figures.trained_networks(networks, references)


def maps(folder):
    """Attention maps of the models of a run folder."""
    args, config, images, grid = train_vit.prepare(["--resume", folder])
    rows = {}
    with grid:
        batch = images.normalise(images.test[:64])
        for run in grid.to_draw():
            if run.init in ("default", "noise", "mimetic"):
                for when in ("start", "trained"):
                    model = ViT(config)
                    model.load_state_dict(run.weights(when))
                    rows[f"{run.init}\n{when}"] = figures.mean_maps(model, batch)
    return figures.matrices(figures.MAPS_TITLE.format(of=""), rows, signed=False)


PICTURES = {"positions": positions, "trained": trained, "maps": maps}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PICTURES:
        sys.exit(__doc__)
    try:
        figure = PICTURES[sys.argv[1]](*sys.argv[2:])
    except (TypeError, ValueError) as error:
        sys.exit(f"pictures.py: {error}")
    path = HERE / f"{sys.argv[1]}.png"
    figures.save(figure, path)
    print(path)
