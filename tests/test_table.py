"""The closing table, worked out by hand."""

import re

import pytest

from mimetic_min.lab import table


def runs_of(metric, **finals):
    """Finished runs, from init={(lr, seed): value}."""
    return [
        {"init": init, "lr": lr, "seed": seed, "final": {metric: value}}
        for init, values in finals.items()
        for (lr, seed), value in values.items()
    ]


def diverged(init, lr, seed):
    return {"init": init, "lr": lr, "seed": seed, "curve": [], "diverged": 5}


def lines_of(runs):
    return table.closing_table(runs).split("\n")


def cells(line):
    """The cells of a line, which three spaces or more divide."""
    return re.split(" {3,}", line)


def test_means_spreads_and_standard_errors():
    """70, 72, 74 is 72 ± 2; 75, 75, 78 is 76 ± sqrt(3). Their difference is 4 ± sqrt(4/3 + 3/3),
    which is 4 ± 1.5. And 71, 73, 75 lies 1 ± sqrt(4/3 + 4/3) above the first, which may be chance.
    """
    by_seed = {
        "default": (0.70, 0.72, 0.74),
        "noise": (0.71, 0.73, 0.75),
        "mimetic": (0.75, 0.75, 0.78),
    }
    finals = {
        init: {(1e-3, seed): value for seed, value in enumerate(values)}
        for init, values in by_seed.items()
    }
    lines = lines_of(runs_of("accuracy", **finals))
    assert [cells(line) for line in lines] == [
        ["start", "lr", "accuracy, %", "against default", "against noise"],
        ["default", "0.001", "72.0 ± 2.0", "-1.0 ± 1.6, no difference seen"],
        ["noise", "0.001", "73.0 ± 2.0", "+1.0 ± 1.6, no difference seen"],
        ["mimetic", "0.001", "76.0 ± 1.7", "+4.0 ± 1.5", "+3.0 ± 1.5, no difference seen"],
        [""],
        ["Mean ± standard deviation over the seeds 0, 1, 2."],
        ["Each difference of two means ± its standard error."],
    ]
    # A start is not compared with itself, and the cells stand under their headings.
    assert lines[1].index("-1.0") == lines[0].index("against noise")
    assert lines[2].index("+1.0") == lines[0].index("against default")


@pytest.mark.parametrize(
    "difference, seen", [(0.032, False), (0.033, True), (-0.032, False), (-0.033, True)]
)
def test_a_difference_is_seen_from_twice_its_standard_error(difference, seen):
    """Three seeds with a deviation of 2 on both sides: twice sqrt(4/3 + 4/3) is 3.27."""
    default = {(0.1, seed): value for seed, value in enumerate((0.70, 0.72, 0.74))}
    other = {key: value + difference for key, value in default.items()}
    line = lines_of(runs_of("accuracy", default=default, mimetic=other))[2]
    assert line.endswith("no difference seen") != seen


def test_a_rate_is_chosen_on_other_seeds_than_those_that_are_reported():
    """The smallest loss is the best: seed 0 chooses 0.1 for a and 0.2 for b, though the seeds 1 and
    2, which are reported, would have chosen otherwise.
    """
    a = {(0.1, 0): 1.0, (0.2, 0): 2.0, (0.1, 1): 3.0, (0.2, 1): 0.0, (0.1, 2): 5.0, (0.2, 2): 0.0}
    b = {(0.1, 0): 2.0, (0.2, 0): 1.0, (0.1, 1): 0.0, (0.2, 1): 1.0, (0.1, 2): 0.0, (0.2, 2): 1.0}
    lines = lines_of(runs_of("loss", a=a, b=b))
    assert cells(lines[0])[2] == "validation loss, nats per byte"
    assert lines[1].split() == "a 0.1 4.000 ± 1.414".split()
    assert lines[2].split() == "b 0.2 1.000 ± 0.000 -3.000 ± 1.000".split()
    assert lines[-1] == "Each lr is the best of 0.1, 0.2, chosen on the seeds 0."
    assert "Mean ± standard deviation over the seeds 1, 2." in lines


def test_half_of_the_seeds_choose_the_rate_with_the_highest_accuracy():
    """Of four seeds, 0 and 1 choose 0.1 with a mean of 0.6, against 0.5. The seeds 2 and 3 have 0.4
    and 0.2 there. The best single result, 1.0, counts for nothing.
    """
    finals = {
        **{(0.1, 0): 0.9, (0.1, 1): 0.3, (0.1, 2): 0.4, (0.1, 3): 0.2},
        **{(0.2, 0): 0.0, (0.2, 1): 1.0, (0.2, 2): 0.8, (0.2, 3): 0.9},
    }
    lines = lines_of(runs_of("accuracy", default=finals))
    assert lines[1].split() == "default 0.1 30.0 ± 14.1".split()
    assert lines[-1] == "Each lr is the best of 0.1, 0.2, chosen on the seeds 0, 1."
    assert "Mean ± standard deviation over the seeds 2, 3." in lines


def test_with_one_rate_all_seeds_are_reported():
    finals = {(0.1, seed): 0.5 for seed in range(4)}
    lines = lines_of(runs_of("accuracy", default=finals))
    assert "Mean ± standard deviation over the seeds 0, 1, 2, 3." in lines
    assert "Each lr is" not in "".join(lines)


def test_one_seed_claims_no_spread():
    runs = runs_of("loss", default={(0.1, 7): 2.0}, mimetic={(0.1, 7): 1.5})
    lines = lines_of(runs)
    assert lines[2].split() == "mimetic 0.1 1.500 -0.500".split()
    assert lines[-1] == "One seed, 7, so there is no spread. --seed 0 1 2 gives one."
    assert "±" not in "".join(lines)


def test_two_seeds_and_two_rates_report_one_seed_without_a_spread():
    finals = {(0.1, 0): 0.5, (0.2, 0): 0.4, (0.1, 1): 0.6, (0.2, 1): 0.7}
    lines = lines_of(runs_of("accuracy", default=finals))
    assert lines[1].split() == "default 0.1 60.0".split()
    assert lines[-2] == "One seed, 1, so there is no spread. --seed 0 1 2 gives one."
    assert lines[-1] == "Each lr is the best of 0.1, 0.2, chosen on the seeds 0."


def test_a_rate_at_which_a_run_diverged_is_the_last_choice():
    """At 0.2, seed 0 of default diverged, so 0.1 is chosen, though 0.2 is better on seed 1."""
    default = {(0.1, 0): 2.0, (0.1, 1): 2.5, (0.2, 1): 1.0}
    runs = [*runs_of("loss", default=default), diverged("default", 0.2, 0)]
    assert lines_of(runs)[1].split() == "default 0.1 2.500".split()


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_start_that_diverged_says_so_and_has_no_mean(metric):
    """In one of two reported seeds. Nothing is compared with it."""
    default = {(0.1, 0): 0.5, (0.1, 1): 0.5}
    runs = [
        *runs_of(metric, default=default, mimetic={(0.1, 0): 0.4}),
        diverged("mimetic", 0.1, 1),
    ]
    lines = lines_of(runs)
    assert lines[1].startswith("default")
    assert lines[2].split() == "mimetic 0.1 diverged, 1 of 2".split()


def test_a_start_that_diverged_everywhere_leaves_the_others_in_the_table():
    runs = [diverged("default", 0.1, 0), *runs_of("accuracy", mimetic={(0.1, 0): 0.5})]
    lines = lines_of(runs)
    assert lines[1].split() == "default 0.1 diverged, 1 of 1".split()
    assert lines[2].split() == "mimetic 0.1 50.0".split()
    assert table.closing_table(runs[:1]) == "Every run diverged. Try a lower --lr."


def test_starts_are_compared_with_default_wherever_it_stands():
    """And without it, with the first."""
    finals = {"mimetic": {(0.1, 0): 0.9}, "default": {(0.1, 0): 0.8}, "off": {(0.1, 0): 0.5}}
    lines = lines_of(runs_of("accuracy", **finals))
    assert lines[0].split() == "start lr accuracy, % against default".split()
    assert [line.split() for line in lines[1:4]] == [
        "mimetic 0.1 90.0 +10.0".split(),
        "default 0.1 80.0".split(),
        "off 0.1 50.0 -30.0".split(),
    ]
    del finals["default"]
    lines = lines_of(runs_of("accuracy", **finals))
    assert lines[0].endswith("against mimetic")


def test_an_evaluation_in_a_few_words():
    assert table.describe({"step": 1, "accuracy": 0.9214}) == "accuracy 92.1 %"
    assert table.describe({"bpc": 2.0, "loss": 1.3863}) == "validation loss 1.386 nats per byte"
