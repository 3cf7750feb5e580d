"""Run folders: a stop loses nothing, and no damage goes unnoticed. And the closing table.

The runs here are as short as can be: 16 steps of a model of width 8.
"""

import math
import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import pytest
import torch

import train_lm
import train_vit
from mimetic_min import runs

ROOT = Path(train_lm.__file__).parent
SCRIPTS = {"vit": train_vit, "lm": train_lm}
SHAPE = "--device cpu --dim 8 --depth 1 --heads 2 --init off mimetic"
TINY = {
    "vit": f"{SHAPE} --limit 40 --batch-size 10 --epochs 4",
    "lm": f"{SHAPE} --data {ROOT}/LICENSE --context 8 --steps 16 --sample 10",
}
both_scripts = pytest.mark.parametrize("task", SCRIPTS)


def call(task, words):
    """main() of a script with these words on its command line. Returns the status of an exit."""
    with patch.object(sys, "argv", [f"train_{task}.py", *TINY[task].split(), *words.split()]):
        try:
            SCRIPTS[task].main()
        except SystemExit as end:
            return end.code


def figures(folder):
    """The rows of the log, each once, and all trained weights."""
    return {
        "rows": set(Path(folder, "log.csv").read_text().split("\n")),
        **{
            path.name: {name: W.tolist() for name, W in torch.load(path)["model"].items()}
            for path in Path(folder).glob("*.pt")
        },
    }


# ---------------------------------------------------------------------------------------------
# Stopped, and gone on with


@both_scripts
@pytest.mark.parametrize("seconds, kept", [(1, 6), (1000, 7)])
def test_ctrl_c_loses_only_what_came_after_the_newest_checkpoint(
    task, seconds, kept, monkeypatch, capsys
):
    """Stopped in the middle of the 8th step. The last evaluation was after the 6th. If so many
    seconds pass between two looks at the clock, there is a checkpoint after the 7th, too.
    """
    # All 16 steps, then a stop, then the rest.
    clip = Mock(side_effect=[None] * 23 + [KeyboardInterrupt] + [None] * 16)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    clock = Mock(side_effect=range(0, 10**6, seconds))
    monkeypatch.setattr(runs, "time", Mock(monotonic=clock))
    call(task, "--init mimetic --out whole")
    assert call(task, "--init mimetic --out run") == 130
    assert capsys.readouterr().out.endswith("\nStopped. The same command resumes.\n")
    assert call(task, "--init mimetic --out run") is None
    assert clip.call_count == 16 + 8 + (16 - kept)
    assert figures("run") == figures("whole")


@pytest.mark.parametrize("operations", range(14))
def test_a_kill_before_any_file_operation_loses_nothing(operations, monkeypatch):
    """Two runs of two evaluations: the log and the options, and then four times a checkpoint, its
    move and a row. After so many operations comes the kill: StopIteration.
    """
    call("lm", "--steps 2 --out whole")
    count = iter(range(operations))
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        for module, name in [(os, "link"), (torch, "save"), (os, "replace"), (runs, "open")]:
            do = getattr(module, name, open)
            killable = Mock(side_effect=lambda *a, do=do, **b: (next(count), do(*a, **b))[1])
            patch.setattr(module, name, killable, raising=False)
        call("lm", "--steps 2 --out run")
    call("lm", "--steps 2 --out run")
    assert figures("run") == figures("whole")
    # No row stands twice, since its checkpoint came first.
    assert Path("run", "log.csv").stat().st_size == Path("whole", "log.csv").stat().st_size


def test_kills_at_random_moments_lose_nothing(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    # The server imports all once, so that each process trains at once. AdamW needs the second one.
    context.set_forkserver_preload(["test_runs", "torch._dynamo"])
    call("lm", "--out whole")
    for _ in range(6):
        # Whoever leaves the pool ends its process.
        with context.Pool(1) as pool:
            pool.apply_async(call, ("lm", "--out run")).wait(np.random.uniform(0, 0.2))
    call("lm", "--out run")
    assert figures("run") == figures("whole")


# ---------------------------------------------------------------------------------------------
# Damaged, or not what it was


class Bomb:
    """Whoever unpickles it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("run", "boom"),)


LOG = Path("run", "log.csv")
OPTIONS = Path("run", "options.json")
CHECKPOINT = Path("run", "mimetic-seed0-lr0.001.pt")


@pytest.mark.parametrize(
    "change, words, status, answer",
    [
        # What is missing is made again. A number that was torn looks like another number.
        (lambda: None, "", None, "0 of 2 runs"),
        (lambda: os.truncate(LOG, LOG.stat().st_size - 4), "", None, "0 of 2 runs"),
        (lambda: os.truncate(LOG, 40), "", None, "0 of 2 runs"),
        (lambda: LOG.unlink(), "", None, "0 of 2 runs"),
        (lambda: CHECKPOINT.unlink(), "", None, "1 of 2 runs"),
        (lambda: [LOG.unlink(), CHECKPOINT.unlink()], "", None, "1 of 2 runs"),
        # What is damaged is named.
        (lambda: CHECKPOINT.write_bytes(b""), "", 2, f"{CHECKPOINT} is damaged"),
        (lambda: CHECKPOINT.write_bytes(b"junk"), "", 2, f"{CHECKPOINT} is damaged"),
        (lambda: os.truncate(CHECKPOINT, 9999), "", 2, f"{CHECKPOINT} is damaged"),
        # One bit, among the weights
        (
            lambda: CHECKPOINT.write_bytes(
                bytes(byte ^ (i == 9999) for i, byte in enumerate(CHECKPOINT.read_bytes()))
            ),
            "",
            2,
            f"{CHECKPOINT} is damaged",
        ),
        (lambda: torch.save(Bomb(), CHECKPOINT), "", 2, f"{CHECKPOINT} is damaged"),
        (lambda: OPTIONS.write_bytes(b""), "", 2, f"{OPTIONS} is damaged"),
        (lambda: OPTIONS.write_bytes(b"\xff junk"), "", 2, f"{OPTIONS} is damaged"),
        (lambda: OPTIONS.write_bytes(b"[1, 2]"), "", 2, f"{OPTIONS} is damaged"),
        (lambda: torch.save(Bomb(), OPTIONS), "", 2, f"{OPTIONS} is damaged"),
        (lambda: LOG.write_bytes(b""), "", 2, f"{LOG} is not a log of this script, or is damaged"),
        (
            lambda: LOG.write_bytes(b"\xff junk\n"),
            "",
            2,
            f"{LOG} is not a log of this script, or is damaged",
        ),
        (
            lambda: torch.save(Bomb(), LOG),
            "",
            2,
            f"{LOG} is not a log of this script, or is damaged",
        ),
        # Another folder, or other options or data than those of the folder
        (lambda: OPTIONS.unlink(), "", 2, "run has files, but it is no run folder"),
        (lambda: None, "--dim 16 --seed 1", 2, "run has other options: dim is 8 there and 16 here"),
        (lambda: None, "--dim 16 --vp-beta 0.2", 2, "vp_beta is -0.4 there and 0.2 here"),
        (lambda: None, f"--data {ROOT}/train_lm.py", 2, "checksum of the data is"),
    ],
)
def test_the_same_command_makes_what_is_missing_or_names_what_is_wrong(
    change, words, status, answer, capsys
):
    call("lm", "--lr 0.001 --out run")
    whole = figures("run")
    change()
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    assert call("lm", f"--lr 0.001 --out run {words}") == status
    assert answer in "".join(capsys.readouterr())
    if status == 2:
        assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    else:
        assert figures("run") == whole


# ---------------------------------------------------------------------------------------------
# More runs


def test_without_out_the_same_options_find_their_folder_and_train_only_what_is_new(capsys):
    more = "--init mimetic off --seed 0 1 --lr 0.002 0.001"
    for words in ("--init off --lr 0.001", "--dim 16", more, f"{more} --out whole"):
        call("lm", words)
    found = re.findall("(.*) runs to train.* in (.*)", capsys.readouterr().out)
    first, second = "runs/lm-LICENSE", "runs/lm-LICENSE-2"
    assert found == [("1 of 1", first), ("2 of 2", second), ("7 of 8", first), ("8 of 8", "whole")]
    assert figures(first) == figures("whole")


def test_a_process_that_is_overtaken_while_it_makes_a_folder_keeps_what_is_there(monkeypatch):
    """Before it can put a file there, another process has made the folder and trained all runs."""
    call("lm", "--out whole")
    link = Mock(
        wraps=os.link,
        side_effect=lambda *_: shutil.copytree("whole", "run", dirs_exist_ok=True) and DEFAULT,
    )
    monkeypatch.setattr(os, "link", link)
    assert call("lm", "--out run") is None
    assert [Path(call.args[1]).name for call in link.call_args_list] == ["options.json", "log.csv"]
    assert figures("run") == figures("whole")


# ---------------------------------------------------------------------------------------------
# The closing table


@both_scripts
def test_a_run_that_diverges_ends_with_a_row_and_stands_so_in_the_table(task, capsys):
    words = "--init mimetic --lr 1e30 0.001 --out run"
    assert call(task, words) is None
    (row,) = re.findall(r"mimetic,0,1e\+30,(\d+),.*nan.*\n", LOG.read_text())
    assert int(row) < 16
    assert re.search(r"\nmimetic +1e\+30 +diverged on 1 of 1", capsys.readouterr().out)
    assert call(task, f"{words} --seed 0 1") is None
    assert re.search(
        r"^2 of 4 runs(.|\n)*\nmimetic +1e\+30 +diverged on 2 of 2", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "metric, results, expected",
    [
        # By hand: 70, 72, 74 is 72 ± 2, and 75, 75, 78 is 76 ± sqrt(3). The differences 5, 3, 4 are
        # 4 ± 1 / sqrt(3), and 5, 4, 18 are 9 ± sqrt(61 / 3). A draw is not ahead.
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
    rows = [
        {"init": init, "seed": seed, "lr": lr, metric: values[seed]}
        for seed in range(len(results["mimetic", 0.1]))
        for (init, lr), values in results.items()
    ]
    lines = runs.table(rows, metric).splitlines()[1 : len(results) + 1]
    # What would compare an init with itself is empty.
    assert [re.sub(" {3,}", "|", line) for line in lines] == expected.split("\n" + 12 * " ")
