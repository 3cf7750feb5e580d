"""The pages keep their word: their code runs, their commands exist, their figures are results."""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_lm
import train_vit
from mimetic_min.lab import options
from mimetic_min.vit import Attention
from results import experiments, report

PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not set(path.parts) & {".peers", ".venv", "runs", "data"}
)
PARSERS = {"train_vit.py": train_vit.make_parser, "train_lm.py": train_lm.make_parser}


def page_name(path):
    return str(path.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


# ---------------------------------------------------------------------------------------------
# Code and commands


def python_blocks():
    """Each Python block of a page, with the block of text that follows it and shows its output."""
    for page in PAGES:
        # test_lesson.py runs those of the lesson, which are pieces of exercises.
        if page.parent.name == "lesson":
            continue
        pattern = r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?"
        for match in re.finditer(pattern, page.read_text(), flags=re.DOTALL):
            line = page.read_text()[: match.start()].count("\n") + 1
            yield pytest.param(match[1], match[2], id=f"{page_name(page)}:{line}")


@pytest.mark.parametrize("code, output", list(python_blocks()))
def test_python_blocks_run_and_print_what_the_page_says(code, output):
    if "runs/vit-shifted-digits" in code:
        words = "--epochs 1 --init mimetic --limit 100 --dim 64"
        train_vit.main([*words.split(), "--out", "runs/vit-shifted-digits"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    if output is not None:
        assert done.stdout == output


def test_the_lines_for_linear_layers_are_right(capsys):
    """They are no block of their own, since the layers are the reader's."""
    torch.manual_seed(0)
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("In `nn.Linear` layers of your own") :]
    code, check = re.findall(r"(?:^    .*\n)+", section, flags=re.M)[:2]
    query, key, value, projection = (torch.nn.Linear(192, 192, bias=False) for _ in range(4))
    names = {"torch": torch, "Attention": Attention, "dim": 192, "heads": 3, "k": 64}
    names |= {"query": query, "key": key, "value": value, "projection": projection}
    exec(textwrap.dedent(code), names)
    attention = names["attention"]

    def mean_and_spread():
        exec(textwrap.dedent(check), names)
        return map(float, re.findall(r"-?\d\.\d+", capsys.readouterr().out))

    x = torch.randn(2, 5, 192)
    for layer, weight in ((query, attention.W_Q), (key, attention.W_K)):
        expected = torch.einsum("bnd,hdk->bnhk", x, weight).flatten(2)
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(value(x), x @ attention.W_V)
    torch.testing.assert_close(projection(x), x @ attention.W_proj)

    mean, spread = mean_and_spread()
    # 192 entries of N(0, 0.4^2 / 192): their mean is exact to 0.01, and their spread to 20%.
    assert mean == pytest.approx(-0.4, abs=0.015)
    assert spread == pytest.approx(0.4 / 192**0.5, rel=0.2)

    # The mistakes: a key whose heads do not stand one above another, and a value-projection put in
    # without transposing it.
    with torch.no_grad():
        key.weight.copy_(attention.W_K.flatten(1).T.reshape(192, 192))
    with pytest.raises(AssertionError):
        exec(textwrap.dedent(check), names)
    exec(textwrap.dedent(code.replace("W_V.T", "W_V").replace("W_proj.T", "W_proj")), names)
    mean, spread = mean_and_spread()
    # The trace of a product does not depend on the order of its factors.
    assert mean == pytest.approx(-0.4, abs=0.015)
    assert spread > 3 * 0.4 / 192**0.5


def commands():
    """Each command line of a training script on a page."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"python (train_\w+\.py)((?: [^\n`|#;]+)?)", text):
            line = text[: match.start()].count("\n") + 1
            words = match[2].split("   ")[0]
            if "..." not in words and "--help" not in words:
                yield pytest.param(match[1], words, id=f"{page_name(page)}:{line}")


@pytest.mark.parametrize("script, words", list(commands()))
def test_commands_have_options_that_exist(script, words):
    words = [word for word in shlex.split(words) if word != "--plot"]
    if "--resume" not in words:
        options.parse(PARSERS[script](), words, task=script[6:-3])


@pages
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


# ---------------------------------------------------------------------------------------------
# Figures


@pytest.mark.parametrize("page", report.PAGES, ids=page_name)
def test_tables_are_those_of_the_results(page):
    """If this fails: python results/report.py"""
    text = page.read_text()
    assert report.filled(text) == text


def test_a_figure_that_somebody_typed_is_found():
    text = (ROOT / "results/README.md").read_text()
    figure = re.search(r"\d\.\d ± \d", text)
    other = "7" if text[figure.start()] == "8" else "8"
    typed = text[: figure.start()] + other + text[figure.start() + 1 :]
    assert report.filled(typed) == text


@pages
def test_no_spread_stands_outside_a_table(page):
    """A spread is a result, and a result comes from a table that the results fill."""
    text = re.sub(r"<!-- [\w-]+ -->.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert re.findall(r".*\d ± \d.*", text) == []


def test_every_table_is_on_a_page():
    text = "".join(page.read_text() for page in report.PAGES)
    assert set(re.findall(r"<!-- ([\w-]+) -->", text)) - {"end"} == set(report.TABLES)


@pytest.mark.parametrize("name", report.PICTURES)
def test_pictures_show_the_results(name):
    """If this fails: python results/report.py"""
    read, _ = report.PICTURES[name]
    data = read()
    path = ROOT / "results" / name
    assert path.exists() == bool(data)
    if data:
        assert report.fingerprint(data).encode() in path.read_bytes()


DONE = sorted(path.stem for path in report.RAW.glob("*.json"))


@pytest.mark.parametrize("name", DONE)
def test_results_are_those_of_their_command_line(name):
    """All options are those of the experiment, and the runs are the first of its grid."""
    results = json.loads((report.RAW / f"{name}.json").read_text())
    args = experiments.options_of(name)
    assert results["config"] == options.experiment(args)
    grid = list(product(args.seed, args.lr, args.init))
    found = [(run["seed"], run["lr"], run["init"]) for run in results["runs"]]
    assert found == grid[: len(found)]


def test_an_experiment_that_does_not_exist_is_refused_in_one_line():
    script = str(ROOT / "results/experiments.py")
    done = subprocess.run([sys.executable, script, "shiftet"], capture_output=True, text=True)
    assert done.returncode == 2
    message = "experiments.py: there is no experiment shiftet; give no name to list them\n"
    assert done.stderr == message


def test_an_experiment_goes_on_from_what_was_kept(tmp_path, monkeypatch):
    """It is stopped in its second run, its folder is lost, and it ends with the same results."""
    tiny = "train_vit.py --epochs 1 --limit 100 --dim 8 --heads 2 --depth 1 --init off mimetic"
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", tiny)
    for folder in ("whole", "cut", "cut-again"):
        (tmp_path / folder).mkdir()

    def run_in(folder):
        monkeypatch.setattr(experiments, "ROOT", tmp_path / folder)
        experiments.run("tiny")

    def kept():
        results = json.loads((experiments.RAW / "tiny.json").read_text())
        for run in results["runs"]:
            run.pop("seconds")
        return results

    monkeypatch.setattr(experiments, "RAW", tmp_path / "raw-whole")
    run_in("whole")
    whole = kept()
    assert len(whole["runs"]) == 2

    monkeypatch.setattr(experiments, "RAW", tmp_path / "raw")
    train = train_vit.train

    def stopped_in_the_second_run(run, *more):
        if run.init == "mimetic":
            raise KeyboardInterrupt
        train(run, *more)

    with monkeypatch.context() as patch:
        patch.setattr(train_vit, "train", stopped_in_the_second_run)
        with pytest.raises(KeyboardInterrupt):
            run_in("cut")
    assert len(kept()["runs"]) == 1
    run_in("cut-again")
    assert kept() == whole
