"""What the two training scripts print and leave behind: progress, the closing table, a run folder and its files."""
import csv
import io
import json
import math
import os
import shlex
import shutil
import statistics
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from . import parallel
from .vit import require

METRICS = {                      # what runs are compared by: title, unit, factor and decimals in print, which is best
    "accuracy": ("accuracy", "%", 100, 1, max),
    "loss": ("validation loss", "nats", 1, 3, min),
}


def metric_of(values):
    """The one of METRICS that is among `values`."""
    return next(name for name in METRICS if name in values)


def on_terminal():
    return sys.stdout is not None and sys.stdout.isatty()


def in_place(line, done):
    """Print a line of progress: on a terminal over the one before it, until it is `done`; elsewhere only then."""
    if on_terminal():
        print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="\n" if done else "", flush=True)
    elif done:
        print(line, flush=True)


class Progress:
    """A line that says how far a grid of runs is: in place on a terminal, else a new one at each evaluation."""

    def __init__(self):
        self.start, self.steps, self.shown = time.perf_counter(), 0, 0.0

    def show(self, run, step, loss, evaluated, later):
        """Call it after every step. `later` is the number of steps in the runs after this one."""
        self.steps += 1
        now = time.perf_counter()
        if not evaluated and not (on_terminal() and now - self.shown > 0.5):  # to read the loss waits for a GPU
            return
        self.shown = now
        line = f"{run['init']:8} seed {run['seed']}  lr {run['lr']:g}  step {step:,}/{run['steps']:,}"
        line += f"  train {loss.item():.3f}"
        if run["curve"]:
            metric = metric_of(run["curve"][-1])
            _, _, factor, decimals, _ = METRICS[metric]
            line += f"  {metric} {factor * run['curve'][-1][metric]:.{decimals}f}"
        line += f"  {(now - self.start) / self.steps * (run['steps'] - step + later):.0f} s left"
        in_place(line, done=step == run["steps"] or not on_terminal())


def best(runs):
    """Each init at its best rate, {init: (rate, values)}, the seeds that chose the rates, and those of the values.

    Where there are several rates, the first half of the seeds chooses one and only the others are reported; a single
    seed has to do both. A run that diverged is worse than any other, and so is a mean that it is part of.
    """
    metric = metric_of(next(run["final"] for run in runs if "final" in run))
    _, _, factor, _, choice = METRICS[metric]
    worst = {metric: -math.inf if choice is max else math.inf}
    value = {(run["init"], run["lr"], run["seed"]): factor * run.get("final", worst)[metric] for run in runs}
    inits, rates, seeds = ([*dict.fromkeys(column)] for column in zip(*value))
    choosing = seeds[: len(seeds) // 2] if len(rates) > 1 else []
    reporting = seeds[len(choosing) :]
    rows = {}
    for init in inits:
        lr = choice(rates, key=lambda lr: statistics.mean(value[init, lr, seed] for seed in choosing or seeds))
        rows[init] = lr, [value[init, lr, seed] for seed in reporting]
    return rows, choosing or seeds, reporting


def spread(values, decimals):
    """Their mean, and the standard deviation of several, in print."""
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def gain(values, base, decimals):
    """In print, how far the mean of the values is from that of the `base`, and for several of each the standard error.

    A difference below twice that is none. Nothing is said of values that are not finite.
    """
    difference = statistics.mean(values) - statistics.mean(base)
    if not math.isfinite(difference):
        return ""
    if len(values) == 1:
        return f"{difference:+.{decimals}f}"
    error = math.sqrt(statistics.variance(values) / len(values) + statistics.variance(base) / len(base))
    return f"{difference:+.{decimals}f} ± {error:.{decimals}f}" + "  no difference seen" * (abs(difference) < 2 * error)


def table(runs):
    """The lines of the closing table: each init at its best rate, mean and spread over the seeds, and its gain."""
    if not any("final" in run for run in runs):
        return ["every run diverged: try a lower --lr"]
    rows, choosing, reporting = best(runs)
    title, unit, _, decimals, _ = METRICS[metric_of(next(run["final"] for run in runs if "final" in run))]
    rates = [*dict.fromkeys(run["lr"] for run in runs)]
    base, width = "default" if "default" in rows else next(iter(rows)), 2 + max(8, *map(len, rows))
    lines = [f"{'init':{width}}{'lr':10}{f'{title}, {unit}':24}against {base}"]
    for init, (lr, values) in rows.items():
        cell = spread(values, decimals) if math.isfinite(statistics.mean(values)) else \
            f"diverged, {sum(map(math.isinf, values))} of {len(values)}"
        against = gain(values, rows[base][1], decimals) if init != base else ""
        lines.append(f"{init:{width}}{lr:<10g}{cell:24}{against}".rstrip())
    lines.append("")
    if len(reporting) > 1:
        lines.append(f"mean ± standard deviation over seeds {listed(reporting)}; difference ± its standard error")
    else:
        lines.append(f"seed {reporting[0]} alone, so without a spread; --seed 0 1 2 gives one")
    if len(rates) > 1:
        lines.append(f"each lr is the best of {listed(rates)} by seed {listed(choosing)}")
    return lines


def listed(values):
    return ", ".join(f"{value:g}" for value in values)


def new_folder(out, task, data):
    """Make the folder `out`, which may be there if it is empty; else the first free of runs/vit-digits, -2, -3, ..."""
    for n in count(1):
        folder = Path(out if out is not None else f"runs/{task}-{Path(data).stem}" + f"-{n}" * (n > 1))
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            free = not set(os.listdir(folder)) - {"results.json.tmp"}       # which a start that was killed leaves
        except OSError as error:
            if folder.exists() and out is None:
                continue
            right = f"a folder that can be made and read ({error.strerror})"
            require(folder.is_file(), "out", str(folder), right)
            free = False
        require(free, "out", out, f"a new or empty folder ({to_go_on(task, folder)})")
        return folder


def to_go_on(task, folder):
    return f"to go on: {parallel.launcher()} train_{task}.py --resume {shlex.quote(str(folder))}"


def checkpoint(folder, run):
    return folder / f"{run['init']}-seed{run['seed']}-lr{run['lr']}.pt"


def results_json(results):
    return (json.dumps(results, indent=1) + "\n").encode()


def log_csv(runs):
    """The bytes of log.csv: a row an evaluation of each run."""
    rows = [{name: run[name] for name in ("init", "seed", "lr")} | point for run in runs for point in run["curve"]]
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue().encode()


def write(path, content):
    """Write the bytes `content` under a temporary name and move them into place, so that no file is ever half there.

    Raises ValueError, and leaves what stood at `path`, if that cannot be done.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())                            # on the disk before it gets its name
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
