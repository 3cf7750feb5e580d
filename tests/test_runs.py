"""Stopping loses nothing, mismatches are reported, processes share runs, and the table is right."""

import math
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mimetic_min import GPT, GPTConfig, machine, runs, table

RUN = runs.Run("mimetic", 0, 0.001)
CHECKPOINT = Path("out", "mimetic-seed0-lr0.001.pt")
TABLE = Path("out", "mimetic-seed0-lr0.001.csv")
ROWS = [{"step": 5, "train_loss": 2.5, "loss": 2.0}, {"step": 10, "train_loss": 1.5, "loss": 1.0}]


def a_folder(steps=10, dim=8, checksum=123):
    return runs.Folder(Namespace(out="out", data="text", dim=dim), "lm", steps, checksum)


def a_model():
    """A model and an optimizer, after one step."""
    model = GPT(GPTConfig(context=4, dim=8, depth=1, heads=2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(rows=ROWS):
    """A folder in which the run RUN has these rows."""
    folder = a_folder()
    folder.save(RUN, rows, *a_model())
    return folder


def contents():
    return {path: path.read_bytes() for path in Path("out").iterdir()}


# ---------------------------------------------------------------------------------------------
# Saved and loaded


def test_the_optimizer_of_a_run_that_has_ended_is_not_stored():
    """Another process may have ended the run just now, so loading it is no error."""
    model, optimizer = a_model()
    assert saved().load(RUN, model=model, optimizer=optimizer) == ROWS
    assert torch.load(CHECKPOINT)["optimizer"] is None


def test_a_process_that_is_behind_does_not_set_a_run_back():
    folder = saved()
    folder.save(RUN, ROWS[:1], *a_model())
    assert folder.load(RUN) == ROWS


def test_a_process_with_other_options_does_not_overwrite_a_run():
    """As if both had started at once in an empty folder."""
    folder = saved(ROWS[:1])
    with pytest.raises(ValueError, match="was trained with dim 8, but this command has 16"):
        a_folder(dim=16).save(RUN, ROWS, *a_model())
    assert folder.load(RUN) == ROWS[:1]


@pytest.mark.parametrize("torn", ["", "step,train_loss,loss\n5,2.5,2.0\n", "junk"])
def test_a_csv_file_that_is_behind_is_written_once(torn, monkeypatch):
    """As if a run had been killed between writing its two files."""
    folder = saved()
    TABLE.write_text(torn)
    assert folder.to_do([RUN]) == []
    assert TABLE.read_text() == "step,train_loss,loss\n5,2.5,2.0\n10,1.5,1.0\n"
    # Now nothing is left to write, so the folder may be read-only.
    monkeypatch.delattr(os, "replace")
    assert folder.to_do([RUN]) == []


@pytest.mark.parametrize(
    "rows, ended",
    [
        ([], False),
        (ROWS[:1], False),
        (ROWS, True),
        ([{"step": 5, "train_loss": float("nan"), "loss": 2.0}], True),
        ([{"step": 5, "train_loss": 2.0, "loss": float("inf")}], True),
    ],
)
def test_a_run_ends_at_its_last_step_or_where_it_diverges(rows, ended):
    assert a_folder().has_ended(rows) == ended


def test_a_failed_write_keeps_the_old_files_and_names_the_path(monkeypatch):
    folder = saved(ROWS[:1])
    before = contents()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    # As when the disk fills up: some of the content is written, but not all of it.
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{CHECKPOINT}'"):
        folder.save(RUN, ROWS, *a_model())
    assert contents() == before


# ---------------------------------------------------------------------------------------------
# Damaged, or from another run


class Bomb:
    """If it is unpickled, it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("boom"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk" * 1000,
        b"PK\x03\x04 as a checkpoint begins",
        Bomb(),
        {"run": str(RUN), "options": Bomb(), "rows": ROWS},
        [1, 2, 3],
        a_model()[0].state_dict(),
        {"run": str(RUN), "options": {}, "rows": ROWS},
        {"run": "mimetic-seed1-lr0.001", "options": {}, "rows": ROWS, "model": {}, "optimizer": {}},
    ],
    ids=[
        "empty",
        "junk",
        "torn",
        "pickle",
        "options",
        "list",
        "state_dict",
        "no model",
        "another run",
    ],
)
def test_a_file_that_is_no_checkpoint_of_the_run_is_named(content):
    folder = saved()
    if isinstance(content, bytes):
        CHECKPOINT.write_bytes(content)
    else:
        torch.save(content, CHECKPOINT)
    model, optimizer = a_model()
    with pytest.raises(ValueError, match=f"^{CHECKPOINT} is damaged, or .* delete it"):
        folder.load(RUN, model=model, optimizer=optimizer)
    assert not Path("boom").exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"dim": 16}, f"^{CHECKPOINT} was trained with dim 8, but this command has 16; choose"),
        (
            {"checksum": 456},
            "with data checksum 123, but this .* 456; choose another folder with --out$",
        ),
        ({"steps": 0}, "^a run must have at least one step, but it has 0$"),
    ],
)
def test_other_options_are_named_and_nothing_is_lost(change, sentence, monkeypatch):
    """By every process, even by one that does not own the run."""
    saved()
    before = contents()
    monkeypatch.setattr(os, "environ", {"RANK": "1", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match=sentence):
        a_folder(**change).to_do([RUN])
    assert contents() == before


# ---------------------------------------------------------------------------------------------
# The machine: several processes, and devices


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, (0, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        # The last process of a job array that counts from 1
        ({"RANK": "2", "WORLD_SIZE": "2"}, (0, 2)),
    ],
)
def test_the_number_of_a_process(environment, expected, monkeypatch):
    monkeypatch.setattr(os, "environ", environment)
    assert machine.processes() == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": ""},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "two"},
        {"RANK": "1.0", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "3", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "-2"},
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
    ],
    ids=str,
)
def test_a_wrong_rank_or_world_size_is_named(environment, monkeypatch):
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(
        ValueError,
        match=f"RANK is {environment.get('RANK')!r} "
        f"and WORLD_SIZE is {environment.get('WORLD_SIZE')!r}$",
    ):
        machine.processes()


# ---------------------------------------------------------------------------------------------
# The final table, with figures that can be checked by hand


@pytest.mark.parametrize(
    "metric, results, expected",
    [
        # By hand: 70, 72, 74 is 72 ± 2, and 75, 75, 78 is 76 ± sqrt(3). The differences 5, 3, 4 are
        # 4 ± 1 / sqrt(3), and 5, 4, 18 are 9 ± sqrt(61 / 3). A tie is not ahead.
        (
            "accuracy",
            {
                ("off", 0.1): [0.70, 0.71, 0.60],
                ("default", 0.1): [0.70, 0.72, 0.74],
                ("mimetic", 0.1): [0.75, 0.75, 0.78],
                ("default", 0.02): [0.9, 0.9, 0.9],
                ("mimetic", 0.02): [0.9, 0.9, 0.9],
            },
            """off|0.1|67.0% ± 6.1%|-5.0% ± 4.5% (0 of 3)|+9.0% ± 4.5% (3 of 3)
            default|0.1|72.0% ± 2.0%|+4.0% ± 0.6% (3 of 3)
            mimetic|0.1|76.0% ± 1.7%|+4.0% ± 0.6% (3 of 3)
            default|0.02|90.0% ± 0.0%|+0.0% ± 0.0% (0 of 3)
            mimetic|0.02|90.0% ± 0.0%|+0.0% ± 0.0% (0 of 3)""",
        ),
        # A bit is log(2) nats. A smaller loss is ahead.
        (
            "loss",
            {
                ("off", 0.1): [2.0, math.nan],
                ("default", 0.1): [2.0, 2.2],
                ("mimetic", 0.1): [1.8, 2.1],
            },
            """off|0.1|diverged on 1 of 2|diverged on 1 of 2
            default|0.1|2.100 ± 0.141|3.030 ± 0.204|-0.150 ± 0.050 (2 of 2)
            mimetic|0.1|1.950 ± 0.212|2.813 ± 0.306|-0.150 ± 0.050 (2 of 2)""",
        ),
        # One seed has no spread.
        (
            "accuracy",
            {("off", 0.1): [0.5], ("default", 0.1): [0.5], ("mimetic", 0.1): [0.625]},
            """off|0.1|50.0%|+0.0% (0 of 1)|+12.5% (1 of 1)
            default|0.1|50.0%|+12.5% (1 of 1)
            mimetic|0.1|62.5%|+12.5% (1 of 1)""",
        ),
    ],
)
def test_the_table_has_means_spreads_and_differences_seed_by_seed(metric, results, expected):
    rows = {
        runs.Run(init, seed, lr): [{"step": 5, metric: 9.0}, {"step": 10, metric: value}]
        for (init, lr), values in results.items()
        for seed, value in enumerate(values)
    }
    lines = table.table(rows, metric).splitlines()[1 : len(results) + 1]
    # A cell that would compare an init with itself is empty.
    assert [re.sub(" {3,}", "|", line) for line in lines] == expected.split("\n" + 12 * " ")
