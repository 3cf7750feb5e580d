"""Makes the project importable from any folder, and sets one hypothesis profile for the whole suite."""
import sys
from pathlib import Path

from hypothesis import Phase, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# No deadline: tests do not measure time. No database and no shrinking: the examples are a few small numbers, and
# test_teeth.py makes the properties fail on purpose.
phases = (Phase.explicit, Phase.generate)
settings.register_profile("suite", deadline=None, database=None, phases=phases, report_multiple_bugs=False)
settings.load_profile("suite")
