"""docs/report.py: the tables in README.md and docs/results.md are those of docs/results.csv."""

import json
import re
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import train_vit
from mimetic_min import ViTConfig
from mimetic_min.runs import Run

sys.path.insert(0, str(Path(train_vit.__file__).parent / "docs"))
import report


def test_the_pages_show_what_was_measured():
    for page in report.PAGES:
        text = page.read_text()
        assert len(re.findall(report.MARKED, text)) == text.count("<!-- table ") > 0
        # If this fails, run: python docs/report.py pages
        assert report.fill(text, report.read("results.csv")) == text


def test_a_changed_figure_is_seen():
    results = report.read("results.csv")
    page = report.fill("Our results:\n<!-- table cifar -->\n<!-- end -->\n", results)
    # In the page: its first percentage.
    changed = re.sub(r"\d%", "?%", page, count=1)
    assert report.fill(changed, results) == page != changed
    # In the file: its first row.
    changed = [results[0]._replace(result=0.5), *results[1:]]
    assert report.fill(page, changed) != page


def test_the_rate_is_chosen_by_seeds_that_are_not_reported():
    # For seeds 10 and 11, the rate 0.1 has the higher results, and for seeds 0 and 1 the rate 0.2.
    measured = {0.1: {10: 0.8, 11: 0.9, 0: 0.1, 1: 0.3}, 0.2: {10: 0.7, 11: 0.9, 0: 0.5, 1: 0.6}}
    results = [
        report.Result("e", "mimetic", seed, lr, 10, result)
        for lr, values in measured.items()
        for seed, result in values.items()
    ]
    for metric, lr, values in (("accuracy", 0.1, [0.1, 0.3]), ("loss", 0.2, [0.5, 0.6])):
        assert report.select(results, "e", "best", metric) == (
            {"mimetic": dict(enumerate(values))},
            {"mimetic": lr},
        )
    # Without one of the runs that choose, there is no best rate yet.
    assert report.select(results[1:], "e", "best", "loss")[0]["mimetic"] == {}


def test_add_takes_what_is_finished_and_takes_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DOCS", tmp_path)
    run = Run("mimetic", 0, 0.1)
    log = [
        "the header",
        # Trained anew later.
        "mimetic,0,0.1,1,1.5,0.7",
        *(f"mimetic,0,0.1,{step},1.5,0.{step}" for step in range(1, 9)),
        # Not finished.
        *(f"xavier,0,0.1,{step},1.5,0.{step}" for step in range(1, 8)),
        # Diverged.
        "off,10,0.1,1,1.5,0.1",
        "off,10,0.1,2,nan,0.1",
    ]
    Path("cifar").mkdir()
    Path("cifar/log.csv").write_text("\n".join(log))
    # A checkpoint as if the training had doubled W_proj.
    options = {"qk_alpha": 0.7, "qk_beta": 0.7, "vp_alpha": 0.4, "vp_beta": -0.4}
    Path("cifar/options.json").write_text(json.dumps(options))
    model = train_vit.new_model(run, Namespace(**options), ViTConfig())
    for block in model.blocks:
        block.attention.W_proj.data *= 2
    torch.save(
        {"config": asdict(ViTConfig()), "model": model.state_dict()},
        f"cifar/{run}.pt",
    )

    for _ in range(2):
        report.add("cifar")
        assert Path("results.csv").read_text().splitlines() == [
            "experiment,init,seed,lr,step,result",
            "cifar,mimetic,0,0.1,8,0.8",
            "cifar,off,10,0.1,2,nan",
        ]
        # Of seed 0: eight evaluations, and two diagonals in four layers.
        assert len(report.read("curves.csv")) == len(report.read("diagonals.csv")) == 8
    for row in report.read("diagonals.csv"):
        # The file has four digits.
        factor = {"query-key": 1, "value-projection": 2}[row.product]
        assert row.trained == pytest.approx(factor * row.untrained, abs=2e-4)
