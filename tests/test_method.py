"""What mimetic initialization promises about W_Q W_K^T and W_V W_proj. Read this file from the top.

    python -m pytest tests/test_method.py
    python -m pytest tests/test_method.py --implementation my_attention.py

The first line tests vit.py. (gpt.py has the same method.) The second line tests a class
of your own:

    Attention(dim, heads)        with the weights W_Q and W_K (heads, dim, head_dim), and
                                 W_V and W_proj (dim, dim), for tokens as rows: x @ W
    attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None)

The tests cannot know in what order your code draws its random numbers, so they judge it only by the
weights that it sets.

The file goes from a worked example to the properties, and from the properties to the known
mistakes. Many of these mistakes have been seen in public code.

There are two kinds of tolerances. CLOSE is for rounding. SIGMAS is for chance: a normal number is
more than six standard deviations from its mean once in 500 million draws.
"""

import runpy
import subprocess
import sys
from functools import lru_cache
from math import inf, nan, sqrt
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimetic_min import vit

# float32 has seven digits, and the singular values of all products here are below 4.
CLOSE = 1e-4
SIGMAS = 6

# The weights of Attention(dim=8, heads=2)
SHAPES = {"W_Q": (2, 8, 4), "W_K": (2, 8, 4), "W_V": (8, 8), "W_proj": (8, 8)}


@pytest.fixture(scope="module")
def Attention(request):
    """The class that is tested."""
    path = request.config.getoption("--implementation")
    if path is None:
        return vit.Attention
    return load_attention(request.config.invocation_params.dir / path)


@pytest.fixture(autouse=True)
def only_what_can_judge_any_implementation(request):
    if request.config.getoption("--implementation") and "Attention" not in request.fixturenames:
        pytest.skip("tests the project's own code")


# ---------------------------------------------------------------------------------------------
# A worked example, to follow with pencil and paper


def test_worked_example(monkeypatch):
    """dim is 4, and there are two heads, so head_dim is 2. alpha and beta are 0.5."""
    Z = torch.tensor(
        [
            [+0.00, +0.64, +0.36, +0.04],
            [-1.00, -0.36, -0.36, +0.04],
            [-1.00, +0.64, -0.64, -0.04],
            [-1.00, -0.64, +0.36, -0.96],
        ]
    )
    A = torch.tensor(
        [
            [+0.50, +0.32, +0.18, +0.02],
            [-0.50, +0.32, -0.18, +0.02],
            [-0.50, +0.32, +0.18, -0.02],
            [-0.50, -0.32, +0.18, +0.02],
        ]
    )
    assert torch.allclose(A, 0.5 * Z + 0.5 * torch.eye(4))

    # The columns of this A are orthogonal, so its singular values are their lengths: 1, 0.64, 0.36
    # and 0.04. U has these columns scaled to length 1, and V is I. The square roots of the singular
    # values are 1, 0.8, 0.6 and 0.2.
    L = torch.tensor(
        [
            [+0.5, +0.4, +0.3, +0.1],
            [-0.5, +0.4, -0.3, +0.1],
            [-0.5, +0.4, +0.3, -0.1],
            [-0.5, -0.4, +0.3, +0.1],
        ]
    )
    R = torch.diag(torch.tensor([1, 0.8, 0.6, 0.2]))
    assert torch.allclose(L @ R, A)

    # The factors are balanced: the squared lengths of the columns of L and of the rows of R are the
    # singular values.
    assert torch.allclose(L.T @ L, R @ R.T)

    # A head has room for two of the four columns. It keeps the longest: the last two columns of the
    # product become 0. The mean of the diagonal was 0.255, and 0.205 is left.
    product = A * torch.tensor([1, 1, 0, 0])
    assert torch.allclose(L[:, :2] @ R[:2], product)

    # The code does the same, given this target for each head and for value-projection. (The
    # factors may differ in sign, which cancels in the products.)
    monkeypatch.setattr(vit, "mimetic_target", lambda dim, alpha, beta, generator: A)
    attention = vit.Attention(dim=4, heads=2)
    attention.mimetic_init_(0.5, 0.5, 0.5, 0.5)
    assert torch.allclose(attention.qk_product(), product, atol=CLOSE)
    assert torch.allclose(attention.vp_product(), A, atol=CLOSE)


# ---------------------------------------------------------------------------------------------
# Tools: an initialization to be judged, and its two products


class Init(NamedTuple):
    """The shape of an attention, the pairs (alpha, beta) of both products, and a seed."""

    heads: int
    head_dim: int
    qk: tuple
    vp: tuple
    seed: int

    @property
    def dim(self):
        return self.heads * self.head_dim


strengths = st.tuples(st.floats(0.1, 1), st.floats(-1, 1))
inits = st.builds(
    Init,
    heads=st.integers(2, 4),
    head_dim=st.integers(16, 20),
    qk=strengths,
    vp=strengths,
    seed=st.integers(0, 2**32),
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def initialized(Attention, init, generator=None):
    attention = Attention(init.dim, init.heads)
    attention.mimetic_init_(*init.qk, *init.vp, generator=generator or seeded(init.seed))
    return attention


def products(attention):
    """W_Q W_K^T of each head and, last, W_V W_proj, from the weights: (heads + 1, dim, dim)."""
    qk = attention.W_Q.double() @ attention.W_K.double().mT
    vp = attention.W_V.double() @ attention.W_proj.double()
    return torch.cat([qk, vp[None]]).detach()


def diagonal_means(matrices):
    """From (..., dim, dim) to (...)."""
    return matrices.diagonal(dim1=-2, dim2=-1).mean(-1)


def has_variance(W, variance):
    """Is the mean square of W this variance, within chance?"""
    # A squared normal number has a variance of 2, in units of its mean. The tolerance is eight
    # standard deviations, because the mean of a few squares is skewed. For the few numbers of a
    # diagonal that would allow 0, but a tenth of the variance is as unlikely.
    ratio = W.square().mean().item() / variance
    return 0.1 < ratio and abs(ratio - 1) < 8 * sqrt(2 / W.numel())


# ---------------------------------------------------------------------------------------------
# The properties that the weights alone can show. Each holds for any class Attention.


@given(init=inits)
def test_value_projection_is_alpha_Z_plus_beta_I(Attention, init):
    """W_V W_proj - beta I has normal entries with mean 0 and standard deviation alpha/sqrt(dim)."""
    alpha, beta = init.vp
    product = products(initialized(Attention, init))[-1]
    # A mean of dim numbers has a standard deviation that is sqrt(dim) times smaller than theirs.
    mean = diagonal_means(product).item()
    assert abs(mean - beta) < SIGMAS * alpha / init.dim, (
        f"vp_beta is {beta:.3f}, but the diagonal of W_V W_proj has mean {mean:.3f}. Is the"
        " sign right? Is W_V U S^(1/2), and is W_proj S^(1/2) V^T? (torch.linalg.svd returns V^T,"
        " not V.)"
    )

    # From here on the entries should be N(0, 1).
    noise = (product - beta * torch.eye(init.dim)) * sqrt(init.dim) / alpha
    off = noise[~torch.eye(init.dim, dtype=torch.bool)]
    for where, entries in (("on", noise.diagonal()), ("off", off)):
        assert has_variance(entries, 1), (
            f"{where} the diagonal, the variance of W_V W_proj - beta I is not alpha^2/dim, but"
            f" {entries.square().mean():.3f} times that. Is W_V or W_proj transposed? Is Z divided"
            " by sqrt(dim)?"
        )
    # 68.27% of normal numbers are within one standard deviation. (57.74% of uniform ones are.)
    share = (off.abs() < 1).double().mean()
    assert abs(share - 0.6827) < SIGMAS * sqrt(0.6827 * 0.3173 / len(off)), "Z is not normal"


@lru_cache
def best_of_its_rank(dim, rank, alpha, beta):
    """The best approximations of this rank to 100 targets: the means and standard deviations of
    their diagonal means and of their norms.
    """
    Z = torch.randn(100, dim, dim, generator=seeded(0), dtype=torch.float64) / sqrt(dim)
    U, S, Vt = torch.linalg.svd(alpha * Z + beta * torch.eye(dim))
    best = U[:, :, :rank] * S[:, None, :rank] @ Vt[:, :rank]
    found = torch.stack([diagonal_means(best), best.norm(dim=(1, 2))])
    return found.mean(1), found.std(1)


@given(
    init=st.builds(
        Init,
        heads=st.integers(2, 4),
        head_dim=st.just(16),
        # Much and little noise, both signs, and no diagonal
        qk=st.sampled_from([(0.7, 0.7), (0.2, 0.7), (0.3, -0.6), (0.7, 0.0)]),
        vp=strengths,
        seed=st.integers(0, 2**32),
    )
)
def test_query_key_is_as_near_its_target_as_its_rank_allows(Attention, init):
    """W_Q W_K^T is alpha Z + beta I, cut to its head_dim largest singular values. There is no
    formula for its diagonal and its norm, so they are compared with other draws.
    """
    product = products(initialized(Attention, init))[:-1]
    means, deviations = best_of_its_rank(init.dim, init.head_dim, *init.qk)
    found = torch.stack([diagonal_means(product), product.norm(dim=(1, 2))])
    for name, values, mean, deviation in zip(("diagonal", "norm"), found, means, deviations):
        assert (values - mean).abs().max() < SIGMAS * deviation, (
            f"the {name} of each head's W_Q W_K^T should be {mean:.3f} (for the diagonal: its"
            f" mean), but it is {values.tolist()}. Is the sign right? Are the largest singular"
            " values kept, and is each factor multiplied by their square root?"
        )
    S = torch.linalg.svdvals(product)
    # Even without a diagonal, the median of all singular values is 0.4 times the largest.
    assert (S[:, init.head_dim - 1] > 0.1 * S[:, 0]).all(), "the rank is less than head_dim"


@given(init=inits)
def test_factors_are_balanced(Attention, init):
    """W_Q^T W_Q = W_K^T W_K in each head, and W_V^T W_V = W_proj W_proj^T."""
    attention = initialized(Attention, init)
    for names, left, right in (
        ("W_Q and W_K", attention.W_Q, attention.W_K),
        ("W_V and W_proj", attention.W_V, attention.W_proj.T),
    ):
        assert torch.allclose(left.mT @ left, right.mT @ right, atol=CLOSE), (
            f"{names} differ in size. Does each have the square roots of the singular values?"
        )


@given(init=inits)
def test_every_product_has_a_Z_of_its_own(Attention, init):
    """No two heads share a Z, nor do query-key and value-projection, nor do two layers."""
    generator = seeded(init.seed)
    found = torch.cat([products(initialized(Attention, init, generator)) for _ in range(2)])
    # Without the mean of its diagonal, a product looks as random as a vector of about dim^2/2
    # random entries. The cosine of two such vectors has a standard deviation of sqrt(2)/dim.
    found -= diagonal_means(found)[:, None, None] * torch.eye(init.dim)
    directions = torch.nn.functional.normalize(found.flatten(1), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(0)
    assert cosines.abs().max() < SIGMAS * sqrt(2) / init.dim, (
        "two products share their noise. Does each draw a Z of its own?"
    )


@given(init=inits)
def test_a_generator_reproduces_the_weights(Attention, init):
    """Without a generator, the draws come from torch's own. Only then does it advance."""
    attention = Attention(init.dim, init.heads)
    torch.manual_seed(init.seed)
    attention.mimetic_init_(*init.qk, *init.vp)
    first = products(attention)
    state = torch.get_rng_state()
    attention.mimetic_init_(*init.qk, *init.vp, generator=seeded(init.seed))
    assert torch.equal(torch.get_rng_state(), state), "a draw ignores the generator"
    assert torch.equal(products(attention), first), "the weights do not depend on the seed alone"


# ---------------------------------------------------------------------------------------------
# What else vit.py promises


@pytest.mark.parametrize(
    "alpha, beta",
    [(-0.001, 0), (1.001, 0), (inf, 0), (nan, 0), (0, -1.001), (0, 1.001), (0, -inf), (0, nan)],
)
def test_a_strength_out_of_range_is_an_error(alpha, beta):
    with pytest.raises(ValueError, match="^alpha must be between 0 and 1, and beta"):
        vit.mimetic_target(8, alpha, beta)


# ---------------------------------------------------------------------------------------------
# The known mistakes. Each is put into a copy of vit.py by replacing a correct line. The property at
# the end of its entry must catch it.

MISTAKES = {
    # In the target
    "variance_for_standard_deviation": (
        "Z = torch.randn(dim, dim, generator=generator, **ON_CPU) / sqrt(dim)",
        "Z = torch.randn(dim, dim, generator=generator, **ON_CPU) / dim",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "noise_not_scaled": (
        "Z = torch.randn(dim, dim, generator=generator, **ON_CPU) / sqrt(dim)",
        "Z = torch.randn(dim, dim, generator=generator, **ON_CPU)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "scaled_by_head_dim": (
        "A = mimetic_target(dim, alpha, beta, generator)\n            L,",
        "A = mimetic_target(dim, alpha * sqrt(heads), beta, generator)\n            L,",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "uniform_noise": (
        "Z = torch.randn(dim, dim, generator=generator, **ON_CPU) / sqrt(dim)",
        "Z = (2 * torch.rand(dim, dim, generator=generator) - 1) * sqrt(3 / dim)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "no_noise_on_the_diagonal": (
        "return alpha * Z + beta * torch.eye(dim, **ON_CPU)",
        "return alpha * Z.fill_diagonal_(0) + beta * torch.eye(dim, **ON_CPU)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "alpha_and_beta_exchanged": (
        "return alpha * Z + beta * torch.eye(dim, **ON_CPU)",
        "return beta * Z + alpha * torch.eye(dim, **ON_CPU)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "sign_flipped": (
        "return alpha * Z + beta * torch.eye(dim, **ON_CPU)",
        "return alpha * Z - beta * torch.eye(dim, **ON_CPU)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "sign_of_query_key_flipped": (
        "self.query_key_init_(qk_alpha, qk_beta, generator)",
        "self.query_key_init_(qk_alpha, -qk_beta, generator)",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "one_Z_for_all_heads": (
        "A = mimetic_target(dim, alpha, beta, generator)\n            L,",
        "A = A if head > 0 else mimetic_target(dim, alpha, beta, generator)\n            L,",
        test_every_product_has_a_Z_of_its_own,
    ),
    "one_Z_for_all_layers": (
        "self.query_key_init_(qk_alpha, qk_beta, generator)",
        "self.query_key_init_(qk_alpha, qk_beta, torch.Generator().manual_seed(0))",
        test_every_product_has_a_Z_of_its_own,
    ),
    "generator_ignored": (
        "self.value_projection_init_(vp_alpha, vp_beta, generator)",
        "self.value_projection_init_(vp_alpha, vp_beta)",
        test_a_generator_reproduces_the_weights,
    ),
    # In the factors
    "no_square_root": (
        "root = S[:rank].sqrt()",
        "root = S[:rank]",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "square_root_twice": (
        "root = S[:rank].sqrt()",
        "root = S[:rank].sqrt().sqrt()",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "one_factor_has_all_of_S": (
        "L = U[:, :rank] * root\n    R = root[:, None] * Vt[:rank]",
        "L = U[:, :rank] * S[:rank]\n    R = Vt[:rank]",
        test_factors_are_balanced,
    ),
    "V_not_transposed": (
        "R = root[:, None] * Vt[:rank]",
        "R = root[:, None] * Vt.T[:rank]",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "U_on_both_sides": (
        "R = root[:, None] * Vt[:rank]",
        "R = L.T",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    # In the cut to head_dim
    "smallest_singular_values": (
        "L, R = balanced_factors(A, rank=head_dim)",
        "L, R = [factor.flip(i) for i, factor in enumerate(balanced_factors(A, dim), -1)]\n"
        "            L, R = L[:, :head_dim], R[:head_dim]",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "columns_cut_before_the_decomposition": (
        "L, R = balanced_factors(A, rank=head_dim)",
        "A[:, head_dim:] = 0\n            L, R = balanced_factors(A, rank=head_dim)",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "rank_one_too_small": (
        "self.W_K[head] = R.T",
        "self.W_K[head, :, :-1] = R.T[:, :-1]\n            self.W_K[head, :, -1] = 0",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "one_decomposition_for_all_heads": (
        "L, R = balanced_factors(A, rank=head_dim)",
        "own = slice(head * head_dim, (head + 1) * head_dim)\n"
        "            L, R = balanced_factors(A, dim)\n"
        "            L, R = L[:, own], R[own]",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "value_projection_cut_too": (
        "L, R = balanced_factors(A, rank=dim)",
        "L, R = balanced_factors(A, rank=dim)\n        L[:, self.W_Q.shape[2] :] = 0",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    # In the placement. Many public copies have the first: an nn.Linear computes x @ W^T, so each of
    # the two weights is transposed. The mean of the diagonal stays right, but its entries scatter.
    "both_transposed_for_linear_layers": (
        "self.W_V.copy_(L)\n        self.W_proj.copy_(R)",
        "self.W_V.copy_(L.T)\n        self.W_proj.copy_(R.T)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "W_proj_transposed": (
        "self.W_proj.copy_(R)",
        "self.W_proj.copy_(R.T)",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
    "W_K_reshaped_instead_of_transposed": (
        "self.W_K[head] = R.T",
        "self.W_K[head] = R.reshape(dim, head_dim)",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "W_K_of_the_next_head": (
        "self.W_K[head] = R.T",
        "self.W_K[head - 1] = R.T",
        test_query_key_is_as_near_its_target_as_its_rank_allows,
    ),
    "W_proj_has_the_rows_of_the_next_head": (
        "self.W_proj.copy_(R)",
        "self.W_proj.copy_(R.roll(self.W_Q.shape[2], 0))",
        test_value_projection_is_alpha_Z_plus_beta_I,
    ),
}

# All strengths are different.
EXAMPLE = Init(heads=3, head_dim=16, qk=(0.2, 0.7), vp=(0.1, -0.5), seed=0)


@pytest.mark.parametrize("right, wrong, notices", MISTAKES.values(), ids=MISTAKES)
def test_a_known_mistake_is_noticed(right, wrong, notices):
    module = {"__name__": "copy_of_vit"}
    # If vit.py no longer has the right line, nothing is replaced, and this test fails.
    exec(Path(vit.__file__).read_text().replace(right, wrong), module)
    # The property itself, without the examples that Hypothesis draws
    holds = notices.hypothesis.inner_test
    holds(vit.Attention, EXAMPLE)
    with pytest.raises(AssertionError):
        holds(module["Attention"], EXAMPLE)


# ---------------------------------------------------------------------------------------------
# The option --implementation


def load_attention(path):
    """The class Attention in a Python file. If it cannot be tested, pytest exits and says why."""
    sys.path.append(str(path.parent))
    try:
        Attention = runpy.run_path(str(path), run_name="implementation")["Attention"]
        attention = initialized(Attention, Init(2, 4, qk=(0.7, 0.7), vp=(0.4, -0.4), seed=0))
        shapes = {name: tuple(getattr(attention, name).shape) for name in SHAPES}
        if shapes != SHAPES:
            raise ValueError(f"the shapes are {shapes}")
    except Exception as error:
        pytest.exit(
            f"{path} must have a class Attention. After attention = Attention(8, 2) and"
            " attention.mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=torch.Generator()) it must"
            f" have tensors with the shapes {SHAPES}. But {type(error).__name__}: {error}",
            returncode=4,
        )
    return Attention


# A correct class that knows nothing of this project. It draws all Z at once, value-projection
# first.
YOURS = """
import torch


class Attention:
    def __init__(self, dim, heads):
        self.dim, self.heads = dim, heads

    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        Z = torch.randn(1 + self.heads, self.dim, self.dim, generator=generator) * self.dim**-0.5
        I = torch.eye(self.dim)
        U, S, Vh = torch.linalg.svd(vp_alpha * Z[0] + vp_beta * I)
        self.W_V = U @ S.sqrt().diag()
        self.W_proj = S.sqrt().diag() @ Vh
        U, S, Vh = torch.linalg.svd(qk_alpha * Z[1:] + qk_beta * I)
        k = self.dim // self.heads
        self.W_Q = U[:, :, :k] * S[:, None, :k].sqrt()
        self.W_K = Vh.mT[:, :, :k] * S[:, None, :k].sqrt()
"""


def test_your_own_file():
    Path("yours.py").write_text(YOURS)
    chosen = ["-k", "value_projection_is or worked", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", __file__, "--implementation", "yours.py", *chosen],
        capture_output=True,
        text=True,
    )
    assert "1 passed, 1 skipped" in done.stdout
