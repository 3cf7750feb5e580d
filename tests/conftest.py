"""What all tests share: one thread, Hypothesis, an empty folder each, and --implementation."""

import pytest
import torch
from hypothesis import Phase, settings

# The matrices are small. More threads would only wait for each other.
torch.set_num_threads(1)

# No test measures time, so there is no deadline. Every run draws new examples, so there is no
# database. If a test fails, Hypothesis looks for a simpler example, but it does not trace the lines
# that ran, which would take half a minute.
settings.register_profile(
    "mimetic_min",
    deadline=None,
    database=None,
    phases=set(Phase) - {Phase.explain},
)
settings.load_profile("mimetic_min")


def pytest_addoption(parser):
    parser.addoption(
        "--implementation",
        metavar="FILE",
        help="test the code in this Python file, instead of the project's own"
        " (tests/test_method.py says what it must have)",
    )


@pytest.fixture(autouse=True)
def alone_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As if no cluster had started this process.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
