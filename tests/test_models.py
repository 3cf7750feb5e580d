"""Attention, the ViT and the GPT, compared with independent code and freshly initialized."""

import subprocess
import sys
from math import erf, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from test_method import CLOSE, seeded

from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, gpt, vit


def small_model(module, **options):
    """A new model with three layers and two heads. A ViT sees 3 x 3 patches."""
    torch.manual_seed(0)
    if module is vit:
        return ViT(ViTConfig(6, 2, 3, classes=16, dim=64, depth=3, heads=2, **options))
    return GPT(GPTConfig(vocab_size=16, context=9, dim=32, depth=3, heads=2, **options))


def shaken(model):
    """The model in float64, with random weights. No gain is 1 and no bias is 0 anymore, so none
    can be left out unnoticed.
    """
    for W in model.parameters():
        torch.nn.init.normal_(W, std=0.3)
    return model.double()


# ---------------------------------------------------------------------------------------------
# Attention and the models, against torch.nn.MultiheadAttention and NumPy


@pytest.mark.parametrize(
    "dim, heads, tokens, causal",
    [(8, 1, 1, False), (24, 3, 7, False), (8, 1, 1, True), (24, 3, 7, True), (32, 2, 9, True)],
)
def test_attention_matches_torch(dim, heads, tokens, causal):
    attention = shaken(vit.Attention(dim, heads, causal))
    peer = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True).double()
    # It has one weight for all three, with the heads stacked vertically, and computes x @ W^T.
    peer.in_proj_weight.data = torch.cat(
        [attention.W_Q.mT.flatten(0, 1), attention.W_K.mT.flatten(0, 1), attention.W_V.T]
    )
    peer.out_proj.weight.data = attention.W_proj.T
    x = torch.randn(2, tokens, dim).double()
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    expected = peer(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close((attention(x), attention.attention_map(x)), expected)


def numpy_norm(x, W, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * W[f"{name}.weight"] + W.get(f"{name}.bias", 0)


def numpy_linear(x, W, name):
    return x @ W[f"{name}.weight"].T + W.get(f"{name}.bias", 0)


@pytest.mark.parametrize(
    "module, options",
    [
        (vit, {"position": "sincos"}),
        (vit, {"position": "learned"}),
        (gpt, {"position": "sincos", "stream": "unit"}),
        (gpt, {"position": "sincos", "stream": "gpt2"}),
        (gpt, {"position": "learned", "stream": "unit"}),
        (gpt, {"position": "learned", "stream": "gpt2"}),
    ],
)
def test_model_matches_numpy(module, options):
    """All but attention, which is compared above."""
    model = shaken(small_model(module, **options))
    W = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    if module is vit:
        batch = torch.randn(4, 3, 6, 6).double()
        patches = [
            batch[:, :, row : row + 2, column : column + 2].flatten(1)
            for row in (0, 2, 4)
            for column in (0, 2, 4)
        ]
        x = numpy_linear(np.stack(patches, axis=1), W, "embed")
    else:
        batch = torch.randint(16, (4, 9))
        x = {"unit": sqrt(32), "gpt2": 1}[options["stream"]] * W["embed.weight"][batch]
    x = x + model.positions.detach().numpy()
    for i, block in enumerate(model.blocks):
        y = torch.from_numpy(numpy_norm(x, W, f"blocks.{i}.norm1"))
        x = x + block.attention(y).detach().numpy()
        hidden = numpy_linear(numpy_norm(x, W, f"blocks.{i}.norm2"), W, f"blocks.{i}.mlp.0")
        hidden = hidden * (1 + np.vectorize(erf)(hidden / sqrt(2))) / 2
        x = x + numpy_linear(hidden, W, f"blocks.{i}.mlp.2")
    x = numpy_norm(x, W, "norm")
    logits = numpy_linear(x.mean(1), W, "head") if module is vit else x @ W["embed.weight"].T
    torch.testing.assert_close(model(batch), torch.from_numpy(logits))


# ---------------------------------------------------------------------------------------------
# How a new model begins


def test_positions_are_sines_and_cosines():
    """In a ViT they encode the row of a patch and, next to it, the column."""
    angles = np.outer(np.arange(9), 10_000 ** -(np.arange(16) / 16))
    places = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    patches = [[*places[row], *places[column]] for row in range(3) for column in range(3)]
    assert np.allclose(small_model(vit).positions, patches, atol=CLOSE)
    assert np.allclose(small_model(gpt).positions, places, atol=CLOSE)
    # Their root mean square is sqrt(1/2), and GPT-2's stream needs 0.02.
    assert np.allclose(
        small_model(gpt, stream="gpt2").positions, 0.02 * sqrt(2) * places, atol=CLOSE
    )


@pytest.mark.parametrize(
    "module, options, sizes",
    [
        (
            vit,
            {},
            {
                # PyTorch's own for 12 inputs: uniform up to 1/sqrt(12)
                "embed.weight": 1 / 6,
                "embed.bias": 1 / 6,
                "positions": 0.02,
                "blocks.0.mlp.2.weight": 0.02,
                "blocks.2.attention.W_Q": 0.02,
                "blocks.2.attention.W_K": 0.02,
                "blocks.2.attention.W_V": 0.02,
                "blocks.2.attention.W_proj": 0.02,
                "blocks.2.mlp.0.weight": 0.02,
                "blocks.2.mlp.0.bias": 0,
                "blocks.2.mlp.2.weight": 0.02,
                "blocks.2.mlp.2.bias": 0,
                "head.weight": 0.02,
                "head.bias": 0,
            },
        ),
        (
            gpt,
            {"stream": "gpt2"},
            {
                "embed.weight": 0.02,
                "positions": 0.02,
                "blocks.0.mlp.2.weight": 0.02 / sqrt(6),
                "blocks.2.attention.W_Q": 0.02,
                "blocks.2.attention.W_K": 0.02,
                "blocks.2.attention.W_V": 0.02,
                "blocks.2.attention.W_proj": 0.02 / sqrt(6),
                "blocks.2.mlp.0.weight": 0.02,
                "blocks.2.mlp.2.weight": 0.02 / sqrt(6),
            },
        ),
        (gpt, {"stream": "unit"}, {"embed.weight": sqrt(1 / 32), "positions": sqrt(1 / 2)}),
    ],
)
def test_new_weights_have_the_sizes_of_timm_and_gpt2(module, options, sizes):
    """The root mean square of each weight"""
    model = small_model(module, position="learned", **options)
    for name, size in sizes.items():
        found = model.get_parameter(name).square().mean().sqrt().item()
        assert found == pytest.approx(size, rel=0.2), name


@pytest.mark.parametrize(
    "module, given, used",
    [
        (vit, (), (0.7, 0.7, 0.4, -0.4)),
        (gpt, (), (0.1, 0.7, 0.1, -0.4)),
        (vit, (0.1, -0.2, 0.3, 0.4), (0.1, -0.2, 0.3, 0.4)),
        (gpt, (0.1, -0.2, 0.3, 0.4), (0.1, -0.2, 0.3, 0.4)),
    ],
)
def test_mimetic_init_of_a_model_draws_layer_after_layer_from_one_generator(module, given, used):
    model = small_model(module)
    assert model.mimetic_init_(*given, generator=seeded(0)) is model
    generator = seeded(0)
    for block in model.blocks:
        peer = vit.Attention(model.config.dim, heads=2)
        peer.mimetic_init_(*used, generator)
        assert all(map(torch.equal, block.attention.parameters(), peer.parameters()))


@pytest.mark.parametrize(
    "make, arguments, sentence",
    [
        (vit.Attention, {"dim": 8, "heads": 3}, "heads must divide dim, but 3 does not divide 8"),
        (vit.Attention, {"dim": 8, "heads": 0}, "heads must divide dim"),
        (ViTConfig, {"depth": 0}, "every size must be above 0"),
        (ViTConfig, {"heads": 0}, "every size must be above 0"),
        (ViTConfig, {"patch_size": 3}, "patch_size must divide image_size"),
        (ViTConfig, {"heads": 3}, "heads must divide dim"),
        (
            ViTConfig,
            {"dim": 66, "heads": 2},
            "sincos with a dim that is a multiple of 4, but it is sincos",
        ),
        (ViTConfig, {"position": "sine"}, "position must be learned, or sincos .* it is sine"),
        (GPTConfig, {"context": -1}, "every size must be above 0"),
        (GPTConfig, {"heads": 0}, "every size must be above 0"),
        (GPTConfig, {"heads": 3}, "heads must divide dim"),
        (GPTConfig, {"dim": 33, "heads": 3}, "sincos with an even dim, but it is sincos"),
        (GPTConfig, {"position": "sine"}, "position must be learned, or sincos .* it is sine"),
        (GPTConfig, {"stream": "small"}, "stream must be unit or gpt2, but it is small"),
    ],
)
def test_a_shape_that_cannot_be_built_is_an_error(make, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**arguments)


# ---------------------------------------------------------------------------------------------
# The files themselves


def test_both_files_have_the_same_method_and_attention():
    sections = [
        Path(module.__file__).read_text().split("# " + "-" * 93)[1:3] for module in (vit, gpt)
    ]
    assert "class Attention" in sections[0][1]
    assert sections[0] == sections[1]


@pytest.mark.parametrize(
    "module, line",
    [
        (vit, "ViT(ViTConfig()).mimetic_init_()(torch.zeros(1, 1, 8, 8))"),
        (gpt, "GPT(GPTConfig()).mimetic_init_()(torch.zeros(1, 10, dtype=torch.long))"),
    ],
)
def test_each_file_works_alone_in_an_empty_folder(module, line):
    subprocess.run(
        [sys.executable, "-I", "-c", Path(module.__file__).read_text() + line], check=True
    )
