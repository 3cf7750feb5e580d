"""Other people's layouts: what is written is read back, and the module computes what the reference
attention computes.

Most modules below are stand-ins: small ones that have the names and the order of a project's
weights. Where the real package is installed, the same tests run on its own modules:

    python -m pip install timm transformers torchvision vit-pytorch

Forward passes are compared in float64, where activations of size 1 to 100 are right to 1e-12 or so.
"""

import pickle
import sys
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mimetic_min import layouts, vit
from mimetic_min.gpt import GPT, GPTConfig
from mimetic_min.vit import Attention, ViT, ViTConfig

CLOSE = dict(rtol=0, atol=1e-10)
STRENGTHS = dict(qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4)

# ---------------------------------------------------------------------------------------------
# Stand-ins


class Conv1D(nn.Module):
    """Hugging Face's linear layer in GPT-2. Its weight is (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class StandIn(nn.Module):
    """Self-attention with linear layers of the names that are given: "attention.query" is a layer
    `query` in a part `attention`.

    Two names mean that queries, keys and values come from one layer, four that each has its own.
    `key_value_heads` may be fewer than `heads`, as in Llama.
    """

    def __init__(self, dim, heads, names, linear=nn.Linear, key_value_heads=None, causal=False):
        super().__init__()
        self.names = names
        self.shape = (heads, key_value_heads or heads, dim // heads)
        self.causal = causal
        head_dim = dim // heads
        shared = (key_value_heads or heads) * head_dim
        widths = [3 * dim] if len(names) == 2 else [dim, shared, shared]
        for name, width in zip(names, [*widths, dim], strict=True):
            *folders, last = name.split(".")
            place = self
            for folder in folders:
                if not hasattr(place, folder):
                    place.add_module(folder, nn.Module())
                place = getattr(place, folder)
            place.add_module(last, linear(dim, width))

    def forward(self, x):
        heads, key_value_heads, head_dim = self.shape
        parts = [self.get_submodule(name)(x) for name in self.names[:-1]]
        if len(parts) == 1:
            parts = parts[0].chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts)
        # Llama's order: neighbouring query heads share.
        k = k.repeat_interleave(heads // key_value_heads, dim=1)
        v = v.repeat_interleave(heads // key_value_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.get_submodule(self.names[-1])(y.transpose(1, 2).flatten(2))


def stand_in(*names, heads_name="num_heads", in_config=False, **more):
    """A maker of StandIns that tell their number of heads under `heads_name`."""

    def make(dim, heads):
        module = StandIn(dim, heads, names, **more)
        place = module
        if in_config:
            module.config = place = SimpleNamespace()
        setattr(place, heads_name, heads)
        return module

    return make


def vit_pytorch(output):
    """vit-pytorch has a LayerNorm inside, before the queries, keys and values."""

    def make(dim, heads):
        module = stand_in("to_qkv", output, heads_name="heads")(dim, heads)
        module.norm = nn.LayerNorm(dim)
        return module

    return make


def bert(dim, heads):
    names = ("self.query", "self.key", "self.value", "output.dense")
    module = StandIn(dim, heads, names)
    module.get_submodule("self").num_attention_heads = heads
    module.output.LayerNorm = nn.LayerNorm(dim)
    return module


# ---------------------------------------------------------------------------------------------
# Every layout


@dataclass
class Case:
    """A kind of attention: how it is made and how it is called."""

    make: object  # (dim, heads) to a module
    forward: object = lambda module, x: module(x)
    # What the attention sees of x.
    reads: object = lambda module, x: x
    causal: bool = False


def call_torch(module, x):
    return module(x, x, x, need_weights=False)[0]


def torch_attention(**more):
    return lambda dim, heads: nn.MultiheadAttention(dim, heads, batch_first=True, **more)


def call_vit_pytorch(module, x):
    return module(module.norm(x))


def normalized(module, x):
    return module.norm(x)


QKV = ("q_proj", "k_proj", "v_proj")
VIT_NAMES = ("attention.query", "attention.key", "attention.value", "output.dense")

CASES = {
    "torch": Case(torch_attention(), call_torch),
    "torch without biases": Case(torch_attention(bias=False), call_torch),
    "timm": Case(stand_in("qkv", "proj")),
    "nanoGPT": Case(stand_in("c_attn", "c_proj", heads_name="n_head", causal=True), causal=True),
    "Hugging Face GPT-2": Case(
        stand_in("c_attn", "c_proj", linear=Conv1D, causal=True), causal=True
    ),
    "vit-pytorch": Case(vit_pytorch("to_out.0"), call_vit_pytorch, normalized),
    "vit-pytorch, no dropout": Case(vit_pytorch("to_out"), call_vit_pytorch, normalized),
    "Hugging Face ViT": Case(
        stand_in(*VIT_NAMES, heads_name="num_attention_heads", in_config=True)
    ),
    "BERT": Case(bert),
    "CLIP": Case(stand_in(*QKV, "out_proj")),
    "transformers 5": Case(stand_in(*QKV, "o_proj", heads_name="num_attention_heads")),
    "this project": Case(Attention),
}


# The same, from the packages themselves.


def real_timm(dim, heads):
    pytest.importorskip("torchvision", exc_type=ImportError)
    return pytest.importorskip("timm.layers").Attention(dim, num_heads=heads, qkv_bias=True)


def real_vit_pytorch(file):
    def make(dim, heads):
        pytest.importorskip("torchvision", exc_type=ImportError)
        package = pytest.importorskip(f"vit_pytorch.{file}")
        # With one head, vit.py leaves W_proj out.
        return package.Attention(dim, heads=heads, dim_head=dim // heads)

    return make


def real_transformers(file, attention, config, **settings):
    """An attention of Hugging Face's, from a config with these names for dim and heads."""
    dim_name, heads_name = settings.pop("names", ("hidden_size", "num_attention_heads"))

    def make(dim, heads):
        transformers = pytest.importorskip("transformers")
        module = pytest.importorskip(f"transformers.models.{file}")
        shape = {dim_name: dim, heads_name: heads}
        made = getattr(transformers, config)(**shape, **settings)
        # Its own "eager" form takes the softmax in float32.
        made._attn_implementation = "sdpa"
        return getattr(module, attention)(made).eval()

    return make


def call_first(module, x):
    output = module(x)
    return output[0] if isinstance(output, tuple) else output


def call_causal(module, x):
    tokens = x.shape[1]
    mask = torch.full((tokens, tokens), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
    return module(x, attention_mask=mask[None, None])[0]


def call_bert(module, x):
    # Without the residual and the LayerNorm that follow.
    return module.output.dense(module.get_submodule("self")(x)[0])


NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

REAL_CASES = {
    "real timm": Case(real_timm),
    "real vit-pytorch": Case(real_vit_pytorch("vit"), lambda module, x: module(x), normalized),
    "real vit-pytorch, SimpleViT": Case(
        real_vit_pytorch("simple_vit"), lambda module, x: module(x), normalized
    ),
    "real GPT-2": Case(
        real_transformers(
            "gpt2.modeling_gpt2", "GPT2Attention", "GPT2Config", names=("n_embd", "n_head")
        ),
        call_causal,
        causal=True,
    ),
    "real ViT": Case(
        real_transformers("vit.modeling_vit", "ViTAttention", "ViTConfig"), call_first
    ),
    "real DINOv2": Case(
        real_transformers("dinov2.modeling_dinov2", "Dinov2Attention", "Dinov2Config"), call_first
    ),
    "real CLIP": Case(
        real_transformers("clip.modeling_clip", "CLIPAttention", "CLIPVisionConfig"), call_first
    ),
    "real SigLIP": Case(
        real_transformers("siglip.modeling_siglip", "SiglipAttention", "SiglipVisionConfig"),
        call_first,
    ),
    "real BERT": Case(
        real_transformers("bert.modeling_bert", "BertAttention", "BertConfig", **NO_DROPOUT),
        call_bert,
    ),
}
each_case = pytest.mark.parametrize("name", [*CASES, *REAL_CASES])


def random_module(name, dim, heads, seed=0):
    """A module of this case with random parameters, biases included, and an input (2, 5, dim)."""
    case = (CASES | REAL_CASES)[name]
    torch.manual_seed(seed)
    module = case.make(dim, heads).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=1 / sqrt(dim))
    x = 3 * torch.randn(2, 5, dim, dtype=torch.float64)
    return case, module, x


def random_attention(dim, heads, seed=0, causal=False):
    torch.manual_seed(seed)
    attention = Attention(dim, heads, causal)
    attention.xavier_init_()
    return attention.double()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def copies(module):
    return {name: parameter.clone() for name, parameter in module.named_parameters()}


def unchanged(module, before):
    return all(torch.equal(W, before[name]) for name, W in module.named_parameters())


def assert_same(a, b):
    for W, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(W, other)


@each_case
@pytest.mark.parametrize("heads, head_dim", [(2, 4), (3, 5)])
def test_what_is_written_is_read_back_and_is_what_the_module_computes(name, heads, head_dim):
    """The same four weights to the bit. Forward agrees, so the old biases are gone."""
    dim = heads * head_dim
    case, module, x = random_module(name, dim, heads)
    attention = random_attention(dim, heads, seed=1, causal=case.causal)
    layouts.write(module, attention)
    again = layouts.read(module)
    assert_same(again, attention)
    assert torch.equal(again.qk_product(), attention.qk_product())
    assert torch.equal(again.vp_product(), attention.vp_product())
    expected = attention(case.reads(module, x))
    torch.testing.assert_close(case.forward(module, x), expected, **CLOSE)


@each_case
def test_what_is_read_is_what_a_module_without_biases_computes(name):
    """Also if nobody wrote it. Biases are left out. What is read is a contiguous copy."""
    case, module, x = random_module(name, dim=12, heads=3)
    with_biases = layouts.read(module)
    for parameter_name, parameter in module.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.zeros_(parameter)
    attention = layouts.read(module)
    assert_same(attention, with_biases)
    assert all(W.is_contiguous() and W.dtype == torch.float64 for W in attention.parameters())

    attention.causal = case.causal
    expected = attention(case.reads(module, x))
    torch.testing.assert_close(case.forward(module, x), expected, **CLOSE)
    before = copies(module)
    for W in attention.parameters():
        nn.init.zeros_(W)
    assert unchanged(module, before)


@each_case
def test_a_mimetic_start_is_that_of_the_reference(name):
    """The same generator gives the same weights, whatever the layout. All biases of Q, K, V and
    proj become 0.
    """
    _, module, _ = random_module(name, dim=12, heads=3)
    attention = random_attention(dim=12, heads=3)
    assert layouts.mimetic_init_(module, **STRENGTHS, generator=seeded(5)) == 1
    attention.mimetic_init_(**STRENGTHS, generator=seeded(5))
    assert_same(layouts.read(module), attention)
    for parameter_name, parameter in module.named_parameters():
        if parameter_name.endswith("bias") and "norm" not in parameter_name.lower():
            assert parameter.count_nonzero() == 0


# ---------------------------------------------------------------------------------------------
# The check: the diagonal's mean and its spread


@pytest.mark.parametrize("name", CASES)
def test_the_diagonals_are_there_and_in_a_permuted_copy_they_are_not(name):
    """The control has the same numbers. Only the coordinates of one side are shuffled. Without a
    diagonal, the mean of 96 entries is within 5 standard errors of 0.
    """
    _, module, _ = random_module(name, dim=96, heads=3)
    layouts.mimetic_init_(module, **STRENGTHS, generator=seeded(0))
    attention = layouts.read(module)
    # The best approximation of rank 32 keeps about a third of the query-key diagonal, or more.
    assert layouts.diagonal(attention.qk_product())[1] > 2
    mean, ratio = layouts.diagonal(attention.vp_product())
    # The diagonal is -0.4 + 0.4 z with 96 numbers z of N(0, 1/96).
    assert abs(mean + 0.4) < 5 * 0.4 / 96
    assert ratio < -5

    shuffled = torch.randperm(96, generator=seeded(1))
    with torch.no_grad():
        attention.W_Q.copy_(attention.W_Q[:, shuffled])
        attention.W_proj.copy_(attention.W_proj[:, shuffled])
    layouts.write(module, attention)
    control = layouts.read(module)
    for product in (control.qk_product(), control.vp_product()):
        assert abs(layouts.diagonal(product)[1]) < 5 / sqrt(96)


def test_transposed_weights_keep_the_mean_of_the_diagonal_and_multiply_its_spread():
    """The usual mistake: W_V and W_proj go into the weight of an nn.Linear as they are. The trace
    stays, since trace(A^T B^T) = trace(A B). The spread is 0.4 / sqrt(96) = 0.04 if all is right.
    """
    attention = Attention(96, 3)
    attention.mimetic_init_(**STRENGTHS, generator=seeded(0))
    wrong = StandIn(96, 3, ("q_proj", "k_proj", "v_proj", "out_proj"))
    wrong.num_heads = 3
    layouts.write(wrong, attention)
    right = layouts.read(wrong).vp_product().diagonal()
    with torch.no_grad():
        wrong.v_proj.weight.copy_(attention.W_V)
        wrong.out_proj.weight.copy_(attention.W_proj)
    transposed = layouts.read(wrong).vp_product().diagonal()
    torch.testing.assert_close(right.mean(), transposed.mean(), rtol=0, atol=1e-5)
    assert right.std() < 0.06
    assert transposed.std() > 0.18


def test_diagonal_is_a_mean_and_a_ratio():
    """By hand: the entries 1, 0, 0, 1 have mean 1/2 and standard deviation 1/2; the diagonal's mean
    is 1. Of two heads the mean is taken first.
    """
    assert layouts.diagonal(torch.eye(2)) == (1, 2)
    assert layouts.diagonal(torch.stack([torch.eye(2), 3 * torch.eye(2)])) == (2, 2)
    assert layouts.diagonal(torch.zeros(2, 2)) == (0, 0)


# ---------------------------------------------------------------------------------------------
# Whole models


def test_a_whole_model_of_torch():
    """nn.Transformer has self-attention in both halves. Its cross-attention is left alone."""
    model = nn.Transformer(
        16, 2, num_encoder_layers=3, num_decoder_layers=2, dim_feedforward=16, batch_first=True
    )
    before = copies(model)
    assert layouts.mimetic_init_(model) == 5
    changed = {name for name, W in model.named_parameters() if not torch.equal(W, before[name])}
    layers = [f"encoder.layers.{i}." for i in range(3)] + [f"decoder.layers.{i}." for i in range(2)]
    weights = {
        f"{layer}self_attn.{name}"
        for layer in layers
        for name in ("in_proj_weight", "out_proj.weight")
    }
    # Their biases are 0 from the start.
    assert changed == weights
    # One draw for each: no two layers are the same.
    assert not torch.equal(*(attention.W_V for attention in layouts.read_all(model)[:2]))


def test_the_self_attention_of_a_decoder_layer_is_found_and_its_cross_attention_can_be_given():
    layer = nn.TransformerDecoderLayer(16, 2, batch_first=True)
    assert_same(layouts.read(layer), layouts.read(layer.self_attn))
    before = layouts.read(layer.self_attn)
    assert layouts.mimetic_init_(layer.multihead_attn) == 1
    assert_same(layouts.read(layer.self_attn), before)


def test_multihead_attn_is_also_a_name_for_self_attention():
    """Only beside a self_attn it is the cross-attention of nn.TransformerDecoderLayer."""
    model = nn.Module()
    model.multihead_attn = nn.MultiheadAttention(8, 2)
    assert layouts.mimetic_init_(model) == 1


@pytest.mark.parametrize("cross", ["crossattention", "cross_attn", "encoder_attn"])
@pytest.mark.parametrize("name", ["BERT", "CLIP", "timm"])
def test_cross_attention_is_told_by_its_name(name, cross):
    layer = nn.Module()
    layer.attention = CASES[name].make(8, 2)
    layer.add_module(cross, CASES[name].make(8, 2))
    before = copies(getattr(layer, cross))
    assert layouts.mimetic_init_(nn.ModuleList([layer])) == 1
    assert unchanged(getattr(layer, cross), before)


def test_pooling_by_a_learned_query_is_left_alone():
    """SigLIP's vision tower ends with it: an nn.MultiheadAttention whose query is `probe`."""
    model = nn.Module()
    model.self_attn = CASES["CLIP"].make(8, 2)
    model.head = nn.Module()
    model.head.probe = nn.Parameter(torch.zeros(1, 1, 8))
    model.head.attention = nn.MultiheadAttention(8, 2)
    before = copies(model.head)
    assert layouts.mimetic_init_(model) == 1
    assert unchanged(model.head, before)


@pytest.mark.parametrize("model", [ViT(ViTConfig(depth=2)), GPT(GPTConfig(depth=2))])
def test_models_of_this_project(model):
    assert layouts.mimetic_init_(model, **STRENGTHS, generator=seeded(0)) == 2
    weights = [W.clone() for W in model.parameters()]
    model.mimetic_init_(**STRENGTHS, generator=seeded(0))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_the_default_strengths_are_the_recipe_and_on_the_layout_of_gpt2_what_was_best_there():
    for name in CASES:
        _, module, _ = random_module(name, dim=12, heads=3)
        attention = random_attention(dim=12, heads=3)
        layouts.mimetic_init_(module, generator=seeded(0))
        gpt2 = name in ("nanoGPT", "Hugging Face GPT-2")
        strengths = (0.4, 0.1, 0.02, -0.05) if gpt2 else (0.7, 0.7, 0.4, -0.4)
        attention.mimetic_init_(*strengths, generator=seeded(0))
        assert_same(layouts.read(module), attention)
    # One strength of one's own leaves the others as they are.
    layouts.mimetic_init_(module, vp_beta=0.2, generator=seeded(0))
    attention.mimetic_init_(0.7, 0.7, 0.4, 0.2, generator=seeded(0))
    assert_same(layouts.read(module), attention)


def test_without_a_generator_the_draws_are_those_of_the_reference():
    """layouts draws nothing besides, so torch.manual_seed means the same everywhere."""
    module = nn.MultiheadAttention(12, 3)
    attention = Attention(12, 3)
    torch.manual_seed(3)
    layouts.mimetic_init_(module)
    torch.manual_seed(3)
    attention.mimetic_init_(**STRENGTHS)
    assert_same(layouts.read(module), attention)


def test_half_precision_modules():
    """The weights are those of float32, rounded: bfloat16 has 8 bits."""
    module = nn.MultiheadAttention(16, 2).bfloat16()
    exact = nn.MultiheadAttention(16, 2)
    layouts.mimetic_init_(module, generator=seeded(0))
    layouts.mimetic_init_(exact, generator=seeded(0))
    attention = layouts.read(module)
    assert attention.W_Q.dtype == torch.bfloat16
    torch.testing.assert_close(
        attention.W_V.float(), layouts.read(exact).W_V, rtol=2**-8, atol=1e-6
    )


# ---------------------------------------------------------------------------------------------
# LayerScale


class Scale(nn.Module):
    def __init__(self, name, factors):
        super().__init__()
        self.register_parameter(name, nn.Parameter(factors))


def scaled_block(names, factors):
    """A block with an attention and LayerScale. `names` are those of the attention, of the part
    that holds the factors of the attention, of the MLP's, and of the factors.
    """
    attention, scale, mlp_scale, gamma = names
    block = nn.Module()
    block.add_module(attention, CASES["timm"].make(len(factors), 2))
    for name in (scale, mlp_scale):
        block.add_module(name, Scale(gamma, factors.clone()))
    return block


SCALES = [("attn", "ls1", "ls2", "gamma"), ("attention", "layer_scale1", "layer_scale2", "lambda1")]


@pytest.mark.parametrize("names", SCALES)
def test_reading_folds_layer_scale_into_the_projection(names):
    """y * gamma = x W_V (W_proj diag(gamma)): the factors multiply the columns of the product."""
    factors = torch.tensor([1.0, -2.0, 0.5, 0.0])
    block = scaled_block(names, factors)
    without = layouts.read(getattr(block, names[0]))
    for attention in (layouts.read(block), layouts.read(nn.Sequential(block))):
        assert torch.equal(attention.W_V, without.W_V)
        assert torch.equal(attention.W_proj, without.W_proj * factors)
        x = torch.randn(1, 3, 4)
        torch.testing.assert_close(attention(x), without(x) * factors)


@pytest.mark.parametrize("names", SCALES)
def test_setting_makes_layer_scale_one_so_that_the_product_is_what_was_asked_for(names):
    """With 1e-5 left in place, value-projection would have no effect. The MLP keeps its own."""
    block = scaled_block(names, torch.full((8,), 1e-5))
    assert layouts.mimetic_init_(block, vp_alpha=0, vp_beta=-0.4) == 1
    torch.testing.assert_close(layouts.read(block).vp_product(), -0.4 * torch.eye(8))
    attention, scale, mlp_scale, gamma = (getattr(block, n, n) for n in names)
    torch.testing.assert_close(layouts.read(attention).vp_product(), -0.4 * torch.eye(8))
    assert getattr(scale, gamma).tolist() == [1] * 8
    assert torch.equal(getattr(mlp_scale, gamma), torch.full((8,), 1e-5))


def test_a_layer_scale_of_another_size_is_refused():
    block = scaled_block(SCALES[0], torch.ones(8))
    block.ls1 = Scale("gamma", torch.ones(1))
    for use in (layouts.read, layouts.mimetic_init_):
        with pytest.raises(
            ValueError, match=r"^the LayerScale of attn must have 8 factors, but its "
        ):
            use(block)


# ---------------------------------------------------------------------------------------------
# Shared key-value heads and rotary positions: read, but not set


def llama(dim, heads, key_value_heads):
    module = stand_in(*QKV, "o_proj", key_value_heads=key_value_heads)(dim, heads)
    return module.double()


@pytest.mark.parametrize("heads, key_value_heads", [(4, 2), (6, 3), (3, 1), (4, 4)])
def test_shared_key_value_heads_are_repeated_for_their_query_heads(heads, key_value_heads):
    torch.manual_seed(0)
    module = llama(4 * heads, heads, key_value_heads)
    for name in module.names:
        nn.init.zeros_(module.get_submodule(name).bias)
    x = 3 * torch.randn(2, 5, 4 * heads, dtype=torch.float64)
    torch.testing.assert_close(layouts.read(module)(x), module(x), **CLOSE)


def test_shared_key_value_heads_are_not_set():
    module = llama(16, 4, 2)
    before = copies(module)
    line = (
        "^self_attn can be read, but not set: 4 query heads share 2 key-value heads, "
        r"so W_Q W_K\^T cannot be chosen for each head, nor W_V W_proj$"
    )
    model = nn.Module()
    model.self_attn = module
    with pytest.raises(ValueError, match=line):
        layouts.mimetic_init_(model)
    with pytest.raises(ValueError, match="^this attention can be read, but not set: 4 query heads"):
        layouts.write(module, random_attention(16, 4))
    assert unchanged(module, before)


class RotaryEmbedding(nn.Module):
    pass


class AttentionRope(StandIn):
    """timm's has its name for it."""


class AngledAttention(StandIn):
    def forward(self, x, rotary_angles=None):
        return super().forward(x)


def rotary_models():
    """Rotary positions as models show them: a part, a class, a buffer, a setting, an argument."""
    models = []
    for kind in ("part", "class", "buffer", "setting", "argument"):
        make = {"class": AttentionRope, "argument": AngledAttention}.get(kind, StandIn)
        model = nn.Module()
        model.attn = make(8, 2, ("qkv", "proj"))
        model.attn.num_heads = 2
        if kind == "part":
            model.angles = RotaryEmbedding()
        if kind == "buffer":
            model.register_buffer("freqs_cis", torch.zeros(3), persistent=False)
        if kind == "setting":
            model.attn.config = SimpleNamespace(rope_theta=10_000.0)
        models.append(pytest.param(model, id=kind))
    return models


@pytest.mark.parametrize("model", rotary_models())
def test_rotary_positions_are_read_but_not_set(model):
    before = copies(model)
    assert layouts.read(model).W_Q.shape == (2, 8, 4)
    with pytest.raises(
        ValueError, match="^attn can be read, but not set: its rotary positions turn "
    ):
        layouts.mimetic_init_(model)
    assert unchanged(model, before)


def test_other_names_are_not_taken_for_rotary_positions():
    model = nn.Module()
    model.property_of_europe = CASES["timm"].make(8, 2)
    model.property_of_europe.config = SimpleNamespace(rope_parameters=None)
    assert layouts.mimetic_init_(model) == 1


# ---------------------------------------------------------------------------------------------
# What is refused


def with_more(name, **parts):
    module = CASES[name].make(8, 2)
    for part_name, part in parts.items():
        module.add_module(part_name, part)
    return module


def without_heads():
    module = CASES["timm"].make(8, 2)
    del module.num_heads
    return module


def with_five_heads():
    module = CASES["timm"].make(8, 2)
    module.num_heads = 5
    return module


def wide_heads():
    """vit-pytorch with its default dim_head of 64: the heads together are wider than the stream."""
    module = nn.Module()
    module.heads = 2
    module.to_qkv = nn.Linear(8, 3 * 128, bias=False)
    module.to_out = nn.Linear(128, 8, bias=False)
    return module


def quantized():
    module = CASES["timm"].make(8, 2)
    whole = module.qkv.weight.detach().to(torch.int8)
    module.qkv.weight = nn.Parameter(whole, requires_grad=False)
    return module


REFUSED = {
    "no attention": (
        lambda: nn.Sequential(nn.Linear(4, 4)),
        "Sequential: found no self-attention in a known layout among 0.weight, 0.bias; looked for "
        "in_proj_weight with out_proj.weight, qkv.weight with proj.weight, ",
    ),
    "names that only end like the known ones": (
        lambda: StandIn(8, 2, ("my_qkv", "my_proj")),
        "StandIn: found no self-attention in a known layout among my_qkv.weight, my_qkv.bias, ",
    ),
    "nothing at all": (nn.Identity, "Identity: found no self-attention in a known layout among no"),
    "queries and keys are normalized": (
        lambda: with_more("timm", q_norm=nn.LayerNorm(4, bias=False)),
        "StandIn: this attention cannot be read or set: it holds q_norm.weight besides its four "
        "weights, so W_Q W_K^T and W_V W_proj do not say what it computes",
    ),
    "biases of keys and values": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
        "MultiheadAttention: this attention cannot be read or set: it holds bias_k, bias_v besides",
    ),
    "keys of another width": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4),
        "MultiheadAttention: found no self-attention in a known layout among q_proj_weight, ",
    ),
    "no number of heads": (
        without_heads,
        "this attention does not say how many heads it has; give the StandIn a num_heads",
    ),
    "a number of heads that does not fit": (
        with_five_heads,
        "the number of heads of this attention must divide its width, but 5 does not divide 8",
    ),
    "heads wider than the stream": (
        wide_heads,
        "the weights of this attention do not fit together: to_qkv.weight is (384, 8), "
        "to_out.weight is (8, 128); the heads together must be as wide as what the layer reads",
    ),
    "whole numbers": (
        quantized,
        "StandIn: qkv.weight must hold plain floating-point numbers in memory, but it is a tensor "
        "of torch.int8, torch.strided, on cpu",
    ),
    "no memory": (
        lambda: nn.MultiheadAttention(8, 2, device="meta"),
        "MultiheadAttention: in_proj_weight must hold plain floating-point numbers in memory, but "
        "it is a tensor of torch.float32, torch.strided, on meta",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_in_one_line(name):
    make, line = REFUSED[name]
    module = make()
    for use in (layouts.read, layouts.read_all, layouts.mimetic_init_):
        with pytest.raises(ValueError) as error:
            use(module)
        assert str(error.value).startswith(line)
        assert "\n" not in str(error.value)


def test_all_or_nothing():
    """One attention that is refused, or one bad strength, leaves the whole model as it was."""
    model = nn.ModuleList([CASES["timm"].make(8, 2), with_five_heads()])
    before = copies(model)
    with pytest.raises(ValueError, match="^the number of heads of 1 must divide its width, but 5 "):
        layouts.mimetic_init_(model)
    model[1].num_heads = 2
    for name, value, low in (("qk_alpha", 1.5, 0), ("vp_beta", -1.01, -1), ("vp_alpha", -0.1, 0)):
        with pytest.raises(
            ValueError, match=f"^{name} must be between {low} and 1, but it is {value}"
        ):
            layouts.mimetic_init_(model, **{name: value})
    assert unchanged(model, before)


def test_read_and_write_take_one_attention():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
    before = copies(model)
    names = "layers.0.self_attn, layers.1.self_attn"
    line = f"^read takes one attention, but TransformerEncoder has 2: {names}; use read_all$"
    with pytest.raises(ValueError, match=line):
        layouts.read(model)
    assert len(layouts.read_all(model)) == 2
    with pytest.raises(
        ValueError, match="^write takes one attention, but TransformerEncoder has 2$"
    ):
        layouts.write(model, random_attention(8, 2))
    for attention in (random_attention(8, 4), random_attention(16, 2)):
        with pytest.raises(ValueError, match=r"^W_Q must be \(2, 8, 4\), .* but it is \("):
            layouts.write(model.layers[0], attention)
    assert unchanged(model, before)


# ---------------------------------------------------------------------------------------------
# Files of weights


def weights_file(name, prefix, depth=11, dim=128, heads=2):
    """A state_dict with `depth` layers of this layout, out of order and among other weights; and
    the attentions, first layer first.
    """
    state = {"head.weight": torch.zeros(3, dim), "embed.proj.weight": torch.zeros(dim, 3)}
    attentions = []
    for layer in range(depth):
        module = random_module(name, dim, heads, seed=layer)[1].float()
        attentions.append(layouts.read(module))
        names = {prefix.format(layer) + n: W for n, W in module.state_dict().items()}
        # Later layers stand first.
        state = names | {f"mlp.{layer}.c_proj.weight": torch.zeros(dim, 4 * dim)} | state
    return state, attentions


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("torch", "encoder.layers.{}.self_attn."),
        ("timm", "blocks.{}.attn."),
        ("nanoGPT", "transformer.h.{}.attn."),
        ("Hugging Face GPT-2", "h.{}.attn."),
        ("vit-pytorch", "transformer.layers.{}.0."),
        ("vit-pytorch, no dropout", "transformer.layers.{}.0."),
        ("Hugging Face ViT", "vit.encoder.layer.{}.attention."),
        ("BERT", "bert.encoder.layer.{}.attention."),
        ("CLIP", "vision_model.encoder.layers.{}.self_attn."),
        ("transformers 5", "model.layers.{}.self_attn."),
        ("this project", "blocks.{}.attention."),
    ],
)
@pytest.mark.parametrize("under", [None, "model", "state_dict"])
def test_a_file_gives_its_layers_in_order(name, prefix, under, tmp_path):
    """Layer 10 comes after layer 9. The weights may be one entry beside others."""
    state, attentions = weights_file(name, prefix)
    torch.save(state if under is None else {"epoch": 3, under: state}, tmp_path / "file.pth")
    found = layouts.read_checkpoint(tmp_path / "file.pth")
    assert len(found) == 11
    for attention, original in zip(found, attentions, strict=True):
        assert_same(attention, original)
    if name != "this project":
        assert layouts.read_checkpoint(tmp_path / "file.pth", heads=4)[0].W_Q.shape == (4, 128, 32)


def test_the_whole_file_of_dinov2_is_read_with_layer_scale(tmp_path):
    """The names of facebook/dinov2-small, and timm's names of the same network."""
    attention = random_attention(64, 1).float()
    factors = torch.linspace(-1, 1, 64)
    published = {"embeddings.cls_token": torch.zeros(1, 1, 64)}
    block = "encoder.layer.0."
    for name, W in (
        ("query", attention.W_Q[0]),
        ("key", attention.W_K[0]),
        ("value", attention.W_V),
    ):
        published[f"{block}attention.attention.{name}.weight"] = W.detach().T
        published[f"{block}attention.attention.{name}.bias"] = torch.ones(64)
    published |= {
        f"{block}attention.output.dense.weight": attention.W_proj.detach().T,
        f"{block}attention.output.dense.bias": torch.ones(64),
        f"{block}norm1.weight": torch.ones(64),
        f"{block}layer_scale1.lambda1": factors,
        f"{block}mlp.fc1.weight": torch.ones(256, 64),
        f"{block}layer_scale2.lambda1": torch.full((64,), 7.0),
    }
    packed = [W.detach() for W in (attention.W_Q[0], attention.W_K[0], attention.W_V)]
    timm = {
        "blocks.0.attn.qkv.weight": torch.cat(packed, dim=1).T,
        "blocks.0.attn.proj.weight": attention.W_proj.detach().T,
        "blocks.0.ls1.gamma": factors,
        "blocks.0.ls2.gamma": torch.full((64,), 7.0),
    }
    for state in (published, timm):
        torch.save(state, tmp_path / "file.bin")
        (found,) = layouts.read_checkpoint(tmp_path / "file.bin")
        assert torch.equal(found.W_Q, attention.W_Q)
        assert torch.equal(found.W_K, attention.W_K)
        assert torch.equal(found.W_V, attention.W_V)
        assert torch.equal(found.W_proj, attention.W_proj * factors)


def test_the_whole_file_of_smollm2_is_read_with_its_shared_heads(tmp_path):
    """Its names, its 9 query heads on 3 key-value heads of 64, in float16 as it is published."""
    torch.manual_seed(0)
    module = llama(576, 9, 3).half()
    state = {f"model.layers.0.self_attn.{n}": W for n, W in module.state_dict().items()}
    state = {name: W for name, W in state.items() if not name.endswith("bias")}
    state["model.embed_tokens.weight"] = torch.zeros(100, 576)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(32)
    state["model.layers.0.mlp.down_proj.weight"] = torch.zeros(576, 1536)
    torch.save(state, tmp_path / "file.pth")
    (found,) = layouts.read_checkpoint(tmp_path / "file.pth")
    expected = layouts.read(module).float()
    assert found.W_Q.shape == (9, 576, 64)
    assert_same(found, expected)
    # Heads 3, 4 and 5 read key-value head 1: rows 64 to 127 of the file.
    rows = state["model.layers.0.self_attn.k_proj.weight"][64:128].float()
    assert all(torch.equal(found.W_K[head], rows.T) for head in (3, 4, 5))


def test_masks_and_cross_attention_in_a_file_are_left_out(tmp_path):
    state, attentions = weights_file("Hugging Face GPT-2", "h.{}.attn.", depth=2)
    state["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    state["h.0.crossattention.c_attn.weight"] = torch.ones(128, 256)
    state["h.0.crossattention.c_proj.weight"] = torch.ones(128, 128)
    torch.save(state, tmp_path / "file.bin")
    for found, attention in zip(layouts.read_checkpoint("file.bin"), attentions, strict=True):
        assert_same(found, attention)


@pytest.mark.parametrize("model", [ViT(ViTConfig(depth=2)), GPT(GPTConfig(depth=2))])
def test_the_checkpoints_of_this_project_are_read(model, tmp_path):
    """They know their heads. A width of 64 would have one head by default."""
    model.mimetic_init_()
    torch.save({"model": model.state_dict(), "step": 1}, tmp_path / "own.pt")
    found = layouts.read_checkpoint(tmp_path / "own.pt")
    for attention, block in zip(found, model.blocks, strict=True):
        assert_same(attention, block.attention)


def test_half_precision_is_read_as_float32_and_reading_draws_no_random_numbers(tmp_path):
    state = {
        "qkv.weight": torch.full((192, 64), 300.0).half(),
        "proj.weight": torch.full((64, 64), 300.0).bfloat16(),
    }
    torch.save(state, tmp_path / "half.pth")
    before = torch.get_rng_state()
    (attention,) = layouts.read_checkpoint(tmp_path / "half.pth")
    layouts.read(attention)
    assert torch.equal(torch.get_rng_state(), before)
    assert attention.W_V.dtype == attention.W_proj.dtype == torch.float32
    assert attention.vp_product().unique().tolist() == [64 * 300 * 300]


def test_safetensors_are_read_where_the_package_is_installed(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state, attentions = weights_file("Hugging Face GPT-2", "h.{}.attn.", depth=2)
    save_file(state, tmp_path / "model.safetensors")
    found = layouts.read_checkpoint(tmp_path / "model.safetensors")
    for attention, original in zip(found, attentions, strict=True):
        assert_same(attention, original)
    # What is read can be saved: all of it is contiguous.
    save_file(found[0].state_dict(), tmp_path / "again.safetensors")


def test_without_safetensors_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    line = "^model.safetensors: reading it needs the package safetensors: python -m pip install saf"
    with pytest.raises(ValueError, match=line):
        layouts.read_checkpoint("model.safetensors")


class Evil:
    """A pickle that would make a folder if it ran."""

    def __reduce__(self):
        return Path.mkdir, (Path("it ran"),)


def square(rows, columns=64):
    return {"qkv.weight": torch.zeros(rows, columns), "proj.weight": torch.zeros(columns, columns)}


def two_stacks():
    return {f"{part}.0.{name}": W for part in "ab" for name, W in square(192).items()}


BAD_FILES = {
    "other weights": (
        {f"layer{i}.weight": torch.zeros(2, 2) for i in range(8)},
        "found no self-attention in a known layout among layer0.weight, layer1.weight, "
        "layer2.weight, layer3.weight, layer4.weight, layer5.weight and 2 more; looked for ",
    ),
    "nothing": ({}, "it must hold named weights, but it holds nothing"),
    "a list": ([1], "it must hold named weights, but it holds a list"),
    "two networks by name": (
        {"student": {}, "teacher": {}},
        "it must hold named weights, but it holds student, teacher",
    ),
    "a name with a line break": (
        {"a\nb": torch.zeros(1)},
        "found no self-attention in a known layout among a?b; ",
    ),
    "sparse LayerScale": (
        {f"blocks.0.attn.{name}": W for name, W in square(192).items()}
        | {"blocks.0.ls1.gamma": torch.ones(64).to_sparse()},
        "the LayerScale of blocks.0.attn must hold plain floating-point numbers in memory, but it "
        "is a tensor of torch.float32, torch.sparse_coo, on cpu",
    ),
    "two networks": (two_stacks(), "it must hold the layers of one model, but it has a.#, b.#"),
    "part of a layer": (
        {"blocks.0.attention.W_Q": torch.zeros(1, 4, 4)},
        "found no self-attention in a known layout among blocks.0.attention.W_Q; ",
    ),
    "weights that do not fit": (
        square(200),
        "the weights of this attention do not fit together: qkv.weight is (200, 64), proj.weight "
        "is (64, 64); ",
    ),
    "own weights that do not fit": (
        {
            "W_Q": torch.zeros(2, 4, 2),
            "W_K": torch.zeros(1, 4, 4),
            "W_V": torch.zeros(4, 4),
            "W_proj": torch.zeros(4, 4),
        },
        "the weights of this attention do not fit together: W_Q is (2, 4, 2), W_K is (1, 4, 4), ",
    ),
    "a single number as a weight": (
        {name: torch.zeros(()) for name in ("W_Q", "W_K")}
        | {name: torch.zeros(4, 4) for name in ("W_V", "W_proj")},
        "the weights of this attention do not fit together: W_Q is (), W_K is (), W_V is (4, 4), ",
    ),
    "no numbers": (
        square(192) | {"qkv.weight": torch.full((192, 64), torch.nan)},
        "the weights must be finite, but W_Q of this attention is not",
    ),
    "whole numbers": (
        square(192) | {"qkv.weight": torch.zeros(192, 64, dtype=torch.int8)},
        "qkv.weight must hold plain floating-point numbers in memory, ",
    ),
    "more entries than it stores": (
        square(192) | {"proj.weight": torch.zeros(1).expand(10**7, 10**7)},
        "proj.weight must hold plain floating-point numbers in memory, ",
    ),
    "normalized queries": (
        square(192) | {"q_norm.weight": torch.ones(64)},
        "this attention cannot be read or set: it holds q_norm.weight besides its four weights, ",
    ),
    "a width that 64 does not divide": (
        square(288, 96),
        "the number of heads must be given (--heads), since 64 does not divide the width 96",
    ),
    "code": ({"model": Evil()}, "it cannot be read as a file of weights without running code"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_in_one_line(name):
    content, line = BAD_FILES[name]
    torch.save(content, "file.bin")
    with pytest.raises(ValueError) as error:
        layouts.read_checkpoint("file.bin")
    assert str(error.value).startswith(f"file.bin: {line}")
    assert "\n" not in str(error.value)
    assert not Path("it ran").exists()


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_what_is_no_file_of_weights_is_named_in_one_line(suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    path = Path(f"file.{suffix}")
    for content in (b"", b"hello", pickle.dumps(Evil())):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"^{path}: it cannot be read as a file of weights with"
        ):
            layouts.read_checkpoint(path)
    assert not Path("it ran").exists()
    path.unlink()
    with pytest.raises(
        ValueError, match=rf"^{path}: it cannot be read \(No such file or directory"
    ):
        layouts.read_checkpoint(path)


def test_a_number_of_heads_that_does_not_fit_is_named():
    torch.save(square(288, 96), "file.bin")
    assert layouts.read_checkpoint("file.bin", heads=3)[0].W_Q.shape == (3, 96, 32)
    line = "^file.bin: the number of heads of this attention must divide its width, but 5 does not "
    with pytest.raises(ValueError, match=line):
        layouts.read_checkpoint("file.bin", heads=5)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_read_or_refused_and_never_run(data):
    """Up to four bytes of a good file are others, or the file is cut short. What comes back is the
    layers or a ValueError in one line, and nothing else happens.
    """
    state = {"blocks.0." + name: W for name, W in square(192).items()}
    torch.save(state, "damaged.pth")
    content = bytearray(Path("damaged.pth").read_bytes())
    # Most of the file are zeros of the weights. What can go wrong stands at its beginning and end.
    places = st.one_of(st.integers(0, 1500), st.integers(len(content) - 1500, len(content) - 1))
    for place, byte in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = byte
    if data.draw(st.booleans()):
        content = content[: data.draw(places)]
    Path("damaged.pth").write_bytes(content)
    before = set(Path().iterdir())
    try:
        for attention in layouts.read_checkpoint("damaged.pth"):
            assert isinstance(attention, vit.Attention)
    except ValueError as error:
        assert str(error).startswith("damaged.pth: ") and "\n" not in str(error)
    assert set(Path().iterdir()) == before


# ---------------------------------------------------------------------------------------------
# python -m mimetic_min.layouts


def save_mimetic(path, depth=3):
    state = {}
    for layer in range(depth):
        module = CASES["timm"].make(64, 1)
        layouts.mimetic_init_(module, generator=seeded(layer))
        state |= {f"blocks.{layer}.attn.{name}": W for name, W in module.state_dict().items()}
    torch.save(state, path)


def test_the_command_prints_both_diagonals_of_every_layer(capsys):
    save_mimetic("a.pth")
    save_mimetic("b.pth", depth=1)
    layouts.main(["a.pth", "b.pth", "--heads", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.pth: 3 layers, width 64, 4 heads"
    assert (
        lines[1].split() == "layer query-key: mean mean/std value-projection: mean mean/std".split()
    )
    attention = layouts.read_checkpoint("a.pth", heads=4)[1]
    numbers = [*layouts.diagonal(attention.qk_product()), *layouts.diagonal(attention.vp_product())]
    layer, *printed = lines[3].split()
    assert layer == "2"
    # Two or four decimals are printed.
    assert [float(number) for number in printed] == pytest.approx(numbers, abs=0.006)
    assert float(printed[2]) == pytest.approx(-0.4, abs=0.1)
    assert lines[5] == "positive: query-key in 3 of 3 layers, value-projection in 0 of 3"
    assert lines[6] == "b.pth: 1 layers, width 64, 4 heads"


def test_the_command_draws_a_picture():
    pytest.importorskip("matplotlib")
    save_mimetic("a.pth")
    layouts.main(["a.pth", "--picture", "picture.png"])
    content = Path("picture.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    # A picture that is there is not lost.
    with pytest.raises(SystemExit):
        layouts.main(["a.pth", "--picture", "picture.png"])
    assert Path("picture.png").read_bytes() == content


@pytest.mark.parametrize(
    "options, line",
    [
        (["none.pth"], "layouts.py: none.pth: it cannot be read (No such file or directory)"),
        (["good.pth", "bad.pth"], "layouts.py: bad.pth: it cannot be read as a file of weights "),
        (
            ["good.pth", "--heads", "5"],
            "layouts.py: good.pth: the number of heads of blocks.0.attn ",
        ),
        (
            ["good.pth", "--heads", "0"],
            "layouts.py: --heads must be a whole number above 0, but it ",
        ),
        (
            ["good.pth", "--picture", "good.pth"],
            "layouts.py: --picture must be a new file, but goo",
        ),
        ([], "layouts.py: the following arguments are required: FILE"),
    ],
)
def test_the_command_gives_one_line_and_exit_status_2_for_bad_input(options, line, capsys):
    save_mimetic("good.pth")
    Path("bad.pth").write_bytes(b"hello")
    with pytest.raises(SystemExit) as stop:
        layouts.main(options)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# Whole models of the packages themselves, new, small, and trained for one step


def from_config(model, config, **settings):
    def make():
        transformers = pytest.importorskip("transformers")
        made = getattr(transformers, config)(**settings)
        return getattr(transformers, model)(made)

    return make


def from_timm(name, **settings):
    def make():
        pytest.importorskip("torchvision", exc_type=ImportError)
        timm = pytest.importorskip("timm")
        shape = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=3)
        return timm.create_model(name, **shape, **settings)

    return make


def from_torchvision():
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    shape = dict(image_size=32, patch_size=8, hidden_dim=48, mlp_dim=48)
    return torchvision.models.VisionTransformer(num_layers=2, num_heads=3, **shape)


def from_vit_pytorch(name):
    def make():
        pytest.importorskip("torchvision", exc_type=ImportError)
        package = pytest.importorskip("vit_pytorch")
        shape = dict(image_size=32, patch_size=8, num_classes=3, dim=48, depth=2, mlp_dim=48)
        return getattr(package, name)(heads=3, dim_head=16, **shape)

    return make


SHAPE = dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=2, intermediate_size=48)
IMAGES = SHAPE | dict(image_size=32, patch_size=8)
TEXT = dict(vocab_size=50, bos_token_id=0, eos_token_id=0)
CROSS = dict(is_decoder=True, add_cross_attention=True)

MODELS = {
    "torchvision": from_torchvision,
    "timm": from_timm("vit_tiny_patch16_224"),
    "timm with LayerScale": from_timm("vit_tiny_patch16_224", init_values=1e-5),
    "vit-pytorch": from_vit_pytorch("ViT"),
    "vit-pytorch SimpleViT": from_vit_pytorch("SimpleViT"),
    "ViT": from_config("ViTModel", "ViTConfig", **IMAGES),
    "DeiT": from_config("DeiTModel", "DeiTConfig", **IMAGES),
    "DINOv2": from_config("Dinov2Model", "Dinov2Config", layerscale_value=1e-5, **IMAGES),
    "CLIP": from_config("CLIPVisionModel", "CLIPVisionConfig", **IMAGES),
    "SigLIP": from_config("SiglipVisionModel", "SiglipVisionConfig", **IMAGES),
    "BERT": from_config("BertModel", "BertConfig", **SHAPE, vocab_size=50),
    "BERT with cross-attention": from_config(
        "BertModel", "BertConfig", **SHAPE, **CROSS, vocab_size=50
    ),
    "GPT-2": from_config("GPT2Model", "GPT2Config", n_embd=48, n_head=3, n_layer=2, **TEXT),
    "GPT-2 with cross-attention": from_config(
        "GPT2Model", "GPT2Config", n_embd=48, n_head=3, n_layer=2, add_cross_attention=True, **TEXT
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_new_model_of_a_package_is_set_and_trains(name):
    """Both layers are set, with the diagonals asked for; whatever is called cross stays; and a step
    of training leaves every number finite.
    """
    torch.manual_seed(0)
    model = MODELS[name]()
    before = copies(model)
    assert layouts.mimetic_init_(model, generator=seeded(0)) == 2
    cross = [n for n in before if "cross" in n.lower() or n.startswith("head.attention")]
    assert all(torch.equal(before[n], model.get_parameter(n)) for n in cross)
    beta = -0.05 if name.startswith("GPT-2") else -0.4
    for attention in layouts.read_all(model):
        mean, ratio = layouts.diagonal(attention.vp_product())
        # The noise is at most as large as beta, so 48 entries have a mean within beta / 48 * 5.
        assert abs(mean - beta) < 5 * abs(beta) / 48
        assert attention.vp_product().diagonal().std() < 5 * abs(beta) / sqrt(48)
        assert layouts.diagonal(attention.qk_product())[0] > 0

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    text = name.startswith(("GPT-2", "BERT"))
    x = torch.randint(50, (2, 6)) if text else torch.randn(2, 3, 32, 32)
    output = model(x)
    output = getattr(output, "last_hidden_state", output)
    loss = (output - torch.randn_like(output)).square().mean()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(W.isfinite().all() for W in model.parameters())


@pytest.mark.parametrize(
    "make, line",
    [
        (from_config("LlamaModel", "LlamaConfig", **SHAPE, vocab_size=50), "rotary positions"),
        (from_config("DINOv3ViTModel", "DINOv3ViTConfig", **IMAGES), "rotary positions"),
        (
            from_timm("vit_tiny_patch16_224", qk_norm=True),
            "it holds q_norm.weight, q_norm.bias, k_n",
        ),
    ],
)
def test_a_model_of_a_package_that_cannot_be_set_is_refused(make, line):
    model = make()
    before = copies(model)
    with pytest.raises(ValueError, match=line):
        layouts.mimetic_init_(model)
    assert unchanged(model, before)
