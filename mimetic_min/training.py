"""What the two training scripts share: one run, the grid of runs, and what that leaves behind.

A run folder holds results.json (the finished runs), log.csv (a row an evaluation) and one checkpoint a run, with its
weights. Each is written under a temporary name and moved into place, so that none is ever half there.
"""
import csv
import inspect
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import count, product
from pathlib import Path
from typing import Callable

import torch

from .vit import require

EVALUATIONS = 8                                                # a run
METRICS = {                                                    # title; which is best; factor, decimals and unit in print
    "accuracy": ("accuracy", max, 100, 1, "%"),
    "loss": ("validation loss", min, 1, 3, "nats"),
}


@dataclass
class Experiment:
    """What a script trains, and how."""

    task: str                    # "vit" or "lm"
    model: Callable              # () -> a new model, with the default initialisation
    loss: Callable               # (model, seed, step) -> the loss on the batch that seed and step stand for
    evaluate: Callable           # (model) -> {metric: value}; runs are compared by the first
    steps: int
    betas: tuple                 # of AdamW
    weight_decay: float          # of AdamW, for the matrices
    sample: Callable = None      # (model, seed) -> a text by the trained model


def initialise(model, init, options):
    """Give `model` the initialisation of that name, with those of the options' strengths that it takes."""
    if init != "default":        # the one a new model has
        method = getattr(model, init + "_init_")
        method(**{name: getattr(options, name) for name in inspect.signature(method).parameters if name != "generator"})


def rate(step, steps, peak):
    """nanoGPT's schedule: warm up for 100 steps (a tenth, if that is less), then a half cosine to a tenth of the peak."""
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def adamw(model, experiment):
    """AdamW that decays the matrices and spares biases and gains, as nanoGPT does."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": experiment.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=experiment.betas, fused=True)


def train(experiment, options, run, path, report):
    """Train one run, {"init", "seed", "lr"}, from its checkpoint at `path` if there is one, and fill in its results.

    The batches, and the initial weights outside the attention, depend on the seed alone: all inits see the same.
    Calls report(step, loss, evaluated) after each step.
    """
    torch.manual_seed(run["seed"])
    model = experiment.model()
    initialise(model, run["init"], options)
    model.to(options.device)
    optimizer = adamw(model, experiment)
    steps, last, total = experiment.steps, 0, 0.0              # `last` is the step of the last evaluation
    run.update(parameters=sum(p.numel() for p in model.parameters()), steps=steps, seconds=0.0, curve=[])
    if path.exists():
        state = torch.load(path, map_location=options.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())                # dropout draws from it
        run.update(state["run"])
        last = run["curve"][-1]["step"]
    forward = torch.compile(model) if options.compile else model
    start = time.perf_counter() - run["seconds"]

    for step in range(last, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, run["lr"])
        loss = experiment.loss(forward, run["seed"], step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        total += loss.detach()
        evaluated = (step + 1) * EVALUATIONS % steps < EVALUATIONS
        if evaluated:
            model.eval()
            with torch.no_grad():
                metrics = experiment.evaluate(forward)
            model.train()
            run["curve"].append({"step": step + 1, "train_loss": float(total) / (step + 1 - last), **metrics})
            run["seconds"], last, total = time.perf_counter() - start, step + 1, 0.0
            state = {"task": experiment.task, "config": asdict(model.config), "run": run, "model": model.state_dict(),
                     "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            write(path, lambda temporary: torch.save(state, temporary))
        report(step + 1, loss, evaluated)

    run["final"] = {name: value for name, value in run["curve"][-1].items() if name not in ("step", "train_loss")}
    if experiment.sample:
        run["sample"] = experiment.sample(model.eval(), run["seed"])


def run_grid(experiment, options, p):
    """Train each init at each seed and rate, show the progress, print the closing table, and return the runs.

    Raises ValueError if the folder for the results cannot be had.
    """
    grid = list(dict.fromkeys(product(options.seed, options.lr, options.init)))
    if options.resume is None:
        folder = new_folder(options.out, f"runs/{experiment.task}-{Path(options.data).stem}", p)
        config = {name: value for name, value in vars(options).items() if name not in ("out", "resume")}
        results = {"task": experiment.task, "data": options.data, "python": platform.python_version(),
                   "torch": torch.__version__, "config": config, "runs": []}
        write_json(folder / "results.json", results)
    else:
        folder = Path(options.resume)
        results = json.loads((folder / "results.json").read_text())
    runs = results["runs"]                                     # they finish in the order of the grid
    print(f"{len(grid)} runs of {experiment.steps:,} steps on {options.device}, into {folder}", flush=True)

    progress = Progress()
    for number in range(len(runs), len(grid)):
        seed, lr, init = grid[number]
        run = {"init": init, "seed": seed, "lr": lr}

        def report(step, loss, evaluated):
            progress.show(run, step, loss, evaluated, later=experiment.steps * (len(grid) - number - 1))
            if evaluated:
                write(folder / "log.csv", lambda temporary: write_log(temporary, runs + [run]))

        train(experiment, options, run, folder / f"{init}-seed{seed}-lr{lr}.pt", report)
        runs.append(run)
        write_json(folder / "results.json", results)
    print("", *table(runs), sep="\n")
    return runs


class Progress:
    """A line that tells how far it is: in place on a terminal, else a new one at each evaluation."""

    def __init__(self):
        self.start, self.steps, self.shown = time.perf_counter(), 0, 0.0

    def show(self, run, step, loss, evaluated, later):
        """After a step; `later` is the number of steps in the runs after this one."""
        self.steps += 1
        now, terminal = time.perf_counter(), sys.stdout.isatty()
        if not evaluated and not (terminal and now - self.shown > 0.1):
            return
        self.shown = now
        left = (now - self.start) / self.steps * (run["steps"] - step + later)
        line = f"{run['init']:8} seed {run['seed']}  lr {run['lr']:g}  step {step:,}/{run['steps']:,}  loss {loss.item():.3f}"
        for name in METRICS.keys() & run["curve"][-1].keys() if run["curve"] else ():
            title, _, factor, decimals, unit = METRICS[name]
            line += f"  {title} {factor * run['curve'][-1][name]:.{decimals}f} {unit}"
        line += f"  {left:.0f} s left"
        if terminal:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        print(line, end="" if terminal and step < run["steps"] else "\n", flush=True)


def table(runs):
    """The lines of the closing table: each init at its best rate, mean and spread over seeds, and its gain on default.

    Where several rates were tried, the first half of the seeds chooses one and the others are reported. (A single seed
    has to do both.)
    """
    metric = next(iter(runs[0]["final"]))
    title, best, factor, decimals, unit = METRICS[metric]
    value = {(run["init"], run["lr"], run["seed"]): factor * run["final"][metric] for run in runs}
    inits, rates, seeds = (list(dict.fromkeys(column)) for column in zip(*value))
    chosen_by = seeds[: len(seeds) // 2] if len(rates) > 1 else []
    reported = [seed for seed in seeds if seed not in chosen_by]
    rows = {}
    for init in inits:
        lr = best(rates, key=lambda lr: statistics.mean(value[init, lr, seed] for seed in chosen_by or seeds))
        values = [value[init, lr, seed] for seed in reported]
        rows[init] = lr, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
    base = "default" if "default" in inits else inits[0]
    yield f"{'init':10}{'lr':10}{f'{title}, {unit}':24}against {base}"
    for init, (lr, mean, spread) in rows.items():
        cell, gain = f"{mean:.{decimals}f}", f"{mean - rows[base][1]:+.{decimals}f}"
        if spread is not None:
            error = math.hypot(spread, rows[base][2]) / math.sqrt(len(reported))
            cell += f" ± {spread:.{decimals}f}"
            gain += f" ± {error:.{decimals}f}" + ("  (no difference seen)" if abs(mean - rows[base][1]) < 2 * error else "")
        yield f"{init:10}{lr:<10g}{cell:24}{gain if init != base else ''}".rstrip()
    yield ""
    if len(reported) > 1:
        yield f"mean ± standard deviation over seeds {', '.join(map(str, reported))}; difference ± its standard error"
    else:
        yield f"seed {reported[0]} alone, so there is no spread; --seed 0 1 2 shows one"
    if len(rates) > 1:
        yield f"each lr is the best of {', '.join(f'{lr:g}' for lr in rates)} on seed {', '.join(map(str, chosen_by or seeds))}"


def new_folder(out, name, p):
    """Make the folder `out`, or without it the first of name, name-2, name-3, ... that is free."""
    names = [out] if out is not None else (f"{name}-{n}" if n > 1 else name for n in count(1))
    for name in names:
        folder = Path(name)
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            taken = any(folder.iterdir())
        except FileExistsError:
            if out is None:
                continue
            taken = True
        except OSError as error:
            require(False, "out", name, f"a folder that can be made here ({error.strerror})")
        require(not taken, "out", name, f"a new or empty folder (to go on with runs in it: python {p.prog} --resume {name})")
        return folder


def write(path, save):
    """Have `save` write a temporary file, and move that into place."""
    temporary = path.with_name(path.name + ".tmp")
    save(temporary)
    os.replace(temporary, path)


def write_json(path, value):
    write(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def write_log(path, runs):
    """A row an evaluation of all `runs`."""
    rows = [{name: run[name] for name in ("init", "seed", "lr")} | point for run in runs for point in run["curve"]]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
