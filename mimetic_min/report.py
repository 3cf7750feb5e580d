"""What the two training scripts print: a line of progress, and the table that ends a grid of runs."""
import math
import shutil
import statistics
import sys
import time

METRICS = {                      # what runs are compared by: title, unit, factor and decimals in print, which is best
    "accuracy": ("accuracy", "%", 100, 1, max),
    "loss": ("validation loss", "nats", 1, 3, min),
}


def metric_of(values):
    """The one of METRICS that is among `values`."""
    return next(name for name in METRICS if name in values)


class Progress:
    """A line that says how far it is: in place on a terminal, else a new one at each evaluation."""

    def __init__(self):
        self.start, self.steps, self.shown = time.perf_counter(), 0, 0.0

    def show(self, run, step, loss, evaluated, later):
        """Call it after every step. `later` is the number of steps in the runs after this one."""
        self.steps += 1
        now, terminal = time.perf_counter(), sys.stdout.isatty()
        if not evaluated and not (terminal and now - self.shown > 0.1):
            return
        self.shown = now
        line = f"{run['init']:8} seed {run['seed']}  lr {run['lr']:g}  step {step:,}/{run['steps']:,}"
        line += f"  train {loss.item():.3f}"
        if run["curve"]:
            metric = metric_of(run["curve"][-1])
            _, _, factor, decimals, _ = METRICS[metric]
            line += f"  {metric} {factor * run['curve'][-1][metric]:.{decimals}f}"
        line += f"  {(now - self.start) / self.steps * (run['steps'] - step + later):.0f} s left"
        if terminal:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        print(line, end="" if terminal and step < run["steps"] else "\n", flush=True)


def table(runs):
    """The lines of the closing table: each init at its best rate, mean and spread over the seeds, and its gain.

    Where there are several rates, the first half of the seeds chooses one and only the others are reported; a single
    seed has to do both.
    """
    metric = metric_of(runs[0]["final"])
    title, unit, factor, decimals, best = METRICS[metric]
    value = {(run["init"], run["lr"], run["seed"]): factor * run["final"][metric] for run in runs}
    inits, rates, seeds = ([*dict.fromkeys(column)] for column in zip(*value))
    choosing = seeds[: len(seeds) // 2] if len(rates) > 1 else []
    reporting = seeds[len(choosing) :]
    rows = {}
    for init in inits:
        lr = best(rates, key=lambda lr: statistics.mean(value[init, lr, seed] for seed in choosing or seeds))
        rows[init] = lr, [value[init, lr, seed] for seed in reporting]

    base = "default" if "default" in rows else inits[0]
    lines = [f"{'init':10}{'lr':10}{f'{title}, {unit}':24}against {base}"]
    for init, (lr, values) in rows.items():
        mean, difference = statistics.mean(values), statistics.mean(values) - statistics.mean(rows[base][1])
        cell, against = f"{mean:.{decimals}f}", f"{difference:+.{decimals}f}"
        if len(values) > 1:
            error = math.sqrt((statistics.variance(values) + statistics.variance(rows[base][1])) / len(values))
            cell += f" ± {statistics.stdev(values):.{decimals}f}"
            against += f" ± {error:.{decimals}f}" + ("  no difference seen" if abs(difference) < 2 * error else "")
        lines.append(f"{init:10}{lr:<10g}{cell:24}{against if init != base else ''}".rstrip())
    lines.append("")
    if len(reporting) > 1:
        lines.append(f"mean ± standard deviation over seeds {listed(reporting)}; difference ± its standard error")
    else:
        lines.append(f"seed {reporting[0]} alone, so without a spread; --seed 0 1 2 gives one")
    if len(rates) > 1:
        lines.append(f"each lr is the best of {listed(rates)} by seed {listed(choosing or seeds)}")
    return lines


def listed(values):
    return ", ".join(f"{value:g}" for value in values)
