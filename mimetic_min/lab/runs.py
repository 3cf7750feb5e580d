"""A grid of training runs, and the folder that keeps it.

A grid has one run for each start, learning rate and seed. Its folder holds

    results.json                        the options of the grid, and its finished runs
    log.csv                             one row per evaluation
    mimetic-seed0-lr0.002-start.pt      the weights at the start of a run
    mimetic-seed0-lr0.002.pt            its newest checkpoint; at the end the trained weights
    lock                                held by the process that trains here

Each file is written whole or not at all. So a grid can be stopped at any moment, even by a power
cut, and go on from the newest checkpoint to the same results.
"""

import csv
import io
import json
import math
import os
import platform
import shlex
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import asdict
from itertools import count, product
from pathlib import Path

import torch

from . import options, parallel, progress
from .files import write
from .table import describe, metric_of

EVALUATIONS = 8  # per run
SECONDS_BETWEEN_CHECKPOINTS = 60


class Run:
    """One run of a grid. A training loop uses it like this:

        for step in run.steps(model, optimizer):
            ...                                             # train on one batch
            run.log(step, loss)
            if run.evaluates(step):
                run.record(step, accuracy=...)

    `init`, `seed` and `lr` say which run it is, and `total_steps` how long. `result` is its entry
    in results.json.
    """

    def __init__(self, grid, init, seed, lr):
        self.grid = grid
        self.init = init
        self.seed = seed
        self.lr = lr
        self.total_steps = grid.total_steps
        self.result = {"init": init, "seed": seed, "lr": lr}
        self.losses = []  # since the last evaluation

    def steps(self, model, optimizer):
        """Yield the number of each step that is still to be done, and save checkpoints between
        them.

        If there is a checkpoint already, the model and the optimizer take its state, and the steps
        go on from there. If numbers are no longer finite, the run ends early.
        """
        self.model = model
        self.optimizer = optimizer
        self.result["parameters"] = sum(p.numel() for p in model.parameters())
        self.result["steps"] = self.total_steps
        self.result["seconds"] = 0.0
        self.result["curve"] = []
        first = self._restore()
        if first == 0:
            start = {
                "config": asdict(model.config),
                "run": self.result,
                "model": model.state_dict(),
            }
            self.grid.save(self.path("start"), start)

        begun = time.monotonic() - self.result["seconds"]
        saved = time.monotonic()
        for step in range(first, self.total_steps):
            yield step
            # Here the loop has trained on one more batch.
            if "diverged" in self.result:
                return
            self.grid.steps_done += 1
            self.result["seconds"] = time.monotonic() - begun
            if self.evaluates(step) or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self._save(step + 1)
                saved = time.monotonic()

    def evaluates(self, step):
        """Whether to evaluate after this step: EVALUATIONS times per run, also after the last."""
        done = step + 1
        return done * EVALUATIONS // self.total_steps > step * EVALUATIONS // self.total_steps

    def log(self, step, loss):
        """Keep the loss of a step, a tensor. It is read rarely, since reading waits for a GPU."""
        self.losses.append(loss.detach())
        if progress.due():
            self._show(step, loss.item(), done=False)

    def record(self, step, **metrics):
        """Record the evaluation after a step. The last one is the result of the run."""
        train_loss = parallel.total(torch.stack(self.losses).mean()).item() / parallel.count()
        self.losses = []
        weights_are_finite = all(p.isfinite().all() for p in self.model.parameters())
        numbers_are_finite = all(map(math.isfinite, (train_loss, *metrics.values())))
        if not (weights_are_finite and numbers_are_finite):
            self.result["diverged"] = step + 1
            self._warn(f"diverged by step {step + 1:,}; try a lower --lr")
            return
        self.result["curve"].append({"step": step + 1, "train_loss": train_loss, **metrics})
        is_last = step + 1 == self.total_steps
        if is_last:
            self.result["final"] = metrics
        self.grid.write_log(self.result)
        self._show(step, train_loss, done=is_last or not progress.on_terminal())

    def path(self, when="trained"):
        """The file of its newest checkpoint, or of the "start"."""
        end = "-start.pt" if when == "start" else ".pt"
        return self.grid.folder / f"{self.init}-seed{self.seed}-lr{self.lr}{end}"

    def weights(self, when):
        """A state_dict on the CPU: the weights at the "start", or "trained"."""
        return load(self.path(when))["model"]

    def _save(self, steps_done):
        state = {
            "config": asdict(self.model.config),
            "options": self.grid.results["config"],
            "run": self.result,
            "steps_done": steps_done,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.grid.save(self.path(), state)

    def _restore(self):
        """Put the newest checkpoint, if there is one, into the model and the optimizer.

        Returns the number of steps done. Raises OSError if the file is damaged, or belongs to
        another run.
        """
        path = self.path()
        if not path.exists():
            return 0
        try:
            state = load(path)
            names = ("init", "seed", "lr", "steps")
            same_run = all(state["run"][name] == self.result[name] for name in names)
            if not same_run or state["options"] != self.grid.results["config"]:
                raise ValueError("this is the checkpoint of another run")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            device = next(self.model.parameters()).device
            self.losses = [loss.to(device) for loss in state["losses"]]
            self.result.update(state["run"])
            return state["steps_done"]
        except Exception as error:  # Its kind depends on the damage.
            raise OSError(
                f"cannot go on from {path}: it is damaged, or belongs to another run;"
                " move it away to train this run from its start"
            ) from error

    def _show(self, step, train_loss, done):
        line = f"{self.init:10} seed {self.seed}  lr {self.lr:g}"
        line += f"  step {step + 1:,} of {self.total_steps:,}  train loss {train_loss:.3f}"
        if self.result["curve"]:
            line += "  " + describe(self.result["curve"][-1])
        progress.show(f"{line}  {self.grid.seconds_left(step):.0f} s left", done)

    def _warn(self, message):
        if parallel.is_first():
            progress.clear()
            print(
                f"{self.init} with seed {self.seed} and lr {self.lr:g} {message}", file=sys.stderr
            )


class Grid:
    """The runs of one experiment, and their folder.

    It holds the lock of the folder. So use it in a `with` block.
    """

    def __init__(self, folder, results, total_steps, lock):
        self.folder = folder
        self.results = results
        self.total_steps = total_steps
        self.lock = lock
        config = results["config"]
        # (seed, lr, init) of each run, in order. A value that was given twice counts once.
        self.order = list(dict.fromkeys(product(config["seed"], config["lr"], config["init"])))
        self.begun = time.monotonic()
        self.steps_done = 0  # by this process

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None:
            error.add_note(how_to_go_on(self.results["task"], self.folder))
        self.lock.release()

    def unfinished(self):
        """Yield the runs that are still to be trained, in the order of the grid."""
        print(f"{len(self.order)} runs of {self.total_steps:,} steps, in {self.folder}", flush=True)
        for seed, lr, init in self.order[len(self.results["runs"]) :]:
            yield Run(self, init, seed, lr)

    def finish(self, run):
        """Keep the result of a run."""
        self.results["runs"].append(run.result)
        self.write_log()
        self._write("results.json", json.dumps(self.results, indent=1) + "\n")

    def to_draw(self):
        """Yield the finished runs of the seed and learning rate that has the most of them."""
        finished = [result for result in self.results["runs"] if "final" in result]
        pairs = [(result["seed"], result["lr"]) for result in finished]
        commonest = max(pairs, key=pairs.count, default=None)
        for result, pair in zip(finished, pairs):
            if pair == commonest:
                yield Run(self, result["init"], result["seed"], result["lr"])

    def save(self, path, state):
        """Write a checkpoint. Of several processes, only the first does."""
        if parallel.is_first():
            file = io.BytesIO()
            torch.save(state, file)
            write(path, file.getvalue())

    def write_log(self, *unfinished):
        """Write log.csv: a row per evaluation of the finished runs and of the `unfinished` one."""
        rows = []
        for result in [*self.results["runs"], *unfinished]:
            names = {name: result[name] for name in ("init", "seed", "lr")}
            rows += [names | point for point in result["curve"]]
        file = io.StringIO()
        if rows:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._write("log.csv", file.getvalue())

    def _write(self, name, text):
        if parallel.is_first():
            write(self.folder / name, text.encode())

    def seconds_left(self, step):
        """An estimate for the whole grid, from the pace of this process."""
        # The step that is reported is not counted yet.
        pace = (time.monotonic() - self.begun) / (self.steps_done + 1)
        later_runs = len(self.order) - len(self.results["runs"]) - 1
        return pace * (self.total_steps - step - 1 + later_runs * self.total_steps)


# ---------------------------------------------------------------------------------------------
# Opening a folder


def open_grid(task, args, total_steps, fingerprint):
    """The grid of these options, in a new folder, or with --resume in its old one.

    `fingerprint` is a number that identifies the data. Raises ValueError if the folder is
    not free, is in use, or holds another experiment.
    """
    if args.resume is None:
        folder = parallel.from_first(lambda: new_folder(args.out, task, args.data))
        lock = Lock(folder)
        parallel.from_first(lock.take)
        results = {
            "task": task,
            "data": args.data,
            "fingerprint": fingerprint,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "config": options.experiment(args),
            "runs": [],
        }
        grid = Grid(folder, results, total_steps, lock)
        grid._write("results.json", json.dumps(results, indent=1) + "\n")
        return grid

    folder = Path(args.resume)
    lock = Lock(folder)
    parallel.from_first(lock.take)
    # results.json was read before this process had the lock. Another process may have finished
    # a run since then, so read it again.
    results = json.loads((folder / "results.json").read_text())
    if results.get("fingerprint") != fingerprint:
        raise ValueError(
            f"--resume needs the data that {folder} was started with, but {args.data} has changed"
        )
    grid = Grid(folder, results, total_steps, lock)
    if not _are_results(results.get("runs"), grid):
        raise ValueError(f"--resume cannot read {folder}/results.json: it is damaged")
    return grid


def _are_results(runs, grid):
    """Whether these are entries of the first runs of the grid, with every field that is read."""
    if not isinstance(runs, list):
        return False
    try:
        columns = {tuple(point) for result in runs for point in result["curve"]}
        if len(columns) > 1:
            return False
        for result, (seed, lr, init) in zip(runs, grid.order, strict=False):
            if (result["seed"], result["lr"], result["init"]) != (seed, lr, init):
                return False
            if result["steps"] != grid.total_steps:
                return False
            for point in result["curve"]:
                if not all(isinstance(value, (int, float)) for value in point.values()):
                    return False
            if "diverged" not in result:
                last = dict(result["curve"][-1])
                if last.pop("step") != grid.total_steps or "train_loss" not in last:
                    return False
                del last["train_loss"]
                # Raises KeyError if there is no metric.
                metric_of(last)
                if result["final"] != last:
                    return False
        return len(runs) <= len(grid.order)
    except (KeyError, TypeError, AttributeError, IndexError):
        return False


def new_folder(out, task, data):
    """Make the folder `out`, which may exist if it is empty.

    Without `out`, make the first free one of runs/vit-digits, runs/vit-digits-2 and so on.
    """
    if out is not None:
        folder = Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Both are left by a process that was killed right after it made the folder.
            is_free = not set(os.listdir(folder)) - {"lock", "results.json.tmp"}
        except OSError as error:
            raise ValueError(
                f"--out must be a folder that can be made, but {out} is not: {error.strerror}"
            ) from error
        if not is_free:
            raise ValueError(
                f"--out must be a new or empty folder, but {out} has files;"
                f" {how_to_go_on(task, folder)}"
            )
        return folder
    name = f"{task}-{Path(data).stem}"
    try:
        Path("runs").mkdir(exist_ok=True)
        for n in count(1):
            folder = Path("runs", name if n == 1 else f"{name}-{n}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise ValueError(
            f"cannot make a folder in runs: {error.strerror}; choose another with --out"
        ) from error


def how_to_go_on(task, folder):
    return f"to go on: {parallel.launcher()} train_{task}.py --resume {shlex.quote(str(folder))}"


class Lock:
    """The lock of a folder. Of several processes of one job, only the first takes it.

    It is free again when that process ends, however it ends.
    """

    def __init__(self, folder):
        self.folder = folder
        self.file = None

    def take(self):
        """Raises ValueError if another process holds it."""
        try:
            import fcntl  # Windows has none: there, two processes in one folder are not noticed.
        except ImportError:
            return
        try:
            self.file = open(self.folder / "lock", "a")
        except OSError as error:
            raise ValueError(f"cannot write into {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise ValueError(
                f"another process is training in {self.folder}; wait for it, or stop it"
            ) from None

    def release(self):
        if self.file is not None:
            self.file.close()


def load(path):
    """A checkpoint, on the CPU. Runs no code that is in the file. Raises OSError if it is missing
    or damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # torch does not look at its checksums.
            if file.testzip() is not None:
                raise OSError("a checksum is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # What is raised depends on the damage.
        raise OSError(f"cannot read {path}: it is missing or damaged") from error
