"""linear.py on the layers of real libraries. What it sets there, their own forwards compute.

The file goes from the libraries to the mistakes that linear.vp_product finds, and from the mistakes
to what the functions promise. Every attention in the first two parts has the size of a tiny ViT:
dim is 192, and there are three heads. A library that is not installed is skipped.
"""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from test_method import CLOSE, Init, initialized, inits, products, seeded
from torch import nn

from mimetic_min import linear, vit

# ---------------------------------------------------------------------------------------------
# The libraries. Each function makes an attention, and returns it with its four weights and with
# what to give to vp_product: the module itself, or a function that calls it.


def multihead_attention(batch_first=True):
    return named(nn.MultiheadAttention(192, 3, batch_first=batch_first))


def named(attention):
    """The self_attn of an nn.TransformerEncoderLayer is one, too."""
    q, k, v = attention.in_proj_weight.chunk(3)
    return attention, (q, k, v, attention.out_proj.weight), lambda x: attention(x, x, x)


def torchvision_vit():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=3, hidden_dim=192, mlp_dim=192
    )
    return named(model.encoder.layers[0].self_attention)


def timm_vit():
    timm = pytest.importorskip("timm")
    attention = timm.create_model("vit_tiny_patch16_224").blocks[0].attn
    q, k, v = attention.qkv.weight.chunk(3)
    return attention, (q, k, v, attention.proj.weight), attention


def vit_pytorch_simple_vit():
    vit_pytorch = pytest.importorskip("vit_pytorch")
    model = vit_pytorch.SimpleViT(
        image_size=8, patch_size=4, num_classes=10, dim=192, depth=1, heads=3, mlp_dim=192
    )
    attention = model.transformer.layers[0][0]
    # The block's LayerNorm is inside the attention. Take it out while you look, then put it back.
    attention.norm = nn.Identity()
    q, k, v = attention.to_qkv.weight.chunk(3)
    return attention, (q, k, v, attention.to_out.weight), attention


def hugging_face_vit():
    """CLIP, SigLIP and Whisper have the same names, but for o_proj: there it is out_proj."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, num_hidden_layers=1)
    attention = transformers.ViTModel(config).layers[0].attention
    q, k, v = attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    return attention, (q, k, v, attention.o_proj.weight), attention


def hugging_face_gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=192, n_head=3, n_layer=1)
    attention = transformers.GPT2Model(config).h[0].attn
    # Its Conv1D computes x @ weight.
    q, k, v = attention.c_attn.weight.T.chunk(3)
    return attention, (q, k, v, attention.c_proj.weight.T), attention


class NanoGPTAttention(nn.Module):
    """The layers and the names of nanoGPT's CausalSelfAttention."""

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(192, 3 * 192)
        self.c_proj = nn.Linear(192, 192)

    def forward(self, x):
        thirds = self.c_attn(x).split(192, dim=2)
        q, k, v = (third.unflatten(2, (3, 64)).transpose(1, 2) for third in thirds)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


def nanogpt():
    attention = NanoGPTAttention()
    q, k, v = attention.c_attn.weight.chunk(3)
    return attention, (q, k, v, attention.c_proj.weight), attention


def assert_diagonal(product, mean, std):
    diagonal = product.diagonal()
    found = [diagonal.mean().item(), diagonal.std().item()]
    assert found == pytest.approx([mean, std], abs=0.01)


@pytest.mark.parametrize(
    "make",
    [
        multihead_attention,
        torchvision_vit,
        timm_vit,
        vit_pytorch_simple_vit,
        hugging_face_vit,
        hugging_face_gpt2,
        nanogpt,
    ],
)
def test_a_library_computes_what_was_set(make):
    attention, weights, forward = make()
    attention.eval()
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    read = linear.read(*weights, heads=3)
    assert_diagonal(read.qk_product()[0], mean=0.39, std=0.07)

    # The product does not depend on biases, not even on those of the queries, keys and values.
    biases = [W for name, W in attention.named_parameters() if name.endswith("bias")]
    for bias in biases:
        nn.init.normal_(bias)
    product = linear.vp_product(forward, dim=192)
    assert torch.allclose(product, read.vp_product(), atol=CLOSE)
    assert_diagonal(product, mean=-0.40, std=0.03)

    # Without biases, it computes what `read` computes. Only the last token is compared, since it
    # attends to all tokens even in a language model.
    for bias in biases:
        nn.init.zeros_(bias)
    x = torch.randn(2, 5, 192, generator=seeded(1))
    output = forward(x)
    output = output[0] if isinstance(output, tuple) else output
    assert torch.allclose(output[:, -1], read(x)[:, -1], atol=CLOSE)


def test_two_tokens_show_the_query_key_product_of_each_head():
    """In the sequence [a, 0], the second logit of the first token is 0. So it attends to itself
    with p = sigmoid(a W_Q W_K^T a^T / sqrt(head_dim)). If W_V and W_proj are I, each head returns
    its own entries of a, times its p.
    """
    _, weights, forward = multihead_attention()
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    for weight in weights[2:]:
        nn.init.eye_(weight.detach())
    a = torch.randn(192, generator=seeded(1)) / 3
    output, _ = forward(torch.stack([a, torch.zeros(192)])[None])
    p = (a @ linear.read(*weights, heads=3).qk_product() @ a / sqrt(64)).sigmoid()
    assert torch.allclose(output[0, 0], p.repeat_interleave(64) * a, atol=CLOSE)


# ---------------------------------------------------------------------------------------------
# The mistakes. If all is right, the diagonal has the mean -0.40 and the standard deviation 0.03.


@pytest.mark.parametrize(
    "transposed, mean, std",
    [({"v", "proj"}, -0.40, 0.24), ({"v"}, 0, 0.04), ({"proj"}, 0, 0.04)],
)
def test_a_transposed_weight_shows(transposed, mean, std):
    """If both are transposed, the mean is right, and only the standard deviation gives it away."""
    _, weights, forward = multihead_attention()
    names = ("q", "k", "v", "proj")
    weights = [W.T if name in transposed else W for name, W in zip(names, weights)]
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    assert_diagonal(linear.vp_product(forward, dim=192), mean, std)


def test_queries_keys_and_values_stored_head_by_head_show():
    """As in GPT-NeoX: first q, k and v of one head, then q, k and v of the next."""
    attention, (*_, proj), forward = multihead_attention()
    stored = torch.zeros(3 * 192, 192)
    linear.mimetic_init_(*stored.chunk(3), proj, heads=3, generator=seeded(0))
    # The same rows in the order of nn.MultiheadAttention
    rows = stored.unflatten(0, (3, 3, 64)).transpose(0, 1).flatten(0, 2)
    attention.in_proj_weight.data.copy_(rows)
    assert_diagonal(linear.vp_product(forward, dim=192), mean=-0.04, std=0.06)


def test_what_else_a_forward_does_shows():
    """A LayerScale, a LayerNorm before the attention, and a batch that is taken for tokens."""
    _, weights, forward = multihead_attention()
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    scaled = linear.vp_product(lambda x: 1e-5 * forward(x)[0], dim=192)
    assert_diagonal(scaled, mean=0, std=0)

    # The entries of a row of I have a standard deviation of about 1/sqrt(dim). LayerNorm divides by
    # it. So -0.40 becomes -5.5.
    normed = linear.vp_product(lambda x: forward(F.layer_norm(x, (192,))), dim=192)
    assert_diagonal(normed / sqrt(192), mean=-0.40, std=0.03)

    # Without batch_first, the rows of I are taken for one long sequence, and attend to each other.
    _, weights, forward = multihead_attention(batch_first=False)
    linear.mimetic_init_(*weights, heads=3, generator=seeded(0))
    assert_diagonal(linear.vp_product(forward, dim=192), mean=0, std=0)


def test_a_wrong_number_of_heads_shows_in_query_key_alone():
    _, weights, forward = multihead_attention()
    linear.mimetic_init_(*weights, heads=6, generator=seeded(0))
    assert_diagonal(linear.vp_product(forward, dim=192), mean=-0.40, std=0.03)
    # Each head got what was meant for two. With three heads it would be 0.39 and 0.07.
    assert_diagonal(linear.read(*weights, heads=3).qk_product()[0], mean=0.44, std=0.08)


def test_a_module_is_asked_without_dropout_and_stays_in_its_mode():
    model = nn.Sequential(vit.Attention(192, 3), nn.Dropout())
    model[0].eval()
    expected = model[0].vp_product()
    assert torch.allclose(linear.vp_product(model, dim=192), expected, atol=CLOSE)
    assert [module.training for module in model.modules()] == [True, False, True]
    # A function is called as it is.
    assert not torch.allclose(linear.vp_product(lambda x: model(x), dim=192), expected, atol=CLOSE)


# ---------------------------------------------------------------------------------------------
# What the functions promise


@settings(max_examples=20)
@given(init=inits)
def test_the_products_are_those_of_the_method(init):
    """Those that vit.Attention has with the same generator, for any dim, heads and strengths. Here
    the weights are strided slices. Only the generator advances, not torch's own.
    """
    weights = torch.zeros(init.dim, init.dim, 4).unbind(2)
    state = torch.get_rng_state()
    linear.mimetic_init_(*weights, init.heads, *init.qk, *init.vp, seeded(init.seed))
    read = linear.read(*weights, init.heads)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(products(read), products(initialized(vit.Attention, init)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_any_dtype_is_set_and_asked(dtype):
    """The weights are drawn in float32, and rounded once."""
    attention = NanoGPTAttention().to(dtype)
    q, k, v = attention.c_attn.weight.chunk(3)
    linear.mimetic_init_(q, k, v, attention.c_proj.weight, heads=3, generator=seeded(0))
    expected = initialized(vit.Attention, Init(3, 64, qk=(0.7, 0.7), vp=(0.4, -0.4), seed=0))
    assert torch.equal(v, expected.W_V.T.to(dtype))
    assert torch.equal(attention.c_proj.weight, expected.W_proj.T.to(dtype))
    assert linear.vp_product(attention, dim=192).dtype == dtype


def test_the_weights_are_still_parameters_that_train():
    """The same chunks can be set again and looked at, and a gradient reaches every row."""
    attention, weights, forward = nanogpt()
    for seed in (0, 1):
        linear.mimetic_init_(*weights, heads=3, generator=seeded(seed))
        assert weights[2].std() > 0
    forward(torch.randn(2, 5, 192)).square().mean().backward()
    for weight in (attention.c_attn.weight, attention.c_proj.weight):
        assert weight.is_leaf and weight.is_contiguous() and weight.grad.any(dim=1).all()


def test_what_is_read_is_a_copy():
    weights = torch.zeros(4, 12, 12)
    nn.init.ones_(linear.read(*weights, heads=3).W_V)
    assert not weights.any()


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


def test_vp_product_takes_a_tuple_apart_and_subtracts_what_0_gives():
    assert torch.equal(linear.vp_product(lambda x: (3 - x, None), dim=8), -torch.eye(8))


def test_vp_product_names_a_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(193, 1, 192\), but it returns \(193, 1, 64\)"):
        linear.vp_product(lambda x: x[:, :, :64], dim=192)
