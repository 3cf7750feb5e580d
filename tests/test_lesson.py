"""Are my answers to the exercises in docs/lesson.md right?

    python -m pytest -rs tests/test_lesson.py --implementation mine.py

An exercise that is missing in mine.py is skipped. A wrong answer fails with a sentence. Without
--implementation, the solutions below are judged, and then known wrong answers: each must get its
sentence.
"""

import runpy
from math import sqrt
from pathlib import Path

import pytest
import test_method
import torch

from mimetic_min import vit

SOLUTIONS = '''
from math import sqrt

import torch


def simple_form(dim, head_dim):
    Z = torch.randn(dim, head_dim) / sqrt(head_dim)
    W_Q, W_K = Z, Z
    Z = torch.randn(dim, dim) / sqrt(dim)
    W_V, W_proj = Z, -Z.T
    return W_Q, W_K, W_V, W_proj


def factors(dim, rank, alpha, beta):
    """L (dim, rank) and R (rank, dim), whose product is near alpha Z + beta I."""
    Z = torch.randn(dim, dim) / sqrt(dim)
    A = alpha * Z + beta * torch.eye(dim)
    U, S, Vt = torch.linalg.svd(A)
    root = S[:rank].sqrt()
    L = U[:, :rank] * root
    R = root[:, None] * Vt[:rank]
    return L, R


def controlled_form(dim, heads, qk_alpha, qk_beta, vp_alpha, vp_beta):
    W_Q = torch.zeros(heads, dim, dim // heads)
    W_K = torch.zeros(heads, dim, dim // heads)
    for head in range(heads):
        L, R = factors(dim, dim // heads, qk_alpha, qk_beta)
        W_Q[head] = L
        W_K[head] = R.T
    W_V, W_proj = factors(dim, dim, vp_alpha, vp_beta)
    return W_Q, W_K, W_V, W_proj


def is_transposed(V, proj, alpha):
    W_V = V.weight.T
    W_proj = proj.weight.T
    diagonal = (W_V @ W_proj).diagonal()
    # A right spread is about alpha/sqrt(dim), and a wrong one five times that.
    return diagonal.std() > 2 * alpha / sqrt(len(diagonal))


def share_of_size(default, shuffled, mimetic):
    return (shuffled - default) / (mimetic - default)


def mean_after_the_cut(dim, rank, alpha, beta):
    means = []
    for draw in range(10):
        L, R = factors(dim, rank, alpha, beta)
        product = L @ R
        means.append(product.diagonal().mean().item())
    return sum(means) / len(means)
'''

# ---------------------------------------------------------------------------------------------
# The judges. Each gets an answer, and raises AssertionError with a sentence if it is wrong.


def weights(answer, shapes):
    """The four weights in an answer, after a look at their shapes."""
    found = [tuple(getattr(W, "shape", ())) for W in answer or ()]
    assert found == shapes, (
        f"W_Q, W_K, W_V and W_proj should have the shapes {shapes}, but the answer has {found}"
    )
    return [W.detach().float() for W in answer]


def judge_simple_form(simple_form):
    shapes = [(128, 32), (128, 32), (128, 128), (128, 128)]
    W_Q, W_K, W_V, W_proj = weights(simple_form(128, 32), shapes)
    for name, product, right, question in (
        ("W_Q W_Q^T", W_Q @ W_Q.T, 1, "Is Z, from torch.randn, divided by sqrt(32), not by 32?"),
        ("W_V W_V^T", W_V @ W_V.T, 1, "Is Z, from torch.randn, divided by sqrt(128), not by 128?"),
        ("W_Q W_K^T", W_Q @ W_K.T, 1, "Are W_Q and W_K the same Z?"),
        ("W_V W_proj", W_V @ W_proj, -1, "Is W_proj the Z of W_V, transposed and negative?"),
    ):
        found = product.diagonal().mean()
        # It is a mean of 128 * 32 squares or more. In units of its mean, the square of a normal
        # number has a variance of 2.
        assert abs(found - right) < test_method.SIGMAS * sqrt(2 / (128 * 32)), (
            f"the diagonal of {name} has the mean {found:.2g}, but it should be near {right}."
            f" {question}"
        )


def judge_controlled_form(controlled_form):
    class Attention(vit.Attention):
        def mimetic_init_(self, *strengths, generator):
            heads, dim, _ = self.W_Q.shape
            shapes = [tuple(W.shape) for W in self.parameters()]
            answer = weights(controlled_form(dim, heads, *strengths), shapes)
            self.W_Q.data, self.W_K.data, self.W_V.data, self.W_proj.data = answer

    for test in (
        test_method.test_value_projection_is_alpha_Z_plus_beta_I,
        test_method.test_query_key_is_as_near_its_target_as_its_rank_allows,
        test_method.test_factors_are_balanced,
        test_method.test_every_product_has_a_Z_of_its_own,
    ):
        # The property itself, without the examples that Hypothesis draws
        test.hypothesis.inner_test(Attention, test_method.EXAMPLE)


def judge_is_transposed(is_transposed):
    for alpha, beta, wrong in [(0.4, -0.4, 0), (0.4, -0.4, 1), (0.1, 0.7, 0), (0.1, 0.7, 1)] * 5:
        W_V, W_proj = vit.balanced_factors(vit.mimetic_target(64, alpha, beta), 64)
        V, proj = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        V.weight.data = W_V if wrong else W_V.T
        proj.weight.data = W_proj if wrong else W_proj.T
        assert bool(is_transposed(V, proj, alpha)) == wrong, (
            f"with alpha {alpha}, you {'miss a transposed' if wrong else 'call a right'} pair"
            f"{'' if wrong else ' transposed'}. An nn.Linear computes x @ weight.T, so W_V is"
            " V.weight.T. The mean of the diagonal of W_V W_proj does not tell. Look at its"
            " spread: it should be alpha/sqrt(dim)."
        )


def judge_share_of_size(share_of_size):
    # A loss, two accuracies, and a control that is worse than default
    for default, shuffled, mimetic in [(2.0, 1.9, 1.6), (0.4, 0.6, 0.6), (0.4, 0.3, 0.6)]:
        found = share_of_size(default, shuffled, mimetic)
        assert found == pytest.approx((shuffled - default) / (mimetic - default)), (
            f"for default {default}, shuffled {shuffled} and mimetic {mimetic} you find {found}."
            f" But from default to shuffled it is {shuffled - default:+.1f}, and from default to"
            f" mimetic {mimetic - default:+.1f}. What share of the second is the first?"
        )


def judge_mean_after_the_cut(mean_after_the_cut):
    for dim, rank, alpha, beta in [(64, 16, 0.7, 0.7), (48, 24, 0.5, -0.8)]:
        found = float(mean_after_the_cut(dim, rank, alpha, beta))
        means, deviations = test_method.best_of_its_rank(dim, rank, alpha, beta)
        # The deviation is that of one draw. A mean of ten is nearer.
        assert abs(found - means[0]) < test_method.SIGMAS * deviations[0], (
            f"for dim {dim}, rank {rank}, alpha {alpha} and beta {beta} you find {found:.3f}, but"
            f" it is about {means[0]:.2f}. ({beta} is the mean before the cut, and"
            f" {beta * rank / dim:.3f} what the cut leaves without noise. Is yours the sum?)"
        )


EXERCISES = {
    "simple_form": judge_simple_form,
    "controlled_form": judge_controlled_form,
    "is_transposed": judge_is_transposed,
    "share_of_size": judge_share_of_size,
    "mean_after_the_cut": judge_mean_after_the_cut,
}


def judge(path, exercise):
    """Judge an answer in a file. Fails, or skips, with a sentence."""
    try:
        answers = runpy.run_path(path)
    except Exception as error:
        pytest.exit(f"{path} cannot be used. {type(error).__name__}: {error}", returncode=4)
    if exercise not in answers:
        pytest.skip(f"{exercise} is missing")
    torch.manual_seed(0)
    try:
        EXERCISES[exercise](answers[exercise])
    except AssertionError as error:
        # The sentence alone, without the lines of this file
        raise pytest.fail.Exception(str(error).partition("\n")[0], pytrace=False) from None


@pytest.mark.parametrize("exercise", EXERCISES)
def test_exercise(exercise, request):
    Path("solutions.py").write_text(SOLUTIONS)
    path = request.config.getoption("--implementation") or Path("solutions.py").resolve()
    # The file of an option is sought where pytest was called, as usual.
    judge(request.config.invocation_params.dir / path, exercise)


# ---------------------------------------------------------------------------------------------
# The judges are judged. In each known mistake, a right line of the solutions becomes a wrong one.

MISTAKES = [
    # exercise, right, wrong, what the sentence must have
    ("simple_form", "_dim) / sqrt(head_dim)", "_dim) / head_dim", "0.031.* sqrt.32., not by 32"),
    ("simple_form", "_dim) / sqrt(head_dim)", "_dim)", "has the mean 32, .* divided by sqrt.32."),
    ("simple_form", "randn(dim, head_dim)", "rand(dim, head_dim)", "0.33.* from torch.randn"),
    ("simple_form", "sqrt(dim)\n    W_V", "sqrt(head_dim)\n    W_V", "W_V W_V.* sqrt.128."),
    ("simple_form", "W_K = Z, Z", "W_K = Z, torch.randn(128, 32) / 32**0.5", "the same Z"),
    ("simple_form", "Z, -Z.T", "Z, Z.T", "should be near -1.* negative"),
    ("simple_form", "Z, -Z.T", "Z, -Z", "W_V W_proj has the mean .* transposed"),
    ("simple_form", "W_K = Z, Z", "W_K = Z.T, Z.T", r"the shapes \[.128, 32.*\[.32, 128"),
    ("controlled_form", "sqrt(dim)\n    A", "dim\n    A", "variance of .* divided by sqrt.dim"),
    ("controlled_form", "sqrt(dim)\n    A", "1\n    A", "variance of .* divided by sqrt.dim"),
    ("controlled_form", "+ beta", "- beta", "has the mean 0.50. Is the sign right"),
    ("controlled_form", "S[:rank].sqrt()", "S[:rank]", "the mean -0.26.* Is W_V U S"),
    ("controlled_form", "* Vt[", "* Vt.T[", "returns V.T, not V"),
    ("controlled_form", "R.T\n", "R.T\n    W_Q[:] = W_Q[0]\n", "Z of its own"),
    (
        "controlled_form",
        "    W_Q = t",
        "    torch.manual_seed(0)\n    W_Q = t",
        "share their noise",
    ),
    ("controlled_form", "] * root", "] * S[:rank]\n    root = root / root", "differ in size"),
    ("controlled_form", "[head] = L", "[head] = L.flip(1)", "Are the largest singular values kept"),
    ("controlled_form", "W_V, W_proj = f", "W_proj, W_V = f", "Is W_V or W_proj transposed"),
    ("controlled_form", "W_proj\n\n\ndef i", "W_proj.T\n\n\ndef i", "is W_proj S"),
    ("is_transposed", "W_V @ W_proj", "W_V.T @ W_proj.T", "you call 20 .* V.weight.T"),
    ("is_transposed", "std() >", "mean() >", "of 20 transposed pairs 10.* Look at its spread"),
    (
        "share_of_size",
        "(shuffled - default) /",
        "shuffled /",
        "you find -4.* to shuffled it is -0.1",
    ),
    ("mean_after_the_cut", "rank, alpha, beta)\n    ", "dim, alpha, beta)\n    ", "before the cut"),
    ("mean_after_the_cut", "diagonal().mean()", "diagonal().sum()", "Is yours the sum"),
]


@pytest.mark.skipif('config.getoption("--implementation")', reason="judges the judges")
def test_a_known_mistake_gets_its_sentence():
    for exercise, right, wrong, sentence in MISTAKES:
        Path("mine.py").write_text(SOLUTIONS.replace(right, wrong))
        with pytest.raises(pytest.fail.Exception, match=sentence):
            judge("mine.py", exercise)


@pytest.mark.skipif('config.getoption("--implementation")', reason="judges the judges")
def test_a_file_of_yours():
    Path("mine.py").write_text("def simple_form(dim, head_dim): ...")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", __file__, "--implementation", "mine.py"],
        capture_output=True,
        text=True,
    )
    assert "1 failed, 6 skipped" in done.stdout and "share_of_size is missing" in done.stdout
    with pytest.raises(pytest.exit.Exception, match="no_file.py cannot be used.*No such file"):
        judge("no_file.py", "simple_form")
