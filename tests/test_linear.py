"""linear.py on the layers of real libraries. Their own forwards compute what it sets.

The file goes from the libraries to the mistakes that linear.vp_product finds, and from the mistakes
to what the functions promise. Every attention layer in the first two parts has the size of a tiny
ViT: dim is 192, and there are three heads. A library that is not installed is skipped.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies
from test_method import CLOSE, initialized, inits, products, seeded
from torch import nn

from mimetic_min import linear, vit

# ---------------------------------------------------------------------------------------------
# The libraries


def hugging_face(transformers, kind):
    return transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(kind, hidden_size=192, num_attention_heads=3)
    )


class NanoGPT(nn.Module):
    """The names and the forward of nanoGPT's CausalSelfAttention"""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(192, 3 * 192, bias=False)
        self.c_proj = nn.Linear(192, 192, bias=False)

    def forward(self, x):
        q, k, v = self.c_attn(x).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


# A package, how its attention is made, and its four weights, as the README names them.
IN_PROJ = "*attn.in_proj_weight.chunk(3), attn.out_proj.weight"
LIBRARIES = {
    "torch.nn": (
        "torch.nn",
        lambda nn: nn.TransformerEncoderLayer(192, 3, batch_first=True).self_attn,
        IN_PROJ,
    ),
    "torchvision": (
        "torchvision",
        lambda torchvision: (
            torchvision.models.VisionTransformer(8, 4, 1, 3, hidden_dim=192, mlp_dim=192)
            .encoder.layers[0]
            .self_attention
        ),
        IN_PROJ,
    ),
    "timm": (
        "timm",
        lambda timm: timm.create_model("vit_tiny_patch16_224").blocks[0].attn,
        "*attn.qkv.weight.chunk(3), attn.proj.weight",
    ),
    "vit-pytorch": (
        "vit_pytorch",
        lambda vit_pytorch: vit_pytorch.SimpleViT(
            image_size=8, patch_size=4, num_classes=10, dim=192, depth=1, heads=3, mlp_dim=192
        ).transformer.layers[0][0],
        "*attn.to_qkv.weight.chunk(3), attn.to_out.weight",
    ),
    "nanoGPT": (
        "torch",
        lambda torch: NanoGPT(),
        "*attn.c_attn.weight.chunk(3), attn.c_proj.weight",
    ),
    "GPT-2": (
        "transformers",
        lambda transformers: hugging_face(transformers, "gpt2").h[0].attn,
        "*attn.c_attn.weight.T.chunk(3), attn.c_proj.weight.T",
    ),
    "ViT": (
        "transformers",
        lambda transformers: hugging_face(transformers, "vit").layers[0].attention,
        "attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight, attn.o_proj.weight",
    ),
}

# What is given to vp_product, if it is not the attention itself
FORWARDS = {
    "torch.nn": lambda attn: lambda x: attn(x, x, x),
    "torchvision": lambda attn: lambda x: attn(x, x, x),
}


def same_output(forward, read):
    """Whether both compute the same output on eight sequences.

    Each has two tokens, so that query-key matters. Only the last tokens are compared: in a language
    model, they alone attend to both.
    """
    x = torch.randn(8, 2, 192, generator=seeded(1))
    output = forward(x)
    output = output[0] if isinstance(output, tuple) else output
    return torch.allclose(output[:, -1], read(x)[:, -1], atol=CLOSE)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_computes_what_was_set(library):
    package, make, names = LIBRARIES[library]
    attn = make(pytest.importorskip(package)).eval()
    weights = eval(f"[{names}]")
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    read = linear.read(*weights, heads=3)
    if library == "vit-pytorch":
        # The block's LayerNorm is inside this module. Take it out before you look.
        attn.norm = nn.Identity()
    forward = FORWARDS[library](attn) if library in FORWARDS else attn

    assert same_output(forward, read)

    # The product does not depend on biases, not even on those of the queries, keys and values.
    biases = [W for name, W in attn.named_parameters() if name.endswith("bias")]
    for bias in biases:
        nn.init.normal_(bias)
    assert torch.allclose(linear.vp_product(forward, dim=192), read.vp_product(), atol=CLOSE)
    # The biases that remain show up in the output.
    assert same_output(forward, read) == (biases == [])
    # The weights that you named can still be used.
    assert torch.equal(weights[2].T @ weights[3].T, read.vp_product())


def test_the_readme_names_the_weights_of_these_libraries():
    readme = Path(linear.__file__).parents[1].joinpath("README.md").read_text()
    named = re.findall(r"^\w.*  (\*?attn\..*)\n", readme, re.MULTILINE)
    assert set(named) == {names for _, _, names in LIBRARIES.values()}


# ---------------------------------------------------------------------------------------------
# The mistakes. If everything is right, the diagonal of value-projection has mean -0.40 and standard
# deviation 0.03, and the diagonal of query-key has 0.39 and 0.07.


def assert_diagonal(product, mean, std):
    assert product.diagonal().mean().item() == pytest.approx(mean, abs=0.01)
    assert product.diagonal().std().item() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize(
    "transposed, heads, by_head, scale, value_projection, query_key",
    [
        # Everything is right.
        ((), 3, False, 1, (-0.40, 0.03), (0.39, 0.07)),
        # If both are transposed, only the standard deviation gives it away.
        (("v", "proj"), 3, False, 1, (-0.40, 0.24), (0.39, 0.07)),
        (("v",), 3, False, 1, (0, 0.04), (0.39, 0.07)),
        (("proj",), 3, False, 1, (0, 0.04), (0.39, 0.07)),
        # A wrong number of heads shows up only in query-key: each head got what was meant for two.
        ((), 6, False, 1, (-0.40, 0.03), (0.44, 0.08)),
        # The weights are stored head by head.
        ((), 3, True, 1, (-0.04, 0.06), (0.39, 0.07)),
        # A LayerScale
        ((), 3, False, 1e-5, (0, 0), (0.39, 0.07)),
    ],
)
def test_a_mistake_shows_in_the_diagonals(
    transposed, heads, by_head, scale, value_projection, query_key
):
    attention = nn.MultiheadAttention(192, 3, batch_first=True)
    weights = (*attention.in_proj_weight.chunk(3), attention.out_proj.weight)
    weights = [
        W.T if name in transposed else W for name, W in zip(("q", "k", "v", "proj"), weights)
    ]
    linear.mimetic_init_(*weights, heads, generator=seeded(0))
    if by_head:
        # As in GPT-NeoX: first q, k and v of one head, then q, k and v of the next. A model that
        # stores them this way reads the rows in this order.
        attention.in_proj_weight.data = (
            attention.in_proj_weight.data.unflatten(0, (3, 3, 64)).transpose(0, 1).flatten(0, 2)
        )
    assert_diagonal(
        linear.vp_product(lambda x: scale * attention(x, x, x)[0], dim=192), *value_projection
    )
    assert_diagonal(linear.read(*weights, heads=3).qk_product()[0], *query_key)


# ---------------------------------------------------------------------------------------------
# What the functions promise


@given(init=inits, dtype=strategies.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_weights_match_the_method(init, dtype):
    """They match vit.Attention's with the same generator, for any dim, heads and strengths. They
    are drawn in float32, and rounded once. Here the weights are strided slices. Torch's own
    generator does not advance.
    """
    weights = torch.zeros(init.dim, init.dim, 4, dtype=dtype).unbind(2)
    state = torch.get_rng_state()
    linear.mimetic_init_(*weights, init.heads, *init.qk, *init.vp, seeded(init.seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        products(linear.read(*weights, init.heads)),
        products(initialized(vit.Attention, init).to(dtype)),
    )


def test_a_module_runs_in_its_dtype_without_dropout_and_stays_in_its_mode():
    model = nn.Sequential(vit.Attention(192, 3).eval(), nn.Dropout()).double()
    assert torch.allclose(linear.vp_product(model, 192), model[0].vp_product(), atol=CLOSE)
    assert [module.training for module in model.modules()] == [True, False, True]


WEIGHTS = dict(zip(("q", "k", "v", "proj"), torch.ones(4, 192, 192)))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        # Fewer heads for keys and values, and a head dimension of its own
        ({"k": torch.ones(64, 192), "v": torch.ones(64, 192)}, r"k must .*\(64, 192\)"),
        ({"v": torch.ones(64, 192)}, r"v must .*\(64, 192\)"),
        ({"q": torch.ones(256, 192)}, r"q must .*\(192, 192\), but it has \(256, 192\)"),
        ({"proj": torch.ones(192, 256)}, r"proj must .*\(192, 256\)"),
        ({"q": torch.ones(3 * 192, 192)}, r"q must .*\(576, 192\)"),
        ({"heads": 5}, "heads must divide dim, but 5 does not divide 192"),
        ({"k": WEIGHTS["q"]}, "share memory"),
        ({"proj": WEIGHTS["v"].T}, "share memory"),
        ({"qk_alpha": 1.1}, "alpha must be between 0 and 1"),
        ({"vp_beta": -2}, "beta between -1 and 1"),
    ],
)
def test_a_call_that_raises_says_why_and_changes_nothing(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        linear.mimetic_init_(**WEIGHTS | {"heads": 3} | wrong)
    assert all((weight == 1).all() for weight in WEIGHTS.values())


def test_vp_product_names_a_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(193, 1, 192\), but returns \(193, 1, 64\)"):
        linear.vp_product(lambda x: x[:, :, :64], dim=192)
