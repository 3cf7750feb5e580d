"""Attention, the ViT and the GPT: against independent code, and as they are initialized.

Two programs that compute the same in float64 agree to about 13 digits. EXACT allows for 10. In
float32 a sine agrees to five, and so do small outputs. ROUNDED is for those.
"""

import subprocess
import sys
from math import erf, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_method import has_variance, seeded

from mimetic_min import GPT, GPTConfig, ViT, ViTConfig, gpt, vit

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ROUNDED = {"rtol": 0, "atol": 1e-4}

every_model = pytest.mark.parametrize(
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


def small_model(module, **options):
    """A model with three layers and two heads, and a batch for it."""
    torch.manual_seed(0)
    if module is vit:
        model = ViT(ViTConfig(6, 2, 3, classes=16, dim=32, depth=3, heads=2, **options))
        return model, torch.randn(4, 3, 6, 6)
    model = GPT(GPTConfig(vocab_size=16, context=9, dim=32, depth=3, heads=2, **options))
    return model, torch.randint(16, (4, 9))


def shaken(model):
    """No weight is 0 or 1 any more. So no gain and no bias can be left out unseen."""
    for W in model.parameters():
        torch.nn.init.normal_(W, std=0.3)
    return model.double()


# ---------------------------------------------------------------------------------------------
# Attention and the models, against torch.nn.MultiheadAttention and NumPy


@given(st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
def test_attention_is_that_of_torch(heads, tokens, causal, seed):
    torch.manual_seed(seed)
    dim = 8 * heads
    attention = shaken(vit.Attention(dim, heads, causal))
    peer = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True).double()
    # It has the heads side by side, and computes x @ W^T.
    W_Q, W_K = (W.transpose(0, 1).flatten(1) for W in (attention.W_Q, attention.W_K))
    peer.in_proj_weight.data = torch.cat([W_Q, W_K, attention.W_V], dim=1).T
    peer.out_proj.weight.data = attention.W_proj.T
    x = torch.randn(2, tokens, dim).double()
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    output, maps = peer(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(attention(x), output, **EXACT)
    torch.testing.assert_close(attention.attention_map(x), maps, **EXACT)


def numpy_norm(x, W, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * W[f"{name}.weight"] + W.get(f"{name}.bias", 0)


def numpy_linear(x, W, name):
    return x @ W[f"{name}.weight"].T + W.get(f"{name}.bias", 0)


@every_model
def test_model_is_that_of_numpy(module, options):
    """All but attention, which is compared above."""
    model, batch = small_model(module, **options)
    shaken(model)
    W = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert ("positions" in W) == (options["position"] == "learned")
    if module is vit:
        batch = batch.double()
        patches = [
            batch[:, :, row : row + 2, column : column + 2].flatten(1)
            for row in (0, 2, 4)
            for column in (0, 2, 4)
        ]
        x = numpy_linear(np.stack(patches, axis=1), W, "embed")
    else:
        x = {"unit": sqrt(32), "gpt2": 1}[options["stream"]] * W["embed.weight"][batch]
    x = x + model.positions.detach().numpy()
    for i, block in enumerate(model.blocks):
        y = torch.from_numpy(numpy_norm(x, W, f"blocks.{i}.norm1"))
        x = x + block.attention(y).detach().numpy()
        hidden = numpy_linear(numpy_norm(x, W, f"blocks.{i}.norm2"), W, f"blocks.{i}.mlp.0")
        hidden = hidden * (1 + np.vectorize(erf)(hidden / sqrt(2))) / 2
        x = x + numpy_linear(hidden, W, f"blocks.{i}.mlp.2")
    x = numpy_norm(x, W, "norm")
    if module is vit:
        logits = numpy_linear(x.mean(1), W, "head")
    else:
        logits = x @ W["embed.weight"].T
    assert np.allclose(model(batch).detach(), logits, **EXACT)


def test_text_is_made_from_the_past_alone():
    """`generate` keeps the prompt, looks back on at most `context` tokens, and follows its
    generator.
    """
    model, tokens = small_model(gpt)
    shaken(model)
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5], **EXACT)
    with pytest.raises(ValueError, match="^the context holds 9 tokens, but there are 10$"):
        model(torch.zeros(1, 10, dtype=torch.long))
    drawn = model.generate(tokens[:, :3], 12, generator=seeded(0))
    assert drawn.shape == (4, 15)
    assert torch.equal(drawn[:, :3], tokens[:, :3])
    assert torch.equal(drawn, model.generate(tokens[:, :3], 12, generator=seeded(0)))
    # At a temperature near 0, the likeliest token is drawn.
    likeliest = model.generate(drawn, 1, temperature=1e-9)
    assert torch.equal(likeliest[:, -1], model(drawn[:, -9:])[:, -1].argmax(-1))


@every_model
def test_model_learns(module, options):
    """Four pictures, or four lines of text, by heart."""
    model, batch = small_model(module, **options)
    targets = torch.randint(16, (4,)) if module is vit else batch.roll(-1, 1)
    optimizer = torch.optim.Adam(model.mimetic_init_().parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.cross_entropy(model(batch).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


# ---------------------------------------------------------------------------------------------
# Positions and the residual stream


def numpy_sincos(count, dim):
    angles = np.arange(count)[:, None] / 10_000 ** (np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def test_positions_of_a_vit_tell_row_and_column():
    place = numpy_sincos(3, 16)
    expected = [[*place[row], *place[column]] for row in range(3) for column in range(3)]
    assert np.allclose(small_model(vit)[0].positions, expected, **ROUNDED)


@pytest.mark.parametrize("stream, of_token, of_place", [("unit", 1, 0.5), ("gpt2", 4e-4, 4e-4)])
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_stream_and_positions_have_one_size(position, stream, of_token, of_place):
    """The mean squares of tokens and places. Sines and cosines have 1/2."""
    model = GPT(GPTConfig(position=position, stream=stream))
    assert has_variance(model.scale * model.embed.weight, of_token)
    assert has_variance(model.positions, of_place)
    if position == "sincos":
        expected = numpy_sincos(64, 128) * sqrt(of_place / 0.5)
        assert np.allclose(model.positions, expected, **ROUNDED)


# ---------------------------------------------------------------------------------------------
# Initialization


@pytest.mark.parametrize("module, options", [(vit, {}), (gpt, {"stream": "gpt2"})])
def test_new_weights_are_those_of_timm_and_gpt2(module, options):
    model, _ = small_model(module, position="learned", **options)
    for name, W in model.named_parameters():
        if module is gpt and name.endswith(("W_proj", "mlp.2.weight")):
            assert has_variance(W, 0.02**2 / 6)
        elif "W_" in name or name.endswith(
            ("mlp.0.weight", "mlp.2.weight", "head.weight", "positions")
        ):
            assert has_variance(W, 0.02**2)
        elif name.endswith("bias"):
            # That of embed is PyTorch's own.
            assert W.any() == (name == "embed.bias")


def test_xavier():
    """Uniform with variance 1/dim"""
    attention = vit.Attention(64, 2)
    attention.xavier_init_()
    for W in attention.parameters():
        assert has_variance(W, 1 / 64)
        assert W.abs().max() <= sqrt(3 / 64)


@pytest.mark.parametrize("module", [vit, gpt], ids=["vit.py", "gpt.py"])
@pytest.mark.parametrize(
    "init, arguments, changed",
    [
        ("default_init_", (), ("W_Q", "W_K", "W_V", "W_proj")),
        ("xavier_init_", (), ("W_Q", "W_K", "W_V", "W_proj")),
        ("simple_init_", (1, -1), ("W_Q", "W_K", "W_V", "W_proj")),
        ("mimetic_init_", (0.7, 0.7, 0.4, -0.4), ("W_Q", "W_K", "W_V", "W_proj")),
        ("query_key_init_", (0.7, 0.7), ("W_Q", "W_K")),
        ("value_projection_init_", (0, 0), ("W_V", "W_proj")),
        ("shuffle_", (), ("W_K", "W_proj")),
    ],
)
def test_an_init_changes_its_weights_alone(module, init, arguments, changed):
    model, _ = small_model(module)
    before = {name: W.clone() for name, W in model.state_dict().items()}
    getattr(model.blocks[1].attention, init)(*arguments)
    after = {name for name, W in model.state_dict().items() if not torch.equal(W, before[name])}
    assert after == {f"blocks.1.attention.{name}" for name in changed}
    assert all(W.is_contiguous() and W.requires_grad for W in model.parameters())


@pytest.mark.parametrize(
    "module, given, used",
    [
        (vit, (), (0.7, 0.7, 0.4, -0.4)),
        (gpt, (), (0.1, 0.7, 0.1, -0.4)),
        (vit, (0.1, -0.2, 0.3, 0.4), (0.1, -0.2, 0.3, 0.4)),
        (gpt, (0.1, -0.2, 0.3, 0.4), (0.1, -0.2, 0.3, 0.4)),
    ],
)
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_mimetic_init_of_a_model(module, given, used, device):
    """All layers draw from one generator, one after another. On a GPU the weights are the same."""
    peer, batch = small_model(module)
    generator = seeded(0)
    for block in peer.blocks:
        block.attention.mimetic_init_(*used, generator)
    model = small_model(module)[0].to(device)
    assert model.mimetic_init_(*given, generator=seeded(0)) is model
    assert all(torch.equal(W.cpu(), W2) for W, W2 in zip(model.parameters(), peer.parameters()))
    assert torch.allclose(model(batch.to(device)).cpu(), peer(batch), **ROUNDED)


@pytest.mark.parametrize(
    "make, arguments, name",
    [
        (vit.Attention, {"dim": 8, "heads": 3}, "heads"),
        (vit.Attention, {"dim": 8, "heads": 0}, "heads"),
        (ViTConfig, {"image_size": 0}, "image_size"),
        (ViTConfig, {"patch_size": -2}, "patch_size"),
        (ViTConfig, {"patch_size": 3}, "patch_size"),
        (ViTConfig, {"channels": 1.5}, "channels"),
        (ViTConfig, {"classes": nan}, "classes"),
        (ViTConfig, {"dim": "64"}, "dim"),
        (ViTConfig, {"dim": 66, "heads": 2}, "dim"),
        (ViTConfig, {"depth": 0}, "depth"),
        (ViTConfig, {"heads": 0}, "heads"),
        (ViTConfig, {"heads": 3}, "heads"),
        (ViTConfig, {"position": "sine"}, "position"),
        (GPTConfig, {"vocab_size": 0}, "vocab_size"),
        (GPTConfig, {"context": 1.5}, "context"),
        (GPTConfig, {"dim": nan}, "dim"),
        (GPTConfig, {"dim": 33, "heads": 3}, "dim"),
        (GPTConfig, {"depth": "4"}, "depth"),
        (GPTConfig, {"heads": 0}, "heads"),
        (GPTConfig, {"heads": 3}, "heads"),
        (GPTConfig, {"position": "sine"}, "position"),
        (GPTConfig, {"stream": "small"}, "stream"),
    ],
)
def test_a_wrong_argument_is_named(make, arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must "):
        make(**arguments)


# ---------------------------------------------------------------------------------------------
# The files themselves


def test_both_files_have_the_same_method_and_attention():
    texts = [Path(module.__file__).read_text() for module in (vit, gpt)]
    sections = [text.split("# " + "-" * 93)[1:3] for text in texts]
    assert "class Attention" in sections[0][1]
    assert sections[0] == sections[1]


@pytest.mark.parametrize(
    "module, line",
    [
        (vit, "ViT(ViTConfig()).mimetic_init_()(torch.zeros(1, 1, 8, 8))"),
        (gpt, "GPT(GPTConfig()).mimetic_init_()(torch.zeros(1, 10, dtype=torch.long))[0]"),
    ],
)
def test_each_file_works_alone_in_an_empty_folder(module, line):
    Path("alone.py").write_text(Path(module.__file__).read_text() + f"\nprint({line}.ndim)\n")
    done = subprocess.run([sys.executable, "-I", "alone.py"], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
