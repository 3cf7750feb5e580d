"""How a training script begins and ends: what the user sees of a mistake, a stop and a bug."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch

from . import parallel, progress

TOO_LITTLE_MEMORY = (MemoryError, torch.OutOfMemoryError)


def run(prepare, train_grid):
    """Run a training script: first prepared = prepare(), then train_grid(*prepared).

    What goes wrong in the preparation is for the user to mend. It is one line on stderr, with exit
    status 2. During the training this holds only for a full disk, a damaged checkpoint (an OSError,
    too) and too little memory. Every other exception is a bug and shows its traceback. Ctrl-C and
    SIGTERM stop the script with one line that says how to go on, and with exit status 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell may have started the script in the background, deaf to Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    if sys.stdout is not None:
        # A sample of a text may hold what the terminal cannot show.
        sys.stdout.reconfigure(errors="replace")
    for_the_user = (ValueError, OSError, *TOO_LITTLE_MEMORY)
    try:
        prepared = prepare()
        for_the_user = (OSError, *TOO_LITTLE_MEMORY)
        train_grid(*prepared)
        if sys.stdout is not None:
            # Python would do this at its end, where a full disk is a traceback.
            sys.stdout.flush()
        parallel.leave()
    except KeyboardInterrupt as error:
        end("stopped", error, 130)
    except for_the_user as error:
        line = str(error).split("\n")[0]
        if isinstance(error, TOO_LITTLE_MEMORY):
            line = "too little memory; choose a smaller --dim, --depth or --batch-size"
        end(line, error, 2)


def stop(number, frame):
    """What Ctrl-C and SIGTERM do."""
    ignore_signals()
    raise KeyboardInterrupt


def ignore_signals():
    """A second signal would interrupt the line that the first one gets."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def end(line, error, status):
    """Print a line with the notes of the error, such as how to go on, and exit."""
    ignore_signals()
    with suppress(OSError):
        progress.clear()
    name = Path(sys.argv[0]).name
    if parallel.count() > 1:
        name += f", process {parallel.rank()}"
    print(f"{name}: " + "; ".join([line, *getattr(error, "__notes__", [])]), file=sys.stderr)
    if isinstance(error, OSError) and sys.stdout is not None:
        # Python would write the rest to a full or closed stdout once more, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
