"""Is my answer right? The exercises are in README.md beside this file.

    python lesson/check.py mine.py

The file mine.py is yours. For each exercise whose function or class it has, one line says that it
is right, or what is wrong with it. The exit status is 0 if all of them are right, 1 if one is not,
and 2 if the file cannot be used.

Where an answer is random, its averages are compared with their expected values. A right answer
is further away than SIGMAS standard deviations less than once in a million times.

Where an answer is wrong, the check tries known repairs. If one of them makes it right, then that
was the mistake. So this file gives the answers away. Try for yourself first.

A check raises NotYet for an answer that is not right. It returns what else there is to say about a
right one, or None.
"""

import importlib.util
import json
import statistics
import sys
import traceback
from math import sqrt
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from mimetic_min import layouts  # noqa: E402
from mimetic_min.lab.options import Parser  # noqa: E402
from mimetic_min.vit import Attention, balanced_factors, mimetic_target  # noqa: E402

SIGMAS = 6

# How often a random answer with no formula for its average is drawn, to estimate it
DRAWS = 50


class NotYet(Exception):
    """An answer is not right. The message says why."""


def matrices(answer, shapes):
    """The tensors of an answer in double precision. `shapes` maps their names to their shapes."""
    names = ", ".join(shapes)
    if not isinstance(answer, (tuple, list)) or len(answer) != len(shapes):
        raise NotYet(f"the answer must be {names}, in this order")
    for W, (name, shape) in zip(answer, shapes.items()):
        if not isinstance(W, torch.Tensor):
            raise NotYet(f"{name} must be a tensor, but it is a {type(W).__name__}")
        if W.shape != shape:
            raise NotYet(f"{name} must have the shape {shape}, but it has {tuple(W.shape)}")
        if not W.isfinite().all():
            raise NotYet(f"{name} must have finite entries, but one of them is not")
    return [W.detach().double() for W in answer]


def mean_of_diagonal(product):
    return product.diagonal().mean().item()


def rounding(product):
    """How far float32 may move the entries of a product that has passed through an SVD."""
    eps = torch.finfo(torch.float32).eps
    return 10 * len(product) * eps * product.norm().item()


# ---------------------------------------------------------------------------------------------
# Exercise 1: the simple form


def exercise_1(simple_form):
    dim, head_dim = 128, 32
    shapes = {
        "W_Q": (dim, head_dim),
        "W_K": (dim, head_dim),
        "W_V": (dim, dim),
        "W_proj": (dim, dim),
    }
    torch.manual_seed(0)
    W_Q, W_K, W_V, W_proj = matrices(simple_form(dim, head_dim), shapes)
    again = matrices(simple_form(dim, head_dim), shapes)

    check_is_simple_Z("W_Q", W_Q, wrong_columns=dim)
    if not torch.equal(W_K, W_Q):
        raise NotYet("W_K must be the same Z as W_Q, but it differs")
    check_is_simple_Z("W_V", W_V, wrong_columns=head_dim)
    if torch.equal(W_proj, W_V.T):
        raise NotYet("W_proj must be -Z^T, but it is Z^T: the minus sign is missing")
    if torch.equal(W_proj, -W_V):
        raise NotYet("W_proj must be -Z^T, but it is -Z: the transpose is missing")
    if not torch.equal(W_proj, -W_V.T):
        raise NotYet("W_proj must be -Z^T with the Z of W_V, but it differs")
    if torch.equal(again[0], W_Q) or torch.equal(again[2], W_V):
        raise NotYet("two calls must draw two different Z, but they drew the same")


def check_is_simple_Z(name, Z, wrong_columns):
    """Z must have entries N(0, 1/columns), so that Z Z^T is near I.

    A usual mistake is to divide by the number of columns of the other Z, `wrong_columns`.
    """
    rows, columns = Z.shape
    of_entries = Z.mean().item()
    if abs(of_entries) > SIGMAS * Z.std().item() / sqrt(rows * columns):
        raise NotYet(
            f"the entries of {name} should have a mean near 0, but it is {of_entries:.2g}; "
            "torch.randn draws such numbers, and torch.rand does not"
        )

    # An entry of the diagonal is the mean of `columns` squares, and a square has a variance of 2.
    mean = mean_of_diagonal(Z @ Z.T)
    bound = SIGMAS * sqrt(2 / (rows * columns))
    if abs(mean - 1) <= bound:
        return
    product = "W_Q W_K^T" if name == "W_Q" else "W_V W_V^T"
    message = f"the diagonal of {product} has a mean of {mean:.2g}, but it should be near 1"
    hints = {
        columns: f"Z is not scaled; divide it by the square root of {columns}",
        1 / columns: (
            f"a variance of 1/{columns} is a standard deviation of 1/sqrt({columns}), so divide Z "
            f"by the square root of {columns}"
        ),
        columns / wrong_columns: (
            f"divide Z by the square root of its number of columns, {columns}, not of "
            f"{wrong_columns}"
        ),
    }
    for expected, hint in hints.items():
        if abs(mean / expected - 1) <= bound:
            message += f": {hint}"
            break
    raise NotYet(message)


# ---------------------------------------------------------------------------------------------
# Exercise 2: the controlled form. tests/test_method.py looks closer than this.


def exercise_2(Mine):
    dim, heads = 128, 4
    head_dim = dim // heads
    qk_alpha, qk_beta, vp_alpha, vp_beta = 0.5, 0.6, 0.3, -0.5
    shapes = {
        "W_Q": (heads, dim, head_dim),
        "W_K": (heads, dim, head_dim),
        "W_V": (dim, dim),
        "W_proj": (dim, dim),
    }

    def weights(seed):
        attention = Mine(dim, heads)
        generator = torch.Generator().manual_seed(seed)
        attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator=generator)
        return matrices([getattr(attention, name) for name in shapes], shapes)

    W_Q, W_K, W_V, W_proj = weights(seed=0)
    check_value_projection(W_V, W_proj, vp_alpha, vp_beta)
    check_query_key(W_Q, W_K, qk_alpha, qk_beta)
    if not torch.equal(weights(seed=0)[2], W_V):
        raise NotYet("one seed must give one W_V, but it gave two; draw Z from the generator")
    return "as far as a short look goes; tests/test_method.py looks closer"


def is_near_target(product, alpha, beta):
    """Whether a product has the diagonal and the noise of alpha Z + beta I."""
    dim = len(product)
    spread = alpha / sqrt(dim)
    noise = product - beta * torch.eye(dim)
    # The variance of n normal numbers has a relative error of sqrt(2/n).
    size = noise.square().mean().item() / spread**2
    diagonal_size = noise.diagonal().square().mean().item() / spread**2
    return (
        abs(mean_of_diagonal(noise)) <= SIGMAS * spread / sqrt(dim)
        and abs(size - 1) <= SIGMAS * sqrt(2 / dim**2)
        and abs(diagonal_size - 1) <= SIGMAS * sqrt(2 / dim)
    )


def power(product, exponent):
    """The same product with another power of its singular values."""
    U, S, Vt = torch.linalg.svd(product)
    return U @ (S**exponent).diag() @ Vt


def check_value_projection(W_V, W_proj, alpha, beta):
    product = W_V @ W_proj
    if is_near_target(product, alpha, beta):
        # W_V^T W_V and W_proj W_proj^T are both S.
        difference = W_V.T @ W_V - W_proj @ W_proj.T
        if difference.abs().max() > rounding(product):
            raise NotYet(
                "W_V W_proj is right, but its factors are not of the same size: each of them needs "
                "S^(1/2)"
            )
        return

    dim = len(product)
    I = torch.eye(dim)
    repairs = {
        "W_V and W_proj are both transposed, or exchanged": W_V.T @ W_proj.T,
        "W_V is transposed": W_V.T @ W_proj,
        "W_proj is transposed": W_V @ W_proj.T,
        "torch.linalg.svd returns V^T, not V, so it needs no transpose": V_turned(W_V, W_proj),
        "the sign of beta is lost": -product,
        "the square root of S is missing": power(product, 0.5),
        "the square root of S is taken twice": power(product, 2),
        "Z is divided by dim; N(0, 1/dim) needs the square root of dim": (
            (product - beta * I) * sqrt(dim) + beta * I
        ),
        "Z is not divided by the square root of dim": ((product - beta * I) / sqrt(dim) + beta * I),
    }
    for mistake, repaired in repairs.items():
        if is_near_target(repaired, alpha, beta):
            raise NotYet(f"W_V W_proj is not near its target: {mistake}")
    diagonal = product.diagonal()
    raise NotYet(
        f"the diagonal of W_V W_proj has a mean of {diagonal.mean():.2f} and a spread of "
        f"{diagonal.std():.2f}, but they should be near {beta} and {alpha / sqrt(dim):.2f}"
    )


def V_turned(W_V, W_proj):
    """W_V W_proj, if W_proj is S^(1/2) V and should be S^(1/2) V^T."""
    root = W_V.norm(dim=0)[:, None]
    return W_V @ (root * (W_proj / root).T)


def after_the_cut(dim, rank, alpha, beta):
    """Of the best approximation of alpha Z + beta I of this rank: the mean of its diagonal and its
    Frobenius norm, each as (average, spread) over many Z.
    """
    generator = torch.Generator().manual_seed(0)
    means = []
    norms = []
    for _ in range(DRAWS):
        L, R = balanced_factors(mimetic_target(dim, alpha, beta, generator), rank)
        means.append(mean_of_diagonal(L @ R))
        norms.append((L @ R).norm().item())
    return [(statistics.mean(values), statistics.stdev(values)) for values in (means, norms)]


def is_near(value, expected):
    """Whether one more draw may have this value. The average is itself uncertain."""
    average, spread = expected
    return abs(value - average) <= SIGMAS * spread * sqrt(1 + 1 / DRAWS)


def check_query_key(W_Q, W_K, alpha, beta):
    heads, dim, head_dim = W_Q.shape
    products = list(W_Q @ W_K.mT)
    mean, norm = after_the_cut(dim, head_dim, alpha, beta)

    def all_right(products):
        return all(
            is_near(mean_of_diagonal(product), mean) and is_near(product.norm().item(), norm)
            for product in products
        )

    if torch.equal(W_Q[0], W_Q[1]):
        raise NotYet("all heads have the same W_Q; each head needs a Z of its own")
    if (W_Q[0].T @ W_Q[1]).abs().max() <= rounding(products[0]):
        raise NotYet(
            "the heads are slices of one decomposition; each head needs a Z and a decomposition of "
            "its own"
        )
    if all_right(products):
        for Q, K in zip(W_Q, W_K):
            if (Q.T @ Q - K.T @ K).abs().max() > rounding(Q @ K.T):
                raise NotYet(
                    "W_Q W_K^T is right, but its factors are not of the same size: each of them "
                    "needs S^(1/2)"
                )
        return

    repairs = {
        "the sign of beta is lost": [-product for product in products],
        "the square root of S is missing": [power(product, 0.5) for product in products],
        "the square root of S is taken twice": [power(product, 2) for product in products],
    }
    for mistake, repaired in repairs.items():
        if mistake.startswith("the sign") and beta * mean_of_diagonal(products[0]) > 0:
            continue
        if all_right(repaired):
            raise NotYet(f"W_Q W_K^T is not near its target: {mistake}")
    means = ", ".join(f"{mean_of_diagonal(product):.3f}" for product in products)
    raise NotYet(
        f"in the {heads} heads the diagonal of W_Q W_K^T has means of {means}, and the first"
        f" product has a norm of {products[0].norm():.2f}, but they should be near {mean[0]:.3f}"
        f" and {norm[0]:.2f}; is it cut to the {head_dim} largest singular values?"
    )


# ---------------------------------------------------------------------------------------------
# Exercise 3: the transposed weight


class TwoLinears(nn.Module):
    """The value-projection part of one attention layer, as most code has it: proj(V(x))."""

    def __init__(self, dim):
        super().__init__()
        self.V = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        return self.proj(self.V(x))


@torch.no_grad()
def two_layers(dim, seed):
    """Two layers with the same strengths. The second one is wrong: W_V and W_proj were put
    into its nn.Linear without transposing them.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for transposed in (False, True):
        attention = Attention(dim, heads=1)
        attention.value_projection_init_(0.4, -0.4, generator)
        layer = TwoLinears(dim)
        layer.V.weight.copy_(attention.W_V if transposed else attention.W_V.T)
        layer.proj.weight.copy_(attention.W_proj if transposed else attention.W_proj.T)
        layers.append(layer)
    return layers


def exercise_3(find_transposed):
    pairs = 20
    found = 0
    for seed in range(pairs):
        layers = two_layers(dim=64, seed=seed)
        # The wrong one is the second of the pair, or the first. A coin decides.
        wrong = torch.randint(2, (), generator=torch.Generator().manual_seed(100 + seed)).item()
        if wrong == 0:
            layers.reverse()
        answer = find_transposed(layers)
        if answer not in (0, 1):
            raise NotYet(f"the answer must be 0 or 1, the wrong layer, but it is {answer!r}")
        found += int(answer) == wrong
    if found == 0:
        raise NotYet(
            f"in each of {pairs} pairs you named the right layer; nn.Linear computes x @ weight.T, "
            "so W_V is V.weight.T"
        )
    if found < pairs:
        raise NotYet(
            f"you found the wrong layer in {found} of {pairs} pairs, and a coin finds half of them;"
            " the diagonal of W_V W_proj has a mean near -0.4 in both, so look at its spread"
        )


# ---------------------------------------------------------------------------------------------
# Exercise 4: predict, then measure

# The change, the end of the name of its run folder, and the start in it
CHANGES = {
    "off": ("", "off"),
    "noise": ("", "noise"),
    "query-key flipped": ("-qk-flipped", "mimetic"),
    "value-projection flipped": ("-vp-flipped", "mimetic"),
}


def read_runs(folder):
    """The runs in a run folder. Raises NotYet if there are none."""
    path = Path(folder) / "results.json"
    try:
        return json.loads(path.read_text())["runs"]
    except OSError:
        raise NotYet(f"there is no {path} yet; run the command of the exercise first") from None


def finals(runs, init, metric, lr=None):
    """The final results of a start, one per seed, or None if one of its runs diverged."""
    runs = [run for run in runs if run["init"] == init and lr in (None, run["lr"])]
    if any("final" not in run for run in runs):
        return None
    return [run["final"][metric] for run in runs]


def difference(values, base):
    """The mean of `values` minus the mean of `base`, and its standard error."""
    variance = statistics.variance(values) / len(values) + statistics.variance(base) / len(base)
    return statistics.mean(values) - statistics.mean(base), sqrt(variance)


def compare(values, base, metric):
    """("better", "worse" or "same", the figures in words). A difference below twice its standard
    error is no difference seen, and here that is called "same".
    """
    if values is None:
        return "worse", "a run diverged"
    points, error = difference(values, base)
    ahead = points if metric == "accuracy" else -points
    if metric == "accuracy":
        figures = f"{100 * points:+.1f} ± {100 * error:.1f} % accuracy"
    else:
        figures = f"{points:+.3f} ± {error:.3f} nats per byte of loss"
    if abs(points) <= 2 * error:
        return "same", figures
    return ("better" if ahead > 0 else "worse"), figures


def check_predictions(predictions, folder, metric):
    if not isinstance(predictions, dict) or set(predictions) != set(CHANGES):
        raise NotYet(f"predict each of these, and nothing else: {', '.join(CHANGES)}")
    for change, word in predictions.items():
        if word not in ("better", "worse", "same"):
            raise NotYet(f"{change} must be better, worse or same, but it is {word!r}")

    base = results_of("mimetic", folder, metric)
    if base is None:
        raise NotYet(f"mimetic diverged in {folder}; delete the folder and try a lower --lr")
    wrong = []
    seen = []
    for change, (ending, init) in CHANGES.items():
        word, figures = compare(results_of(init, folder + ending, metric), base, metric)
        seen.append(f"{change} is {word}, {figures}")
        if word != predictions[change]:
            wrong.append(f"you predicted {predictions[change]}, but {seen[-1]}")
    if wrong:
        raise NotYet("; ".join(wrong))
    return "; ".join(seen)


def results_of(init, folder, metric):
    """`finals` of a start in a run folder. A spread needs two seeds."""
    values = finals(read_runs(folder), init, metric)
    if values is not None and len(values) < 2:
        raise NotYet(
            f"{init} must have two finished seeds or more in {folder}, but it has {len(values)}"
        )
    return values


def exercise_4_images(predictions):
    return check_predictions(predictions, "runs/lesson-vit", "accuracy")


def exercise_4_text(predictions):
    return check_predictions(predictions, "runs/lesson-lm", "loss")


# ---------------------------------------------------------------------------------------------
# Exercise 5: nn.MultiheadAttention


def exercise_5(put_into):
    dim, heads = 48, 3
    generator = torch.Generator().manual_seed(0)
    attention = Attention(dim, heads)
    attention.mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=generator)
    attention.requires_grad_(False)

    module = nn.MultiheadAttention(dim, heads)
    biases = [module.in_proj_bias, module.out_proj.bias]
    for bias in biases:
        nn.init.normal_(bias, generator=generator)
    put_into(module, attention)

    Q, K, V = module.in_proj_weight.detach().chunk(3)  # (dim, dim) each
    check_input("W_Q", Q, attention.W_Q)
    check_input("W_K", K, attention.W_K)
    if torch.equal(V, attention.W_V):
        raise NotYet("W_V is not transposed: nn.Linear computes x @ weight.T")
    if torch.equal(module.out_proj.weight, attention.W_proj):
        raise NotYet("W_proj is not transposed: nn.Linear computes x @ weight.T")
    if any(bias.any() for bias in (module.in_proj_bias, module.out_proj.bias)):
        raise NotYet("both biases must be 0, in_proj_bias and out_proj.bias")

    # The judge is the project's own reader of this layout.
    found = layouts.read(module)
    for name in ("W_Q", "W_K", "W_V", "W_proj"):
        if not torch.equal(getattr(found, name), getattr(attention, name)):
            raise NotYet(f"layouts.read finds another {name} than the one you were given")


def check_input(name, rows, W):
    """Recognise known mistakes in W_Q or W_K, as they stand in in_proj_weight."""
    dim = len(rows)
    side_by_side = W.transpose(0, 1).flatten(1)  # (dim, heads * head_dim)
    if torch.equal(rows, side_by_side):
        raise NotYet(f"{name} is not transposed: nn.Linear computes x @ weight.T")
    mixed = W.reshape(dim, dim)
    if torch.equal(rows, mixed) or torch.equal(rows, mixed.T):
        raise NotYet(
            f"the heads of {name} are mixed up: reshape reads (heads, dim, head_dim) in that order,"
            " but the head_dim rows of each head must stand together"
        )


# ---------------------------------------------------------------------------------------------
# Exercise 6: the learning rate at which the gain ends


def made_up_runs():
    """Runs with three seeds at six rates.

    At the fifth rate one run of mimetic diverged, and at the sixth all runs did.

    Over three seeds -s, 0, s the standard deviation is s. The standard error of a difference of two
    such means is s sqrt(2/3), which is 0.0163 for s = 0.02. So 0.036 is more than twice
    that, and 0.028 is less.
    """
    gains = {
        "default": {0.001: 0.100, 0.002: 0.036, 0.004: 0.028, 0.008: -0.050, 0.016: 0.1, 0.032: 0},
        "noise": {0.001: 0.028, 0.002: 0.100, 0.004: 0.036, 0.008: 0.010, 0.016: 0.1, 0.032: 0},
    }
    runs = []
    for seed, s in enumerate((-0.02, 0.0, 0.02)):
        for lr in gains["noise"]:
            for init in ("default", "noise", "mimetic"):
                run = {"init": init, "seed": seed, "lr": lr}
                if lr == 0.032 or (init == "mimetic" and lr == 0.016 and seed == 2):
                    run["diverged"] = 700
                else:
                    gain = gains[init][lr] if init != "mimetic" else 0
                    run["final"] = {"accuracy": 0.7 - gain + s}
                runs.append(run)
    return runs


def exercise_6(rates_with_gain):
    runs = made_up_runs()
    for other in ("default", "noise"):
        answer = rates_with_gain(runs, other)
        if not isinstance(answer, list):
            raise NotYet(f"the answer must be a list of rates, but it is {answer!r}")
        for lr in sorted({run["lr"] for run in runs}):
            check_rate(lr in answer, runs, lr, other)
    return gains_in("runs/lesson-rates", rates_with_gain)


def gains_in(folder, rates_with_gain):
    """What a right answer finds in the reader's own runs, in words."""
    try:
        runs = read_runs(folder)
    except NotYet as error:
        return str(error)
    words = []
    for other in ("default", "noise"):
        rates = [f"{lr:g}" for lr in rates_with_gain(runs, other)]
        words.append(f"on {other} at {', '.join(rates) or 'none of the rates'}")
    return f"in {folder} mimetic gains {' and '.join(words)}"


def check_rate(said, runs, lr, other):
    values = finals(runs, "mimetic", "accuracy", lr)
    if values is None:
        if said:
            raise NotYet(f"at lr {lr} a run of mimetic diverged, so it has no gain there")
        return
    points, error = difference(values, finals(runs, other, "accuracy", lr))
    if said != (points >= 2 * error):
        raise NotYet(
            f"at lr {lr} mimetic is {points:+.3f} ahead of {other}, and twice the standard error "
            f"of this difference is {2 * error:.3f}; you said {'a gain' if said else 'no gain'}"
        )


# ---------------------------------------------------------------------------------------------
# Exercise 7: the cut to rank k


def exercise_7(mean_after_the_cut):
    torch.manual_seed(0)
    for dim, rank, alpha, beta in [(64, 16, 0.7, 0.7), (64, 16, 0.3, -0.5), (48, 24, 0.5, 0.8)]:
        expected = after_the_cut(dim, rank, alpha, beta)[0]
        answer = float(mean_after_the_cut(dim, rank, alpha, beta))
        if is_near(answer, expected):
            continue
        message = (
            f"for dim {dim}, rank {rank}, alpha {alpha} and beta {beta} the mean should be near "
            f"{expected[0]:.2f}, but it is {answer:.2f}"
        )
        hints = {
            beta: "this is the diagonal before the cut",
            beta * rank / dim: (
                "this is k/d of beta, which the cut leaves if there is no noise; the noise decides "
                "which directions are large"
            ),
            dim * expected[0]: "this is the sum of the diagonal, not its mean",
        }
        for mistake, hint in hints.items():
            if abs(answer / mistake - 1) <= SIGMAS * expected[1] / abs(expected[0]):
                message += f": {hint}"
                break
        raise NotYet(message)


# ---------------------------------------------------------------------------------------------
# The command

# What each exercise asks for, and what checks it
EXERCISES = {
    "1": ("simple_form", exercise_1),
    "2": ("Attention", exercise_2),
    "3": ("find_transposed", exercise_3),
    "4, images": ("predictions_for_images", exercise_4_images),
    "4, text": ("predictions_for_text", exercise_4_text),
    "5": ("put_into", exercise_5),
    "6": ("rates_with_gain", exercise_6),
    "7": ("mean_after_the_cut", exercise_7),
}


def load(path):
    """The module in the file `path`. Raises ValueError if it cannot be used."""
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"FILE must be a Python file, but {path} is none")
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # The file may import its neighbours.
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {in_one_line(error, path)}") from None
    names = [name for name, _ in EXERCISES.values()]
    if not any(hasattr(module, name) for name in names):
        raise ValueError(f"{path} has no answer yet; it needs one of {', '.join(names)}")
    return module


def in_one_line(error, path):
    """What was raised, and in which line of the file."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(path).resolve()
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == own]
    return f"{text} (line {lines[-1]})" if lines else text


def verdict(check, answer, path):
    """(whether the answer is right, the line that says so)."""
    try:
        remark = check(answer)
    except NotYet as error:
        return False, f"not yet: {error}"
    except Exception as error:
        return False, f"not yet: it fails with {in_one_line(error, path)}"
    return True, "right" if remark is None else f"right: {remark}"


def run(argv):
    """Check a file and print the verdicts. Returns whether all answers in it are right."""
    parser = Parser(prog="python lesson/check.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="your answers, such as mine.py")
    path = parser.parse_args(argv).file
    module = load(path)
    all_right = True
    for number, (name, check) in EXERCISES.items():
        if hasattr(module, name):
            is_right, line = verdict(check, getattr(module, name), path)
            print(f"exercise {number}: {line}")
            all_right = all_right and is_right
    return all_right


def main(argv=None):
    try:
        all_right = run(argv)
    except ValueError as error:
        print(f"check.py: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if all_right else 1)


if __name__ == "__main__":
    main()
