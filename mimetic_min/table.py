"""The table that compares runs: means, spreads, and differences seed by seed."""

import math
import statistics

# How a result is shown: 67.7%, or 1.234 nats per byte. And its columns in the final table, each a
# multiple of the result.
STYLE = {"accuracy": ".1%", "loss": ".3f"}
SHOWN = {
    "accuracy": {"accuracy": 1},
    "loss": {"nats per byte": 1, "bits per byte": 1 / math.log(2)},
}


def is_finite(row):
    """Whether the loss and the result in a row are finite."""
    return all(map(math.isfinite, row.values()))


def table(rows, metric):
    """The final table, as text: a line for each init and rate.

    `rows` are {Run: its rows}, with the same seeds for each init and rate. `metric` is "accuracy"
    or "loss". Only the last row of a run counts.
    """
    results = {}  # (init, lr) -> one result per seed, NaN for a run that diverged
    for run, (*_, row) in rows.items():
        result = row[metric] if is_finite(row) else math.nan
        results.setdefault((run.init, run.lr), []).append(result)
    lines = [["init", "lr", *SHOWN[metric], "minus default", "mimetic minus this"]]
    for (init, lr), values in results.items():
        lines.append(
            [
                init,
                f"{lr:g}",
                *(
                    spread([factor * value for value in values], STYLE[metric])
                    for factor in SHOWN[metric].values()
                ),
                difference(values, results.get(("default", lr), values), metric),
                difference(results.get(("mimetic", lr), values), values, metric),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["   ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    note = (
        "One seed shows no spread; train several: --seed 0 1 2"
        if len(values) == 1
        else "Mean ± standard deviation over the seeds. Differences are paired by seed at the same "
        "rate:\nmean ± standard error (number of seeds on which the first of the two is ahead)."
    )
    return "\n".join([*text, "", note])


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
    `values` is ahead. Empty if `base` is `values` itself, or if a run diverged.

    Runs with one seed share their batches and the weights outside attention, so each difference
    is taken within a seed.
    """
    differences = [value - other for value, other in zip(values, base)]
    if values is base or any(map(math.isnan, differences)):
        return ""
    ahead = sum(d > 0 if metric == "accuracy" else d < 0 for d in differences)
    text = spread(differences, "+" + STYLE[metric], divisor=math.sqrt(len(differences)))
    return f"{text} ({ahead} of {len(differences)})"
