"""The options that both training scripts have, each checked before anything is trained.

Whatever is wrong with one raises ValueError: `name is value: it must be ...`. From the command line, `script` turns
that into one line on stderr and exit status 2.
"""
import argparse
import inspect
import json
import math
import os
import re
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch

from . import parallel
from .report import in_place
from .vit import require

INITS = ("default", "xavier", "noise", "simple", "mimetic")


class Parser(argparse.ArgumentParser):
    """argparse that raises ValueError with one line, where the original prints its usage and exits."""

    def error(self, message):
        raise ValueError(re.sub(r"^argument --(\S+): (?=is )", lambda match: match[1].replace("-", "_") + " ", message))


def option(kind, ok, right):
    """An argparse type: the text as a `kind` that is `ok`, else a message that says what would be `right`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not ok(value):
            raise argparse.ArgumentTypeError(f"is {text!r}: it must be {right}")
        return value
    return parse


def torch_has(device):
    try:
        return re.fullmatch(r"cpu|(cuda|mps)(:\d+)?", device) and torch.ones(1, device=device).item() == 1
    except (RuntimeError, AssertionError):        # no such device; a torch built without it
        return False


def strength(text):
    """An argparse type: None for "off", else a number, whose range the initialiser checks."""
    return None if text == "off" else option(float, lambda x: True, "a number, or off")(text)


COUNT = option(int, lambda n: 1 <= n < 2**31, "a whole number from 1")
SEED = option(int, lambda n: 0 <= n < 2**63, "a whole number from 0")
RATE = option(float, lambda x: 0 < x < math.inf, "a number above 0")
INIT = option(str, INITS.__contains__, "one of " + ", ".join(INITS))
AUGMENT = option(str, ("none", "crop", "crop+flip").__contains__, "none, crop or crop+flip")
DEVICE = option(str, torch_has, "cpu, or a cuda or mps that torch finds here")


def parser(description, model, config, lr, batch_size):
    """A parser with the options of both scripts.

    The defaults of the shape are those of the `config`, those of the strengths those of the `model` class.
    """
    p = Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--init", nargs="+", type=INIT, default=["default", "noise", "mimetic"], help=", ".join(INITS))
    p.add_argument("--seed", nargs="+", type=SEED, default=[0], help="one or more")
    p.add_argument("--lr", nargs="+", type=RATE, default=[lr], help="peak learning rate, one or more")
    p.add_argument("--batch-size", type=COUNT, default=batch_size, help="examples a step")
    for name in ("dim", "depth", "heads"):
        p.add_argument(f"--{name}", type=COUNT, default=getattr(config, name), help="of the model")
    p.add_argument("--position", default=config.position, help="sincos or learned")
    for name, parameter in inspect.signature(model.mimetic_init_).parameters.items():
        if name.endswith(("_alpha", "_beta")):
            p.add_argument("--" + name.replace("_", "-"), type=strength, default=parameter.default,
                           help="strength, see mimetic_init_; off leaves that product at the default")
    p.add_argument("--device", type=DEVICE, default="cuda" if torch.cuda.is_available() else "cpu", help="of torch")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--plot", action="store_true", help="draw pictures into the folder of the run (needs matplotlib)")
    p.add_argument("--out", help="a new or empty folder for the results; without it a fresh one in runs/")
    p.add_argument("--resume", metavar="DIR", help="go on with the runs in DIR, with the options they started with")
    return p


def parse(p, argv, task):
    """The options in `argv`; with --resume, those that its folder was started with, and its results.json in `started`.

    Those go through the same checks again, and have to come out as they are in the file.
    """
    parallel.join()
    options = p.parse_args(argv)
    options.started = None
    if options.resume is not None:
        others = [word for word in (sys.argv[1:] if argv is None else argv) if re.match("--(?!resume)", word)]
        right = f"the only option, without {' '.join(others)}: the runs keep theirs"
        require(not others, "resume", options.resume, right)
        right = f"a folder with the results.json that train_{task}.py wrote"
        try:
            results = json.loads(Path(options.resume, "results.json").read_text())
            again = p.parse_args(words(results["config"], vars(p.parse_args([])))) if results["task"] == task else None
            same = again is not None and config(again) == results["config"]
        except OSError as error:
            require(False, "resume", options.resume, f"{right}, which cannot be read ({error.strerror})")
        except ValueError as error:
            require(False, "resume", options.resume, f"{right}; in this one {error}")
        except (KeyError, TypeError, AttributeError, RecursionError):
            same = False
        require(same, "resume", options.resume, right)
        again.resume, again.started = options.resume, results
        options = again
    parallel.check(options)
    return options


def config(options):
    """What results.json holds of the options: all but the folder."""
    return {name: value for name, value in vars(options).items() if name not in ("out", "resume", "started")}


def words(config, defaults):
    """The command line that `config` came from."""
    for name, value in config.items():
        if value == defaults[name]:
            continue
        option = "--" + name.replace("_", "-")
        if value is True:
            yield option
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        else:
            yield f"{option}={'off' if value is None else value}"


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_once(number, frame):
    """What a script does at a signal. Those after the first would come amid its last line."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def signals_deferred():
    """Inside, SIGINT and SIGTERM, unless they are ignored, only fill the list that it yields.

    One of several processes ends at once, for the others would wait for it: the last evaluation's checkpoint stays.
    """
    came = []
    if parallel.count() > 1:
        yield came
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and handler is stop_once else handler)


def script(main, p):
    """Run the `main` of a script. What a user can mend ends in one line that names it and in exit status 2.

    SIGINT and SIGTERM end it in a line that says how to go on, and in status 130.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:                 # as a shell has it in the background
            signal.signal(number, stop_once)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")                           # for what it cannot encode, as in a sample
    try:
        main()
        parallel.leave()
    except (ValueError, RuntimeError, MemoryError, OSError, KeyboardInterrupt) as error:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)                          # a second one would come amid the last line
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        line = str(error).split("\n")[0] or "stopped"
        if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and "memory" in line:
            line = f"out of memory, try a smaller --dim, --depth or --batch-size ({line})"
        elif parallel.is_lost(error):
            line = "stopped, for another process of the job has ended"
        elif type(error).__module__ in ("torch._dynamo.exc", "torch._inductor.exc"):
            line = f"torch cannot compile here, leave out --compile ({line})"
        elif isinstance(error, RuntimeError) or (
                isinstance(error, ValueError) and frame.f_code.co_name not in ("require", "error", "write")):
            raise                                                          # a bug, and not the user's
        name = line.split(" is ")[0]
        option = "--" + name.replace("_", "-")
        if f"[{option} " in p.format_usage() or f"[{option}]" in p.format_usage():
            line = line.replace(name, option, 1)
        in_place("", done=False)                                           # clears the line of progress
        who = f"{p.prog}, process {parallel.rank()}:" if parallel.count() > 1 else f"{p.prog}:"
        print(who, "; ".join([line, *getattr(error, "__notes__", [])]), file=sys.stderr)
        if isinstance(error, OSError):                                     # or Python tries to write to stdout again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 2)
