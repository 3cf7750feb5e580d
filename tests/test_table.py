"""The closing table, with figures that can be checked by hand."""

import math
import re

import pytest

from mimetic_min import table
from mimetic_min.runs import Run


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
    rows = {
        Run(init, seed, lr): [{"step": 5, metric: 9.0}, {"step": 10, metric: value}]
        for (init, lr), values in results.items()
        for seed, value in enumerate(values)
    }
    lines = table.table(rows, metric).splitlines()[1 : len(results) + 1]
    # What would compare an init with itself is empty.
    assert [re.sub(" {3,}", "|", line) for line in lines] == expected.split("\n" + 12 * " ")


def test_one_seed_is_told_how_to_get_a_spread():
    rows = {Run("mimetic", seed, 0.1): [{"step": 1, "loss": 2.0}] for seed in (0, 1)}
    assert "±" in table.table(rows, "loss")
    del rows[Run("mimetic", 1, 0.1)]
    assert "--seed 0 1 2" in table.table(rows, "loss")
