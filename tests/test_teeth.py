"""The known mistakes, each put into a copy of the code on purpose: the properties have to turn red.

Each is one that was found in public implementations of mimetic initialization, or its close relative.
"""
import sys
import types

import pytest

import test_models
import test_products
from mimetic_min import gpt, vit

MISTAKES = {  # what is wrong: (the right code, the wrong code, a property that has to see it)
    "Z scaled by 1/d": (
        "generator=generator, device=device) / sqrt(shape[-1])", "generator=generator, device=device) / shape[-1]",
        test_products.test_value_projection_has_the_diagonal_and_the_noise_asked_for),
    "W_proj transposed": (
        "self.W_proj.copy_(W_proj)", "self.W_proj.copy_(W_proj.mT)",
        test_products.test_value_projection_has_the_diagonal_and_the_noise_asked_for),
    "W_V transposed": (
        "self.W_V.copy_(W_V)", "self.W_V.copy_(W_V.mT)",
        test_products.test_value_projection_has_the_diagonal_and_the_noise_asked_for),
    "V of the SVD transposed": (
        "full_matrices=False)", "full_matrices=False); Vt = Vt.mT",
        test_products.test_query_key_is_the_best_of_its_rank),
    "no square root": (
        "S.sqrt()", "S", test_products.test_value_projection_is_its_target),
    "the square root taken twice": (
        "S.sqrt()", "S.sqrt().sqrt()", test_products.test_value_projection_is_its_target),
    "one Z for all heads": (
        "(heads, dim, dim), generator)", "(1, dim, dim), generator)",
        test_products.test_each_head_and_each_call_draws_its_own_Z),
    "a generator ignored": (
        "torch.randn(shape, generator=generator, ", "torch.randn(shape, ",
        test_products.test_a_generator_reproduces_it_bit_for_bit),
    "a rank too short": (
        "S.sqrt()", "S.sqrt() * (torch.arange(rank) < rank - 1)",
        test_products.test_query_key_has_rank_k),
    "the smallest singular values, not the largest": (
        ".eigenvectors[..., -rank:]", ".eigenvectors[..., :rank]",
        test_products.test_query_key_is_the_best_of_its_rank),
    "the left singular vectors for the right ones": (
        "eigh(B.mT @ B)", "eigh(B @ B.mT)", test_products.test_query_key_is_the_best_of_its_rank),
    "unbalanced factors": (
        "return U * root[..., None, :], root", "return U * root[..., None, :] ** 2, torch.ones_like(root)",
        test_products.test_factors_are_balanced),
    "the sign of beta turned": (
        "alpha * Z + beta *", "alpha * Z - beta *",
        test_products.test_value_projection_has_the_diagonal_and_the_noise_asked_for),
    "alpha and beta exchanged": (
        "alpha * Z + beta *", "beta * Z + alpha *",
        test_products.test_value_projection_has_the_diagonal_and_the_noise_asked_for),
    "query-key and value-projection exchanged": (
        "def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):",
        "def mimetic_init_(self, vp_alpha, vp_beta, qk_alpha, qk_beta, generator=None):",
        test_products.test_value_projection_is_its_target),
    "the simple form's sign lost": (
        "self.W_K.copy_(qk_sign * self.W_Q)", "self.W_K.copy_(self.W_Q)", test_products.test_simple_form),
    "the simple form's W_proj not transposed": (
        "vp_sign * self.W_V.T", "vp_sign * self.W_V", test_products.test_simple_form),
    "the simple form's Z scaled by 1/sqrt(d) for query-key": (
        "std=1 / sqrt(self.W_Q.shape[-1])", "std=1 / sqrt(self.W_Q.shape[-2])", test_products.test_simple_form),
}

MODEL_MISTAKES = {
    "vit.py: the signs of vision swapped": (
        vit, "qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4", "qk_beta=-0.7, vp_alpha=0.4, vp_beta=0.4",
        test_models.test_vision_signs),
    "vit.py: the strengths exchanged": (
        vit, "qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4",
        "qk_alpha=0.4, qk_beta=-0.4, vp_alpha=0.7, vp_beta=0.7",
        test_models.test_vision_signs),
    "gpt.py: the query-key sign turned": (
        gpt, "qk_alpha=0.4, qk_beta=0.1", "qk_alpha=0.4, qk_beta=-0.1",
        test_models.test_published_strengths_of_language),
    "gpt.py: a line that runs backwards": (
        gpt, "torch.linspace(0, 1,", "torch.linspace(1, 0,", test_models.test_the_value_projection_goes_on_a_line),
    "gpt.py: no line": (
        gpt, "(1 - way) * vp_beta + way * vp_last_beta", "vp_beta", test_models.test_the_value_projection_goes_on_a_line),
    "gpt.py: one layer's weights for all": (
        gpt, "block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, beta, generator)",
        "block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, beta, torch.Generator().manual_seed(0))",
        test_models.test_layers_draw_their_own_Z),
    "gpt.py: a look at the next token": (
        gpt, "self.attention = Attention(dim, heads, causal=True)", "self.attention = Attention(dim, heads)",
        test_models.test_no_future_leaks),
    "the map's scale forgotten": (
        vit, "logits = q @ k.mT / sqrt(q.shape[-1])", "logits = q @ k.mT",
        test_models.test_attention_map_is_the_one_that_forward_uses),
    "the map's mask off by one": (vit, ".triu(1)", ".triu(2)", test_models.test_attention_is_that_of_torch),
    "the heads' outputs interleaved": (
        vit, "y.transpose(1, 2).flatten(2)", "y.permute(0, 2, 3, 1).flatten(2)",
        test_models.test_attention_is_that_of_torch),
    "positions that do not tell neighbours": (
        vit, "10_000 ** (", "0.1 ** (", test_models.test_attention_starts_local_with_sinusoidal_positions_alone),
}


def broken(module, right, wrong):
    """A copy of `module` with a mistake in it."""
    source = open(module.__file__).read()
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {module.__file__}"
    copy = types.ModuleType("broken_" + module.__name__.split(".")[1])
    sys.modules[copy.__name__] = copy                                # where dataclasses look for it
    exec(compile(source.replace(right, wrong), copy.__name__, "exec"), copy.__dict__)
    return copy


@pytest.mark.parametrize("module", [vit, gpt], ids=["vit.py", "gpt.py"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_initialiser_turns_a_property_red(module, mistake):
    right, wrong, prop = MISTAKES[mistake]
    copy = broken(module, right, wrong)
    with pytest.raises(AssertionError):
        prop(module=copy)


@pytest.mark.parametrize("mistake", MODEL_MISTAKES)
def test_a_mistake_in_a_model_turns_a_property_red(mistake):
    module, right, wrong, prop = MODEL_MISTAKES[mistake]
    extra = {"position": "sincos"} if "position" in prop.hypothesis.inner_test.__code__.co_varnames[:3] else {}
    copy = broken(module, right, wrong)
    with pytest.raises(AssertionError):
        prop(module=copy, **extra)
