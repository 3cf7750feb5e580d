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

    In the preparation, a ValueError, an OSError and too little memory are for the user to mend:
    they are one line on stderr, with exit status 2. In the training this holds only for an OSError
    (a full disk, a damaged checkpoint) and too little memory. Every other exception is a bug and
    shows its traceback. Ctrl-C and SIGTERM stop the script with one line that says how to go on,
    and with exit status 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Under nohup, or in the background of a shell, a signal may be ignored. Keep it so.
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
            # At its end Python would do this, and show a full disk as a traceback.
            sys.stdout.flush()
        parallel.leave(0)
    except KeyboardInterrupt as error:
        end("stopped", error, 130)
    except for_the_user as error:
        line = str(error).split("\n")[0]
        if isinstance(error, TOO_LITTLE_MEMORY):
            line = (
                "too little memory; free some, or begin again with a smaller"
                " --dim, --depth or --batch-size"
            )
        end(line, error, 2)


def stop(number, frame):
    """What Ctrl-C and SIGTERM do."""
    ignore_signals()
    raise KeyboardInterrupt


def ignore_signals():
    """Ignore further signals: a second one would interrupt the line that the first one prints."""
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
    line = "; ".join([line, *getattr(error, "__notes__", [])])
    # In one piece, so that the lines of several processes do not mix.
    sys.stderr.write(f"{name}: {line}\n")
    parallel.leave(status)
    if isinstance(error, OSError) and sys.stdout is not None:
        # Send what is still buffered to nowhere. At its end Python would write it to the full or
        # closed stdout once more, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
