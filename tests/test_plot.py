"""The pictures: they are drawn without a display, and from the right numbers."""

import sys

import pytest
import torch

from mimetic_min import ViT, ViTConfig, plot

# With five layers, the attention maps of the first, third and fifth are drawn.
CONFIG = ViTConfig(image_size=2, patch_size=1, dim=16, depth=5, heads=2)


def test_each_function_draws_a_png_and_returns_its_path(tmp_path):
    pytest.importorskip("matplotlib")
    models = {init: (ViT(CONFIG).mimetic_init_(), ViT(CONFIG)) for init in ("off", "mimetic")}
    # A loss that is not finite, and an init without the second rate.
    rows = [
        {"init": init, "seed": seed, "lr": lr, "step": 10, "loss": loss}
        for init, lr in (("mimetic", 0.1), ("xavier", 0.1), ("mimetic", 0.2))
        for seed, loss in enumerate((2.0, float("nan")))
    ]
    paths = [
        plot.curves(tmp_path / "0", rows, "loss", "title"),
        plot.products(tmp_path / "1", models, "title"),
        plot.attention_maps(tmp_path / "2", models, torch.randn(3, 1, 2, 2), "title"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_products_and_maps_stand_under_their_names(monkeypatch):
    monkeypatch.setattr(plot, "matrices", lambda path, columns, rows, *args, **kwargs: rows["off"])
    models = (ViT(CONFIG).mimetic_init_(), ViT(CONFIG).mimetic_init_())
    drawn = plot.products(None, {"off": models}, "title")
    assert drawn[1].tolist() == models[1].blocks[0].attention.qk_product().mean(0).tolist()
    assert drawn[2].tolist() == models[0].blocks[0].attention.vp_product().tolist()

    images = torch.randn(3, 1, 2, 2)
    drawn = plot.attention_maps(None, {"off": models}, images, "title")
    first, second, third, *_ = models[1].blocks
    x = second(first(models[1].embed(images.flatten(2).mT) + models[1].positions))
    expected = third.attention.attention_map(third.norm1(x)).mean((0, 1)).tolist()
    # The same computation twice, in float32
    assert drawn[4].tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot.require_matplotlib()
