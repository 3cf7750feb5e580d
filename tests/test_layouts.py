"""Other people's layouts: what is read or set is what the module computes. What could not be set
right is refused, and left as it was.

Most modules here are stand-ins: small ones with the names of a project's weights. If transformers
is installed, the same test runs on its own modules.
"""

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_method import seeded
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mimetic_min import layouts
from mimetic_min.vit import Attention, ViT, ViTConfig

DIM, HEADS = 12, 3

TIMM = ("qkv", "proj")
GPT2 = ("c_attn", "c_proj")
VIT = ("attention.query", "attention.key", "attention.value", "output.dense")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")

# ---------------------------------------------------------------------------------------------
# Modules


def put(module, name, thing):
    """Make `thing` the part `name` of a module, such as "output.dense". Returns the module."""
    first, _, rest = name.partition(".")
    if rest:
        thing = put(getattr(module, first, nn.Module()), rest, thing)
    setattr(module, first, thing)
    return module


class Conv1D(nn.Linear):
    """Hugging Face's linear layer in GPT-2: its weight is (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__(outputs, inputs, bias=False)

    def forward(self, x):
        return x @ self.weight


class StandIn(nn.Module):
    """Self-attention whose linear layers have the `names`, W_proj's last. `heads` is where the
    number of heads is said, and `more` is what else is inside: {name: thing}.
    """

    def __init__(self, names, heads="num_heads", more=(), linear=nn.Linear, dim=DIM, widths=None):
        super().__init__()
        self.names = names
        widths = widths or ([3 * dim] if len(names) == 2 else [dim] * 3)
        for name, width in zip(names, [*widths, dim]):
            put(self, name, linear(dim, width))
        for name, thing in {heads: HEADS, **dict(more)}.items():
            put(self, name, thing)

    def forward(self, x):
        inputs = [self.get_submodule(name)(x) for name in self.names[:-1]]
        q, k, v = inputs if len(inputs) == 3 else inputs[0].chunk(3, dim=-1)
        q, k, v = (y.unflatten(2, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.names == GPT2)
        return self.get_submodule(self.names[-1])(y.transpose(1, 2).flatten(2))


def real(file, attention, config, *shape, **settings):
    """A module of Hugging Face's, from its config, or from its shape and its config."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)(**settings, attn_implementation="sdpa")
    module = importlib.import_module(f"transformers.models.{file}.modeling_{file}")
    return getattr(module, attention)(*shape, config=made).eval()


SHAPE = {"hidden_size": DIM, "num_attention_heads": HEADS}
ONES = torch.ones(8, 8)
MASKS = [ONES.tril(), ONES.bool().tril()[None, None], (ONES * -torch.inf).triu(1)]
# In vit-pytorch, `norm` comes before the attention. It is left out here, as it is in read.
IN_VIT_PYTORCH = {"norm": nn.LayerNorm(DIM), "attend": nn.Softmax(-1)}

# How each is made, and how the attention alone is called.
CASES = {
    "torch": (
        lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True),
        lambda module, x: module(x, x, x)[0],
    ),
    "timm": (
        lambda: StandIn(TIMM, more={"q_norm": nn.Identity(), "attn_drop": nn.Dropout()}),
        nn.Module.__call__,
    ),
    "timm, compiled": (
        lambda: torch.compile(StandIn(TIMM)),
        lambda module, x: module._orig_mod(x),
    ),
    "masks": (
        lambda: StandIn(TIMM, more={f"mask{i}": nn.Buffer(mask) for i, mask in enumerate(MASKS)}),
        nn.Module.__call__,
    ),
    "vit-pytorch": (
        lambda: StandIn(("to_qkv", "to_out.0"), "heads", IN_VIT_PYTORCH),
        nn.Module.__call__,
    ),
    "vit-pytorch, no dropout": (
        lambda: StandIn(("to_qkv", "to_out"), "heads", IN_VIT_PYTORCH),
        nn.Module.__call__,
    ),
    "nanoGPT": (
        lambda: StandIn(GPT2, "n_head", {"bias": nn.Buffer(MASKS[0][None, None])}),
        nn.Module.__call__,
    ),
    "Hugging Face's GPT-2": (
        lambda: StandIn(GPT2, more={"masked_bias": nn.Buffer(torch.tensor(-1e4))}, linear=Conv1D),
        nn.Module.__call__,
    ),
    "ViT of transformers 4": (
        lambda: StandIn(VIT, "config", {"config": Namespace(**SHAPE)}),
        nn.Module.__call__,
    ),
    "BERT": (
        lambda: StandIn(
            ("self.query", "self.key", "self.value", "output.dense"),
            "self.num_attention_heads",
            {"output.LayerNorm": nn.LayerNorm(DIM)},
        ),
        nn.Module.__call__,
    ),
    "CLIP": (lambda: StandIn((*LLAMA[:3], "out_proj")), nn.Module.__call__),
    "ViT of transformers 5": (lambda: StandIn(LLAMA, "num_attention_heads"), nn.Module.__call__),
    "this project": (lambda: Attention(DIM, HEADS), nn.Module.__call__),
    "this project, causal": (lambda: Attention(DIM, HEADS, causal=True), nn.Module.__call__),
    "real ViT": (
        lambda: real("vit", "ViTAttention", "ViTConfig", **SHAPE),
        lambda module, x: module(x)[0],
    ),
    "real DINOv2": (
        lambda: real("dinov2", "Dinov2Attention", "Dinov2Config", **SHAPE),
        lambda module, x: module(x)[0],
    ),
    "real CLIP": (
        lambda: real("clip", "CLIPAttention", "CLIPVisionConfig", **SHAPE),
        lambda module, x: module(x)[0],
    ),
    "real SigLIP": (
        lambda: real("siglip", "SiglipAttention", "SiglipVisionConfig", **SHAPE),
        lambda module, x: module(x)[0],
    ),
    "real Whisper": (
        lambda: real("whisper", "WhisperAttention", "WhisperConfig", DIM, HEADS),
        lambda module, x: module(x)[0],
    ),
    "real BERT": (
        lambda: real("bert", "BertAttention", "BertConfig", **SHAPE),
        # Without the residual and the LayerNorm that follow.
        lambda module, x: module.output.dense(module.get_submodule("self")(x)[0]),
    ),
    "real GPT-2": (
        lambda: real("gpt2", "GPT2Attention", "GPT2Config", **SHAPE),
        lambda module, x: module(x, attention_mask=torch.full((5, 5), -torch.inf).triu(1))[0],
    ),
}


def fill(module):
    """Random numbers everywhere, biases included. Returns the module."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=DIM**-0.5)
    return module


def assert_same_weights(read, expected):
    """To the bit; what is read is contiguous, as this project's weights are."""
    for W, other in zip(read.parameters(), expected.parameters(), strict=True):
        assert torch.equal(W, other) and W.is_contiguous()


@pytest.mark.parametrize("make, forward", CASES.values(), ids=CASES)
def test_what_is_read_and_what_is_set_is_what_the_module_computes(make, forward):
    torch.manual_seed(0)
    module = fill(make())
    x = torch.randn(2, 5, DIM)
    read = layouts.read(module)
    biases = [W for name, W in module.named_parameters() if name.endswith("bias")]

    # A strength out of range changes nothing, not even the biases.
    with pytest.raises(ValueError, match="vp_beta"):
        layouts.mimetic_init_(module, vp_beta=2)
    assert all(bias.all() for bias in biases)

    # In float32, outputs of size 1 agree to about 1e-6.
    for bias in biases:
        nn.init.zeros_(bias)
    torch.testing.assert_close(forward(module, x), read(x), rtol=0, atol=1e-4)

    # The same generator gives what it gives in this project, and the old biases are gone.
    reference = Attention(DIM, HEADS, causal=read.causal)
    reference.mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=seeded(0))
    layouts.mimetic_init_(fill(module), generator=seeded(0))
    assert_same_weights(layouts.read(module), reference)
    torch.testing.assert_close(forward(module, x), reference(x), rtol=0, atol=1e-4)

    # What was read is a copy.
    assert not torch.equal(read.W_V, reference.W_V)


# ---------------------------------------------------------------------------------------------
# What is refused


LINEAR = nn.Linear(DIM, DIM)
PAIR = torch.randn(2, DIM, DIM)

# How it is made, and a word of the sentence that names what is in the way.
REFUSED = {
    "another module": (lambda: nn.TransformerEncoderLayer(DIM, HEADS), "self_attn.in_proj_weight"),
    "other names": (lambda: StandIn(("queries", "proj")), "queries.weight.*README"),
    "bias_k": (lambda: nn.MultiheadAttention(DIM, HEADS, add_bias_kv=True), "bias_k"),
    "add_zero_attn": (
        lambda: nn.MultiheadAttention(DIM, HEADS, add_zero_attn=True),
        "add_zero_attn gives",
    ),
    "LoRA around a layer": (
        lambda: put(
            nn.MultiheadAttention(DIM, HEADS),
            "out_proj",
            nn.ModuleDict({"base": LINEAR, "lora_A": LINEAR}),
        ),
        "lora_A",
    ),
    "LoRA in a layer": (lambda: StandIn(TIMM, more={"proj.lora_A": nn.Parameter(ONES)}), "lora_A"),
    "a gain": (lambda: StandIn(TIMM, more={"q_norm": nn.LayerNorm(4)}), "q_norm.weight"),
    "a norm without weights": (
        lambda: StandIn(TIMM, more={"q_norm": nn.LayerNorm(4, elementwise_affine=False)}),
        "q_norm, a LayerNorm",
    ),
    "another softmax": (
        lambda: StandIn(("to_qkv", "to_out"), more={"attend": nn.Sigmoid()}),
        "attend, a Sigmoid",
    ),
    "relative positions": (lambda: StandIn(TIMM, more={"table": nn.Parameter(ONES)}), "table"),
    "a rotary embedding": (lambda: StandIn(TIMM, more={"rope": nn.Module()}), "rope"),
    "inv_freq": (lambda: StandIn(GPT2, more={"inv_freq": nn.Buffer(ONES[0])}), "inv_freq"),
    "a causal decay": (
        lambda: StandIn(TIMM, more={"decay": nn.Buffer(MASKS[0].cumsum(0))}),
        "decay",
    ),
    "a constant": (lambda: StandIn(TIMM, more={"table": nn.Buffer(ONES)}), "table"),
    "key-value heads": (lambda: StandIn(LLAMA, widths=[DIM, 4, 4]), "key-value heads"),
    "kdim": (lambda: nn.MultiheadAttention(DIM, HEADS, kdim=8, vdim=8), "k_proj_weight.*wide"),
    "dim_head": (
        lambda: StandIn(("to_qkv", "to_out"), widths=[72], more={"to_out": nn.Linear(24, DIM)}),
        "to_qkv.weight is .72, 12.*wide",
    ),
    "no projection": (lambda: StandIn(("to_qkv", "to_out.1"), "heads"), "projection.*to_qkv"),
    "weight_norm": (
        lambda: StandIn(TIMM, more={"proj": weight_norm(nn.Linear(DIM, DIM))}),
        "proj.parametrizations",
    ),
    "integers": (
        lambda: StandIn(TIMM, more={"proj.weight": nn.Parameter(PAIR[0].char(), False)}),
        "proj.weight does not hold plain floating-point",
    ),
    "a subclass of Parameter": (
        lambda: StandIn(
            TIMM, more={"proj.weight": type("Quantized", (nn.Parameter,), {})(PAIR[0])}
        ),
        "special kind",
    ),
    "meta": (lambda: nn.MultiheadAttention(DIM, HEADS, device="meta"), "materialize"),
    "inference mode": (torch.inference_mode()(lambda: StandIn(TIMM)), "inference mode"),
    "one layer for two": (
        lambda: StandIn(LLAMA, more={"q_proj": LINEAR, "k_proj": LINEAR}),
        "q_proj.weight, k_proj.weight.* share memory",
    ),
    "one memory for two": (
        lambda: StandIn(
            LLAMA,
            more={"q_proj.weight": nn.Parameter(PAIR[0]), "v_proj.weight": nn.Parameter(PAIR[1])},
        ),
        "q_proj.weight, v_proj.weight share memory",
    ),
    "one row for all": (
        lambda: StandIn(TIMM, more={"proj.weight": nn.Parameter(PAIR[0, :1].expand(DIM, DIM))}),
        "entries that share memory",
    ),
    # This Conv1D is an nn.Linear whose forward is another.
    "another forward": (lambda: StandIn(LLAMA, linear=Conv1D), "q_proj, a Conv1D"),
    "no heads": (lambda: StandIn(TIMM, "number"), "set its num_heads"),
    "five heads": (lambda: StandIn(TIMM, more={"num_heads": 5}), "5 does not divide 12"),
}


@pytest.mark.parametrize("make, words", REFUSED.values(), ids=REFUSED)
def test_what_is_in_the_way_is_named_and_nothing_is_changed(make, words):
    module = make()
    # What is on the meta device has no numbers.
    state = [W for W in module.state_dict().values() if not W.is_meta]
    before = [W.clone() for W in state]
    for function in (layouts.read, layouts.mimetic_init_):
        with pytest.raises(ValueError, match=words):
            function(module)
    assert all(torch.equal(W, old) for W, old in zip(state, before))


# ---------------------------------------------------------------------------------------------
# The check that the docstring gives, and dtypes


def test_the_check_tells_transposed_weights():
    """The numbers of the docstring, and what they are if nn.Linear's transpose is forgotten."""
    module = StandIn(TIMM, dim=192)
    layouts.mimetic_init_(module, generator=seeded(0))
    attention = layouts.read(module)
    for product, mean, std in (
        (attention.qk_product()[0], 0.39, 0.07),
        (attention.vp_product(), -0.40, 0.03),
        (attention.W_V.T @ attention.W_proj.T, -0.40, 0.24),
    ):
        diagonal = product.diagonal()
        # Six standard errors of a mean of 192 entries. A spread is known to a twentieth.
        assert abs(diagonal.mean() - mean) < 6 * std / 192**0.5
        assert abs(diagonal.std() - std) < std / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_draws_are_in_float32_and_rounded_once(dtype):
    """Whatever the dtype of the module. Nothing else takes random numbers."""
    reference = Attention(DIM, HEADS)
    torch.manual_seed(0)
    reference.mimetic_init_(0.7, 0.7, 0.4, -0.4)
    module = StandIn(TIMM).to(dtype)
    torch.manual_seed(0)
    layouts.read(module)
    layouts.mimetic_init_(module)
    assert_same_weights(layouts.read(module), reference.to(dtype))


# ---------------------------------------------------------------------------------------------
# Files


def named(prefix, module):
    return {prefix + name: W for name, W in module.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in CASES if "real" not in name])
def test_a_file_gives_what_the_module_gives(name):
    """Layer 10 comes after layer 2, and torch.compile's names are as good as others."""
    modules = [fill(CASES[name][0]()) for _ in range(2)]
    content = named("_orig_mod.h.10.attn.", modules[1]) | named("_orig_mod.h.2.attn.", modules[0])
    torch.save({"model": content, "step": 3}, "file.pt")
    for layer, module in zip(layouts.read_checkpoint("file.pt", HEADS), modules, strict=True):
        assert_same_weights(layer, layouts.read(module))
        assert layer.causal == ("GPT" in name)


def test_a_run_of_this_project_knows_its_heads():
    model = ViT(ViTConfig())
    torch.save({"config": vars(model.config), "model": model.state_dict(), "rows": []}, "run.pt")
    for layer, block in zip(layouts.read_checkpoint("run.pt"), model.blocks):
        assert_same_weights(layer, block.attention)


@pytest.mark.parametrize(
    "names, block, attention, factors",
    [
        (VIT, "layer.0.", "attention", "layer_scale1.lambda1"),
        (TIMM, "blocks.0.", "attn", "ls1.gamma"),
        (TIMM, "", "attn", "ls1.gamma"),
    ],
)
def test_layer_scale_is_part_of_the_projection(names, block, attention, factors):
    """Here in a .safetensors. What is read is in float32, whatever the file has."""
    safetensors = pytest.importorskip("safetensors.torch")
    module = StandIn(names).half()
    scale = torch.rand(DIM)
    content = named(f"{block}{attention}.", module) | {block + factors: scale}
    safetensors.save_file(content, "file.safetensors")
    (layer,) = layouts.read_checkpoint("file.safetensors", HEADS)
    expected = layouts.read(module.float())
    torch.testing.assert_close(layer.vp_product(), expected.vp_product() * scale)
    torch.testing.assert_close(layer.qk_product(), expected.qk_product())


def test_key_value_heads_are_repeated():
    """Of six heads, the first two share the first key-value head, and so on."""
    module = StandIn(LLAMA, widths=[12, 6, 6])
    torch.save(named("", module), "file.pth")
    (layer,) = layouts.read_checkpoint("file.pth", heads=6)
    K, V = (W.weight.unflatten(0, (3, 2)) for W in (module.k_proj, module.v_proj))
    assert torch.equal(layer.W_K, K[[0, 0, 1, 1, 2, 2]].mT)
    assert torch.equal(layer.W_V, V[[0, 0, 1, 1, 2, 2]].flatten(0, 1).T)


TIMM_STATE = named("blocks.0.attn.", StandIn(TIMM))


@pytest.mark.parametrize(
    "content, heads, words",
    [
        (None, 3, "No such file"),
        (b"no weights", 3, "cannot be read as weights"),
        ({"model": TIMM_STATE, "args": Namespace(lr=1)}, 3, r"weights_only.*state_dict\(\)"),
        ([1, 2], 3, "cannot be read as weights"),
        (named("", LINEAR), 3, "no attention.*weight, bias"),
        (TIMM_STATE, None, "heads must be given"),
        (TIMM_STATE, 5, "heads must .* 5"),
        (named("", StandIn(LLAMA, widths=[12, 6, 6])), 3, ""),
        (named("", StandIn(TIMM, widths=[30])), 3, "wide"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, heads, words):
    if isinstance(content, bytes):
        Path("weights.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "weights.pt")
    with pytest.raises(ValueError, match="weights.pt: .*" + words):
        layouts.read_checkpoint("weights.pt", heads)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="file.safetensors.*pip install safetensors"):
        layouts.read_checkpoint("file.safetensors", HEADS)
