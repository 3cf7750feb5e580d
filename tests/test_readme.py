"""README.md and the raw results behind it say the same, and the results are those of the command lines beside them."""
import json
import re
import sys

import pytest
import torch

import train_vit
from mimetic_min import options, training, vit
from test_faults import TINY, without_times
from test_training import ROOT

sys.path.append(str(ROOT / "assets"))
import experiments  # noqa: E402
import readme  # noqa: E402

README = (ROOT / "README.md").read_text()
DONE = sorted(str(path.relative_to(readme.RESULTS).with_suffix("")) for path in readme.RESULTS.rglob("*.json"))
BLOCK = r"<!-- [\w-]+ -->\n.*?<!-- end -->"


def test_the_tables_are_those_of_the_results():
    assert readme.filled(README) == README


def test_a_figure_that_somebody_typed_is_found():
    figures = re.search(r"\d+\.\d ± \d", README)
    typed = README[: figures.start()] + "99" + README[figures.start() + 2 :]
    assert readme.filled(typed) == README


def test_no_result_stands_outside_the_tables():
    """A spread is that of a result. (A line of the benchmark has brackets.)"""
    assert "±" in README
    assert re.findall(r".*\d ± \d.*", re.sub(BLOCK, "", README, flags=re.S)) == []


@pytest.mark.parametrize("name", readme.PICTURES)
def test_the_pictures_show_the_results(name):
    read, _ = readme.PICTURES[name]
    assert readme.fingerprint(read()).encode() in (ROOT / "assets" / name).read_bytes()


@pytest.mark.parametrize("name", [name for name in DONE if not name.endswith("-diagonals")])
def test_the_results_are_those_of_the_command_line(name):
    """All options are as the experiment's command line has them, and no run of its grid is missing."""
    script, *words = experiments.EXPERIMENTS[name].split()
    results = json.loads((readme.RESULTS / f"{name}.json").read_text())
    asked = options.config(experiments.SCRIPTS[script].PARSER.parse_args(words))
    found = results["config"]
    if "augment" in asked:                                           # without it the script decides
        asked["augment"] = "crop+flip" if asked["data"] == "cifar10" else "none"
    assert found == asked
    grid = [(seed, lr, init) for seed in found["seed"] for lr in found["lr"] for init in found["init"]]
    assert [(run["seed"], run["lr"], run["init"]) for run in results["runs"]] == grid


def test_each_table_and_picture_of_the_readme_is_a_made_one_and_stands_there():
    assert sorted(re.findall(r"<!-- ([\w-]+) -->\n", README)) == sorted([*readme.TABLES, *["end"] * len(readme.TABLES)])
    assert set(readme.PICTURES) <= set(re.findall(r"\(assets/([\w-]+\.png)\)", README))


def test_an_experiment_goes_on_where_it_was_stopped_and_keeps_its_results(tmp_path, monkeypatch):
    train_vit.main([*TINY["vit"], "--seed", "0", "1", "--out", "whole"])
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", f"train_vit.py {' '.join(TINY['vit'])} --seed 0 1")
    save, saved = training.save, []

    def stop(*state):
        save(*state)
        saved.append(state)
        if len(saved) == 11:                                         # in the second run
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(training, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            experiments.run("tiny")
    assert experiments.state("tiny") == "1 runs" and not (tmp_path / "results").exists()
    experiments.run("tiny")
    assert experiments.state("tiny") == "done" and len(saved) == 11
    assert without_times("whole") == without_times("runs/tiny")
    assert (tmp_path / "results/tiny.json").read_text() == (tmp_path / "runs/tiny/results.json").read_text()


def test_the_transposed_copy_has_the_trace_but_not_the_diagonal():
    """What the experiment `transposed` trains: in place of A the transpose of W_proj W_V, as in the public copies."""
    torch.manual_seed(0)
    right, wrong = vit.Attention(64, 4), vit.Attention(64, 4)
    right.mimetic_init_(0.7, 0.7, 0.4, -0.4, torch.Generator().manual_seed(0))
    with experiments.CHANGES["transposed"]:
        wrong.mimetic_init_(0.7, 0.7, 0.4, -0.4, torch.Generator().manual_seed(0))
    A, B = (attention.vp_product().detach() for attention in (right, wrong))
    assert torch.equal(B, (right.W_proj @ right.W_V).T)
    assert torch.equal(right.W_Q, wrong.W_Q) and torch.equal(right.W_K, wrong.W_K)
    assert B.trace() == pytest.approx(A.trace().item(), rel=1e-4) and B.diag().std() > 2 * A.diag().std()
