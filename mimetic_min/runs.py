"""Training runs that survive an interruption.

A run is two files in the run folder:

    mimetic-seed0-lr0.002.pt      its options, its rows, the model and, until the end, the optimizer
    mimetic-seed0-lr0.002.csv     its rows: step, train_loss, and accuracy or loss

Both are rewritten at each evaluation, first the .pt, which alone says how far a run has gotten. The
same command resumes from there and gets the same results, since a batch depends only on its seed
and step. (On a CPU with the same number of threads, they match bit for bit.) No two runs share a
file, so several processes can train in one folder.
"""

import io
import math
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from .machine import processes
from .table import is_finite


class Run(NamedTuple):
    """One training run: an initialization, a seed and a peak learning rate."""

    init: str
    seed: int
    lr: float

    def __str__(self):
        return f"{self.init}-seed{self.seed}-lr{self.lr}"


def all_runs(args):
    """The runs of a command line: for each seed and rate, all inits one after another.

    Raises ValueError for a seed or a rate that makes no sense.
    """
    if not (0 <= min(args.seed) <= max(args.seed) < 2**64):
        raise ValueError("--seed must be 0 or more, and below 2**64")
    if not all(0 < lr < math.inf for lr in args.lr):
        raise ValueError("--lr must be above 0 and finite")
    return [
        Run(init, seed, lr)
        for seed in dict.fromkeys(args.seed)
        for lr in dict.fromkeys(args.lr)
        for init in dict.fromkeys(args.init)
    ]


# ---------------------------------------------------------------------------------------------
# The folder

# Options that may change when a run resumes. The first three choose the runs, and a checksum stands
# for the data. The device changes only the rounding (on CUDA, matrix products are rounded to
# bfloat16), and the others change no result.
FREE = ("init", "seed", "lr", "data", "data_dir", "device", "out", "plot")


class Folder:
    """The run folder of a command line, for runs of `steps` steps. It is made if there is none.

    Without --out it is runs/SCRIPT-DATA. `checksum` is the checksum of the data. Raises ValueError
    if there are no steps.
    """

    def __init__(self, args, script, steps, checksum):
        if steps < 1:
            raise ValueError(f"a run must have at least one step, but it has {steps}")
        self.path = Path(args.out or Path("runs", f"{script}-{Path(args.data).stem}"))
        self.steps = steps
        self.options = {"data checksum": checksum} | {
            name: value for name, value in vars(args).items() if name not in FREE
        }
        self.path.mkdir(parents=True, exist_ok=True)

    def to_do(self, runs):
        """The runs that are left for this process, which trains every WORLD_SIZE-th.

        All runs are loaded first, so that a problem with any of them is reported before the
        training starts.
        """
        rank, world_size = processes()
        rows = {run: self.load(run) for run in runs}
        for run in runs[rank::world_size]:
            # If `save` was killed between its two files, the .csv is a row behind.
            self.write_rows(run, rows[run])
        return [run for run in runs[rank::world_size] if not self.has_ended(rows[run])]

    def has_ended(self, rows):
        """Whether a run with these rows has taken its last step, or has diverged."""
        return bool(rows) and (rows[-1]["step"] == self.steps or not is_finite(rows[-1]))

    def load(self, run, **parts):
        """The rows of the newest checkpoint of a run. Without a checkpoint, there are none.

        Parts that are passed, such as model=model and optimizer=optimizer, are restored to their
        state at that point. (The optimizer of a run that has ended is not stored, and stays as it
        is.) Code in the file is never run. Raises ValueError if the file is not a checkpoint of
        this run or was trained with other options.
        """
        path = self.path / f"{run}.pt"
        if not path.exists():
            return []
        # An unreadable file raises OSError. What else is raised depends on the damage.
        content = io.BytesIO(path.read_bytes())
        state = {}
        with suppress(Exception):
            state = dict(torch.load(content, map_location="cpu", weights_only=True))
        if state.get("run") != str(run) or not {"options", "rows", *parts} <= state.keys():
            raise ValueError(
                f"{path} is damaged, or not a checkpoint of this run; delete it, and the same "
                "command retrains the run"
            )
        for name, value in self.options.items():
            there = state["options"].get(name)
            if there != value:
                raise ValueError(
                    f"{path} was trained with {name} {there}, but this command has {value}; choose "
                    "another folder with --out"
                )
        for name, part in parts.items():
            # The optimizer of a run that has ended is None.
            if state[name] is not None:
                part.load_state_dict(state[name])
        return state["rows"]

    def save(self, run, rows, model, optimizer):
        """Write both files of a run. `rows` are dicts, one for each evaluation.

        If another process has come this far with the same run, its files stay. Raises ValueError if
        it trained the run with other options.
        """
        if len(self.load(run)) >= len(rows):
            return
        state = {
            "run": str(run),
            "options": self.options,
            "config": vars(model.config),
            "rows": rows,
            "model": model.state_dict(),
            # A run that has ended no longer needs it.
            "optimizer": None if self.has_ended(rows) else optimizer.state_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self.path / f"{run}.pt", content.getvalue())
        self.write_rows(run, rows)

    def write_rows(self, run, rows):
        """Write the .csv of a run, unless it is right already. Without rows, there is none."""
        path = self.path / f"{run}.csv"
        lines = [*map(dict.keys, rows[:1]), *map(dict.values, rows)]
        content = "".join(",".join(map(str, line)) + "\n" for line in lines).encode()
        if rows and not (path.exists() and path.read_bytes() == content):
            write_whole(path, content)


def write_whole(path, content):
    """Replace a file with these bytes, whole or not at all."""
    # The random part keeps apart two processes that write the same file.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            # Otherwise, after a power outage, the new name could lead to an empty file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # When the disk is full, Python's error does not name the file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
