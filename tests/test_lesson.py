"""The class of sixty minutes: check.py finds every solution right and every usual mistake wrong,
and what README.md says to type can be typed.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import torch
from conftest import load_attention
from test_method import CHECKS, EXAMPLE, MISTAKES, attention_with

import train_lm
import train_vit
from mimetic_min.lab import options
from mimetic_min.vit import balanced_factors, check_strengths, mimetic_target

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "lesson"
sys.path.append(str(LESSON))

import check  # noqa: E402
import solutions  # noqa: E402

README = (LESSON / "README.md").read_text()


def line_for(number, answer):
    """What check.py says about an answer to an exercise, without "exercise 1: "."""
    name, checks = check.EXERCISES[number]
    is_right, line = check.verdict(checks, answer, "mine.py")
    assert is_right == (not line.startswith("not yet"))
    return line


# ---------------------------------------------------------------------------------------------
# The solutions


def test_the_solutions_are_right(capsys):
    with pytest.raises(SystemExit) as end:
        check.main([str(LESSON / "solutions.py")])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    # Exercise 4 has no solution but the reader's own runs.
    assert [line[:17] for line in lines] == [f"exercise {n}: right" for n in (1, 2, 3, 5, 6, 7)]


def test_the_solution_of_exercise_2_has_the_properties_of_the_method():
    Attention = load_attention(LESSON / "solutions.py")
    for has_the_property in CHECKS:
        has_the_property(Attention, EXAMPLE)


# ---------------------------------------------------------------------------------------------
# Exercise 1


def simple_form(scale_qk=None, scale_vp=None, proj=None, randn=torch.randn):
    """An answer to exercise 1 with one thing changed."""

    def answer(dim, head_dim):
        Z = randn(dim, head_dim) / (scale_qk or sqrt(head_dim))
        V = randn(dim, dim) / (scale_vp or sqrt(dim))
        return Z, Z, V, -V.T if proj is None else proj(V)

    return answer


def W_K_drawn_anew(dim, head_dim):
    W_Q, _, W_V, W_proj = solutions.simple_form(dim, head_dim)
    return W_Q, torch.randn(dim, head_dim) / sqrt(head_dim), W_V, W_proj


def always_the_same(dim, head_dim):
    torch.manual_seed(5)
    return solutions.simple_form(dim, head_dim)


def three_matrices(dim, head_dim):
    return solutions.simple_form(dim, head_dim)[:3]


def other_shape(dim, head_dim):
    W_Q, W_K, W_V, W_proj = solutions.simple_form(dim, head_dim)
    return W_Q.T, W_K.T, W_V, W_proj


# The check asks for dim 128 and head_dim 32.
SIMPLE_MISTAKES = [
    (simple_form(scale_qk=1), "W_Q W_K.T has a mean of 32, .*not scaled"),
    (simple_form(scale_qk=32), "W_Q W_K.T .* square root of 32$"),
    (simple_form(scale_qk=sqrt(128)), "W_Q W_K.T .* 32, not of 128$"),
    (simple_form(scale_vp=1), "W_V W_V.T .* not scaled"),
    (simple_form(scale_vp=128), "W_V W_V.T .* square root of 128$"),
    (simple_form(scale_vp=sqrt(32)), "W_V W_V.T .* 128, not of 32$"),
    (simple_form(scale_vp=20), "W_V W_V.T has a mean of 0.3., but it should be near 1$"),
    (simple_form(proj=lambda V: -V), "the transpose is missing"),
    (simple_form(proj=lambda V: V.T), "the minus sign is missing"),
    (simple_form(proj=torch.rand_like), "with the Z of W_V, but it differs"),
    (simple_form(randn=torch.rand), "torch.randn draws such numbers"),
    (W_K_drawn_anew, "W_K must be the same Z as W_Q"),
    (always_the_same, "two calls must draw two different Z"),
    (three_matrices, "must be W_Q, W_K, W_V, W_proj, in this order"),
    (other_shape, r"W_Q must have the shape \(128, 32\), but it has \(32, 128\)"),
    (lambda dim: None, "it fails with TypeError"),
]


@pytest.mark.parametrize("answer, words", SIMPLE_MISTAKES)
def test_mistakes_in_the_simple_form(answer, words):
    assert re.search(f"^not yet: .*{words}", line_for("1", answer))


# ---------------------------------------------------------------------------------------------
# Exercise 2. Its mistakes are those of test_method.py.

# A short look does not see these. The command of the exercise, test_method.py, does.
SEEN_ONLY_BY_THE_TESTS = {"uniform_noise", "one_Z_for_both_products", "same_seed_in_every_layer"}

# What is said about the mistakes that public copies have
WORDS = {
    "scaled_by_1_over_d": "Z is divided by dim; N(0, 1/dim) needs the square root of dim",
    "no_square_root": "the square root of S is missing",
    "square_root_twice": "the square root of S is taken twice",
    "unbalanced": "not of the same size",
    "signs_exchanged": "the sign of beta is lost",
    "one_Z_for_all_heads": "all heads have the same W_Q",
    "one_svd_for_all_heads": "slices of one decomposition",
    "transposed_value_projection": "both transposed",
    "transposed_projection": "W_proj is transposed",
    "V_not_transposed": "returns V^T, not V",
    "generator_ignored": "draw Z from the generator",
    "smallest_singular_values": "largest singular values",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.__name__ for mistake in MISTAKES])
def test_mistakes_in_the_controlled_form(mistake):
    line = line_for("2", attention_with(mistake))
    assert line.startswith("not yet") == (mistake.__name__ not in SEEN_ONLY_BY_THE_TESTS)
    assert WORDS.get(mistake.__name__, "") in line


def test_a_mistake_in_query_key_is_named():
    """Value-projection is right, so only query-key is left to be named."""

    class Attention(solutions.Attention):
        change = None

        @torch.no_grad()
        def mimetic_init_(self, *strengths, generator=None):
            super().mimetic_init_(*strengths, generator=generator)
            self.change(self.W_Q, self.W_K)

    def no_square_root(self, W_Q, W_K):
        root = W_Q.norm(dim=1, keepdim=True)
        W_Q *= root
        W_K *= root

    def negative(self, W_Q, W_K):
        W_K *= -1

    def unbalanced(self, W_Q, W_K):
        W_Q *= 2
        W_K /= 2

    for change, words in (
        (no_square_root, "W_Q W_K^T is not near its target: the square root of S is missing"),
        (negative, "W_Q W_K^T is not near its target: the sign of beta is lost"),
        (unbalanced, "W_Q W_K^T is right, but its factors are not of the same size"),
    ):
        Attention.change = change
        assert words in line_for("2", Attention)


def test_an_attention_without_the_method():
    assert "it fails with AttributeError" in line_for("2", torch.nn.Identity)


# ---------------------------------------------------------------------------------------------
# Exercise 3


def spreads(layers, product):
    return [product(layer.V.weight, layer.proj.weight).diagonal().std().item() for layer in layers]


def by_the_mean(layers):
    means = [(layer.V.weight.T @ layer.proj.weight.T).diagonal().mean().item() for layer in layers]
    return means.index(max(means))


def linear_forgotten(layers):
    found = spreads(layers, lambda V, proj: V @ proj)
    return found.index(max(found))


def test_the_two_layers_are_as_described():
    """Both have the trace of their target, and only the first has its diagonal.

    The trace of the target is beta dim, give or take alpha. A product of two transposes has the
    trace of the product.
    """
    dim = 64
    for layer, is_right in zip(check.two_layers(dim, seed=0), (True, False)):
        x = torch.eye(dim)
        product = layer(x).detach()
        assert abs(product.diagonal().mean() + 0.4) <= check.SIGMAS * 0.4 / dim
        assert check.is_near_target(product, 0.4, -0.4) == is_right


@pytest.mark.parametrize(
    "answer, words",
    [
        (by_the_mean, "a coin finds half of them"),
        (lambda layers: 0, "a coin finds half of them"),
        (linear_forgotten, "you named the right layer; nn.Linear computes x @ weight.T"),
        (lambda layers: "second", "must be 0 or 1, the wrong layer, but it is 'second'"),
    ],
)
def test_mistakes_in_finding_the_transposed_weight(answer, words):
    assert re.search(f"^not yet: .*{words}", line_for("3", answer))


# ---------------------------------------------------------------------------------------------
# Exercise 4


def write_runs(folder, **results):
    """A run folder with the final results of each start, one per seed; None if a run diverged."""
    metric = "loss" if "lm" in folder else "accuracy"
    runs = []
    for init, values in results.items():
        for seed, value in enumerate(values):
            run = {"init": init.replace("_", "-"), "seed": seed, "lr": 0.002}
            if value is not None:
                run["final"] = {metric: value}
            runs.append(run)
    path = Path(folder)
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps({"runs": runs}))


# Three seeds with a spread of 0.02, so the standard error of a difference is 0.016.
AROUND = {mean: (mean - 0.02, mean, mean + 0.02) for mean in (0.2, 0.5, 0.53, 0.7, 0.9)}
PREDICTED = {
    "off": "worse",
    "noise": "same",
    "query-key flipped": "better",
    "value-projection flipped": "worse",
}


def test_predictions_for_images():
    line = line_for("4, images", PREDICTED)
    assert "there is no runs/lesson-vit/results.json yet" in line

    write_runs("runs/lesson-vit", off=AROUND[0.2], noise=AROUND[0.53], mimetic=AROUND[0.5])
    write_runs("runs/lesson-vit-qk-flipped", mimetic=AROUND[0.7])
    write_runs("runs/lesson-vit-vp-flipped", mimetic=(0.3, None, 0.3))
    line = line_for("4, images", PREDICTED)
    assert line.startswith("right: off is worse, -30.0 ± 1.6 % accuracy; noise is same, +3.0 ± 1.6")
    assert "value-projection flipped is worse, a run diverged" in line

    line = line_for("4, images", PREDICTED | {"noise": "worse"})
    assert line == "not yet: you predicted worse, but noise is same, +3.0 ± 1.6 % accuracy"


def test_predictions_for_text():
    """A lower loss is better."""
    write_runs("runs/lesson-lm", off=AROUND[0.9], noise=AROUND[0.53], mimetic=AROUND[0.5])
    write_runs("runs/lesson-lm-qk-flipped", mimetic=AROUND[0.2])
    write_runs("runs/lesson-lm-vp-flipped", mimetic=AROUND[0.7])
    assert line_for("4, text", PREDICTED).startswith("right: off is worse, +0.400 ± 0.016 nats")
    line = line_for("4, text", PREDICTED | {"query-key flipped": "worse"})
    assert line.startswith("not yet: you predicted worse, but query-key flipped is better")


def test_predictions_need_two_seeds_and_known_words():
    write_runs("runs/lesson-vit", off=AROUND[0.2], noise=AROUND[0.5][:1], mimetic=AROUND[0.5])
    line = line_for("4, images", PREDICTED)
    assert "noise must have two finished seeds or more in runs/lesson-vit, but it has 1" in line
    line = line_for("4, images", PREDICTED | {"off": "bad"})
    assert "off must be better, worse or same, but it is 'bad'" in line
    assert "predict each of these" in line_for("4, images", {"off": "worse"})


# ---------------------------------------------------------------------------------------------
# Exercise 5


def put_into(change):
    """The solution, and then one thing changed in it."""

    @torch.no_grad()
    def answer(module, attention):
        solutions.put_into(module, attention)
        change(module, attention)

    return answer


def side_by_side(W):
    return W.transpose(0, 1).flatten(1)


def block(i):
    """The rows of W_Q, W_K or W_V, for the dim 48 of the check."""
    return slice(48 * i, 48 * (i + 1))


def W_Q_not_transposed(module, attention):
    module.in_proj_weight[block(0)] = side_by_side(attention.W_Q)


def W_K_not_transposed(module, attention):
    module.in_proj_weight[block(1)] = side_by_side(attention.W_K)


def W_V_not_transposed(module, attention):
    module.in_proj_weight[block(2)] = attention.W_V


def W_proj_not_transposed(module, attention):
    module.out_proj.weight.copy_(attention.W_proj)


def heads_reshaped(module, attention):
    module.in_proj_weight[block(0)] = attention.W_Q.reshape(48, 48).T


def Q_and_K_exchanged(module, attention):
    Q, K, V = module.in_proj_weight.clone().chunk(3)
    module.in_proj_weight.copy_(torch.cat([K, Q, V]))


def bias_left(module, attention):
    module.in_proj_bias[60] = 1


def output_bias_left(module, attention):
    module.out_proj.bias[5] = 1


@pytest.mark.parametrize(
    "change, words",
    [
        (W_Q_not_transposed, "W_Q is not transposed"),
        (W_K_not_transposed, "W_K is not transposed"),
        (W_V_not_transposed, "W_V is not transposed"),
        (W_proj_not_transposed, "W_proj is not transposed"),
        (heads_reshaped, "the heads of W_Q are mixed up"),
        (Q_and_K_exchanged, "layouts.read finds another W_Q"),
        (bias_left, "both biases must be 0"),
        (output_bias_left, "both biases must be 0"),
    ],
)
def test_mistakes_in_multihead_attention(change, words):
    assert line_for("5", put_into(lambda module, attention: None)) == "right"
    assert re.search(f"^not yet: .*{words}", line_for("5", put_into(change)))


# ---------------------------------------------------------------------------------------------
# Exercise 6


def rates(rule, use_other=True, worth=None):
    """An answer to exercise 6 with another rule, from the difference and the two variances.

    `worth` is the accuracy of a run that diverged. Without it mimetic has no gain where one did.
    """

    def answer(runs, other):
        found = []
        for lr in sorted({run["lr"] for run in runs}):
            chosen = {}
            for init in ("mimetic", other if use_other else "default"):
                here = [run for run in runs if run["lr"] == lr and run["init"] == init]
                chosen[init] = [run.get("final", {"accuracy": worth})["accuracy"] for run in here]
            if None in chosen["mimetic"]:
                continue
            values, base = (torch.tensor(values) for values in chosen.values())
            if rule(values.mean() - base.mean(), values.var() / 3, base.var() / 3):
                found.append(lr)
        return found

    return answer


def right_rule(gain, a, b):
    return gain >= 2 * (a + b).sqrt()


RATE_MISTAKES = [
    (rates(lambda gain, a, b: gain > 0), "at lr 0.004 mimetic is .* you said a gain"),
    (rates(lambda gain, a, b: gain >= 2 * a.sqrt()), "at lr 0.004 .* you said a gain"),
    (rates(lambda gain, a, b: gain >= 2 * (3 * a).sqrt()), "at lr 0.002 .* you said no gain"),
    (rates(right_rule, use_other=False), "ahead of noise.* you said a gain"),
    (rates(right_rule, worth=0.0), "at lr 0.032 a run of mimetic diverged"),
    (rates(right_rule, worth=0.9), "at lr 0.016 a run of mimetic diverged"),
    (lambda runs, other: 0.002, "the answer must be a list of rates, but it is 0.002"),
    (lambda runs, other: [run["final"] for run in runs], "it fails with KeyError"),
]


@pytest.mark.parametrize("answer, words", RATE_MISTAKES)
def test_mistakes_in_the_rates(answer, words):
    assert line_for("6", rates(right_rule)).startswith("right")
    assert re.search(f"^not yet: .*{words}", line_for("6", answer))


def test_a_right_answer_is_applied_to_the_runs_of_the_reader():
    assert "there is no runs/lesson-rates" in line_for("6", solutions.rates_with_gain)
    write_runs("runs/lesson-rates", default=AROUND[0.2], noise=AROUND[0.53], mimetic=AROUND[0.5])
    line = line_for("6", solutions.rates_with_gain)
    assert "mimetic gains on default at 0.002 and on noise at none of the rates" in line


# ---------------------------------------------------------------------------------------------
# Exercise 7


def sum_of_the_diagonal(dim, rank, alpha, beta):
    return dim * solutions.mean_after_the_cut(dim, rank, alpha, beta)


def smallest_kept(dim, rank, alpha, beta):
    U, S, Vt = torch.linalg.svd(mimetic_target(dim, alpha, beta))
    return (U[:, -rank:] * S[-rank:] @ Vt[-rank:]).diagonal().mean()


def one_draw(dim, rank, alpha, beta):
    L, R = balanced_factors(mimetic_target(dim, alpha, beta), rank)
    return (L @ R).diagonal().mean()


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda dim, rank, alpha, beta: beta, "this is the diagonal before the cut"),
        (lambda dim, rank, alpha, beta: beta * rank / dim, "this is k/d of beta"),
        (sum_of_the_diagonal, "the sum of the diagonal, not its mean"),
        (smallest_kept, "the mean should be near 0.31, but it is 0.0"),
        (lambda dim, rank, alpha, beta: None, "it fails with TypeError"),
    ],
)
def test_mistakes_in_the_mean_after_the_cut(answer, words):
    assert line_for("7", one_draw) == "right"
    assert re.search(f"^not yet: .*{words}", line_for("7", answer))


# ---------------------------------------------------------------------------------------------
# The command


def run_check(*words):
    """(stdout, stderr, exit status) of check.py."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as end:
            check.main(list(words))
    return out.getvalue(), err.getvalue(), end.value.code


def test_the_command_names_the_exercise_and_the_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mean_after_the_cut(dim, rank, alpha, beta):\n"
        "    return beta\n"
        "\n"
        "def find_transposed(layers):\n"
        "    return layers.weight\n"
    )
    command = [sys.executable, str(LESSON / "check.py"), "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith("exercise 3: not yet: it fails with AttributeError: ")
    assert first.endswith("(line 5)")
    assert second.startswith("exercise 7: not yet: for dim 64")


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "FILE must be a Python file, but mine.py is none"),
        ("import nowhere", "mine.py cannot be imported: ModuleNotFoundError: .* \\(line 1\\)"),
        ("def f(:", "mine.py cannot be imported: SyntaxError: "),
        ("exit()", "mine.py cannot be imported: SystemExit: "),
        ("x = 1", "mine.py has no answer yet; it needs one of simple_form, Attention, "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text, words):
    if text is not None:
        Path("mine.py").write_text(text)
    out, err, status = run_check("mine.py")
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert re.match("check.py: " + words, err)


def test_a_missing_or_unknown_word_is_one_line():
    for words in ((), ("mine.py", "--fast")):
        _, err, status = run_check(*words)
        assert status == 2
        assert err.startswith("check.py: ") and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# README.md

COMMANDS = re.findall(r"^    (python .*)$", README, flags=re.M)
COMMANDS += re.findall(r"`(python [^`]+)`", README)
SCRIPTS = {"train_vit.py": (train_vit, "vit"), "train_lm.py": (train_lm, "lm")}


def training_commands():
    """(script, the options that it parses) of each command that starts a training."""
    found = []
    for command in COMMANDS:
        script, *words = shlex.split(command)[1:]
        if script in SCRIPTS and "--resume" not in words:
            module, task = SCRIPTS[script]
            found.append((script, options.parse(module.make_parser(), words, task=task)))
    return found


def test_the_training_commands_parse():
    commands = training_commands()
    assert len(commands) == 7
    for _, args in commands:
        strengths = {name: getattr(args, name) for name in ("qk_alpha", "qk_beta")}
        strengths |= {name: getattr(args, name) for name in ("vp_alpha", "vp_beta")}
        check_strengths(**strengths)
        assert len(args.seed) >= 2
    # A folder that has something in it would be refused.
    folders = [args.out for _, args in commands]
    assert len(set(folders)) == len(folders)


def test_every_other_command_exists(pytestconfig):
    others = []
    for command in COMMANDS:
        script, *words = shlex.split(command)[1:]
        if script not in SCRIPTS:
            others.append((script, *words))
        elif "--resume" in words:
            assert SCRIPTS[script][0].make_parser().parse_args(words).resume == "runs/lesson-vit"
    pytest_command = ("-m", "pytest", "tests/test_method.py", "--implementation", "mine.py")
    assert set(others) == {("lesson/check.py", "mine.py"), pytest_command}
    assert (ROOT / "tests/test_method.py").exists()
    # Raises ValueError for an option that pytest does not have.
    pytestconfig.getoption("--implementation")


def test_the_check_finds_what_the_commands_leave_behind():
    """Each change has a command whose folder, start and strength are those that check.py reads."""
    by_folder = {args.out: (script, args) for script, args in training_commands()}
    for script, folder in (("train_vit.py", "runs/lesson-vit"), ("train_lm.py", "runs/lesson-lm")):
        usual = SCRIPTS[script][0].make_parser().parse_args([])
        assert "mimetic" in by_folder[folder][1].init
        for ending, init in check.CHANGES.values():
            made_by, args = by_folder[folder + ending]
            assert made_by == script
            assert init in args.init
            assert args.qk_beta == (-1 if "qk" in ending else 1) * usual.qk_beta
            assert args.vp_beta == (-1 if "vp" in ending else 1) * usual.vp_beta
    script, args = by_folder["runs/lesson-rates"]
    assert script == "train_vit.py"
    assert set(args.init) == {"default", "noise", "mimetic"}


def test_the_readme_names_what_the_check_looks_for():
    for name, _ in check.EXERCISES.values():
        assert re.search(rf"^(def|class) {name}\(|^{name} = |`{name}`", README, flags=re.M), name
    table = README[README.index("| change |") : README.index("Write into `mine.py` what each")]
    assert re.findall(r"^\| `(.*?)`", table, flags=re.M) == list(check.CHANGES)
    for heading in re.findall(r"\]\(#([\w-]+)\)", README):
        titles = re.findall(r"^## (.*)$", README, flags=re.M)
        links = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert heading in links


def test_the_readme_shows_what_the_check_says():
    """Its example is the answer that divides by n instead of by sqrt(n)."""
    line = line_for("1", simple_form(scale_qk=32))
    assert f"\nexercise 1: {line}\n" in README


def test_the_readme_shows_what_its_code_prints():
    shown = re.findall(r"```python\n([^`]*)```\n\n```text\n([^`]*)```", README, flags=re.S)
    assert len(shown) == 2
    for code, text in shown:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {})
        assert out.getvalue() == text
