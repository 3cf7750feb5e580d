"""Run folders: a stop loses nothing, and what does not fit is named and stays as it was."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mimetic_min import GPT, GPTConfig, runs

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


def test_what_was_saved_is_loaded():
    folder = a_folder()
    assert folder.load(RUN) == []
    model, optimizer = a_model()
    folder.save(RUN, ROWS[:1], model, optimizer)
    other, other_optimizer = a_model()
    assert folder.load(RUN, model=other, optimizer=other_optimizer) == ROWS[:1]
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    states = [optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_trained_model_is_built_from_its_checkpoint_alone():
    saved()
    state = torch.load(CHECKPOINT)
    GPT(GPTConfig(**state["config"])).load_state_dict(state["model"])


@pytest.mark.parametrize("torn", ["", "step,train_loss,loss\n5,2.5,2.0\n", "junk", None])
def test_the_csv_file_has_the_rows_even_if_it_was_behind(torn):
    """As after a kill between the two files of a run."""
    folder = saved()
    TABLE.unlink()
    if torn is not None:
        TABLE.write_text(torn)
    assert folder.to_do([RUN]) == []
    assert TABLE.read_text() == "step,train_loss,loss\n5,2.5,2.0\n10,1.5,1.0\n"


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

    def write_half(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match=f"No space left on device: '{CHECKPOINT}'"):
            folder.save(RUN, ROWS, *a_model())
    assert contents() == before


def test_a_finished_run_is_read_without_writing(monkeypatch):
    """As in a folder that can only be read. (If root runs the tests, it may write anywhere.)"""
    saved()
    monkeypatch.delattr(Path, "write_bytes")
    assert a_folder().to_do([RUN]) == []


# ---------------------------------------------------------------------------------------------
# Damaged, or of another run


class Bomb:
    """If it is unpickled, it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("boom"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk" * 1000,
        Bomb(),
        {"run": str(RUN), "options": Bomb(), "rows": ROWS},
        [1, 2, 3],
        a_model()[0].state_dict(),
        {"run": str(RUN), "options": {}, "rows": ROWS},
        {"run": "mimetic-seed1-lr0.001", "options": {}, "rows": ROWS, "model": {}, "optimizer": {}},
    ],
    ids=["empty", "junk", "pickle", "options", "list", "state_dict", "no model", "another run"],
)
def test_a_file_that_is_no_checkpoint_of_the_run_is_named(content):
    folder = saved()
    if isinstance(content, bytes):
        CHECKPOINT.write_bytes(content)
    else:
        torch.save(content, CHECKPOINT)
    model, optimizer = a_model()
    with pytest.raises(ValueError, match=f"^{CHECKPOINT} cannot be read .* delete it"):
        folder.load(RUN, model=model, optimizer=optimizer)
    assert not Path("boom").exists()


def test_a_checkpoint_that_was_torn_is_named():
    folder = saved()
    os.truncate(CHECKPOINT, 2000)
    with pytest.raises(ValueError, match=f"^{CHECKPOINT} cannot be read .* delete it"):
        folder.load(RUN)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"dim": 16}, f"^{CHECKPOINT} was trained with dim 8, but this command has 16; give"),
        ({"checksum": 456}, "with data checksum 123, but this .* 456; give another --out$"),
        ({"steps": 0}, "^a run must have a step at least, but it has 0$"),
    ],
)
def test_other_options_are_named_and_nothing_is_lost(change, sentence):
    saved()
    before = contents()
    with pytest.raises(ValueError, match=sentence):
        a_folder(**change).to_do([RUN])
    assert contents() == before


# ---------------------------------------------------------------------------------------------
# Several processes


@pytest.mark.parametrize("ranks", ["012", "123"], ids=["from 0", "from 1"])
def test_processes_share_the_runs(ranks, monkeypatch):
    every_run = [runs.Run("mimetic", seed, 0.001) for seed in range(7)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in ranks:
        monkeypatch.setenv("RANK", rank)
        shares += a_folder().to_do(every_run)
    assert sorted(shares) == every_run
