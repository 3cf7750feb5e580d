"""A folder of training runs: what is done, how it goes on, and the table at the end.

    options.json                     the options that all runs of the folder share
    mimetic-seed0-lr0.002.pt         the newest checkpoint of a run; at its end, the trained weights
    log.csv                          a row for each evaluation of a run, eight if it has the steps

A run can be stopped at any moment, even by a kill. The same command again goes on from the newest
checkpoint. On a CPU with the same number of threads, it comes to the same figures to the bit, since
a batch depends on nothing but its seed and step. What makes this work is the order of two writes:

1. The checkpoint, which holds the rows of its run, too. It is written whole or not at all.
2. The row in the log, with a single write. What the log lacks after a kill is added later.

Several processes can share a folder (torchrun, or RANK and WORLD_SIZE set by hand). Each trains
every WORLD_SIZE-th run, and none waits for another.
"""

import json
import math
import os
import statistics
import sys
import time
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch

# torchrun sets these.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
# Job arrays often count from 1: then the last one trains the first run.
RANK = int(os.environ.get("RANK", 0)) % WORLD_SIZE

# Options that may change in a folder. The first three choose its runs. The others belong to the
# machine: only rounding depends on them. (On CUDA, matrix products are rounded to bfloat16.)
FREE = ("init", "seed", "lr", "device", "data_dir", "out", "plot", "sample")

# How a result is shown: 67.7%, or 1.234 nats per byte. And its columns in the closing table, each a
# multiple of the result.
STYLE = {"accuracy": ".1%", "loss": ".3f"}
SHOWN = {
    "accuracy": {"accuracy": 1},
    "loss": {"nats per byte": 1, "bits per byte": 1 / math.log(2)},
}


def use_device(name):
    """The torch.device of this process for --device `name`.

    Under torchrun, each process has one CPU thread and, for "cuda", a GPU of its own where there
    are enough. Raises ValueError for a device that torch does not have.
    """
    if WORLD_SIZE > 1:
        torch.set_num_threads(1)
    # What is raised for a missing device depends on the device.
    with suppress(Exception):
        if name == "cuda":
            # A job array sets no LOCAL_RANK.
            torch.cuda.set_device(
                int(os.environ.get("LOCAL_RANK", RANK)) % torch.cuda.device_count()
            )
        return torch.ones(1, device=name).device
    raise ValueError(f"torch finds no device {name} here")


@dataclass(frozen=True)
class Run:
    """One training run: an initialization, a seed and a peak learning rate.

    Raises ValueError for a seed or a rate that cannot be.
    """

    init: str
    seed: int
    lr: float

    def __post_init__(self):
        if not (0 <= self.seed < 2**63 and 0 < self.lr < math.inf):
            raise ValueError("--seed must be from 0 to 2**63 - 1, and --lr above 0 and finite")

    def __str__(self):
        return f"{self.init}-seed{self.seed}-lr{self.lr}"


# ---------------------------------------------------------------------------------------------
# The folder


class Folder:
    """The run folder `path`, new or not, for runs of `steps` steps.

    `metric` is the result, in the last column of the log: "accuracy" (0 to 1) or "loss" (nats per
    byte). `code` is a checksum of the code: a change of it is reported. Leaves the folder as it is,
    and raises FileExistsError, if it was made with other `options` or is no run folder; or
    ValueError, if a file in it is damaged.
    """

    def __init__(self, path, metric, steps, options, code):
        self.path = path
        self.log = path / "log.csv"
        self.steps = steps
        self.columns = ["init", "seed", "lr", "step", "train_loss", metric]
        header = ",".join(self.columns) + "\n"

        path.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in path.iterdir() if file.suffix != ".tmp"}
        if names and "options.json" not in names:
            raise FileExistsError(f"{path} has files, but it is no run folder; give another --out")
        # Two processes may begin together: the first one makes a file, and both use it.
        create(path / "options.json", json.dumps({"code": code, **options}, indent=1))
        try:
            there = json.loads((path / "options.json").read_text())
            other = [
                f"{name} is {there[name]} there and {options[name]} here"
                for name in options
                if there[name] != options[name]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}/options.json is damaged, or of another script") from error
        if other:
            raise FileExistsError(
                f"{path} has other options: {', '.join(other)}; give another --out"
            )
        if there.get("code") != code:
            print(f"The code has changed since {path} was made. Its runs are of the old code.")
        create(self.log, header)
        text = self.log.read_bytes()
        if not text.startswith(header.encode()):
            raise ValueError(f"{self.log} is not a log of this script, or is damaged")
        # A stop can leave half a row. The checkpoint of its run has the whole one.
        if not text.endswith(b"\n"):
            os.truncate(self.log, text.rfind(b"\n") + 1)

    def to_do(self, runs):
        """The runs that are left for this process to train, of all `runs`."""
        for run in runs[RANK::WORLD_SIZE]:
            for row in self.load(run)["rows"]:
                self.append(row)
        return [run for run in runs[RANK::WORLD_SIZE] if not self.is_done(run)]

    def is_done(self, run):
        """Whether the run has ended, after its last step or because it diverged."""
        state = self.load(run)
        return state["step"] == self.steps or not all(map(is_finite, state["rows"]))

    def load(self, run):
        """The newest checkpoint of the run. Without one, there are no steps and no rows.

        Runs no code that the file may hold. Raises ValueError for a damaged file.
        """
        path = self.path / f"{run}.pt"
        if not path.exists():
            return {"step": 0, "rows": []}
        # What is raised depends on the damage. torch does not look at the checksums in its files.
        with open(path, "rb") as file, suppress(Exception):
            if zipfile.ZipFile(file).testzip() is None:
                return torch.load(path, map_location="cpu", weights_only=True)
        raise ValueError(f"{path} is damaged; delete it, and the same command trains it again")

    def resume(self, run, model, optimizer):
        """Put the newest checkpoint into the model and the optimizer. Returns the steps done."""
        state = self.load(run)
        self.rows = state["rows"]
        if state["step"] > 0:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        self.first_step = state["step"]
        self.begun = self.saved = time.monotonic()
        return state["step"]

    def evaluates(self, step):
        """Whether the model is evaluated after this step: eight times, the last at the end."""
        return (step + 1) * 8 // self.steps > step * 8 // self.steps

    def keep(self, run, step, model, optimizer, train_loss, result=None):
        """After each step: a checkpoint, a row and a line, as they are due.

        `result` is that of an evaluation. Returns False if it is an evaluation whose loss or
        result is not finite.
        """
        # On a terminal, one line is overwritten between the evaluations.
        clear = "\r\033[K" if sys.stdout.isatty() and WORLD_SIZE == 1 else ""
        seconds = (time.monotonic() - self.begun) / (step + 1 - self.first_step)
        left = f"{seconds * (self.steps - step - 1):,.0f} s left in this run"
        line = f"{run.init:16}  seed {run.seed}  lr {run.lr:g}  step {step + 1} of {self.steps}"
        if result is None:
            # At most five minutes are lost.
            if time.monotonic() - self.saved > 300:
                self.save(run, step, model, optimizer)
            if clear:
                print(f"{clear}{line}  {left}", end="", flush=True)
            return True

        row = dict(zip(self.columns, [*astuple(run), step + 1, train_loss.item(), result]))
        self.rows.append(row)
        self.save(run, step, model, optimizer)
        self.append(row)
        metric = self.columns[-1]
        line += f"  train loss {row['train_loss']:.3f}  {metric} {result:{STYLE[metric]}}"
        # In one piece, so that the lines of several processes do not mix.
        print(f"{clear}{line}  {left}\n", end="", flush=True)
        return is_finite(row)

    def save(self, run, step, model, optimizer):
        """Write a checkpoint, whole or not at all."""
        temporary = self.path / f"{run}.{os.getpid()}.tmp"
        state = {
            "config": asdict(model.config),
            "step": step + 1,
            "rows": self.rows,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, temporary)
        os.replace(temporary, self.path / f"{run}.pt")
        self.saved = time.monotonic()

    def append(self, row):
        """Add a row to the end of the log, unless it is there."""
        line = ",".join(str(row[column]) for column in self.columns)
        if line not in self.log.read_text(errors="replace").splitlines():
            with open(self.log, "ab", buffering=0) as file:
                file.write(f"{line}\n".encode())


def open_folder(args, kind, metric, steps, checksum, code):
    """The Folder of these options: --out, or the first of runs/KIND-DATA, runs/KIND-DATA-2, ...
    that is new or has the same options.

    `checksum` is that of the data, and `code` the files of the code. Raises errors as Folder does.
    """
    options = {name: value for name, value in vars(args).items() if name not in FREE}
    options["checksum of the data"] = checksum
    code = zlib.crc32(b"".join(Path(file).read_bytes() for file in code))
    if args.out:
        return Folder(Path(args.out), metric, steps, options, code)
    for suffix in ["", *(f"-{number}" for number in range(2, 10_000))]:
        path = Path("runs", f"{kind}-{Path(args.data).stem}{suffix}")
        with suppress(FileExistsError):
            return Folder(path, metric, steps, options, code)


def create(path, text):
    """Write a new file, whole. If there is one already, even since a moment ago, keep that."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def is_finite(row):
    """Whether the loss and the result in a row of the log are finite."""
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))


# ---------------------------------------------------------------------------------------------
# The table


def table(rows, metric):
    """The closing table, as text: a line for each init and rate.

    `rows` are the last rows of the runs, with the same seeds for each init and rate. `metric` is
    "accuracy" or "loss".
    """
    results = {}  # (init, lr) -> one result per seed, NaN for a run that diverged
    for row in rows:
        result = row[metric] if is_finite(row) else math.nan
        results.setdefault((row["init"], row["lr"]), []).append(result)
    lines = [["init", "lr", *SHOWN[metric], "minus default", "mimetic minus this"]]
    for (init, lr), values in results.items():
        means = [
            spread([factor * value for value in values], STYLE[metric])
            for factor in SHOWN[metric].values()
        ]
        gains = [
            difference(values, results.get(("default", lr), values), metric),
            difference(results.get(("mimetic", lr), values), values, metric),
        ]
        lines.append([init, f"{lr:g}", *means, *gains])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["   ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return """{}

Mean ± standard deviation over the seeds. Differences are taken at the same rate, seed by seed: mean
± standard error, and in brackets on how many seeds the first of the two is ahead.""".format(
        "\n".join(text)
    )


def spread(values, style, divisor=1):
    """Mean ± standard deviation, as text. One value has no deviation.

    With `divisor`, the deviation is divided by it.
    """
    diverged = sum(map(math.isnan, values))
    if diverged:
        return f"diverged on {diverged} of {len(values)}"
    text = f"{statistics.mean(values):{style}}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / divisor:{style.strip('+')}}"
    return text


def difference(values, base, metric):
    """The mean of `values` minus `base` ± its standard error, as text, and on how many seeds
    `values` is ahead. Empty for `values` with themselves, and if a run diverged.

    Runs of one seed share their batches and the weights outside the attention, so each difference
    is taken within a seed.
    """
    differences = [value - other for value, other in zip(values, base)]
    if values is base or any(map(math.isnan, differences)):
        return ""
    ahead = sum(d > 0 if metric == "accuracy" else d < 0 for d in differences)
    text = spread(differences, "+" + STYLE[metric], divisor=math.sqrt(len(differences)))
    return f"{text} ({ahead} of {len(differences)})"
