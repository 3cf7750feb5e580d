"""What the two training scripts share: one run, the grid of runs, and what they leave behind.

A run folder holds results.json (the finished runs), log.csv (a row an evaluation) and one checkpoint a run, with its
weights. Each is written under a temporary name and moved into place, so that none is ever half there.
"""
import csv
import inspect
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from itertools import count, product
from pathlib import Path
from typing import Callable

import torch

from .report import Progress, table
from .vit import require

EVALUATIONS = 8                  # a run


@dataclass
class Experiment:
    """What a script trains, and how."""

    task: str                    # "vit" or "lm", as in train_vit.py
    model: Callable              # () -> a new model, with the default initialisation
    loss: Callable               # (model, seed, step) -> the loss on the batch that seed and step stand for
    evaluate: Callable           # (model) -> {metric: value}, one of them in report.METRICS
    steps: int
    betas: tuple                 # of AdamW
    weight_decay: float          # of AdamW, for the matrices
    sample: Callable = None      # (model, seed) -> a text by the trained model


def initialise(model, init, options):
    """Give a new `model` the initialisation of that name, with those of the options' strengths that it takes."""
    if init == "xavier":
        for block in model.blocks:
            block.attention.xavier_init_()
    elif init != "default":      # which a new model has
        method = getattr(model, init + "_init_")
        method(**{name: getattr(options, name) for name in inspect.signature(method).parameters if name != "generator"})


def rate(step, steps, peak):
    """nanoGPT's schedule: a warmup of 100 steps, a tenth of a short run, then a half cosine to a tenth of the peak."""
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
    Calls report(step, loss, evaluated) after each step. Raises ValueError if the loss is no longer finite.
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
            finite = all(map(math.isfinite, (total, *metrics.values())))
            require(finite, "lr", run["lr"], f"lower: the loss of {run['init']} is not finite at step {step + 1}")
            run["curve"].append({"step": step + 1, "train_loss": float(total) / (step + 1 - last), **metrics})
            run["seconds"], last, total = time.perf_counter() - start, step + 1, 0.0
            state = {"task": experiment.task, "config": asdict(model.config), "run": run, "model": model.state_dict(),
                     "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            write(path, lambda temporary: torch.save(state, temporary))
        report(step + 1, loss, evaluated)

    run["final"] = {name: value for name, value in run["curve"][-1].items() if name not in ("step", "train_loss")}
    if experiment.sample:
        run["sample"] = experiment.sample(model.eval(), run["seed"])


def run_grid(experiment, options):
    """Train each init at each seed and rate, show the progress, print the closing table, and return the runs.

    Raises ValueError, before anything is written, for strengths that are out of range or a folder that is not free.
    """
    model = experiment.model()
    model.blocks = model.blocks[:1]                            # one layer is enough to check the strengths
    initialise(model, "mimetic", options)
    script = f"train_{experiment.task}.py"
    if options.resume is None:
        folder = new_folder(options.out, f"runs/{experiment.task}-{Path(options.data).stem}", script)
        config = {name: value for name, value in vars(options).items() if name not in ("out", "resume")}
        results = {"task": experiment.task, "data": options.data, "python": platform.python_version(),
                   "torch": torch.__version__, "config": config, "runs": []}
        write_results(folder / "results.json", results)
    else:
        folder = Path(options.resume)
        results = json.loads((folder / "results.json").read_text())
    grid, runs = list(dict.fromkeys(product(options.seed, options.lr, options.init))), results["runs"]
    print(f"{len(grid)} runs of {experiment.steps:,} steps on {options.device}, into {folder}", flush=True)

    progress = Progress()
    for number in range(len(runs), len(grid)):                 # runs finish in the order of the grid
        seed, lr, init = grid[number]
        run = {"init": init, "seed": seed, "lr": lr}

        def report(step, loss, evaluated):
            progress.show(run, step, loss, evaluated, later=experiment.steps * (len(grid) - number - 1))
            if evaluated:
                write(folder / "log.csv", lambda temporary: write_log(temporary, [*runs, run]))

        try:
            train(experiment, options, run, folder / f"{init}-seed{seed}-lr{lr}.pt", report)
        except KeyboardInterrupt:
            print(f"\nstopped; to go on: python {script} --resume {folder}", file=sys.stderr)
            sys.exit(130)
        runs.append(run)
        write_results(folder / "results.json", results)
    print("", *table(runs), sep="\n")
    return runs


def new_folder(out, name, script):
    """Make the folder `out`, which may be there if it is empty; without it, the first free of name, name-2, name-3."""
    for n in count(1):
        folder = Path(out if out is not None else f"{name}-{n}" if n > 1 else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if out is None:
                continue
            right = f"a new or empty folder (to go on with runs in it: python {script} --resume {out})"
            require(folder.is_dir() and not any(folder.iterdir()), "out", out, right)
        except OSError as error:
            require(False, "out", str(folder), f"a folder that can be made ({error.strerror})")
        return folder


def write(path, save):
    """Have `save` write a temporary file, and move that into place."""
    temporary = path.with_name(path.name + ".tmp")
    save(temporary)
    os.replace(temporary, path)


def write_results(path, results):
    write(path, lambda temporary: temporary.write_text(json.dumps(results, indent=1) + "\n"))


def write_log(path, runs):
    rows = [{name: run[name] for name in ("init", "seed", "lr")} | point for run in runs for point in run["curve"]]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
