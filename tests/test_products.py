"""What each initialiser promises of W_Q W_K^T and W_V W_proj, as properties over widths, heads, strengths and seeds.

Every property takes the module, so that test_teeth.py can run it on copies with a known mistake in them.

Tolerances. Rounding: LAPACK's singular value decomposition is backward stable, U S V^T = A + E with a norm of E of at
most p(d) eps |A|, where p grows slowly with d (LAPACK Users' Guide, section 4.9); the root and the product of the two
factors add a few eps each. `rounding` takes 10 d for all of it. Chance: each bound on a random quantity is derived so
that a right initialiser breaks it with a probability below 1e-8, by a normal tail at `SIGMAS` or, for a mean of
squares, by the chi-square bounds of Laurent and Massart (2000, lemma 1) at exp(-T).
"""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimetic_min import gpt, vit

SIGMAS = 6.0                                                         # a normal variable is further out once in 5e8
T = 20.0                                                             # exp(-T) = 2e-9
both_files = pytest.mark.parametrize("module", [vit, gpt], ids=["vit.py", "gpt.py"])

heads = st.integers(1, 4)
head_dims = st.integers(2, 16)
wide_head_dims = st.integers(16, 48)                                 # where averages say something
alphas = st.floats(0, 1)
clear_alphas = st.floats(0.1, 1)
betas = st.floats(-1, 1)
seeds = st.integers(0, 2**32)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mimetic(module, heads, head_dim, qk, vp, seed):
    attention = module.Attention(heads * head_dim, heads)
    attention.mimetic_init_(*qk, *vp, generator=seeded(seed))
    return attention


def double(tensor):
    return tensor.detach().numpy().astype(np.float64)


def products(attention):
    """(heads, d, d) and (d, d), in NumPy and float64, from the weights alone."""
    W_Q, W_K, W_V, W_proj = map(double, (attention.W_Q, attention.W_K, attention.W_V, attention.W_proj))
    return W_Q @ W_K.transpose(0, 2, 1), W_V @ W_proj


def targets(heads, head_dim, qk, vp, seed):
    """The alpha Z + beta I that this seed stands for, in NumPy: query-key is drawn first, then value-projection."""
    d, generator = heads * head_dim, seeded(seed)
    Z_qk, Z_vp = (double(torch.randn(shape, generator=generator)) / np.sqrt(d) for shape in ((heads, d, d), (d, d)))
    return qk[0] * Z_qk + qk[1] * np.eye(d), vp[0] * Z_vp + vp[1] * np.eye(d)


def rounding(A):
    """A bound on the errors in the entries of a product that is to be A: by rounding, and by underflow."""
    d, single = A.shape[-1], np.finfo(np.float32)
    return 10 * d * (single.eps * np.linalg.norm(A, ord=2, axis=(-2, -1)).max() + single.tiny)


def chi_square(n):
    """What the mean of n squares of standard normal variables lies between."""
    return 1 - 2 * np.sqrt(T / n), 1 + 2 * np.sqrt(T / n) + 2 * T / n


# ---- the controlled form

@both_files
@given(heads=heads, head_dim=head_dims, vp=st.tuples(alphas, betas), seed=seeds)
def test_value_projection_is_its_target(module, heads, head_dim, vp, seed):
    """W_V W_proj = alpha Z + beta I, entry by entry."""
    _, A = targets(heads, head_dim, (0.5, 0.5), vp, seed)
    _, product = products(mimetic(module, heads, head_dim, (0.5, 0.5), vp, seed))
    assert np.abs(product - A).max() <= rounding(A)


@both_files
@given(heads=heads, head_dim=wide_head_dims, alpha=clear_alphas, beta=betas, seed=seeds)
def test_value_projection_has_the_diagonal_and_the_noise_asked_for(module, heads, head_dim, alpha, beta, seed):
    """The same without a look at Z: the diagonal is N(beta, alpha^2/d), all the rest N(0, alpha^2/d)."""
    d = heads * head_dim
    _, product = products(mimetic(module, heads, head_dim, (0.5, 0.5), (alpha, beta), seed))
    diagonal, others = np.diag(product), product[~np.eye(d, dtype=bool)]
    assert abs(diagonal.mean() - beta) <= SIGMAS * alpha / d + rounding(product)  # d values of deviation alpha/sqrt(d)
    low, high = chi_square(d - 1)                                                 # the mean costs one degree of freedom
    assert low <= diagonal.var(ddof=1) / (alpha**2 / d) <= high
    low, high = chi_square(d * (d - 1))
    assert low <= (others**2).mean() / (alpha**2 / d) <= high


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), seed=seeds)
def test_query_key_is_the_best_of_its_rank(module, heads, head_dim, qk, seed):
    """No matrix of rank k is closer to the target than W_Q W_K^T (Eckart and Young): what is left is the tail of S."""
    A, _ = targets(heads, head_dim, qk, (0.5, 0.5), seed)
    product, _ = products(mimetic(module, heads, head_dim, qk, (0.5, 0.5), seed))
    S, tolerance = np.linalg.svd(A, compute_uv=False), rounding(A)                # S: (heads, d), falling
    left = np.linalg.norm(A - product, ord=2, axis=(1, 2))                        # the largest singular value left
    tail = S[:, head_dim] if heads > 1 else 0.0
    assert np.abs(left - tail).max() <= tolerance
    left = np.linalg.norm(A - product, axis=(1, 2))                               # Frobenius: all of them
    assert np.abs(left - np.sqrt((S[:, head_dim:] ** 2).sum(1))).max() <= tolerance * np.sqrt(heads * head_dim)


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), seed=seeds)
def test_query_key_has_rank_k(module, heads, head_dim, qk, seed):
    """The first k singular values of W_Q W_K^T are those of the target, the others are 0."""
    A, _ = targets(heads, head_dim, qk, (0.5, 0.5), seed)
    product, _ = products(mimetic(module, heads, head_dim, qk, (0.5, 0.5), seed))
    S, expected = np.linalg.svd(product, compute_uv=False), np.linalg.svd(A, compute_uv=False)
    expected[:, head_dim:] = 0
    assert np.abs(S - expected).max() <= rounding(A)                 # Weyl: none moves by more than the error


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), vp=st.tuples(alphas, betas), seed=seeds)
def test_factors_are_balanced(module, heads, head_dim, qk, vp, seed):
    """Both factors carry the root of S: W_Q^T W_Q = W_K^T W_K = S_k, and W_V^T W_V = W_proj W_proj^T = S."""
    A_qk, A_vp = targets(heads, head_dim, qk, vp, seed)
    attention = mimetic(module, heads, head_dim, qk, vp, seed)
    W_Q, W_K, W_V, W_proj = map(double, (attention.W_Q, attention.W_K, attention.W_V, attention.W_proj))
    for head in range(heads):
        S = np.diag(np.linalg.svd(A_qk[head], compute_uv=False)[:head_dim])
        assert np.abs(W_Q[head].T @ W_Q[head] - S).max() <= rounding(A_qk)
        assert np.abs(W_K[head].T @ W_K[head] - S).max() <= rounding(A_qk)
    S = np.diag(np.linalg.svd(A_vp, compute_uv=False))
    assert np.abs(W_V.T @ W_V - S).max() <= rounding(A_vp)
    assert np.abs(W_proj @ W_proj.T - S).max() <= rounding(A_vp)


@both_files
@given(heads=st.integers(2, 4), head_dim=head_dims, alpha=clear_alphas, beta=betas, seed=seeds)
def test_each_head_and_each_call_draws_its_own_Z(module, heads, head_dim, alpha, beta, seed):
    """No two heads have the same product, and a second layer from the same generator has others again."""
    generator, layers = seeded(seed), []
    for _ in range(2):
        attention = module.Attention(heads * head_dim, heads)
        attention.mimetic_init_(alpha, beta, alpha, beta, generator=generator)
        layers.append(products(attention))
    qk = np.concatenate([layers[0][0], layers[1][0]])
    tolerance = 2 * rounding(qk)                                     # of two equal products, by rounding alone
    for i in range(len(qk)):
        for j in range(i):
            assert np.abs(qk[i] - qk[j]).max() > tolerance
    assert np.abs(layers[0][1] - layers[1][1]).max() > tolerance


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), vp=st.tuples(alphas, betas), seed=seeds)
def test_a_generator_reproduces_it_bit_for_bit(module, heads, head_dim, qk, vp, seed):
    """The same seed gives the same bits, whatever torch's global generator does, and leaves that one alone."""
    first = mimetic(module, heads, head_dim, qk, vp, seed).state_dict()
    attention = module.Attention(heads * head_dim, heads)            # draws from the global generator, so it moves on
    before = torch.get_rng_state()
    attention.mimetic_init_(*qk, *vp, generator=seeded(seed))
    assert torch.equal(torch.get_rng_state(), before)
    for name, W in attention.state_dict().items():
        assert torch.equal(W, first[name]), name


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), vp=st.tuples(alphas, betas), seed=seeds)
def test_off_leaves_a_product_as_it_is(module, heads, head_dim, qk, vp, seed):
    """Alpha and beta of None: those two weights keep every bit, the other two are set."""
    for off in ("qk", "vp"):
        attention = module.Attention(heads * head_dim, heads)
        before = {name: W.clone() for name, W in attention.state_dict().items()}
        strengths = (None, None, *vp) if off == "qk" else (*qk, None, None)
        attention.mimetic_init_(*strengths, generator=seeded(seed))
        kept = ("W_Q", "W_K") if off == "qk" else ("W_V", "W_proj")
        for name, W in attention.state_dict().items():
            assert torch.equal(W, before[name]) == (name in kept), name


@both_files
@given(heads=heads, head_dim=head_dims, qk=st.tuples(alphas, betas), vp=st.tuples(alphas, betas), seed=seeds)
def test_the_modules_own_products_are_those_of_the_weights(module, heads, head_dim, qk, vp, seed):
    attention = mimetic(module, heads, head_dim, qk, vp, seed)
    for own, ours in zip((attention.qk_product(), attention.vp_product()), products(attention)):
        assert own.shape == ours.shape
        assert np.abs(double(own) - ours).max() <= rounding(ours)


wrong = st.one_of(st.floats(1, exclude_min=True), st.floats(max_value=-1, exclude_max=True), st.just(float("nan")))


@both_files
@given(place=st.integers(0, 3), value=wrong, seed=seeds)
def test_a_strength_out_of_range_is_refused_and_nothing_is_changed(module, place, value, seed):
    name, low = [("qk_alpha", "0"), ("qk_beta", "-1"), ("vp_alpha", "0"), ("vp_beta", "-1")][place]
    attention = module.Attention(8, 2)
    before = {name: W.clone() for name, W in attention.state_dict().items()}
    strengths = [0.5] * 4
    strengths[place] = value
    with pytest.raises(ValueError) as error:
        attention.mimetic_init_(*strengths, generator=seeded(seed))
    assert str(error.value) == f"{name} is {value!r}: it must be from {low} to 1"
    assert all(torch.equal(W, before[name]) for name, W in attention.state_dict().items())


@both_files
def test_half_an_off_and_a_sign_that_is_none_are_refused(module):
    with pytest.raises(ValueError, match="^qk_alpha is None: it must be off .None. just where qk_beta is$"):
        module.Attention(8, 2).mimetic_init_(None, 0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="^vp_alpha is 0.5: it must be off .None. just where vp_beta is$"):
        module.Attention(8, 2).mimetic_init_(0.5, 0.5, 0.5, None)
    with pytest.raises(ValueError, match="^qk_sign is 0.5: it must be 1 or -1$"):
        module.Attention(8, 2).simple_init_(0.5, -1)
    with pytest.raises(ValueError, match="^vp_sign is 0: it must be 1 or -1$"):
        module.Attention(8, 2).simple_init_(1, 0)
    with pytest.raises(ValueError, match="^heads is 3: it must be a divisor of dim, 8$"):
        module.Attention(8, 3)


# ---- the other initialisers

signs = st.sampled_from([1, -1])


@both_files
@given(heads=heads, head_dim=wide_head_dims, qk_sign=signs, vp_sign=signs, seed=seeds)
def test_simple_form(module, heads, head_dim, qk_sign, vp_sign, seed):
    """W_Q W_K^T = sign Z Z^T with d x k Z in N(0, 1/k); W_V W_proj = sign Z Z^T with d x d Z in N(0, 1/d)."""
    attention = module.Attention(heads * head_dim, heads)
    attention.simple_init_(qk_sign, vp_sign, generator=seeded(seed))
    qk, vp = products(attention)
    assert torch.equal(attention.W_K, qk_sign * attention.W_Q)
    assert torch.equal(attention.W_proj, vp_sign * attention.W_V.T)
    d = heads * head_dim
    for product, sign, columns in [*((head, qk_sign, head_dim) for head in qk), (vp, vp_sign, d)]:
        diagonal, others = sign * np.diag(product), product[~np.eye(d, dtype=bool)]
        low, high = chi_square(d * columns)                          # the mean of the squares of all of Z's entries
        assert low <= diagonal.mean() <= high
        # z_i . z_j given z_j is N(0, |z_j|^2 / columns), and there are fewer than d^2 of them (union bound)
        assert np.abs(others).max() <= np.sqrt(2 * (T + 2 * np.log(d)) * diagonal.max() / columns)
    if heads > 1:
        assert not np.array_equal(qk[0], qk[1])


@both_files
@given(heads=heads, head_dim=wide_head_dims, seed=seeds)
def test_default_and_xavier(module, heads, head_dim, seed):
    """Default: N(0, 0.02^2). Xavier: uniform with variance 1/d. Neither product has a diagonal."""
    d = heads * head_dim
    attention = module.Attention(d, heads)
    for init_, deviation in ((attention.default_init_, 0.02), (attention.xavier_init_, d**-0.5)):
        init_(generator=seeded(seed))
        for W in attention.parameters():
            # the square of a uniform entry varies less than that of a normal one, so one bound serves both
            low, high = chi_square(W.numel())
            assert low <= (double(W) ** 2).mean() / deviation**2 <= high
        assert init_ != attention.xavier_init_ or max(W.abs().max() for W in attention.parameters()) <= np.sqrt(3 / d)
        for product in (*products(attention)[0], products(attention)[1]):
            # the mean of d dot products of k (or d) terms of variance deviation^4: sqrt(k / d) deviation^2 at the most
            assert abs(np.diag(product).mean()) <= SIGMAS * deviation**2
