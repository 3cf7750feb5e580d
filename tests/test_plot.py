"""The pictures: they are drawn without a display, and from the right numbers."""

import sys

import pytest
import torch

from mimetic_min import ViT, ViTConfig, plot

# A model that attends to all four tokens equally, but in its third layer only to the past.
PAST = ViT(ViTConfig(image_size=4))
PAST.blocks[2].attention.causal = True


@pytest.mark.parametrize(
    "draw, arguments, panels",
    [
        (
            plot.curves,
            [
                [
                    {"init": "off", "seed": 0, "lr": 0.1, "step": 10, "loss": 3.0},
                    {"init": "off", "seed": 0, "lr": 0.1, "step": 20, "loss": 2.0},
                    {"init": "off", "seed": 1, "lr": 0.1, "step": 10, "loss": 4.0},
                    {"init": "off", "seed": 1, "lr": 0.1, "step": 20, "loss": 2.5},
                    {"init": "off", "seed": 1, "lr": 0.1, "step": 30, "loss": 2.5},
                    {"init": "mimetic", "seed": 0, "lr": 0.2, "step": 10, "loss": 1.0},
                ],
                "loss",
            ],
            # A line for each init. Only one was trained with each rate, and of its two seeds, one
            # diverged before the last step.
            [
                ("learning rate 0.1", "training steps", [[3.5, 2.25], []]),
                ("learning rate 0.2", "training steps", [[], [1.0]]),
            ],
        ),
        (
            plot.curves,
            [[{"init": "off", "seed": 0, "lr": 0.1, "step": 10, "accuracy": 0.25}], "accuracy"],
            [("learning rate 0.1", "training steps", [[25.0]])],
        ),
        (
            plot.products,
            [{"mimetic": (ViT(ViTConfig()), ViT(ViTConfig()).mimetic_init_(0, 0.8, 0, -0.4))}],
            # Without noise, the cut from rank 64 to 16 leaves a quarter of 0.8.
            [
                ("$W_Q W_K^T$\nuntrained", "0.00", []),
                ("$W_Q W_K^T$\ntrained", "0.20", []),
                ("$W_V W_{proj}$\nuntrained", "0.00", []),
                ("$W_V W_{proj}$\ntrained", "-0.40", []),
            ],
        ),
        (
            plot.attention_maps,
            [{"default": (ViT(ViTConfig(image_size=4)), PAST)}, torch.randn(5, 1, 4, 4)],
            # (1 + 1/2 + 1/3 + 1/4) / 4 is 0.52.
            [
                ("layer 1\nuntrained", "0.25", []),
                ("layer 2\nuntrained", "0.25", []),
                ("layer 3\nuntrained", "0.25", []),
                ("layer 4\nuntrained", "0.25", []),
                ("layer 1\ntrained", "0.25", []),
                ("layer 2\ntrained", "0.25", []),
                ("layer 3\ntrained", "0.52", []),
                ("layer 4\ntrained", "0.25", []),
            ],
        ),
    ],
)
def test_a_picture_is_a_png_of_the_right_numbers(draw, arguments, panels, tmp_path, monkeypatch):
    """The title of each panel, the words or the number below it, and the heights of its lines"""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    monkeypatch.setattr(plot, "new_figure", lambda width, height: figure)
    assert draw(tmp_path / "picture", *arguments, "title").read_bytes().startswith(b"\x89PNG")
    # After the panels comes the color bar.
    assert panels == [
        (axes.get_title(), axes.get_xlabel(), [line.get_ydata().tolist() for line in axes.lines])
        for axes in figure.axes[: len(panels)]
    ]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot.new_figure(1, 1)
