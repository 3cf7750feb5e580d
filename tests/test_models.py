"""Attention, the ViT and the GPT: against independent code, and at the start of training.

There are three kinds of bounds. Where two programs compute the same in float64, on numbers of size
1 to 10, sums of a few hundred terms are right to about 1e-13, and `CLOSE` allows a hundred times as
much. Bounds of chance are those of test_method.py. All others are explained where they stand.
"""

import ast
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_method import (
    SIGMAS,
    TAIL,
    both_files,
    chi_square,
    diagonal_means,
    double,
    head_dims,
    heads,
    rounding,
    seeded,
    seeds,
    vp_product,
    weights,
)

from mimetic_min import gpt, vit
from mimetic_min.gpt import GPT, GPTConfig
from mimetic_min.vit import ViT, ViTConfig

CLOSE = {"rtol": 0, "atol": 1e-11}
positions = st.sampled_from(["sincos", "learned"])


def small_model(module, position="sincos"):
    """A model of three layers with two heads: a ViT from vit.py, or a GPT from gpt.py."""
    if module is vit:
        return ViT(ViTConfig(dim=32, depth=3, heads=2, position=position))
    return GPT(GPTConfig(dim=32, depth=3, heads=2, position=position))


def small_batch(module):
    """Input for `small_model`: 4 images, or 4 texts of 9 tokens."""
    if module is vit:
        return torch.randn(4, 1, 8, 8)
    return torch.randint(256, (4, 9))


# ---------------------------------------------------------------------------------------------
# Attention


def random_attention(module, heads, head_dim, causal, tokens, seed):
    """An attention in float64, and an input (2, tokens, dim) that makes uneven attention maps."""
    torch.manual_seed(seed)
    attention = module.Attention(heads * head_dim, heads, causal=causal).double()
    attention.xavier_init_()
    return attention, 3 * torch.randn(2, tokens, heads * head_dim, dtype=torch.float64)


@both_files
@given(heads=heads, head_dim=head_dims, causal=st.booleans(), tokens=st.integers(1, 9), seed=seeds)
def test_attention_is_that_of_torch(module, heads, head_dim, causal, tokens, seed):
    """torch.nn.MultiheadAttention, with the same weights, has the same outputs and maps."""
    attention, x = random_attention(module, heads, head_dim, causal, tokens, seed)
    dim = heads * head_dim
    peer = torch.nn.MultiheadAttention(
        dim, heads, bias=False, batch_first=True, dtype=torch.float64
    )
    # It has the heads side by side, and computes x @ W^T.
    W_Q = attention.W_Q.transpose(0, 1).reshape(dim, dim)
    W_K = attention.W_K.transpose(0, 1).reshape(dim, dim)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([W_Q, W_K, attention.W_V], dim=1).T)
        peer.out_proj.weight.copy_(attention.W_proj.T)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    output, maps = peer(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(attention(x), output, **CLOSE)
    torch.testing.assert_close(attention.attention_map(x), maps, **CLOSE)


@both_files
@given(heads=heads, head_dim=head_dims, causal=st.booleans(), tokens=st.integers(1, 9), seed=seeds)
def test_attention_is_the_sum_over_heads_of_map_times_product(
    module, heads, head_dim, causal, tokens, seed
):
    """The formula in NumPy. Each head uses columns of W_V and rows of W_proj of its own."""
    attention, x = random_attention(module, heads, head_dim, causal, tokens, seed)
    W_Q, W_K, W_V, W_proj = map(double, weights(attention).values())
    for text, output, maps in zip(double(x), attention(x), attention.attention_map(x)):
        expected = np.zeros_like(text)
        for head in range(heads):
            logits = text @ W_Q[head] @ W_K[head].T @ text.T / np.sqrt(head_dim)
            if causal:
                logits[np.triu_indices(tokens, 1)] = -np.inf
            attended = np.exp(logits - logits.max(axis=1, keepdims=True))
            attended /= attended.sum(axis=1, keepdims=True)
            assert np.allclose(double(maps[head]), attended, **CLOSE)
            own = slice(head * head_dim, (head + 1) * head_dim)
            expected += attended @ text @ W_V[:, own] @ W_proj[own]
        assert np.allclose(double(output), expected, **CLOSE)


@both_files
@given(heads=heads, head_dim=head_dims, causal=st.booleans(), tokens=st.integers(1, 9), seed=seeds)
def test_attention_map_is_the_one_that_forward_uses(module, heads, head_dim, causal, tokens, seed):
    """Rows sum to 1. The map times x W_V, head by head, times W_proj is the output."""
    attention, x = random_attention(module, heads, head_dim, causal, tokens, seed)
    maps = attention.attention_map(x)
    assert maps.shape == (2, heads, tokens, tokens)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, heads, tokens).double(), **CLOSE)
    values = (x @ attention.W_V).split(head_dim, dim=-1)
    mixed = torch.cat([maps[:, head] @ values[head] for head in range(heads)], dim=-1)
    torch.testing.assert_close(mixed @ attention.W_proj, attention(x), **CLOSE)


@both_files
@given(heads=heads, head_dim=st.integers(16, 32), seed=seeds)
def test_default_and_xavier(module, heads, head_dim, seed):
    """A new attention is N(0, 0.02^2). Xavier is uniform with variance 1/dim."""
    torch.manual_seed(seed)
    dim = heads * head_dim
    attention = module.Attention(dim, heads)
    for W in weights(attention).values():
        low, high = chi_square(W.numel())
        assert low <= (double(W) ** 2).mean() / 0.02**2 <= high
        # Uniform entries of this variance would all be below 0.035. Of normal ones, 8 percent are
        # above, and all n are below it with a probability of 0.92^n, where n is at least 256.
        assert W.abs().max() > 0.02 * np.sqrt(3)
    attention.xavier_init_()
    for W in weights(attention).values():
        # The square of a uniform number varies less than that of a normal one, so the bound holds.
        low, high = chi_square(W.numel())
        assert low <= (double(W) ** 2).mean() * dim <= high
        assert W.abs().max() <= np.sqrt(3 / dim)
    attention.default_init_()
    for W in weights(attention).values():
        low, high = chi_square(W.numel())
        assert low <= (double(W) ** 2).mean() / 0.02**2 <= high


@given(seed=seeds, keep=st.integers(1, 11), shift=st.integers(1, 6), position=positions)
def test_no_future_leaks(seed, keep, shift, position):
    """The first `keep` logits stay the same whatever comes later, and even if nothing does."""
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=7, context=12, dim=16, depth=2, heads=2, position=position)
    model = GPT(config).double().mimetic_init_()
    tokens = torch.randint(7, (1, 12))
    other = tokens.clone()
    other[:, keep:] = (other[:, keep:] + shift) % 7
    logits = model(tokens)
    torch.testing.assert_close(model(other)[:, :keep], logits[:, :keep], **CLOSE)
    torch.testing.assert_close(model(tokens[:, :keep]), logits[:, :keep], **CLOSE)
    assert (model(other)[:, keep:] != logits[:, keep:]).any(-1).all()


# ---------------------------------------------------------------------------------------------
# The models, built again from torch's own layers


def peer_layer(block, dim, heads, bias):
    """A block's weights in torch.nn.TransformerEncoderLayer."""
    peer = torch.nn.TransformerEncoderLayer(
        dim,
        heads,
        dim_feedforward=4 * dim,
        dropout=0.0,
        activation=F.gelu,
        batch_first=True,
        norm_first=True,
        bias=bias,
        dtype=torch.float64,
    )
    attention = block.attention
    W_Q = attention.W_Q.transpose(0, 1).reshape(dim, dim)
    W_K = attention.W_K.transpose(0, 1).reshape(dim, dim)
    with torch.no_grad():
        peer.self_attn.in_proj_weight.copy_(torch.cat([W_Q, W_K, attention.W_V], dim=1).T)
        peer.self_attn.out_proj.weight.copy_(attention.W_proj.T)
        if bias:
            peer.self_attn.in_proj_bias.zero_()
            peer.self_attn.out_proj.bias.zero_()
    peer.norm1.load_state_dict(block.norm1.state_dict())
    peer.norm2.load_state_dict(block.norm2.state_dict())
    peer.linear1.load_state_dict(block.mlp[0].state_dict())
    peer.linear2.load_state_dict(block.mlp[2].state_dict())
    return peer


def shaken(model):
    """The model in float64, with weights that differ everywhere, gains and biases included. So none
    can be left out unseen.
    """
    for W in model.parameters():
        torch.nn.init.normal_(W, mean=0.05, std=0.3)
    return model.double()


@given(seed=seeds, position=positions)
@settings(max_examples=8)
def test_the_vit_is_made_of_torchs_own_layers(seed, position):
    """Patches row by row, layers, and the mean of the tokens for the classifier."""
    torch.manual_seed(seed)
    model = shaken(ViT(ViTConfig(6, 2, 3, 5, dim=8, depth=2, heads=2, position=position)))
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    patches = []
    for row in (0, 2, 4):
        for column in (0, 2, 4):
            patch = images[:, :, row : row + 2, column : column + 2]
            patches.append(patch.flatten(1))
    x = model.embed(torch.stack(patches, dim=1)) + model.positions
    for block in model.blocks:
        x = peer_layer(block, 8, 2, bias=True)(x)
    expected = model.head(model.norm(x).mean(1))
    assert expected.shape == (4, 5)
    torch.testing.assert_close(model(images), expected, **CLOSE)


@given(seed=seeds, position=positions, tokens=st.integers(1, 6))
@settings(max_examples=8)
def test_the_gpt_is_made_of_torchs_own_layers(seed, position, tokens):
    """Embeddings, times sqrt(dim) with sincos, causal layers without biases, and tied logits."""
    torch.manual_seed(seed)
    model = shaken(GPT(GPTConfig(7, 6, dim=8, depth=2, heads=2, position=position)))
    text = torch.randint(7, (3, tokens))
    scale = 8**0.5 if position == "sincos" else 1
    x = scale * F.one_hot(text, 7).double() @ model.embed.weight + model.positions[:tokens]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    for block in model.blocks:
        x = peer_layer(block, 8, 2, bias=False)(x, src_mask=mask)
    expected = model.norm(x) @ model.embed.weight.T
    torch.testing.assert_close(model(text), expected, **CLOSE)


@both_files
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_training_and_evaluation_mode_are_the_same(module, position):
    """There is no dropout."""
    model = small_model(module, position)
    batch = small_batch(module)
    assert torch.equal(model.train()(batch), model.eval()(batch))


# ---------------------------------------------------------------------------------------------
# Positions and the residual stream


def sines_and_cosines(places, dim):
    """The formula of Attention Is All You Need in NumPy, with all sines first: (places, dim)."""
    frequencies = 1 / 10_000 ** (2 * np.arange(dim // 2) / dim)
    angles = np.asarray(places)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


# Angles go up to 63, and float32 knows them to 63 times its eps.
ANGLE_ERROR = 64 * np.finfo(np.float32).eps


def test_sinusoidal_positions_of_a_vit_tell_row_and_column():
    model = ViT(ViTConfig(image_size=8, patch_size=1, dim=64))
    rows = np.repeat(np.arange(8), 8)
    columns = np.tile(np.arange(8), 8)
    expected = [sines_and_cosines(rows, 32), sines_and_cosines(columns, 32)]
    expected = np.concatenate(expected, axis=1)
    assert np.abs(double(model.positions) - expected).max() <= ANGLE_ERROR


def test_sinusoidal_positions_of_a_gpt_tell_the_place():
    model = GPT(GPTConfig(context=64, dim=128))
    expected = sines_and_cosines(np.arange(64), 128)
    assert np.abs(double(model.positions) - expected).max() <= ANGLE_ERROR


@both_files
def test_only_learned_positions_are_learned_and_saved(module):
    sincos = small_model(module, "sincos")
    assert "positions" not in dict(sincos.named_parameters())
    assert "positions" not in sincos.state_dict()
    learned = small_model(module, "learned")
    assert "positions" in dict(learned.named_parameters())
    low, high = chi_square(learned.positions.numel())
    assert low <= (double(learned.positions) ** 2).mean() / 0.02**2 <= high


def stream(model, tokens):
    """What the first block of a model reads: the stream as it starts."""
    seen = []
    hook = model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(tokens)
    hook.remove()
    return double(seen[0])


@given(seed=seeds)
@settings(max_examples=10)
def test_the_stream_with_sincos_has_unit_size(seed):
    """The token's part has a mean square of 1, sines and cosines have 1/2, so the sum has 1.5."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=64, context=64, dim=128, depth=1))
    tokens = torch.arange(64)[None]  # each token once, so that all rows are independent
    x = stream(model, tokens)[0]
    position = sines_and_cosines(np.arange(64), 128)
    token = x - position

    # sin^2 + cos^2 = 1 in each pair
    assert np.allclose((position**2).mean(axis=1), 0.5)
    low, high = chi_square(x.size)
    assert low <= (token**2).mean() <= high
    # The sum has 2 token * position as well: normal, with the variance 4 * 1/2 over n entries.
    cross = SIGMAS * np.sqrt(2 / x.size)
    assert low + 0.5 - cross <= (x**2).mean() <= high + 0.5 + cross


@given(seed=seeds)
@settings(max_examples=10)
def test_the_stream_of_gpt2_is_small(seed):
    """With learned positions, tokens and positions are both N(0, 0.02^2), and so the sum has twice
    this variance.
    """
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=64, context=64, dim=128, depth=1, position="learned"))
    x = stream(model, torch.arange(64)[None])
    low, high = chi_square(x.size)
    assert low <= (x**2).mean() / (2 * 0.02**2) <= high
    assert low <= (double(model.embed.weight) ** 2).mean() / 0.02**2 <= high
    assert low <= (double(model.positions) ** 2).mean() / 0.02**2 <= high


@given(seed=seeds, position=positions)
@settings(max_examples=10)
def test_the_first_logits_are_small(seed, position):
    """Logits of a new model are N(0, 1) with sincos and N(0, 0.02^2 dim) with learned positions.

    The last LayerNorm makes vectors of length sqrt(dim). The embedding of a token that is not in
    the text has no part in them. So its logit is normal, with dim times the variance of an entry.
    """
    torch.manual_seed(seed)
    dim, vocab_size = 64, 500
    model = GPT(GPTConfig(vocab_size, context=8, dim=dim, depth=2, position=position))
    tokens = torch.arange(8)[None]
    logits = double(model(tokens)[0, -1, 8:])
    variance = 1 if position == "sincos" else 0.02**2 * dim
    low, high = chi_square(len(logits))
    # LayerNorm adds 1e-5 to the variance of the stream, which is at least 0.0004: 3 percent.
    assert 0.97 * low <= (logits**2).mean() / variance <= high


@pytest.mark.parametrize("position", ["sincos", "learned"])
@given(seed=seeds)
@settings(max_examples=10)
def test_attention_starts_local_only_with_sinusoidal_positions(position, seed):
    """In the mean over heads of an untrained mimetic ViT, attention falls with distance.

    The images are noise, so only their positions tell two patches apart. Small random positions
    know no distance: for them, the sum of attention times distance is like that for shuffled
    patches (Mantel's test), and lies within SIGMAS spreads of it. With sinusoids it lies below.
    """
    torch.manual_seed(seed)
    model = ViT(ViTConfig(image_size=8, patch_size=1, position=position)).mimetic_init_()
    with torch.no_grad():
        x = model.embed(torch.randn(16, 64, 1)) + model.positions
        maps = model.blocks[0].attention.attention_map(model.blocks[0].norm1(x))
    mean_map = double(maps.mean((0, 1)))
    row, column = np.divmod(np.arange(64), 8)
    distance = np.hypot(row[:, None] - row, column[:, None] - column)
    random = np.random.default_rng(seed)
    shuffled = []
    for _ in range(200):
        order = random.permutation(64)
        shuffled.append((mean_map[np.ix_(order, order)] * distance).sum())
    score = ((mean_map * distance).sum() - np.mean(shuffled)) / np.std(shuffled)
    if position == "sincos":
        assert score < -SIGMAS
    else:
        assert abs(score) < SIGMAS


# ---------------------------------------------------------------------------------------------
# The start of a model


@both_files
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_all_other_weights_start_as_in_timm_and_gpt2(module, position):
    """Matrices are N(0, 0.02^2), less where a GPT adds to the stream, gains are 1, and biases 0.

    The patch embedding has PyTorch's start: uniform up to 1/sqrt(4 pixels).
    """
    torch.manual_seed(0)
    model = small_model(module, position)
    for name, W in model.named_parameters():
        std = 0.02
        if module is gpt and name.endswith(("W_proj", "mlp.2.weight")):
            std = 0.02 / np.sqrt(6)  # three layers, each of which adds twice
        if module is gpt and name == "embed.weight" and position == "sincos":
            std = 32**-0.5
        if module is vit and name.startswith("embed"):
            assert W.abs().max() <= 0.5
            # 32 uniform numbers are all below 0.25 once in 4e9 times.
            assert W.abs().max() > 0.25
        elif name.endswith("bias"):
            assert (W == 0).all(), name
        elif "norm" in name:
            assert (W == 1).all(), name
        else:
            low, high = chi_square(W.numel())
            assert low <= (double(W) ** 2).mean() / std**2 <= high, name


@both_files
@given(seed=seeds)
@settings(max_examples=8)
def test_default_and_mimetic_differ_only_in_the_attention(module, seed):
    """With one seed all other weights are the same, and the default model is left as it was."""
    torch.manual_seed(seed)
    default = small_model(module)
    before = {name: W.clone() for name, W in default.state_dict().items()}
    torch.manual_seed(seed)
    mimetic = small_model(module).mimetic_init_()
    for name, W in default.state_dict().items():
        assert torch.equal(W, before[name]), name
        in_attention = ".attention." in name
        assert torch.equal(W, mimetic.state_dict()[name]) == (not in_attention), name


@both_files
@given(seed=seeds)
@settings(max_examples=8)
def test_every_layer_has_the_models_strengths_and_a_Z_of_its_own(module, seed):
    """For a ViT they are the paper's, for a GPT there is less noise. The layers draw one after
    another from one generator. The model itself is returned.
    """
    strengths = {vit: (0.7, 0.7, 0.4, -0.4), gpt: (0.1, 0.7, 0.1, -0.4)}[module]
    model = small_model(module)
    assert model.mimetic_init_(generator=seeded(seed)) is model
    generator = seeded(seed)
    for block in model.blocks:
        expected = module.Attention(32, 2)
        expected.mimetic_init_(*strengths, generator)
        for name, W in weights(expected).items():
            assert torch.equal(weights(block.attention)[name], W), name


@both_files
def test_a_model_passes_each_strength_on(module):
    model = small_model(module)
    model.mimetic_init_(qk_alpha=0.1, qk_beta=-0.2, vp_alpha=0.3, vp_beta=0.4, generator=seeded(0))
    expected = module.Attention(32, 2)
    expected.mimetic_init_(0.1, -0.2, 0.3, 0.4, seeded(0))
    for name, W in weights(expected).items():
        assert torch.equal(weights(model.blocks[0].attention)[name], W), name


@given(seed=seeds, depth=st.integers(1, 6), first=st.floats(-1, 1), last=st.floats(-1, 1))
@settings(max_examples=15)
def test_the_value_projection_of_a_gpt_goes_on_a_line(seed, depth, first, last):
    """From vp_beta in the first layer to vp_last_beta in the last. One layer has vp_beta."""
    dim = 32
    model = GPT(GPTConfig(dim=dim, depth=depth))
    model.mimetic_init_(vp_alpha=0.1, vp_beta=first, vp_last_beta=last, generator=seeded(seed))
    for layer, block in enumerate(model.blocks):
        product = vp_product(block.attention)
        expected = first + (last - first) * layer / max(1, depth - 1)
        # The mean of dim numbers with the spread alpha / sqrt(dim)
        bound = SIGMAS * 0.1 / dim + rounding(product) + rounding(np.eye(dim))
        assert abs(diagonal_means(product) - expected) <= bound


@both_files
@pytest.mark.parametrize("init", ["default", "xavier", "mimetic", "simple", "off"])
def test_all_parameters_are_contiguous(module, init):
    """Then they can be flattened, saved by safetensors, and shared between processes."""
    model = started_model(module, init)
    for name, W in model.named_parameters():
        assert W.is_contiguous(), name
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    other = small_model(module)
    torch.nn.utils.vector_to_parameters(vector, other.parameters())
    for name, W in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], W), name


def started_model(module, init):
    model = small_model(module)
    for block in model.blocks:
        attention = block.attention
        if init == "xavier":
            attention.xavier_init_()
        elif init == "mimetic":
            attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)
        elif init == "simple":
            attention.simple_init_(1, -1)
        elif init == "off":
            attention.value_projection_init_(0, 0)
    return model


@both_files
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_safetensors_saves_a_mimetic_model_and_reads_it_back(module, position):
    safetensors = pytest.importorskip("safetensors.torch")
    model = small_model(module, position).mimetic_init_()
    safetensors.save_file(model.state_dict(), "model.safetensors")
    other = small_model(module, position)
    other.load_state_dict(safetensors.load_file("model.safetensors"))
    batch = small_batch(module)
    assert torch.equal(other(batch), model(batch))


@both_files
def test_attention_that_is_off_stays_off(module):
    """W_V and W_proj of 0 are each other's gradient. So training moves neither. Others move."""
    torch.manual_seed(0)
    model = started_model(module, "off")
    before = {name: W.clone() for name, W in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(20):
        loss = model(small_batch(module)).logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, W in model.state_dict().items():
        if name.endswith(("W_V", "W_proj")):
            assert (W == 0).all(), name
        elif ".mlp." in name:
            assert not torch.equal(W, before[name]), name


# ---------------------------------------------------------------------------------------------
# A seed means the same weights everywhere


@both_files
@given(seed=seeds)
@settings(max_examples=5)
def test_a_model_in_float64_has_the_weights_of_one_in_float32(module, seed):
    single = small_model(module).mimetic_init_(generator=seeded(seed))
    both = small_model(module).double().mimetic_init_(generator=seeded(seed))
    for a, b in zip(single.blocks, both.blocks):
        for name, W in weights(b.attention).items():
            assert W.dtype == torch.float64
            assert torch.equal(W, weights(a.attention)[name].double()), name


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@both_files
def test_the_default_dtype_does_not_change_what_a_seed_means(module, float64_by_default):
    """The factors of the same Z differ by rounding, and a pair of columns by its sign. The products
    do not.
    """
    attention = module.Attention(32, 2)
    attention.mimetic_init_(0.7, 0.7, 0.4, -0.4, seeded(0))
    torch.set_default_dtype(torch.float32)
    expected = module.Attention(32, 2)
    expected.mimetic_init_(0.7, 0.7, 0.4, -0.4, seeded(0))
    difference = vp_product(attention) - vp_product(expected)
    assert np.abs(difference).max() <= rounding(vp_product(expected))

    torch.set_default_dtype(torch.float64)
    attention.simple_init_(1, -1, seeded(0))
    torch.set_default_dtype(torch.float32)
    expected.simple_init_(1, -1, seeded(0))
    assert np.abs(double(attention.W_Q) - double(expected.W_Q)).max() <= rounding(np.eye(32))


@both_files
def test_a_default_device_does_not_change_what_a_seed_means(module):
    """The weights stay where they are, and Z is drawn on the CPU."""
    inside, outside = module.Attention(32, 2), module.Attention(32, 2)
    for init_ in ("mimetic_init_", "simple_init_"):
        arguments = (0.7, 0.7, 0.4, -0.4) if init_ == "mimetic_init_" else (1, -1)
        with torch.device("meta"):
            getattr(inside, init_)(*arguments, seeded(0))
        getattr(outside, init_)(*arguments, seeded(0))
        for name, W in weights(inside).items():
            assert torch.equal(W, weights(outside)[name]), name


@both_files
def test_a_model_can_be_made_and_started_without_memory(module):
    """On the device "meta" there are only shapes. Each start runs, and all weights stay there."""
    with torch.device("meta"):
        model = small_model(module).mimetic_init_()
        for init in ("xavier", "simple", "off"):
            started_model(module, init)
        assert model(small_batch(module)).shape[0] == 4
    for name, W in model.named_parameters():
        assert W.is_meta, name


# ---------------------------------------------------------------------------------------------
# The language model's output


def test_the_output_weights_are_those_of_the_embedding_and_learn_as_both():
    """The gradient of a shared row is the sum over both uses. Finite differences know it, too.

    Token 0 is only read, 3 is only to be predicted, 1 and 2 are both, and 4 is neither.
    """
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=5, context=8, dim=16, depth=1, heads=2)).double()
    assert sum(W.numel() == 5 * 16 for W in model.parameters()) == 1
    tokens = torch.tensor([[0, 1, 2]])
    targets = torch.tensor([1, 2, 3])
    F.cross_entropy(model(tokens)[0], targets).backward()
    gradient = model.embed.weight.grad.clone()
    # Central differences are wrong by about step^2, and rounding adds 1e-16 / step.
    step = 1e-6
    for row, column in ((0, 3), (2, 7), (3, 1), (4, 0)):
        losses = []
        for change in (step, -step):
            with torch.no_grad():
                model.embed.weight[row, column] += change
                losses.append(F.cross_entropy(model(tokens)[0], targets).item())
                model.embed.weight[row, column] -= change
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(slope - gradient[row, column].item()) < 1e-8
        assert gradient[row].abs().max() > 1e-4


@given(seed=seeds, count=st.sampled_from([0, 1, 12]), position=positions)
@settings(max_examples=12)
def test_generate_draws_from_the_models_own_distribution(seed, count, position):
    """It keeps the prompt, a generator reproduces it, and at a temperature near 0 it takes the
    likeliest token. It looks back on `context` tokens.
    """
    # A new model would say the last token again and again. A shaken one does not.
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=11, context=8, dim=16, depth=1, heads=2, position=position)
    model = shaken(GPT(config))
    prompt = torch.randint(11, (2, 3))
    first = model.generate(prompt, count, generator=seeded(seed))
    again = model.generate(prompt, count, generator=seeded(seed))
    assert first.shape == (2, 3 + count)
    assert torch.equal(first[:, :3], prompt)
    assert torch.equal(first, again)

    greedy = model.generate(prompt, count, temperature=1e-9, generator=seeded(seed))
    for n in range(3, 3 + count):
        logits = model(greedy[:, max(0, n - 8) : n])[:, -1]
        assert torch.equal(greedy[:, n], logits.argmax(-1))


def test_generate_draws_each_token_as_often_as_the_softmax_says():
    """4,000 draws of one token from four. Hoeffding's inequality with TAIL bounds each share, and
    the temperature of 2 flattens the distribution.
    """
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4, context=4, dim=16, depth=1, heads=2))
    prompt = torch.tensor([[1, 2]]).expand(4000, 2)
    for temperature in (1.0, 2.0):
        drawn = model.generate(prompt, 1, temperature, generator=seeded(0))[:, -1]
        expected = (model(prompt[:1])[0, -1] / temperature).softmax(-1)
        for token in range(4):
            share = (drawn == token).double().mean()
            assert abs(share - expected[token]) <= np.sqrt(TAIL / (2 * 4000))


# ---------------------------------------------------------------------------------------------
# Wrong values. Each message is read letter for letter.


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ViTConfig(patch_size=3),
            "patch_size must divide image_size, but 3 does not divide 8",
        ),
        (lambda: ViTConfig(dim=0), "dim must be a whole number above 0, but it is 0"),
        (lambda: ViTConfig(depth=1.5), "depth must be a whole number above 0, but it is 1.5"),
        (lambda: ViTConfig(classes=-1), "classes must be a whole number above 0, but it is -1"),
        (
            lambda: ViTConfig(dim=66, heads=2),
            "dim must be a multiple of 4 with sincos positions, but it is 66",
        ),
        (lambda: ViTConfig(position="sine"), "position must be sincos or learned, but it is sine"),
        (lambda: GPTConfig(context=0), "context must be a whole number above 0, but it is 0"),
        (
            lambda: GPTConfig(vocab_size="8"),
            "vocab_size must be a whole number above 0, but it is 8",
        ),
        (
            lambda: GPTConfig(dim=33, heads=3),
            "dim must be even with sincos positions, but it is 33",
        ),
        (lambda: GPTConfig(position="sine"), "position must be sincos or learned, but it is sine"),
        (lambda: vit.Attention(8, 3), "heads must divide dim, but 3 does not divide 8"),
        (lambda: gpt.Attention(8, 3), "heads must divide dim, but 3 does not divide 8"),
        (lambda: gpt.Attention(8, 0), "heads must divide dim, but 0 does not divide 8"),
        (lambda: ViTConfig(heads=3), "heads must divide dim, but 3 does not divide 64"),
        (lambda: GPTConfig(heads=3), "heads must divide dim, but 3 does not divide 128"),
        (
            lambda: small_model(gpt)(torch.zeros(1, 65, dtype=int)),
            "the context holds 64 tokens, but there are 65",
        ),
        (
            lambda: small_model(gpt).generate(torch.zeros(1, 1, dtype=int), 1, temperature=0),
            "temperature must be above 0, but it is 0",
        ),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    "module, strength, message",
    [
        (vit, {"qk_alpha": 1.5}, "qk_alpha must be between 0 and 1, but it is 1.5"),
        (vit, {"qk_beta": -1.5}, "qk_beta must be between -1 and 1, but it is -1.5"),
        (vit, {"vp_alpha": -0.1}, "vp_alpha must be between 0 and 1, but it is -0.1"),
        (vit, {"vp_beta": 2}, "vp_beta must be between -1 and 1, but it is 2"),
        (gpt, {"qk_alpha": 1.5}, "qk_alpha must be between 0 and 1, but it is 1.5"),
        (gpt, {"qk_beta": -1.5}, "qk_beta must be between -1 and 1, but it is -1.5"),
        (gpt, {"vp_alpha": -0.1}, "vp_alpha must be between 0 and 1, but it is -0.1"),
        (gpt, {"vp_beta": 2}, "vp_beta must be between -1 and 1, but it is 2"),
        (gpt, {"vp_last_beta": 2}, "vp_last_beta must be between -1 and 1, but it is 2"),
    ],
)
def test_a_model_refuses_a_wrong_strength_and_changes_nothing(module, strength, message):
    model = small_model(module)
    before = {name: W.clone() for name, W in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        model.mimetic_init_(**strength)
    assert str(error.value) == message
    for name, W in model.state_dict().items():
        assert torch.equal(W, before[name]), name


# ---------------------------------------------------------------------------------------------
# The files themselves


def definitions(path):
    """The functions and classes at the top of a file, by name, with their source text."""
    source = Path(path).read_text()
    tops = [node for node in ast.parse(source).body if hasattr(node, "name")]
    return {node.name: ast.get_source_segment(source, node) for node in tops}


def test_what_stands_in_both_model_files_stands_there_letter_for_letter():
    shared = (
        "mimetic_target",
        "balanced_factors",
        "check_strengths",
        "Attention",
        "sincos",
    )
    for name in shared:
        assert inspect.getsource(getattr(vit, name)) == inspect.getsource(getattr(gpt, name)), name


def test_both_scripts_have_the_same_schedule():
    root = Path(vit.__file__).parent.parent
    of_vit = definitions(root / "train_vit.py")
    of_lm = definitions(root / "train_lm.py")
    assert of_vit["learning_rate"] == of_lm["learning_rate"]


@pytest.mark.parametrize(
    "module, line, printed",
    [
        (vit, "vit.ViT(vit.ViTConfig()).mimetic_init_()(torch.zeros(1, 1, 8, 8))", "[1, 10]"),
        (
            gpt,
            "gpt.GPT(gpt.GPTConfig()).mimetic_init_()(torch.zeros(1, 5, dtype=int))",
            "[1, 5, 256]",
        ),
    ],
    ids=["vit.py", "gpt.py"],
)
def test_each_model_file_works_alone_in_an_empty_folder(module, line, printed, tmp_path):
    """It imports the standard library and torch, and finds no other file of the project."""
    file = Path(shutil.copy(module.__file__, tmp_path))
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import of a neighbour"
            imported.add(node.module.split(".")[0])
    assert imported <= sys.stdlib_module_names | {"torch"}

    program = f"import torch, {file.stem}; print(list({line}.shape))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == printed + "\n", done.stderr
