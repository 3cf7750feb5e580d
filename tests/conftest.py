"""Makes the project importable from any folder, has each test start in an empty one, and sets a hypothesis profile."""
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# No deadline: tests do not measure time. No database and no shrinking: the examples are a few small numbers, and
# test_teeth.py makes the properties fail on purpose.
phases = (Phase.explicit, Phase.generate)
settings.register_profile("suite", deadline=None, database=None, phases=phases, report_multiple_bugs=False)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
