"""Makes the project importable from any folder, and sets one hypothesis profile for the whole suite."""
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# No deadline: tests do not measure time. No database: test_teeth.py runs the properties on code that is wrong.
settings.register_profile("suite", deadline=None, database=None, max_examples=40)
settings.load_profile("suite")
