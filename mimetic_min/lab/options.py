"""The options that both training scripts have, each checked before anything is trained."""

import argparse
import inspect
import json
import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch

from . import figures, parallel

# These belong to the machine, not to the experiment: they can be chosen again with --resume.
MACHINE = ("device", "compile", "plot")
# These are not part of the experiment either.
FOLDERS = ("out", "resume")

# What --help says of the strengths of the mimetic start.
STRENGTHS = {
    "qk_alpha": "random part of query-key",
    "qk_beta": "diagonal of query-key (0 in noise)",
    "vp_alpha": "random part of value-projection",
    "vp_beta": "diagonal of value-projection (0 in noise)",
    "vp_last_beta": "--vp-beta of the last layer (linear in between)",
}


class Parser(argparse.ArgumentParser):
    """argparse that raises ValueError with one sentence instead of printing its usage."""

    def error(self, message):
        message = message.removeprefix("argument ")
        message = re.sub(r"^(--\S+): must", r"\1 must", message)
        raise ValueError(message)


# ---------------------------------------------------------------------------------------------
# Types of options


def option_type(convert, is_valid, allowed):
    """An argparse type: it converts the text, and refuses a value that is not valid.

    Its error says what is `allowed`.
    """

    def parse_option(text):
        with suppress(ValueError):
            value = convert(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {allowed}, but it is {text.strip()!r}")

    return parse_option


def one_of(names):
    return option_type(str, lambda name: name in names, "one of " + ", ".join(names))


def torch_has(device):
    """Whether torch can compute on a device of this name here."""
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:  # What is raised depends on the device.
        return False


def can_compile():
    """Whether torch.compile works here, tried on one small function."""
    try:
        return torch.compile(lambda x: x + 1)(torch.ones(1)).item() == 2
    except Exception:  # What is raised depends on the compiler and the backend.
        return False


whole_number = option_type(int, lambda n: 1 <= n < 2**31, "a whole number above 0")
seed = option_type(int, lambda n: 0 <= n < 2**63, "a whole number from 0")
alpha = option_type(float, lambda x: 0 <= x <= 1, "between 0 and 1")
beta = option_type(float, lambda x: -1 <= x <= 1, "between -1 and 1")
positive_number = option_type(float, lambda x: 0 < x < math.inf, "a number above 0")
device = option_type(str, torch_has, "cpu, or a cuda or mps device that torch finds here")


# ---------------------------------------------------------------------------------------------
# The parser


def shared_parser(description, inits, default_inits, config, mimetic_init_, lr, batch_size):
    """A parser with the options that both scripts have, and the function that adds one more.

    `inits` maps the name of each start to its description. The defaults of the shape are those of
    the class `config`, and the defaults of the strengths are those of the method `mimetic_init_`.
    """
    starts = "\n".join(f"  {name:18} {meaning}" for name, meaning in inits.items())
    parser = Parser(
        description=description,
        epilog="starts:\n" + starts,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name, help, default=None, **more):
        if default is not None:
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            help = f"{help} (default: {shown})"
        parser.add_argument(name, help=help, default=default, **more)

    add("--init", "the starts to compare, see below", default_inits, nargs="+", type=one_of(inits))
    add("--seed", "one or more", [0], nargs="+", type=seed)
    add("--lr", "peak learning rate, one or more", [lr], nargs="+", type=positive_number)
    add("--batch-size", "examples per step", batch_size, type=whole_number)
    shape = {field.name: field.default for field in fields(config)}
    for name in ("dim", "depth", "heads"):
        add(f"--{name}", "shape of the model", shape[name], type=whole_number)
    add("--position", "sincos or learned", shape["position"], type=one_of(["sincos", "learned"]))
    # --qk-alpha, --qk-beta and so on, with the defaults of the model.
    for name, parameter in inspect.signature(mimetic_init_).parameters.items():
        option = "--" + name.replace("_", "-")
        if name.endswith(("_alpha", "_beta")):
            kind = alpha if name.endswith("_alpha") else beta
            add(option, STRENGTHS[name], parameter.default, type=kind)
    best_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", "where torch computes", best_device, type=device)
    parser.add_argument(
        "--compile", action="store_true", help="compile the model with torch.compile"
    )
    parser.add_argument(
        "--plot", action="store_true", help="draw pictures into the run folder (needs matplotlib)"
    )
    add("--out", "a new or empty folder for the results (without it: a new one in runs/)")
    add("--resume", "go on in this run folder, with the options it was started with", metavar="DIR")
    return parser, add


def parse(parser, argv, task):
    """The options in the words `argv`, by default those of the command line.

    With --resume they are the options that the folder was started with. They pass through the same
    checks again. Raises ValueError, with one sentence, for a mistake.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    for option in given:
        if given.count(option) > 1:
            raise ValueError(f"{option} was given twice; give it once, with all its values")
    args = _parse_words(parser, words)
    if args.resume is not None:
        free = ["--resume", *("--" + name for name in MACHINE)]
        fixed = [option for option in given if option not in free]
        if fixed:
            raise ValueError(
                f"--resume keeps the options of its folder; leave out {', '.join(fixed)}"
            )
        stored = _stored_options(parser, Path(args.resume), task)
        for name in (*MACHINE, *FOLDERS):
            setattr(stored, name, getattr(args, name))
        args = stored
    if args.plot:
        figures.check()
    if args.compile and not can_compile():
        raise ValueError(
            "--compile does not work here: torch.compile finds no compiler that it can use"
        )
    parallel.check(args.batch_size, args.device)
    return args


def _parse_words(parser, words):
    # argparse takes -4e-1 for an option. With a space before it, it is a value.
    protected = []
    for word in words:
        try:
            float(word)
            is_negative = word.startswith("-")
        except ValueError:
            is_negative = False
        protected.append(" " + word if is_negative else word)
    return parser.parse_args(protected)


def experiment(args):
    """What results.json keeps of the options: all that the results depend on."""
    return {name: value for name, value in vars(args).items() if name not in (*MACHINE, *FOLDERS)}


def _stored_options(parser, folder, task):
    """The options in a folder's results.json."""
    not_ours = (
        f"--resume cannot use {folder}/results.json: its options are not those of this script"
    )
    try:
        results = json.loads((folder / "results.json").read_text())
        config = results["config"]
        if results["task"] != task:
            raise ValueError(
                f"--resume must name a folder of train_{task}.py, but {folder} is another script's"
            )
        # Check this before parsing: an unknown option, such as --help, would do something.
        if config.keys() != experiment(parser.parse_args([])).keys():
            raise ValueError(not_ours)
        words = []
        for name, value in config.items():
            option = "--" + name.replace("_", "-")
            if isinstance(value, list):
                words += [option, *map(str, value)]
            elif value is not None:
                words.append(f"{option}={value}")
        args = _parse_words(parser, words)
    except OSError as error:
        raise ValueError(
            f"--resume finds no results.json in {folder} ({error.strerror})"
        ) from error
    except (
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"--resume cannot read {folder}/results.json: it is damaged") from error
    if experiment(args) != config:
        raise ValueError(not_ours)
    return args


# ---------------------------------------------------------------------------------------------
# Memory


def check_memory(config, tokens, device):
    """Raise ValueError for a model that needs more memory than there is. The estimate is rough.

    `config` is the shape of the model, and `tokens` the number of tokens in a batch.
    """
    # Four matrices in the attention of each block, and the size of eight in its MLP.
    parameters = 12 * config.depth * config.dim**2
    # In numbers of 4 bytes: 4 per parameter (itself, its gradient and AdamW's two moments), and
    # 12 per token, dim and block for the backward pass.
    tokens_here = tokens / parallel.count()
    needed = 4 * (4 * parameters + 12 * tokens_here * config.dim * config.depth)
    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if needed > memory:
        raise ValueError(
            f"this model needs about {needed / 1e9:,.0f} GB of memory, but {device} has"
            f" {memory / 1e9:,.0f} GB; choose a smaller --dim, --depth or --batch-size"
        )
