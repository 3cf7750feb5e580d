"""The line of progress: in place on a terminal, else a new line now and then."""

import shutil
import sys
import time

_shown = 0.0  # when a line was last shown


def on_terminal():
    """Whether a person is watching."""
    return sys.stdout is not None and sys.stdout.isatty()


def due():
    """Whether a person at a terminal should see something new: twice a second."""
    return on_terminal() and time.monotonic() - _shown > 0.5


def show(line, done):
    """Print a line of progress.

    On a terminal each line replaces the one before it, until one is `done`. Anywhere else, as in a
    file, only the lines that are `done` are printed.
    """
    global _shown
    _shown = time.monotonic()
    if on_terminal():
        width = shutil.get_terminal_size().columns - 1
        clear = "\r\x1b[K"
        print(clear + line[:width], end="\n" if done else "", flush=True)
    elif done:
        print(line, flush=True)


def clear():
    """Remove a line that was shown in place."""
    show("", done=False)
