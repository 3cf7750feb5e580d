"""The attention against torch.nn.MultiheadAttention, and what the two models promise at initialisation.

Where two ways of computing the same thing are compared, both run in float64 on activations of size 1 to 10: sums of at
most a few hundred terms are then right to 1e-13 or so, and `CLOSE` leaves that a hundredfold.
"""
import ast
import inspect
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimetic_min import gpt, vit
from test_products import (SIGMAS, both_files, chi_square, double, head_dims, heads, products, rounding,
                           seeded, seeds)

CLOSE = dict(rtol=0, atol=1e-11)
only_vit = pytest.mark.parametrize("module", [vit], ids=["vit.py"])
only_gpt = pytest.mark.parametrize("module", [gpt], ids=["gpt.py"])


def random_attention(module, heads, head_dim, causal, tokens, seed):
    """An attention in float64 with weights and input of a size that makes uneven maps."""
    torch.manual_seed(seed)
    attention = module.Attention(heads * head_dim, heads, causal=causal).double()
    attention.xavier_init_()
    return attention, 3 * torch.randn(2, tokens, heads * head_dim, dtype=torch.float64)


# ---- attention

@both_files
@given(heads=heads, head_dim=head_dims, causal=st.booleans(), tokens=st.integers(1, 9), seed=seeds)
def test_attention_is_that_of_torch(module, heads, head_dim, causal, tokens, seed):
    """The same weights in torch.nn.MultiheadAttention, which computes x @ W^T, give the same outputs and maps."""
    attention, x = random_attention(module, heads, head_dim, causal, tokens, seed)
    d = heads * head_dim
    peer = torch.nn.MultiheadAttention(d, heads, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        side_by_side = [W.transpose(0, 1).reshape(d, d) for W in (attention.W_Q, attention.W_K)]
        peer.in_proj_weight.copy_(torch.cat([*side_by_side, attention.W_V], dim=1).T)
        peer.out_proj.weight.copy_(attention.W_proj.T)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    output, maps = peer(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(attention(x), output, **CLOSE)
    torch.testing.assert_close(attention.attention_map(x), maps, **CLOSE)


@both_files
@given(heads=heads, head_dim=head_dims, causal=st.booleans(), tokens=st.integers(1, 9), seed=seeds)
def test_attention_map_is_the_one_that_forward_uses(module, heads, head_dim, causal, tokens, seed):
    """Rows sum to 1, and map times X W_V, head by head, times W_proj is the output."""
    attention, x = random_attention(module, heads, head_dim, causal, tokens, seed)
    maps = attention.attention_map(x)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]), **CLOSE)
    values = (x @ attention.W_V).split(head_dim, dim=-1)
    mixed = torch.cat([maps[:, head] @ values[head] for head in range(heads)], dim=-1)
    torch.testing.assert_close(mixed @ attention.W_proj, attention(x), **CLOSE)


@only_gpt
@given(seed=seeds, keep=st.integers(1, 11), position=st.sampled_from(["sincos", "learned"]), data=st.data())
def test_no_future_leaks(module, seed, keep, position, data):
    """Whatever comes after the first `keep` tokens, the logits at those stay as they are, and the later ones do not."""
    torch.manual_seed(seed)
    model = module.GPT(module.GPTConfig(vocab_size=7, context=12, dim=16, depth=2, heads=2, position=position)).double()
    model.mimetic_init_(generator=seeded(seed))
    tokens = torch.randint(7, (1, 12), generator=seeded(seed))
    other = tokens.clone()
    other[:, keep:] = (other[:, keep:] + data.draw(st.integers(1, 6))) % 7
    a, b = model(tokens), model(other)
    torch.testing.assert_close(a[:, :keep], b[:, :keep], **CLOSE)
    assert (a[:, keep:] != b[:, keep:]).any(-1).all()
    torch.testing.assert_close(model(tokens[:, :keep]), a[:, :keep], **CLOSE)  # nor does the length matter


# ---- the models

def peer_layer(block, d, heads, bias):
    """A block's weights in torch.nn.TransformerEncoderLayer."""
    peer = torch.nn.TransformerEncoderLayer(d, heads, 4 * d, 0.0, torch.nn.functional.gelu, batch_first=True,
                                            norm_first=True, bias=bias, dtype=torch.float64)
    A = block.attention
    side_by_side = [W.transpose(0, 1).reshape(d, d) for W in (A.W_Q, A.W_K)]
    weights = {"self_attn.in_proj_weight": torch.cat([*side_by_side, A.W_V], dim=1).T,
               "self_attn.out_proj.weight": A.W_proj.T}
    for ours, theirs in (("norm1", "norm1"), ("norm2", "norm2"), ("mlp.0", "linear1"), ("mlp.2", "linear2")):
        weights |= {name.replace(ours, theirs): W for name, W in block.state_dict().items() if name.startswith(ours)}
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"self_attn.in_proj_bias", "self_attn.out_proj.bias"}
    for name in missing:
        torch.nn.init.zeros_(peer.get_parameter(name))
    return peer.train()                                              # in eval mode it may take another path


def jiggle(model):
    """Weights that are all different from what they start as, so that none can be left out unseen."""
    for W in model.parameters():
        torch.nn.init.normal_(W, mean=0.05, std=0.3)
    return model.double()


@only_vit
@given(seed=seeds, position=st.sampled_from(["sincos", "learned"]))
@settings(max_examples=10)
def test_the_vit_is_made_of_torchs_own_layers(module, seed, position):
    """Patches cut by hand, row by row; TransformerEncoderLayer with norm_first; the mean token to the head."""
    torch.manual_seed(seed)
    model = jiggle(module.ViT(module.ViTConfig(6, 2, 3, 5, 8, 2, 2, position)))
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    patches = [images[:, :, row : row + 2, column : column + 2].flatten(1) for row in (0, 2, 4) for column in (0, 2, 4)]
    x = model.embed(torch.stack(patches, dim=1)) + model.position
    for block in model.blocks:
        x = peer_layer(block, 8, 2, bias=True)(x)
    torch.testing.assert_close(model(images), model.head(model.norm(x).mean(1)), **CLOSE)


@only_gpt
@given(seed=seeds, position=st.sampled_from(["sincos", "learned"]), tokens=st.integers(1, 6))
@settings(max_examples=10)
def test_the_gpt_is_made_of_torchs_own_layers(module, seed, position, tokens):
    """The same layers without biases, under a causal mask, and logits by the embedding itself."""
    torch.manual_seed(seed)
    model = jiggle(module.GPT(module.GPTConfig(7, 6, 8, 2, 2, position=position)))
    text = torch.randint(7, (3, tokens))
    x = torch.nn.functional.one_hot(text, 7).double() @ model.embed.weight + model.position[:tokens]
    for block in model.blocks:
        x = peer_layer(block, 8, 2, bias=False)(x, src_mask=torch.ones(tokens, tokens, dtype=torch.bool).triu(1))
    torch.testing.assert_close(model(text), model.norm(x) @ model.embed.weight.T, **CLOSE)


@only_gpt
def test_dropout_is_on_in_training_alone(module):
    """On the embedding and on both branches of a block: with nearly all dropped, what is left is nearly constant."""
    torch.manual_seed(0)
    model = module.GPT(module.GPTConfig(dropout=0.5, dim=16, heads=2))
    text = torch.randint(256, (2, 9))
    assert not torch.equal(model(text), model(text))
    block = model.blocks[0]
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        for silent in (block.attention.W_proj, block.mlp[2].weight):     # one branch at a time
            kept = silent.clone()
            silent.zero_()
            assert not torch.equal(block(x), block(x))
            silent.copy_(kept)
    model.eval()
    assert torch.equal(model(text), model(text))


@both_files
def test_positions_are_what_they_are_called(module):
    """Sincos: NumPy's sines and cosines, on a grid for images. Learned: parameters of deviation 0.02."""
    def table(n, d):
        angles = np.arange(n)[:, None] / 10000 ** (2 * np.arange(d // 2) / d)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    if hasattr(module, "ViT"):
        make = lambda position: module.ViT(module.ViTConfig(position=position, patch_size=1)).position
        row, column = np.divmod(np.arange(64), 8)
        expected = np.concatenate([table(8, 32)[row], table(8, 32)[column]], axis=1)
    else:
        make = lambda position: module.GPT(module.GPTConfig(position=position)).position
        expected = 0.02 * np.sqrt(2) * table(64, 128)                # rows of mean square 0.02^2, as learned ones have
        assert np.allclose((expected**2).mean(1), 0.02**2)
    sincos, learned = make("sincos"), make("learned")
    assert not isinstance(sincos, torch.nn.Parameter) and isinstance(learned, torch.nn.Parameter)
    assert np.abs(double(sincos) - expected).max() <= 64 * np.finfo(np.float32).eps  # of angles up to 63
    low, high = chi_square(learned.numel())
    assert low <= (double(learned) ** 2).mean() / 0.02**2 <= high


@both_files
def test_all_other_weights_start_as_in_timm_and_gpt2(module):
    """N(0, 0.02^2), biases 0; less by sqrt(2 * depth) where a GPT adds to the stream; PyTorch's patch embedding."""
    torch.manual_seed(0)
    model = build(module)
    for name, W in model.named_parameters():
        if name.endswith("bias") and not name.startswith("embed"):
            assert (W == 0).all(), name
        elif "norm" in name:
            assert (W == 1).all(), name
        elif name.startswith("embed") and hasattr(module, "ViT"):
            assert W.abs().max() <= 4**-0.5 and (name.endswith("bias") or W.abs().max() > 0.4)  # uniform, 4 inputs
        else:
            added = hasattr(module, "GPT") and name.endswith(("W_proj", "mlp.2.weight"))
            low, high = chi_square(W.numel())
            assert low <= (double(W) ** 2).mean() / (0.02**2 / (6 if added else 1)) <= high, name


@both_files
def test_simple_form_of_a_model_has_the_signs_of_its_field(module):
    model = build(module).simple_init_(generator=seeded(0))
    sign = 1 if hasattr(module, "ViT") else -1
    for block in model.blocks:
        assert torch.equal(block.attention.W_K, sign * block.attention.W_Q)
        assert torch.equal(block.attention.W_proj, -sign * block.attention.W_V.T)
    again = build(module).simple_init_(generator=seeded(0))
    assert all(torch.equal(a.attention.W_Q, b.attention.W_Q) for a, b in zip(model.blocks, again.blocks))
    assert not torch.equal(model.blocks[0].attention.W_Q, model.blocks[1].attention.W_Q)


# ---- the published defaults of the two models

@only_vit
@given(seed=seeds)
@settings(max_examples=10)
def test_vision_signs(module, seed):
    """Every layer of a mimetic ViT: W_Q W_K^T as NumPy makes it with 0.7 and 0.7, W_V W_proj with 0.4 and -0.4."""
    d, k = 64, 16
    model = module.ViT(module.ViTConfig(dim=d, heads=d // k, depth=3)).mimetic_init_(generator=seeded(seed))
    expected, spread = diagonal_by_numpy(d, k, 0.7, 0.7)
    for block in model.blocks:
        qk, vp = products(block.attention)
        for head in qk:
            assert abs(np.diag(head).mean() - expected) <= spread and np.diag(head).mean() > 0
        assert abs(np.diag(vp).mean() + 0.4) <= SIGMAS * 0.4 / d + rounding(vp)
        low, high = chi_square(d * (d - 1))
        assert low <= (vp[~np.eye(d, dtype=bool)] ** 2).mean() / (0.4**2 / d) <= high


@only_gpt
@given(seed=seeds, depth=st.integers(1, 6))
@settings(max_examples=10)
def test_published_strengths_of_language(module, seed, depth):
    """Every layer of a mimetic GPT: query-key with 0.4 and 0.1, value-projection with 0.02 and -0.05."""
    d, k = 64, 16
    model = module.GPT(module.GPTConfig(dim=d, heads=d // k, depth=depth)).mimetic_init_(generator=seeded(seed))
    expected, spread = diagonal_by_numpy(d, k, 0.4, 0.1)
    for block in model.blocks:
        qk, vp = products(block.attention)
        for head in qk:
            assert abs(np.diag(head).mean() - expected) <= spread and np.diag(head).mean() > 0
        assert abs(np.diag(vp).mean() + 0.05) <= SIGMAS * 0.02 / d + rounding(vp)


@only_gpt
@given(seed=seeds, depth=st.integers(1, 6), first=st.floats(-1, 1), last=st.floats(-1, 1))
@settings(max_examples=10)
def test_the_value_projection_goes_on_a_line(module, seed, depth, first, last):
    model = module.GPT(module.GPTConfig(dim=32, depth=depth))
    model.mimetic_init_(vp_beta=first, vp_last_beta=last, generator=seeded(seed))
    for layer, block in enumerate(model.blocks):
        vp = products(block.attention)[1]
        line = first + (last - first) * layer / max(1, depth - 1)
        assert abs(np.diag(vp).mean() - line) <= SIGMAS * 0.02 / len(vp) + rounding(vp)


@lru_cache
def diagonal_by_numpy(d, k, alpha, beta, draws=100):
    """The mean diagonal of the best rank-k approximation of alpha Z + beta I, and how far a draw may be from it."""
    random, means = np.random.default_rng(0), []
    for _ in range(draws):
        U, S, Vt = np.linalg.svd(alpha * random.normal(size=(d, d)) / np.sqrt(d) + beta * np.eye(d))
        means.append(np.diag(U[:, :k] * S[:k] @ Vt[:k]).mean())
    return np.mean(means), SIGMAS * np.std(means, ddof=1) * np.sqrt(1 + 1 / draws)


@both_files
@given(seed=seeds)
@settings(max_examples=10)
def test_default_and_mimetic_differ_in_the_attention_alone(module, seed):
    """One seed gives both the same weights everywhere else, and a mimetic model leaves the default one as it was."""
    torch.manual_seed(seed)
    default = build(module)
    before = {name: W.clone() for name, W in default.state_dict().items()}
    torch.manual_seed(seed)
    other = build(module).mimetic_init_()
    for name, W in default.state_dict().items():
        assert torch.equal(W, before[name]), name
        assert torch.equal(W, other.state_dict()[name]) == (".attention." not in name), name


@both_files
@given(seed=seeds)
@settings(max_examples=10)
def test_layers_draw_their_own_Z(module, seed):
    """No two heads of the whole model have the same product; the value-projections differ in the random part."""
    model = build(module).mimetic_init_(generator=seeded(seed))
    qk = np.concatenate([products(block.attention)[0] for block in model.blocks])
    noise = [products(block.attention)[1] for block in model.blocks]
    noise = [product - np.diag(np.diag(product)) for product in noise]
    for family in (qk, noise):
        for i in range(len(family)):
            for j in range(i):
                assert np.abs(family[i] - family[j]).max() > 2 * rounding(np.stack(family))


@both_files
@given(seed=seeds)
@settings(max_examples=10)
def test_noise_is_mimetic_without_its_diagonals(module, seed):
    """From one seed: the same value-projection but for beta I, and a query-key product without a diagonal."""
    a = build(module).mimetic_init_(generator=seeded(seed))
    b = build(module).noise_init_(generator=seeded(seed))
    of = inspect.signature(a.mimetic_init_).parameters, inspect.signature(b.noise_init_).parameters
    assert all(of[0][name].default == of[1][name].default for name in ("qk_alpha", "vp_alpha"))
    alpha, beta = (0.7, -0.4) if module is vit else (0.4, -0.05)
    for mimetic, noise in zip(a.blocks, b.blocks):
        vp, d = products(mimetic.attention)[1], 32
        assert np.abs(vp - beta * np.eye(d) - products(noise.attention)[1]).max() <= 2 * rounding(vp)
        for product in products(noise.attention)[0]:
            # alpha Z = U S V^T with independent random U and V: each u_i . v_i has variance 1/d, so their sum with the
            # weights S has at most |alpha Z|^2 / d, where |Z|^2 / d is the mean of d^2 squares of N(0, 1)
            bound = SIGMAS * alpha / d * np.sqrt(chi_square(d * d)[1])
            assert abs(np.diag(product).mean()) <= bound


def build(module):
    if hasattr(module, "ViT"):
        return module.ViT(module.ViTConfig(dim=32, depth=3, heads=2))
    return module.GPT(module.GPTConfig(dim=32, depth=3, heads=2))


@only_vit
@pytest.mark.parametrize("position", ["sincos", "learned"])
@given(seed=seeds)
@settings(max_examples=15)
def test_attention_starts_local_with_sinusoidal_positions_alone(module, position, seed):
    """Untrained, in every head's average: attention falls off with distance with sincos, and not with learned.

    The images are noise, so that nothing but the position tells two patches apart. Small random positions know no
    distance: the sum of attention times distance is then like that for shuffled patches (Mantel's test), and lies
    within SIGMAS of their mean. With sinusoids it must lie below that.
    """
    torch.manual_seed(seed)
    model = module.ViT(module.ViTConfig(image_size=8, patch_size=1, position=position)).mimetic_init_()
    with torch.no_grad():
        x = model.embed(torch.randn(16, 64, 1)) + model.position
        maps = model.blocks[0].attention.attention_map(model.blocks[0].norm1(x)).mean((0, 1)).numpy()
    row, column = np.divmod(np.arange(64), 8)
    distance = np.hypot(row[:, None] - row, column[:, None] - column)
    random = np.random.default_rng(seed)
    shuffled = [(maps[np.ix_(order, order)] * distance).sum() for order in (random.permutation(64) for _ in range(200))]
    score = ((maps * distance).sum() - np.mean(shuffled)) / np.std(shuffled)
    assert score < -SIGMAS if position == "sincos" else abs(score) < SIGMAS


# ---- the files themselves

def definitions(module):
    source = inspect.getsource(module)
    return {node.name: ast.get_source_segment(source, node) for node in ast.parse(source).body if hasattr(node, "name")}


def test_what_stands_in_both_files_is_the_same_letter_for_letter():
    a, b = definitions(vit), definitions(gpt)
    both = a.keys() & b.keys()
    assert {"require", "mimetic_target", "balanced_factors", "Attention", "sincos"} <= both
    for name in both:
        assert a[name] == b[name], name


@pytest.mark.parametrize("module, line", [
    (vit, "print(vit.ViT(vit.ViTConfig()).mimetic_init_()(torch.zeros(1, 1, 8, 8)).shape)"),
    (gpt, "print(gpt.GPT(gpt.GPTConfig()).mimetic_init_()(torch.zeros(1, 5, dtype=int)).shape)"),
], ids=["vit.py", "gpt.py"])
def test_each_file_works_alone_in_an_empty_folder(module, line, tmp_path):
    """With torch and the standard library alone, and no other file of the project in reach."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"torch"}
    file = Path(module.__file__)
    shutil.copy(file, tmp_path)
    done = subprocess.run([sys.executable, "-c", f"import torch, {file.stem}; {line}"], cwd=tmp_path,
                          capture_output=True, text=True, env={"PATH": ""})
    assert done.stdout in ("torch.Size([1, 10])\n", "torch.Size([1, 5, 256])\n"), done.stderr


@pytest.mark.parametrize("make, message", [
    (lambda: vit.ViTConfig(patch_size=3), "patch_size is 3: it must be a divisor of the image size, 8"),
    (lambda: vit.ViTConfig(dim=0), "dim is 0: it must be a whole number from 1"),
    (lambda: vit.ViTConfig(depth=1.5), "depth is 1.5: it must be a whole number from 1"),
    (lambda: vit.ViTConfig(dim=66), "dim is 66: it must be a multiple of 4 with sincos positions"),
    (lambda: vit.ViTConfig(position="sine"), "position is 'sine': it must be 'sincos' or 'learned'"),
    (lambda: vit.ViT(vit.ViTConfig(heads=3)), "heads is 3: it must be a divisor of dim, 64"),
    (lambda: gpt.GPT(gpt.GPTConfig(heads=3)), "heads is 3: it must be a divisor of dim, 128"),
    (lambda: gpt.GPTConfig(dropout=1.0), "dropout is 1.0: it must be from 0 to below 1"),
    (lambda: gpt.GPTConfig(dim=33, position="sincos"), "dim is 33: it must be even with sincos positions"),
    (lambda: gpt.GPT(gpt.GPTConfig(dim=8)).mimetic_init_(vp_beta=1.5), "vp_beta is 1.5: it must be from -1 to 1"),
    (lambda: gpt.GPT(gpt.GPTConfig(dim=8)).mimetic_init_(vp_last_beta=1.5),
     "vp_last_beta is 1.5: it must be from -1 to 1"),
    (lambda: gpt.GPT(gpt.GPTConfig(context=4))(torch.zeros(1, 5, dtype=int)),
     "number of tokens is 5: it must be at most the context, 4"),
    (lambda: gpt.GPT(gpt.GPTConfig()).generate(torch.zeros(1, 1, dtype=int), 1, temperature=0),
     "temperature is 0: it must be above 0"),
])
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_the_output_weights_are_those_of_the_embedding_and_learn_as_both():
    """A token that is only an input, only a wrong answer, or both: its row has the gradient of both uses, added up."""
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(vocab_size=5, context=8, dim=16, depth=1, heads=2)).double()
    tokens, targets = torch.tensor([[0, 1, 2]]), torch.tensor([1, 2, 3])
    torch.nn.functional.cross_entropy(model(tokens)[0], targets).backward()
    as_both = model.embed.weight.grad.clone()
    assert as_both[4].abs().max() > 0                                # never an input
    step = 1e-6                                                      # central differences: step^2 and 1e-16 / step off
    for row, column in ((0, 3), (2, 7), (4, 0)):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                model.embed.weight[row, column] += sign * step
                losses.append(torch.nn.functional.cross_entropy(model(tokens)[0], targets).item())
                model.embed.weight[row, column] -= sign * step
        assert abs((losses[0] - losses[1]) / (2 * step) - as_both[row, column].item()) < 1e-8


@given(seed=seeds, count=st.integers(0, 12))
@settings(max_examples=10)
def test_generate_draws_from_the_models_own_distribution(seed, count):
    """It keeps the prompt, is reproduced by a generator, and next to temperature 0 takes the likeliest token."""
    torch.manual_seed(seed)
    model = gpt.GPT(gpt.GPTConfig(vocab_size=11, context=8, dim=16, depth=1, heads=2))
    prompt = torch.randint(11, (2, 3))
    a, b = (model.generate(prompt, count, generator=seeded(seed)) for _ in range(2))
    assert a.shape == (2, 3 + count) and torch.equal(a, b) and torch.equal(a[:, :3], prompt)
    greedy = model.generate(prompt, count, temperature=1e-9, generator=seeded(seed))
    for n in range(3, 3 + count):
        assert torch.equal(greedy[:, n], model(greedy[:, max(0, n - 8) : n])[:, -1].argmax(-1))
