"""What mimetic initialization promises of W_Q W_K^T and W_V W_proj. Read this file from the top.

    python -m pytest tests/test_method.py
    python -m pytest tests/test_method.py --implementation my_attention.py

The first line tests vit.py and gpt.py. The second line tests a class `Attention` of your own
(conftest.py says what it needs). Nobody can know in which order your code draws Z, so your class is
judged only by its weights.

The file goes from a worked example to the properties, and from the properties to the known
mistakes. Each mistake has been seen in public code, or is close to one that has.

How exact is equal? There are two kinds of bounds.

- Rounding. A singular value decomposition in floating point is the exact decomposition of a matrix
  A + E, where the norm of E is at most p(dim) eps |A| with a slowly growing p (LAPACK Users' Guide,
  section 4.9). The square root and the product add a few eps. `rounding` allows 10 dim eps |A| for
  all of it.
- Chance. A random number is never exactly its mean. Each bound is so wide that one right
  number breaks it less than once in 1e8 times.
"""

import subprocess
import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import load_attention
from hypothesis import given
from hypothesis import strategies as st

from mimetic_min import gpt, vit
from mimetic_min.vit import balanced_factors, mimetic_target

both_files = pytest.mark.parametrize("module", [vit, gpt], ids=["vit.py", "gpt.py"])

# ---------------------------------------------------------------------------------------------
# A worked example. It can be followed with a pencil.


@both_files
def test_worked_example(module):
    """Two coordinates and one Z of four numbers: make the target, then its two factors."""
    alpha, beta = 0.5, 0.5
    Z = np.array([[0.2, -0.4], [1.6, -0.7]])
    A = alpha * Z + beta * np.eye(2)
    assert np.allclose(A, [[0.6, -0.2], [0.8, 0.15]])

    # The singular value decomposition of this A is short. U turns the plane, S shrinks the second
    # coordinate to a quarter, and V changes nothing.
    U = np.array([[0.6, -0.8], [0.8, 0.6]])
    S = np.array([1, 0.25])
    V = np.eye(2)
    assert np.allclose(U.T @ U, np.eye(2))
    assert np.allclose(U @ np.diag(S) @ V.T, A)

    # Each factor gets the square root of S, which is 1 and 0.5.
    L = np.array([[0.6, -0.4], [0.8, 0.3]])
    R = np.array([[1, 0], [0, 0.5]])
    assert np.allclose(L, U @ np.diag([1, 0.5]))
    assert np.allclose(R, np.diag([1, 0.5]) @ V.T)

    # As W_V and W_proj they give the target. They are balanced: L^T L and R R^T are both S.
    assert np.allclose(L @ R, A)
    assert np.allclose(L.T @ L, np.diag(S))
    assert np.allclose(R @ R.T, np.diag(S))

    # W_Q and W_K of a head with head_dim 1 have one column each. They keep the larger singular
    # value, so the distance to the target is the smaller one. The mean of the diagonal was 0.375,
    # and only 0.3 is left of it.
    W_Q = L[:, :1]
    W_K = R[:1].T
    product = W_Q @ W_K.T
    assert np.allclose(product, [[0.6, 0], [0.8, 0]])
    assert np.allclose(np.linalg.norm(A - product), 0.25)
    assert np.allclose(np.trace(A) / 2, 0.375)
    assert np.allclose(np.trace(product) / 2, 0.3)

    # The code does the same. A column of U may have the other sign there if the same row of V^T
    # has it, too, so the comparison is of products.
    for rank, expected in ((2, A), (1, product)):
        L, R = module.balanced_factors(torch.tensor(A), rank)
        L = double(L)
        R = double(R)
        assert np.allclose(L @ R, expected)
        assert np.allclose(L.T @ L, np.diag(S[:rank]))
        assert np.allclose(R @ R.T, np.diag(S[:rank]))


# ---------------------------------------------------------------------------------------------
# Tools: a start to be judged, the two products, and the bounds

# A normal variable is further than this from its mean, in standard deviations, once in 5e8 times.
SIGMAS = 6.0

# The same for the bounds below, whose probability is exp(-TAIL) = 2e-9.
TAIL = 20.0


class Start(NamedTuple):
    """One call of mimetic_init_: the attention's shape, the four strengths and the seed."""

    heads: int
    head_dim: int
    qk_alpha: float
    qk_beta: float
    vp_alpha: float
    vp_beta: float
    seed: int

    @property
    def dim(self):
        return self.heads * self.head_dim

    @property
    def strengths(self):
        return self.qk_alpha, self.qk_beta, self.vp_alpha, self.vp_beta


heads = st.integers(1, 4)
several_heads = st.integers(2, 4)
head_dims = st.integers(2, 16)
alphas = st.floats(0, 1)
betas = st.floats(-1, 1)
signs = st.sampled_from([1, -1])
seeds = st.integers(0, 2**32)

# Any strengths, with small shapes, and without noise, too
any_start = st.builds(Start, heads, head_dims, alphas, betas, alphas, betas, seeds)

# Starts that are wide enough for averages to say something, with noise enough to see it
wide_head_dims = st.integers(16, 32)
clear_alphas = st.floats(0.1, 1)
wide_start = st.builds(
    Start, several_heads, wide_head_dims, clear_alphas, betas, clear_alphas, betas, seeds
)

# For query-key there is no formula, so NumPy draws the answer for a few starts. Among them
# are strong and weak noise, both signs, and one without a diagonal.
few_strengths = st.sampled_from([(0.7, 0.7), (0.2, 0.7), (0.3, -0.6), (0.7, 0.0)])
few_starts = st.builds(
    lambda heads, qk, seed: Start(heads, 16, *qk, 0.4, -0.4, seed),
    st.sampled_from([1, 2, 3]),
    few_strengths,
    seeds,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def started(Attention, start):
    """A new attention with this start."""
    attention = Attention(start.dim, start.heads)
    attention.mimetic_init_(*start.strengths, generator=seeded(start.seed))
    return attention


def double(tensor):
    return tensor.detach().numpy().astype(np.float64)


def weights(attention):
    """Copies of the four weights by name."""
    return {
        name: getattr(attention, name).detach().clone() for name in ("W_Q", "W_K", "W_V", "W_proj")
    }


def qk_product(attention):
    """W_Q W_K^T of each head from the weights: (heads, dim, dim), in float64."""
    return double(attention.W_Q) @ double(attention.W_K).transpose(0, 2, 1)


def vp_product(attention):
    """W_V W_proj from the weights: (dim, dim), in float64."""
    return double(attention.W_V) @ double(attention.W_proj)


def diagonal_means(products):
    """The means of the diagonals: (heads, dim, dim) to (heads,)."""
    return np.diagonal(products, axis1=-2, axis2=-1).mean(-1)


def norms(products):
    """The Frobenius norms, roots of the sums of all squares: (heads, dim, dim) to (heads,)."""
    return np.sqrt((products**2).sum((-2, -1)))


def rounding(A):
    """How far rounding, or underflow, can move an entry of a product that should be A."""
    single = np.finfo(np.float32)
    largest = np.linalg.norm(A, ord=2, axis=(-2, -1)).max()
    return 10 * A.shape[-1] * (single.eps * largest + single.tiny)


def chi_square(n):
    """The mean of n squares of standard normal numbers lies between these two (Laurent and Massart,
    2000, lemma 1).
    """
    return 1 - 2 * np.sqrt(TAIL / n), 1 + 2 * np.sqrt(TAIL / n) + 2 * TAIL / n


# ---------------------------------------------------------------------------------------------
# The properties that can be judged by the weights alone. Each is a plain function, `check_...`, so
# that it can also be tried on a mistake. The test below it says for which starts it has to hold.


def check_value_projection_has_its_diagonal_and_noise(Attention, start):
    """The diagonal of W_V W_proj is N(beta, alpha^2/dim), and all the rest is N(0, alpha^2/dim)."""
    dim, alpha, beta = start.dim, start.vp_alpha, start.vp_beta
    product = vp_product(started(Attention, start))
    diagonal = np.diag(product)
    rest = product[~np.eye(dim, dtype=bool)]
    spread = alpha / np.sqrt(dim)

    # The mean of n independent numbers has a spread that is sqrt(n) times smaller.
    assert abs(diagonal.mean() - beta) <= SIGMAS * spread / np.sqrt(len(diagonal)) + rounding(
        product
    )
    assert abs(rest.mean()) <= SIGMAS * spread / np.sqrt(len(rest)) + rounding(product)

    # The mean of the diagonal is estimated from the diagonal itself. This costs one of its numbers.
    low, high = chi_square(len(diagonal) - 1)
    assert low <= diagonal.var(ddof=1) / spread**2 <= high
    low, high = chi_square(len(rest))
    assert low <= (rest**2).mean() / spread**2 <= high

    # Of normal numbers, 68.27 percent are within one spread. (Of uniform ones, 57.74 percent are.)
    # Hoeffding's inequality bounds how far the share among n independent numbers can be from that.
    share = (np.abs(rest) < spread).mean()
    assert abs(share - 0.6827) <= np.sqrt(TAIL / (2 * len(rest)))


@given(start=wide_start)
def test_value_projection_has_its_diagonal_and_noise(Attention, start):
    check_value_projection_has_its_diagonal_and_noise(Attention, start)


def check_value_projection_has_full_rank(Attention, start):
    """Neither W_V nor W_proj loses a direction.

    All singular values of beta I are |beta|. Adding alpha Z moves none of them by more than alpha
    |Z| (Weyl), and |Z| is at most 2 + sqrt(2 TAIL / dim) (Davidson and Szarek, 2001). Each of the
    two balanced factors has the square roots.
    """
    least = abs(start.vp_beta) - start.vp_alpha * (2 + np.sqrt(2 * TAIL / start.dim))
    assert least > 0, "this start is too noisy for the bound"
    attention = started(Attention, start)
    for W in (double(attention.W_V), double(attention.W_proj)):
        singular_values = np.linalg.svd(W, compute_uv=False)
        assert singular_values.min() >= np.sqrt(least) - rounding(W)


# With dim 32 the norm of Z is at most 3.2.
little_noise = st.builds(
    Start,
    several_heads,
    wide_head_dims,
    st.just(0.1),
    st.just(0.7),
    st.floats(0.1, 0.15),
    st.sampled_from([-1.0, -0.6, 0.6, 1.0]),
    seeds,
)


@given(start=little_noise)
def test_value_projection_has_full_rank(Attention, start):
    check_value_projection_has_full_rank(Attention, start)


@lru_cache
def best_of_its_rank(dim, rank, alpha, beta, draws=200):
    """What NumPy finds for the best approximation of alpha Z + beta I of this rank: the mean of its
    diagonal and its Frobenius norm, each as the average and the spread over many Z.
    """
    Z = np.random.default_rng(0).normal(size=(draws, dim, dim)) / np.sqrt(dim)
    A = alpha * Z + beta * np.eye(dim)
    U, S, Vt = np.linalg.svd(A)
    best = U[:, :, :rank] * S[:, None, :rank] @ Vt[:, :rank]
    found = diagonal_means(best), norms(best)
    return [(values.mean(), values.std(ddof=1)) for values in found]


def check_query_key_has_the_size_of_the_best_approximation(Attention, start):
    """W_Q W_K^T has as much diagonal, and is as large, as the best approximation of a fresh target.

    Both numbers are sums of many, so over the draws of Z they are nearly normal. The average and
    the spread are themselves estimates from 200 draws. Student's t knows what this costs: with 199
    degrees of freedom it is outside of 6 spreads with a probability of 9e-9.
    """
    found = best_of_its_rank(start.dim, start.head_dim, start.qk_alpha, start.qk_beta)
    product = qk_product(started(Attention, start))
    for values, (average, spread) in zip((diagonal_means(product), norms(product)), found):
        bound = SIGMAS * spread * np.sqrt(1 + 1 / 200) + rounding(product)
        assert np.abs(values - average).max() <= bound


@given(start=few_starts)
def test_query_key_has_the_size_of_the_best_approximation(Attention, start):
    check_query_key_has_the_size_of_the_best_approximation(Attention, start)


def check_query_key_has_rank_head_dim(Attention, start):
    """W_Q W_K^T has head_dim singular values that are not 0, and no more.

    The lower bound is that of `check_value_projection_has_full_rank`.
    """
    least = abs(start.qk_beta) - start.qk_alpha * (2 + np.sqrt(2 * TAIL / start.dim))
    assert least > 0, "this start is too noisy for the bound"
    product = qk_product(started(Attention, start))
    singular_values = np.linalg.svd(product, compute_uv=False)  # (heads, dim), falling
    assert singular_values[:, start.head_dim - 1].min() >= least - rounding(product)
    assert singular_values[:, start.head_dim :].max() <= rounding(product)


@given(start=little_noise)
def test_query_key_has_rank_head_dim(Attention, start):
    check_query_key_has_rank_head_dim(Attention, start)


def check_factors_are_balanced(Attention, start):
    """Both factors have the same size in every direction, so that neither learns faster.

    W_Q^T W_Q = W_K^T W_K in each head, and W_V^T W_V = W_proj W_proj^T.
    """
    attention = started(Attention, start)
    for W_Q, W_K in zip(double(attention.W_Q), double(attention.W_K)):
        product = W_Q @ W_K.T
        assert np.abs(W_Q.T @ W_Q - W_K.T @ W_K).max() <= rounding(product)
    W_V = double(attention.W_V)
    W_proj = double(attention.W_proj)
    assert np.abs(W_V.T @ W_V - W_proj @ W_proj.T).max() <= rounding(W_V @ W_proj)


@given(start=any_start)
def test_factors_are_balanced(Attention, start):
    check_factors_are_balanced(Attention, start)


def check_every_product_has_a_Z_of_its_own(Attention, start):
    """No two heads share their noise, nor do two layers, nor query-key and value-projection.

    Take two products, without the mean of each diagonal. Z looks the same in every rotated
    coordinate system, so the angle between them is that of random directions. A symmetric part is
    orthogonal to every antisymmetric part, so the cosine of two products is no larger than that of
    one of these kinds. Each kind has at least n = dim (dim - 1) / 2 coordinates, and random
    directions in n dimensions have a cosine with a spread of 1/sqrt(n).
    """
    dim = start.dim
    generator = seeded(start.seed)
    parts = []
    for _ in range(2):
        layer = Attention(dim, start.heads)
        layer.mimetic_init_(*start.strengths, generator=generator)
        for product in [*qk_product(layer), vp_product(layer)]:
            parts.append((product - np.trace(product) / dim * np.eye(dim)).ravel())
    parts = np.stack(parts)  # (products, dim * dim)
    parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    cosines = parts @ parts.T
    np.fill_diagonal(cosines, 0)
    assert np.abs(cosines).max() <= SIGMAS / np.sqrt(dim * (dim - 1) / 2)


@given(start=wide_start)
def test_every_product_has_a_Z_of_its_own(Attention, start):
    check_every_product_has_a_Z_of_its_own(Attention, start)


def check_a_generator_reproduces_it(Attention, start):
    """One seed gives the same bits, and another seed gives others. Torch's global generator, from
    which other code draws, is used only if there is no generator.
    """
    first = weights(started(Attention, start))
    attention = Attention(start.dim, start.heads)
    before = torch.get_rng_state()
    attention.mimetic_init_(*start.strengths, generator=seeded(start.seed))
    assert torch.equal(torch.get_rng_state(), before)
    for name, W in weights(attention).items():
        assert torch.equal(W, first[name]), name

    attention.mimetic_init_(*start.strengths, generator=seeded(start.seed + 1))
    for name, W in weights(attention).items():
        assert not torch.equal(W, first[name]), name

    torch.manual_seed(start.seed)
    attention.mimetic_init_(*start.strengths)
    first = weights(attention)
    attention.mimetic_init_(*start.strengths)
    assert not torch.equal(attention.W_Q, first["W_Q"])
    torch.manual_seed(start.seed)
    attention.mimetic_init_(*start.strengths)
    for name, W in weights(attention).items():
        assert torch.equal(W, first[name]), name


@given(start=wide_start)
def test_a_generator_reproduces_it(Attention, start):
    check_a_generator_reproduces_it(Attention, start)


def check_without_noise_the_products_are_known(Attention, start):
    """With alpha = 0 the target is beta I, whatever Z is.

    W_V W_proj is beta I. Of W_Q W_K^T this much is known: each of its head_dim singular values is
    |beta|, and it is beta times a projection onto head_dim dimensions. With beta = 0 as well, all
    weights are exactly 0.
    """
    dim, head_dim = start.dim, start.head_dim
    calm = start._replace(qk_alpha=0, vp_alpha=0)
    attention = started(Attention, calm)
    expected = calm.vp_beta * np.eye(dim)
    assert np.abs(vp_product(attention) - expected).max() <= rounding(expected)

    beta = calm.qk_beta
    limit = rounding(beta * np.eye(dim))
    for product in qk_product(attention):
        assert np.abs(product - product.T).max() <= limit
        assert np.abs(product @ product - beta * product).max() <= limit
        assert abs(np.trace(product) - beta * head_dim) <= dim * limit

    silent = calm._replace(qk_beta=0, vp_beta=0)
    for name, W in weights(started(Attention, silent)).items():
        assert (W == 0).all(), name


@given(start=any_start)
def test_without_noise_the_products_are_known(Attention, start):
    check_without_noise_the_products_are_known(Attention, start)


@pytest.mark.parametrize("dim, head_dim, left", [(192, 64, 0.39), (64, 16, 0.31)])
def test_the_cut_to_head_dim_keeps_part_of_the_diagonal(Attention, dim, head_dim, left):
    """Of the 0.7 asked for, the diagonal of W_Q W_K^T keeps 0.39, or 0.31 in a smaller head.

    Here NumPy draws only 20 times. Student's t with 19 degrees of freedom is outside of 10 spreads
    with a probability of 5e-9.
    """
    (average, spread), _ = best_of_its_rank(dim, head_dim, 0.7, 0.7, draws=20)
    assert round(average, 2) == left
    start = Start(dim // head_dim, head_dim, 0.7, 0.7, 0.4, -0.4, seed=0)
    found = diagonal_means(qk_product(started(Attention, start)))
    assert np.abs(found - average).max() <= 10 * spread * np.sqrt(1 + 1 / 20)


@given(qk_sign=signs, vp_sign=signs, seed=seeds)
def test_each_beta_chooses_the_sign_of_its_diagonal(Attention, qk_sign, vp_sign, seed):
    """The mean of the diagonal is many of its spreads away from 0: its sign is not chance."""
    attention = started(Attention, Start(2, 16, 0.7, 0.7 * qk_sign, 0.4, 0.4 * vp_sign, seed))
    assert (np.sign(diagonal_means(qk_product(attention))) == qk_sign).all()
    assert np.sign(diagonal_means(vp_product(attention))) == vp_sign


# ---------------------------------------------------------------------------------------------
# The properties for which one must know Z. In vit.py and gpt.py each head draws a Z of its own, and
# then value-projection draws one.


def targets(start):
    """alpha Z + beta I of this start: (heads, dim, dim) for query-key, (dim, dim) for the other."""
    dim = start.dim
    generator = seeded(start.seed)
    Z = [double(torch.randn(dim, dim, generator=generator)) for _ in range(start.heads + 1)]
    Z = np.stack(Z) / np.sqrt(dim)
    A_qk = start.qk_alpha * Z[:-1] + start.qk_beta * np.eye(dim)
    A_vp = start.vp_alpha * Z[-1] + start.vp_beta * np.eye(dim)
    return A_qk, A_vp


@both_files
@given(start=any_start)
def test_value_projection_is_its_target(module, start):
    """W_V W_proj = alpha Z + beta I, entry by entry."""
    _, A = targets(start)
    product = vp_product(started(module.Attention, start))
    assert np.abs(product - A).max() <= rounding(A)


@both_files
@given(start=any_start)
def test_query_key_is_the_best_approximation_of_its_target(module, start):
    """No matrix of rank head_dim is closer to the target than W_Q W_K^T (Eckart and Young): what is
    missing are the smallest singular values, and W_Q W_K^T has the others.
    """
    A, _ = targets(start)
    limit = rounding(A)
    product = qk_product(started(module.Attention, start))
    S = np.linalg.svd(A, compute_uv=False)  # (heads, dim), falling
    kept = S.copy()
    kept[:, start.head_dim :] = 0
    missing = S - kept

    # Weyl: an error moves no singular value by more than its own size.
    assert np.abs(np.linalg.svd(product, compute_uv=False) - kept).max() <= limit
    distance = norms(A - product)
    least = np.sqrt((missing**2).sum(1))
    assert np.abs(distance - least).max() <= limit * np.sqrt(start.dim)


@both_files
@given(start=any_start)
def test_both_factors_have_the_roots_of_the_singular_values(module, start):
    """W_Q^T W_Q = W_K^T W_K = S, cut to head_dim, and W_V^T W_V = W_proj W_proj^T = S."""
    A_qk, A_vp = targets(start)
    W_Q, W_K, W_V, W_proj = map(double, weights(started(module.Attention, start)).values())
    for head in range(start.heads):
        S = np.diag(np.linalg.svd(A_qk[head], compute_uv=False)[: start.head_dim])
        assert np.abs(W_Q[head].T @ W_Q[head] - S).max() <= rounding(A_qk)
        assert np.abs(W_K[head].T @ W_K[head] - S).max() <= rounding(A_qk)
    S = np.diag(np.linalg.svd(A_vp, compute_uv=False))
    assert np.abs(W_V.T @ W_V - S).max() <= rounding(A_vp)
    assert np.abs(W_proj @ W_proj.T - S).max() <= rounding(A_vp)


@both_files
@given(start=any_start)
def test_one_product_can_be_set_without_the_other(module, start):
    """query_key_init_ and value_projection_init_ each leave the other two weights as they are. One
    after the other, from one generator, they are mimetic_init_.
    """
    attention = module.Attention(start.dim, start.heads)
    new = weights(attention)
    generator = seeded(start.seed)
    attention.query_key_init_(start.qk_alpha, start.qk_beta, generator)
    halfway = weights(attention)
    assert not torch.equal(halfway["W_Q"], new["W_Q"])
    assert not torch.equal(halfway["W_K"], new["W_K"])
    assert torch.equal(halfway["W_V"], new["W_V"])
    assert torch.equal(halfway["W_proj"], new["W_proj"])

    attention.value_projection_init_(start.vp_alpha, start.vp_beta, generator)
    end = weights(attention)
    assert torch.equal(end["W_Q"], halfway["W_Q"])
    assert torch.equal(end["W_K"], halfway["W_K"])
    for name, W in weights(started(module.Attention, start)).items():
        assert torch.equal(end[name], W), name


@both_files
@given(start=any_start)
def test_the_attention_tells_its_own_products(module, start):
    """qk_product() and vp_product() are the products of the weights."""
    attention = started(module.Attention, start)
    for own, ours in (
        (attention.qk_product(), qk_product(attention)),
        (attention.vp_product(), vp_product(attention)),
    ):
        assert own.shape == ours.shape
        assert np.abs(double(own) - ours).max() <= rounding(ours)


too_large = st.floats(1, exclude_min=True)
too_small = st.floats(max_value=-1, exclude_max=True)
negative = st.floats(-1, 0, exclude_max=True)
not_a_number = st.just(float("nan"))
wrong_strength = st.one_of(
    st.tuples(
        st.sampled_from(["qk_alpha", "vp_alpha"]),
        st.one_of(too_large, too_small, negative, not_a_number),
    ),
    st.tuples(
        st.sampled_from(["qk_beta", "vp_beta"]), st.one_of(too_large, too_small, not_a_number)
    ),
)


@both_files
@given(wrong=wrong_strength)
def test_a_strength_out_of_range_is_refused_and_nothing_is_changed(module, wrong):
    """The message names the strength, its value and what is allowed. No weight and no generator
    moves.
    """
    name, value = wrong
    allowed = "between 0 and 1" if name.endswith("alpha") else "between -1 and 1"
    strengths = {"qk_alpha": 0.5, "qk_beta": 0.5, "vp_alpha": 0.5, "vp_beta": 0.5, name: value}
    attention = module.Attention(8, 2)
    before = weights(attention)
    generator = seeded(0)
    with pytest.raises(ValueError) as error:
        attention.mimetic_init_(**strengths, generator=generator)
    assert str(error.value) == f"{name} must be {allowed}, but it is {value}"

    product, short_name = name.split("_")
    pair = {"alpha": 0.5, "beta": 0.5, short_name: value}
    setter = {"qk": attention.query_key_init_, "vp": attention.value_projection_init_}[product]
    with pytest.raises(ValueError) as error:
        setter(**pair, generator=generator)
    assert str(error.value) == f"{short_name} must be {allowed}, but it is {value}"

    for name, W in weights(attention).items():
        assert torch.equal(W, before[name]), name
    assert torch.equal(generator.get_state(), seeded(0).get_state())


@both_files
def test_the_ends_of_the_ranges_are_allowed(module):
    attention = module.Attention(8, 2)
    attention.mimetic_init_(0, -1, 1, 1)
    attention.mimetic_init_(1, 1, 0, -1)


@both_files
@given(heads=several_heads, head_dim=wide_head_dims, qk_sign=signs, vp_sign=signs, seed=seeds)
def test_simple_form(module, heads, head_dim, qk_sign, vp_sign, seed):
    """W_Q = Z and W_K = sign Z, where each head has a Z with entries N(0, 1/head_dim). W_V = Z and
    W_proj = sign Z^T, where Z has entries N(0, 1/dim). So both products are about sign I.
    """
    dim = heads * head_dim
    attention = module.Attention(dim, heads)
    attention.simple_init_(qk_sign, vp_sign, generator=seeded(seed))
    assert torch.equal(attention.W_K, qk_sign * attention.W_Q)
    assert torch.equal(attention.W_proj, vp_sign * attention.W_V.T)

    qk = qk_product(attention)
    cases = [(product, qk_sign, head_dim) for product in qk]
    cases.append((vp_product(attention), vp_sign, dim))
    for product, sign, columns in cases:
        diagonal = sign * np.diag(product)
        rest = product[~np.eye(dim, dtype=bool)]
        # The mean of the diagonal is the mean of columns * z^2 over the entries z of Z.
        low, high = chi_square(dim * columns)
        assert low <= diagonal.mean() <= high
        # An entry z_i . z_j is N(0, |z_j|^2 / columns) for given z_j. With 2 log(dim) more in the
        # exponent, the bound holds in all dim^2 entries at once.
        assert np.abs(rest).max() <= np.sqrt(
            2 * (TAIL + 2 * np.log(dim)) * diagonal.max() / columns
        )
    assert not np.array_equal(qk[0], qk[1])

    again = module.Attention(dim, heads)
    before = torch.get_rng_state()
    again.simple_init_(qk_sign, vp_sign, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), before)
    for name, W in weights(again).items():
        assert torch.equal(W, weights(attention)[name]), name


@both_files
@pytest.mark.parametrize("sign", [0, 0.5, -2, float("nan")])
def test_a_sign_is_1_or_minus_1(module, sign):
    attention = module.Attention(8, 2)
    before = weights(attention)
    with pytest.raises(ValueError) as error:
        attention.simple_init_(sign, -1)
    assert str(error.value) == f"qk_sign must be 1 or -1, but it is {sign}"
    with pytest.raises(ValueError) as error:
        attention.simple_init_(1, sign)
    assert str(error.value) == f"vp_sign must be 1 or -1, but it is {sign}"
    for name, W in weights(attention).items():
        assert torch.equal(W, before[name]), name


# ---------------------------------------------------------------------------------------------
# The known mistakes. Each is a function that sets the weights of an attention in a wrong way. `qk`
# and `vp` are pairs (alpha, beta).


@torch.no_grad()
def the_right_way(attention, qk, vp, generator, target=mimetic_target, factors=balanced_factors):
    """No mistake, unless another `target` or other `factors` bring one in."""
    heads, dim, head_dim = attention.W_Q.shape
    for head in range(heads):
        A = target(dim, *qk, generator)
        L, R = factors(A, head_dim)
        attention.W_Q[head] = L
        attention.W_K[head] = R.T
    A = target(dim, *vp, generator)
    L, R = factors(A, dim)
    attention.W_V.copy_(L)
    attention.W_proj.copy_(R)


# Mistakes in the target


def scaled_by_1_over_d(attention, qk, vp, generator):
    """Z has entries N(0, 1/d^2)."""

    def target(dim, alpha, beta, generator):
        Z = torch.randn(dim, dim, generator=generator) / dim
        return alpha * Z + beta * torch.eye(dim)

    the_right_way(attention, qk, vp, generator, target=target)


def uniform_noise(attention, qk, vp, generator):
    """Z has uniform entries of the right variance."""

    def target(dim, alpha, beta, generator):
        Z = (2 * torch.rand(dim, dim, generator=generator) - 1) * (3 / dim) ** 0.5
        return alpha * Z + beta * torch.eye(dim)

    the_right_way(attention, qk, vp, generator, target=target)


def alpha_and_beta_exchanged(attention, qk, vp, generator):
    the_right_way(attention, qk[::-1], vp[::-1], generator)


def strengths_exchanged(attention, qk, vp, generator):
    """Query-key has the strengths of value-projection, and the other way round."""
    the_right_way(attention, vp, qk, generator)


def signs_exchanged(attention, qk, vp, generator):
    """The diagonal of query-key is negative, and that of value-projection is positive."""
    the_right_way(attention, (qk[0], -qk[1]), (vp[0], -vp[1]), generator)


def one_Z_for_all_heads(attention, qk, vp, generator):
    the_right_way(attention, qk, vp, generator)
    attention.W_Q.data[1:] = attention.W_Q.data[0]
    attention.W_K.data[1:] = attention.W_K.data[0]


def one_Z_for_both_products(attention, qk, vp, generator):
    """Value-projection uses the Z of the last head again."""
    heads = attention.W_Q.shape[0]
    drawn = []

    def target(dim, alpha, beta, generator):
        if len(drawn) < heads:
            drawn.append(torch.randn(dim, dim, generator=generator) / dim**0.5)
        return alpha * drawn[-1] + beta * torch.eye(dim)

    the_right_way(attention, qk, vp, generator, target=target)


def same_seed_in_every_layer(attention, qk, vp, generator):
    the_right_way(attention, qk, vp, seeded(0))


def generator_ignored(attention, qk, vp, generator):
    the_right_way(attention, qk, vp, None)


# Mistakes in the factors


def no_square_root(attention, qk, vp, generator):
    """Both factors have all of S, so that the product has S^2."""

    def factors(A, rank):
        U, S, Vt = torch.linalg.svd(A)
        return U[:, :rank] * S[:rank], S[:rank, None] * Vt[:rank]

    the_right_way(attention, qk, vp, generator, factors=factors)


def square_root_twice(attention, qk, vp, generator):
    """Both factors have the fourth root of S, so that the product has S^(1/2)."""

    def factors(A, rank):
        U, S, Vt = torch.linalg.svd(A)
        root = S[:rank] ** 0.25
        return U[:, :rank] * root, root[:, None] * Vt[:rank]

    the_right_way(attention, qk, vp, generator, factors=factors)


def unbalanced(attention, qk, vp, generator):
    """One factor has all of S, and the other has none. The product is right."""

    def factors(A, rank):
        U, S, Vt = torch.linalg.svd(A)
        return U[:, :rank] * S[:rank], Vt[:rank]

    the_right_way(attention, qk, vp, generator, factors=factors)


def smallest_singular_values(attention, qk, vp, generator):
    """The cut keeps the wrong end of S."""

    def factors(A, rank):
        U, S, Vt = torch.linalg.svd(A)
        root = S[-rank:].sqrt()
        return U[:, -rank:] * root, root[:, None] * Vt[-rank:]

    the_right_way(attention, qk, vp, generator, factors=factors)


def cut_before_svd(attention, qk, vp, generator):
    """The target loses all columns but the first `rank`, and only then is it decomposed."""

    def factors(A, rank):
        A = A.clone()
        A[:, rank:] = 0
        return balanced_factors(A, rank)

    the_right_way(attention, qk, vp, generator, factors=factors)


def rank_too_short(attention, qk, vp, generator):
    """The last singular value is lost."""

    def factors(A, rank):
        L, R = balanced_factors(A, rank)
        L[:, -1] = 0
        R[-1] = 0
        return L, R

    the_right_way(attention, qk, vp, generator, factors=factors)


def V_not_transposed(attention, qk, vp, generator):
    """The decomposition returns V^T, and the code takes it for V."""

    def factors(A, rank):
        U, S, V = torch.linalg.svd(A)
        root = S[:rank].sqrt()
        return U[:, :rank] * root, root[:, None] * V.T[:rank]

    the_right_way(attention, qk, vp, generator, factors=factors)


def U_on_both_sides(attention, qk, vp, generator):
    """The left singular vectors replace the right ones, so that no diagonal can be negative."""

    def factors(A, rank):
        L, _ = balanced_factors(A, rank)
        return L, L.T

    the_right_way(attention, qk, vp, generator, factors=factors)


# Mistakes in the places


def transposed_value_projection(attention, qk, vp, generator):
    """The weights are made for x @ W and used in nn.Linear, which computes x @ W^T. The mean of the
    diagonal stays right, and its entries scatter.
    """
    the_right_way(attention, qk, vp, generator)
    attention.W_V.data.copy_(attention.W_V.T.clone())
    attention.W_proj.data.copy_(attention.W_proj.T.clone())


def transposed_projection(attention, qk, vp, generator):
    the_right_way(attention, qk, vp, generator)
    attention.W_proj.data.copy_(attention.W_proj.T.clone())


def reshaped_instead_of_transposed(attention, qk, vp, generator):
    """W_K has the numbers of R, read row by row."""
    the_right_way(attention, qk, vp, generator)
    for W_K in attention.W_K.data:
        W_K.copy_(W_K.T.reshape(W_K.shape))


def one_svd_for_all_heads(attention, qk, vp, generator):
    """One target for all heads: the first head gets the largest singular values, the next gets the
    next ones, and so on.
    """
    the_right_way(attention, qk, vp, generator)
    heads, dim, head_dim = attention.W_Q.shape
    L, R = balanced_factors(mimetic_target(dim, *qk, generator), dim)
    attention.W_Q.data.copy_(L.reshape(dim, heads, head_dim).transpose(0, 1))
    attention.W_K.data.copy_(R.T.reshape(dim, heads, head_dim).transpose(0, 1))


def value_projection_cut_to_head_dim(attention, qk, vp, generator):
    """Value-projection is cut as query-key is."""
    the_right_way(attention, qk, vp, generator)
    head_dim = attention.W_Q.shape[2]
    attention.W_V.data[:, head_dim:] = 0
    attention.W_proj.data[head_dim:] = 0


# For each mistake, a property that has to see it
MISTAKES = {
    scaled_by_1_over_d: check_value_projection_has_its_diagonal_and_noise,
    uniform_noise: check_value_projection_has_its_diagonal_and_noise,
    alpha_and_beta_exchanged: check_value_projection_has_its_diagonal_and_noise,
    strengths_exchanged: check_query_key_has_the_size_of_the_best_approximation,
    signs_exchanged: check_query_key_has_the_size_of_the_best_approximation,
    one_Z_for_all_heads: check_every_product_has_a_Z_of_its_own,
    one_Z_for_both_products: check_every_product_has_a_Z_of_its_own,
    same_seed_in_every_layer: check_every_product_has_a_Z_of_its_own,
    generator_ignored: check_a_generator_reproduces_it,
    no_square_root: check_without_noise_the_products_are_known,
    square_root_twice: check_without_noise_the_products_are_known,
    unbalanced: check_factors_are_balanced,
    smallest_singular_values: check_query_key_has_the_size_of_the_best_approximation,
    cut_before_svd: check_query_key_has_the_size_of_the_best_approximation,
    rank_too_short: check_query_key_has_rank_head_dim,
    V_not_transposed: check_query_key_has_the_size_of_the_best_approximation,
    U_on_both_sides: check_without_noise_the_products_are_known,
    transposed_value_projection: check_value_projection_has_its_diagonal_and_noise,
    transposed_projection: check_value_projection_has_its_diagonal_and_noise,
    reshaped_instead_of_transposed: check_query_key_has_the_size_of_the_best_approximation,
    one_svd_for_all_heads: check_query_key_has_the_size_of_the_best_approximation,
    value_projection_cut_to_head_dim: check_value_projection_has_full_rank,
}

CHECKS = [
    check_value_projection_has_its_diagonal_and_noise,
    check_value_projection_has_full_rank,
    check_query_key_has_the_size_of_the_best_approximation,
    check_query_key_has_rank_head_dim,
    check_factors_are_balanced,
    check_every_product_has_a_Z_of_its_own,
    check_a_generator_reproduces_it,
    check_without_noise_the_products_are_known,
]

# A start on which all of the checks can be tried. Its four strengths are different.
EXAMPLE = Start(3, 16, qk_alpha=0.2, qk_beta=0.7, vp_alpha=0.1, vp_beta=-0.5, seed=0)


def attention_with(set_weights):
    """A class Attention whose mimetic_init_ sets the weights by this function."""

    class Attention(vit.Attention):
        def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
            set_weights(self, (qk_alpha, qk_beta), (vp_alpha, vp_beta), generator)

    return Attention


def failing(Attention):
    """The names of the properties that this class does not have."""
    names = []
    for check in CHECKS:
        try:
            check(Attention, EXAMPLE)
        except AssertionError:
            names.append(check.__name__)
    return names


@pytest.mark.parametrize("mistake, check", MISTAKES.items(), ids=[m.__name__ for m in MISTAKES])
def test_a_known_mistake_is_seen(mistake, check):
    assert check.__name__ in failing(attention_with(mistake))


def test_every_property_sees_a_mistake():
    assert set(MISTAKES.values()) == set(CHECKS)


def test_the_right_way_passes():
    assert failing(attention_with(the_right_way)) == []


# ---------------------------------------------------------------------------------------------
# The option --implementation. The first file knows nothing of this project. It draws all Z at once,
# with value-projection first.

A_FILE_OF_YOURS = """
import torch

class Attention(torch.nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.W_Q = torch.nn.Parameter(torch.zeros(heads, dim, dim // heads))
        self.W_K = torch.nn.Parameter(torch.zeros(heads, dim, dim // heads))
        self.W_V = torch.nn.Parameter(torch.zeros(dim, dim))
        self.W_proj = torch.nn.Parameter(torch.zeros(dim, dim))

    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        Z = torch.randn(1 + self.heads, self.dim, self.dim, generator=generator) * self.dim**-0.5
        I = torch.eye(self.dim)
        U, S, Vh = torch.linalg.svd(vp_alpha * Z[0] + vp_beta * I)
        self.W_V.data = U @ S.sqrt().diag()
        self.W_proj.data = S.sqrt().diag() @ Vh
        U, S, Vh = torch.linalg.svd(qk_alpha * Z[1:] + qk_beta * I)
        k = self.dim // self.heads
        self.W_Q.data = U[:, :, :k] * S[:, None, :k].sqrt()
        self.W_K.data = Vh.mT[:, :, :k] * S[:, None, :k].sqrt()
"""

# The same with a mistake: V and proj are stored as nn.Linear stores them.
A_FILE_WITH_A_MISTAKE = (
    A_FILE_OF_YOURS
    + """
        self.W_V.data = self.W_V.data.T
        self.W_proj.data = self.W_proj.data.T
"""
)


def test_a_file_of_yours_is_judged_by_its_weights(tmp_path):
    (tmp_path / "right.py").write_text(A_FILE_OF_YOURS)
    assert failing(load_attention("right.py")) == []
    (tmp_path / "wrong.py").write_text(A_FILE_WITH_A_MISTAKE)
    names = failing(load_attention("wrong.py"))
    assert "check_value_projection_has_its_diagonal_and_noise" in names


def run_pytest(*options):
    """The output and the exit status of `python -m pytest tests/test_method.py` with options."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode


def names_of(outcome, output):
    """The names of the tests that PASSED or FAILED, from the summary that -rA prints."""
    lines = [line.split() for line in output.splitlines() if line.startswith(outcome)]
    return {place.split("::")[1] for _, place, *_ in lines}


@pytest.mark.slow
def test_the_command_line_tests_a_file_of_yours(tmp_path):
    """The properties of the weights are tested, and nothing of vit.py and gpt.py is."""
    (tmp_path / "my_attention.py").write_text(A_FILE_OF_YOURS)
    output, status = run_pytest("--implementation", "my_attention.py", "-rA")
    assert status == 0, output
    passed = names_of("PASSED", output)
    for check in CHECKS:
        assert f"{check.__name__.replace('check_', 'test_')}[implementation]" in passed
    assert all("[implementation" in name for name in passed)


@pytest.mark.slow
def test_the_command_line_names_what_a_mistake_breaks(tmp_path):
    (tmp_path / "my_attention.py").write_text(A_FILE_WITH_A_MISTAKE)
    output, status = run_pytest("--implementation", "my_attention.py", "-rA")
    assert status == pytest.ExitCode.TESTS_FAILED, output
    name = "test_value_projection_has_its_diagonal_and_noise[implementation]"
    assert name in names_of("FAILED", output)
    assert "test_query_key_has_rank_head_dim[implementation]" in names_of("PASSED", output)


@pytest.mark.slow
def test_the_command_line_says_in_one_line_what_is_wrong_with_a_file():
    output, status = run_pytest("--implementation", "my_attention.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    message = "--implementation must be a Python file, but my_attention.py is not"
    assert output.strip() == f"ERROR: {message}"


# Pieces of files that cannot be tested

A_CLASS = "import torch\n\nclass Attention:\n"
A_METHOD = "    def mimetic_init_(self, *strengths, generator): pass\n"
THREE_WEIGHTS = """    def __init__(self, dim, heads):
        self.W_Q = torch.zeros(heads, dim, dim // heads)
        self.W_K = torch.zeros(heads, dim, dim // heads)
        self.W_V = torch.zeros(dim, dim)
"""
A_WRONG_SHAPE = "        self.W_K = self.W_K.mT\n"
FIRST_CALL = (
    "Attention(8, 2).mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=generator) in my_attention.py"
)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "import no_such_package",
            "my_attention.py cannot be imported:"
            " ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("x = 1", "my_attention.py must have a class Attention, but it has none"),
        (
            A_CLASS + "    pass",
            "the class Attention in my_attention.py must have a method mimetic_init_(qk_alpha,"
            " qk_beta, vp_alpha, vp_beta, generator=None), but it has none",
        ),
        (
            A_CLASS + A_METHOD,
            f"{FIRST_CALL} fails: TypeError: Attention() takes no arguments",
        ),
        (
            A_CLASS + A_METHOD + THREE_WEIGHTS,
            "Attention in my_attention.py must have a weight W_proj (dim, dim), but it has none",
        ),
        (
            A_CLASS + A_METHOD + THREE_WEIGHTS + A_WRONG_SHAPE,
            "W_K in my_attention.py must have the shape (heads, dim, head_dim), which is (2, 8, 4)"
            " for Attention(8, 2), but it has (2, 4, 8)",
        ),
    ],
    ids=["import", "class", "method", "arguments", "weight", "shape"],
)
def test_a_file_that_cannot_be_tested_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "my_attention.py").write_text(text)
    with pytest.raises(pytest.UsageError) as error:
        load_attention("my_attention.py")
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["missing.py", "folder", "notes.txt"])
def test_what_is_not_a_python_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("x = 1")
    with pytest.raises(pytest.UsageError) as error:
        load_attention(name)
    assert str(error.value) == f"--implementation must be a Python file, but {name} is not"
