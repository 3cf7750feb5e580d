"""The closing table of a grid: each start at its best learning rate, mean and spread, and the gain
over another.

A learning rate that was chosen by its results looks better than it is. So where there are several
rates and several seeds, the first half of the seeds chooses the rate, and the table shows the other
half.
"""

import math
import statistics
from dataclasses import dataclass


@dataclass
class Metric:
    """How a result is printed: factor * value, with so many decimals, and its unit."""

    title: str
    unit: str
    factor: float
    decimals: int
    higher_is_better: bool


METRICS = {
    "accuracy": Metric("accuracy", "%", 100, 1, True),
    "loss": Metric("validation loss", "nats per byte", 1, 3, False),
}


def metric_of(values):
    """The name of the metric among the keys of `values`."""
    for name in METRICS:
        if name in values:
            return name
    raise KeyError(f"none of {', '.join(METRICS)} is in {list(values)}")


def metric_of_runs(runs):
    """The name of the metric of entries of results.json, at least one of which has finished."""
    return metric_of(next(run["final"] for run in runs if "final" in run))


def describe(point):
    """An evaluation in a few words: "accuracy 92.1 %"."""
    name = metric_of(point)
    metric = METRICS[name]
    return f"{metric.title} {metric.factor * point[name]:.{metric.decimals}f} {metric.unit}"


@dataclass
class Best:
    """A start at its best learning rate, and its results there, one per reported seed, in the
    metric's unit.
    """

    lr: float
    values: list


def best_of(runs):
    """Returns {init: Best}, the seeds that chose the rates, and the seeds that are reported.

    `runs` are the entries of results.json. A run that diverged counts as infinitely bad.
    """
    metric_name = metric_of_runs(runs)
    metric = METRICS[metric_name]
    worst = -math.inf if metric.higher_is_better else math.inf
    value = {}  # (init, lr, seed) -> result
    for run in runs:
        result = metric.factor * run["final"][metric_name] if "final" in run else worst
        value[run["init"], run["lr"], run["seed"]] = result
    inits = list(dict.fromkeys(run["init"] for run in runs))
    rates = list(dict.fromkeys(run["lr"] for run in runs))
    seeds = list(dict.fromkeys(run["seed"] for run in runs))

    half = len(seeds) // 2 if len(rates) > 1 else 0
    choosing = seeds[:half] or seeds
    reported = seeds[half:]
    choose = max if metric.higher_is_better else min
    best = {}  # init -> Best
    for init in inits:
        means = {}
        for lr in rates:
            means[lr] = statistics.mean(value[init, lr, seed] for seed in choosing)
        lr = choose(means, key=means.get)
        best[init] = Best(lr, [value[init, lr, seed] for seed in reported])
    return best, choosing, reported


def spread(values, decimals):
    """Mean ± standard deviation. One value has no deviation."""
    if not all(map(math.isfinite, values)):
        diverged = sum(not math.isfinite(value) for value in values)
        return f"diverged, {diverged} of {len(values)}"
    mean = f"{statistics.mean(values):.{decimals}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def gain(values, base, decimals, unclear="{}, no difference seen"):
    """How far the mean of `values` is from that of `base`, ± the standard error of this difference.

    A difference below twice its standard error is written as `unclear` says. The standard error is
    that of independent results. Runs of one seed share their batches, so it is too large, if
    anything.
    """
    if not all(map(math.isfinite, [*values, *base])):
        return ""
    difference = statistics.mean(values) - statistics.mean(base)
    if len(values) == 1:
        return f"{difference:+.{decimals}f}"
    error = math.sqrt(
        statistics.variance(values) / len(values) + statistics.variance(base) / len(base)
    )
    text = f"{difference:+.{decimals}f} ± {error:.{decimals}f}"
    if abs(difference) < 2 * error:
        text = unclear.format(text)
    return text


def closing_table(runs):
    """The text of the table, for the entries of results.json."""
    if not any("final" in run for run in runs):
        return "Every run diverged. Try a lower --lr."
    best, choosing, reported = best_of(runs)
    metric = METRICS[metric_of_runs(runs)]
    base = "default" if "default" in best else next(iter(best))
    control = "noise" if "noise" in best and base != "noise" else None

    header = ["start", "lr", f"{metric.title}, {metric.unit}", f"against {base}"]
    if control:
        header.append(f"against {control}")
    rows = [header]
    for init, of_init in best.items():
        row = [init, f"{of_init.lr:g}", spread(of_init.values, metric.decimals)]
        for other in [base, control] if control else [base]:
            is_same = init == other
            row.append("" if is_same else gain(of_init.values, best[other].values, metric.decimals))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("   ".join(cells).rstrip())

    lines.append("")
    if len(reported) > 1:
        lines.append(f"Mean ± standard deviation over the seeds {listed(reported)}.")
        lines.append("Each difference of two means ± its standard error.")
    else:
        lines.append(f"One seed, {reported[0]}, so there is no spread. --seed 0 1 2 gives one.")
    rates = list(dict.fromkeys(run["lr"] for run in runs))
    if len(rates) > 1:
        lines.append(
            f"Each lr is the best of {listed(rates)}, chosen on the seeds {listed(choosing)}."
        )
    return "\n".join(lines)


def listed(values):
    return ", ".join(f"{value:g}" for value in values)
