"""Other people's layouts: what is written is read back, and the module computes what the reference attention does.

The modules below are small ones with the layout of timm, nanoGPT and Hugging Face; where the real package is installed,
the same tests run on it. Both sides run in float64 on activations of size 1 to 10, which are right to 1e-13 or so.
"""
import math
import pickle
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mimetic_min import gpt, layouts, vit
from test_data import Evil
from test_products import products, seeded, seeds

CLOSE = dict(rtol=0, atol=1e-11)


class TimmAttention(nn.Module):
    """Names and order as in timm.layers.Attention: all of q, then k, then v, and in each head after head."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, n, dim = x.shape
        q, k, v = self.qkv(x).view(batch, n, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, n, dim))


class Conv1D(nn.Module):
    """GPT-2's own linear layer, whose weight acts from the right."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    """Names and order as in nanoGPT and, with Conv1D, in Hugging Face's GPT-2; causal."""

    def __init__(self, dim, heads, conv):
        super().__init__()
        if conv:
            self.num_heads, self.c_attn, self.c_proj = heads, Conv1D(3 * dim, dim), Conv1D(dim, dim)
        else:
            self.n_head, self.c_attn, self.c_proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(torch.ones_like(logits[0, 0]).triu(1).bool(), -math.inf)
        return self.c_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


Layout = namedtuple("Layout", "make forward causal")   # make(dim, heads) a module; forward(module, x)


def of_the_real_timm(dim, heads):
    return pytest.importorskip("timm.layers").Attention(dim, num_heads=heads, qkv_bias=True)


def of_the_real_gpt2(dim, heads):
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention as Real
    config = transformers.GPT2Config(n_embd=dim, n_head=heads, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "eager"
    return Real(config, layer_idx=0).eval()


def causal_mask(x):
    n = x.shape[1]
    return torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]


def torch_forward(module, x):
    return module(x, x, x, need_weights=False)[0]


KNOWN = {
    "MultiheadAttention": Layout(lambda d, h: nn.MultiheadAttention(d, h, batch_first=True), torch_forward, False),
    "without biases": Layout(
        lambda d, h: nn.MultiheadAttention(d, h, bias=False, batch_first=True), torch_forward, False),
    "TransformerEncoderLayer": Layout(
        lambda d, h: nn.TransformerEncoderLayer(d, h, dropout=0.0, batch_first=True).self_attn, torch_forward, False),
    "timm's": Layout(TimmAttention, lambda module, x: module(x), False),
    "nanoGPT's": Layout(lambda d, h: GPT2Attention(d, h, conv=False), lambda module, x: module(x), True),
    "Hugging Face's": Layout(lambda d, h: GPT2Attention(d, h, conv=True), lambda module, x: module(x), True),
    "timm": Layout(of_the_real_timm, lambda module, x: module(x), False),
    "transformers": Layout(of_the_real_gpt2, lambda module, x: module(x, attention_mask=causal_mask(x))[0], True),
}
each_layout = pytest.mark.parametrize("layout", KNOWN.values(), ids=KNOWN.keys())
sizes = dict(heads=st.integers(1, 4), head_dim=st.integers(1, 8), seed=seeds)


def random_module(layout, heads, head_dim, seed):
    """A module with all of its parameters random, biases too, and an input that makes uneven maps."""
    torch.manual_seed(seed)
    module = layout.make(heads * head_dim, heads).double()
    for p in module.parameters():
        nn.init.normal_(p, std=1 / math.sqrt(heads * head_dim))
    return module, 3 * torch.randn(2, 5, heads * head_dim, dtype=torch.float64)


@each_layout
@given(**sizes)
@settings(max_examples=20)
def test_what_is_written_is_read_back_and_is_what_the_module_computes(layout, heads, head_dim, seed):
    """The same four weights to the bit, the same products, and forward agrees with that of the reference attention."""
    module, x = random_module(layout, heads, head_dim, seed)
    attention = vit.Attention(heads * head_dim, heads, causal=layout.causal).double()
    attention.xavier_init_()
    layouts.write(module, attention)
    again = layouts.read(module)
    for a, b in zip(attention.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(attention.qk_product(), again.qk_product())
    assert torch.equal(attention.vp_product(), again.vp_product())
    torch.testing.assert_close(layout.forward(module, x), attention(x), **CLOSE)


@each_layout
@given(**sizes)
@settings(max_examples=10)
def test_what_is_read_is_what_a_module_without_biases_computes(layout, heads, head_dim, seed):
    """Also of weights that nobody wrote: the reference attention with what was read gives the module's output."""
    module, x = random_module(layout, heads, head_dim, seed)
    for name, p in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    attention = layouts.read(module)
    attention.causal = layout.causal
    before = {name: p.clone() for name, p in module.named_parameters()}
    torch.testing.assert_close(layout.forward(module, x), attention(x), **CLOSE)
    nn.init.zeros_(attention.W_Q)                                    # what was read is a copy
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


@each_layout
@given(**sizes)
@settings(max_examples=10)
def test_a_mimetic_start_is_that_of_the_reference(layout, heads, head_dim, seed):
    """From one generator: the products of the reference attention, in the module's own weights; off leaves one."""
    module, x = random_module(layout, heads, head_dim, seed)
    attention = vit.Attention(heads * head_dim, heads, causal=layout.causal).double()
    for strengths in ((0.7, 0.7, 0.4, -0.4), (None, None, 0.02, 0.1), (0.4, -0.4, None, None)):
        before = layouts.read(module)
        layouts.mimetic_init_(module, *strengths, generator=seeded(seed))
        attention.mimetic_init_(*strengths, generator=seeded(seed))
        for product, found, old, strength in zip(
                products(attention), products(layouts.read(module)), products(before), strengths[::2], strict=True):
            assert np.array_equal(found, old if strength is None else product)
    torch.testing.assert_close(layout.forward(module, x), attention(x), **CLOSE)


@pytest.mark.parametrize("module, wrong", [
    (nn.Linear(4, 4), "it has weight, bias"),
    (nn.TransformerEncoderLayer(8, 2), "it has self_attn.in_proj_weight, self_attn.in_proj_bias, "),
    (nn.MultiheadAttention(8, 2, add_bias_kv=True), "it has in_proj_weight, in_proj_bias, bias_k, bias_v, "),
    (nn.MultiheadAttention(8, 2, kdim=4), "it has q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias, out_"),
    (vit.Attention(8, 2), "it has W_Q, W_K, W_V, W_proj"),
    (vit.ViT(vit.ViTConfig()), "and 48 more"),
])
def test_a_module_in_another_layout_is_named(module, wrong):
    with pytest.raises(ValueError) as error:
        layouts.read(module)
    line = f"module is '{type(module).__name__}': it must be an attention with in_proj_weight with out_proj.weight or "
    assert str(error.value).startswith(line) and wrong in str(error.value)


def test_an_attention_of_another_size_is_refused_and_nothing_changed():
    module = nn.MultiheadAttention(8, 2)
    before = [p.clone() for p in module.parameters()]
    for attention in (vit.Attention(8, 4), vit.Attention(16, 2)):
        with pytest.raises(ValueError, match=r"^shape of W_Q is .*: it must be \(2, 8, 4\), "):
            layouts.write(module, attention)
    with pytest.raises(ValueError, match="^qk_alpha is 2: it must be from 0 to 1$"):
        layouts.mimetic_init_(module, 2, 0.7, 0.4, -0.4)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))


# ---- files of weights

def state_dict(layout, prefix, depth=11, dim=128, heads=2):
    """A model's, of `depth` layers, with other weights around them; and the attentions, from the first to the last."""
    state, attentions = {"head.weight": torch.zeros(3, dim), "embed.proj.weight": torch.zeros(dim, 3)}, []
    for i in reversed(range(depth)):                                 # the file's order is not that of the layers
        module = random_module(layout, heads, dim // heads, seed=i)[0].float()
        state |= {prefix.format(i) + name: W for name, W in module.state_dict().items()}
        state[prefix.format(i).replace("attn", "mlp") + "c_proj.weight"] = torch.zeros(dim, 4 * dim)
        attentions.insert(0, layouts.read(module))
    return state, attentions


@pytest.mark.parametrize("name, prefix", [
    ("MultiheadAttention", "encoder.layers.{}.self_attn."), ("timm's", "blocks.{}.attn."),
    ("nanoGPT's", "transformer.h.{}.attn."), ("Hugging Face's", "h.{}.attn.")])
@pytest.mark.parametrize("under", [None, "model", "state_dict"])
def test_a_file_of_weights_gives_the_products_of_its_layers(name, prefix, under, tmp_path):
    """Also when the weights are one entry among others; layer 10 comes after layer 9."""
    state, attentions = state_dict(KNOWN[name], prefix)
    torch.save(state if under is None else {"epoch": 3, under: state}, tmp_path / "file.pth")
    for heads in (None, 2):
        found = layouts.read_checkpoint(tmp_path / "file.pth", heads)
        for a, b in zip(attentions, found, strict=True):
            assert torch.equal(a.qk_product(), b.qk_product()) and torch.equal(a.vp_product(), b.vp_product())
    assert layouts.read_checkpoint(tmp_path / "file.pth", 4)[0].W_Q.shape == (4, 128, 32)


def test_half_precision_is_read_as_float32_and_reading_draws_no_random_numbers(tmp_path):
    state = {"qkv.weight": torch.full((192, 64), 300.0).half(), "proj.weight": torch.full((64, 64), 300.0).bfloat16()}
    torch.save(state, tmp_path / "half.pth")
    before = torch.get_rng_state()
    attention, = layouts.read_checkpoint(tmp_path / "half.pth")
    layouts.read(nn.MultiheadAttention(8, 2))
    torch.set_rng_state(before)
    module = nn.MultiheadAttention(8, 2)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    nn.MultiheadAttention(8, 2)
    layouts.read(module)
    assert torch.equal(torch.get_rng_state(), after)
    assert attention.vp_product().unique().tolist() == [64 * 300 * torch.tensor(300.0).bfloat16().item()]


def test_safetensors_are_read_where_the_package_is_installed(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state, attentions = state_dict(KNOWN["Hugging Face's"], "h.{}.attn.")
    save_file(state, tmp_path / "model.safetensors")
    for a, b in zip(attentions, layouts.read_checkpoint(tmp_path / "model.safetensors"), strict=True):
        assert torch.equal(a.qk_product(), b.qk_product()) and torch.equal(a.vp_product(), b.vp_product())


def test_without_safetensors_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="it must be read with safetensors: python -m pip install safetensors$"):
        layouts.read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("model", [vit.ViT(vit.ViTConfig(depth=2)), gpt.GPT(gpt.GPTConfig(depth=2))])
def test_the_projects_own_checkpoints_are_read(model, tmp_path):
    torch.save({"model": model.mimetic_init_().state_dict(), "step": 1}, tmp_path / "own.pt")
    for block, found in zip(model.blocks, layouts.read_checkpoint(tmp_path / "own.pt"), strict=True):
        assert torch.equal(block.attention.qk_product(), found.qk_product())
        assert torch.equal(block.attention.vp_product(), found.vp_product())


def test_a_file_that_is_something_else_is_named(tmp_path, monkeypatch):
    """What was looked for and what was found; and a pickle in it does not run."""
    monkeypatch.chdir(tmp_path)
    known = ("in_proj_weight with out_proj.weight or qkv.weight with proj.weight or c_attn.weight with c_proj.weight; "
             "in this one there are ")
    other = {f"layer{i}.weight": torch.zeros(2, 2) for i in range(8)}
    names = ", ".join(f"layer{i}.weight" for i in range(6))
    for content, right in (
            (other, f"a file with {known}{names} and 2 more"), ({}, f"a file with {known}no weights"),
            ([1], "a file of named weights; in this one there is a list"),
            ({"student": {}, "teacher": {}}, f"a file with {known}student, teacher"),
            ({1: torch.zeros(2), "qkv.weight": torch.zeros(3, 1).char()}, f"a file with {known}1, qkv.weight"),
            ({"blocks.0.attention.W_Q": torch.zeros(1, 4, 4)}, f"a file with {known}blocks.0.attention.W_Q"),
            ({"W_Q": torch.zeros(2, 4, 4), "W_K": torch.zeros(1, 4, 4), "W_V": torch.zeros(4, 4),
              "W_proj": torch.zeros(4, 4)}, "a file of weights that fit, also in "),
            ({f"{part}.0.qkv.weight": torch.zeros(192, 64) for part in "ab"}
             | {f"{part}.0.proj.weight": torch.zeros(64, 64) for part in "ab"},
             "a file of one model's layers; this one has a.#., b.#."),
            ({"qkv.weight": torch.full((192, 64), torch.nan), "proj.weight": torch.zeros(64, 64)},
             "of finite weights; those of  are not"),
            ({"model": Evil()}, "a file of weights, of PyTorch or .safetensors; it cannot be read as one without "
             "running code")):
        torch.save(content, "file.bin")
        with pytest.raises(ValueError) as error:
            layouts.read_checkpoint("file.bin")
        assert str(error.value) == f"checkpoint is 'file.bin': it must be {right}"
    for content in (b"", b"hello", pickle.dumps(Evil())):
        Path("file.bin").write_bytes(content)
        with pytest.raises(ValueError, match="^checkpoint is 'file.bin': it must be a file of weights"):
            layouts.read_checkpoint("file.bin")
    assert not Path("it ran").exists()
    with pytest.raises(ValueError, match=r"it cannot be read \(No such file or directory\)$"):
        layouts.read_checkpoint("none.bin")
    torch.save({"qkv.weight": torch.zeros(288, 96), "proj.weight": torch.zeros(96, 96)}, "file.bin")
    with pytest.raises(ValueError, match="^checkpoint is 'file.bin': it must be given with --heads: its width 96"):
        layouts.read_checkpoint("file.bin")
    assert layouts.read_checkpoint("file.bin", 3)[0].W_Q.shape == (3, 96, 32)
    with pytest.raises(ValueError, match="^heads is 5: it must be a divisor of dim, 96"):
        layouts.read_checkpoint("file.bin", 5)
    torch.save({"qkv.weight": torch.zeros(200, 96), "proj.weight": torch.zeros(96, 96)}, "file.bin")
    with pytest.raises(ValueError, match=r"^shape is \(\(200, 96\), \(96, 96\)\): it must be \(dim, 3 dim\), or"):
        layouts.read_checkpoint("file.bin", 3)
