"""What the two training scripts share: one run, the grid of runs, and what they leave behind.

A run folder holds results.json (the finished runs), log.csv (a row an evaluation) and one checkpoint a run, with its
weights. Together they say all that is needed to go on with runs that were stopped, at whatever moment.
"""
import inspect
import io
import math
import platform
import sys
import time
import zipfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Callable

import torch

from . import parallel
from .options import config, signals_deferred
from .report import Progress, checkpoint, in_place, log_csv, new_folder, results_json, table, to_go_on, write
from .vit import require

EVALUATIONS = 8                  # a run


@dataclass
class Experiment:
    """What a script trains, and how."""

    task: str                    # "vit" or "lm", as in train_vit.py
    fingerprint: int             # of the data
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


def new_model(make, run, options):
    """A new model with the seed and the init of a run: the same again at every call, with the same torch."""
    torch.manual_seed(run["seed"])
    model = make().to(options.device)                          # first, for the decompositions are faster on a GPU
    initialise(model, run["init"], options)
    return model


def precision(device):
    """On CUDA, products in bfloat16, as in nanoGPT, with the weights in float32; elsewhere nothing changes."""
    return torch.autocast("cuda", torch.bfloat16) if torch.device(device).type == "cuda" else nullcontext()


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
    Calls report(step, loss, evaluated) after each step. A loss that is not finite ends the run: it is marked with the
    step, as "diverged", and the last checkpoint stays. SIGINT or SIGTERM write one after the step that they come in.
    """
    model = new_model(experiment.model, run, options)
    optimizer = adamw(model, experiment)
    steps, done, losses = experiment.steps, 0, []              # those since the last evaluation
    run.update(parameters=sum(p.numel() for p in model.parameters()), steps=steps, seconds=0.0, curve=[])
    if path.exists():
        done, losses = restore(path, run, config(options), model, optimizer)
    forward = torch.compile(model) if options.compile else model
    trained = parallel.synchronised(forward)
    start = time.perf_counter() - run["seconds"]

    with signals_deferred() as signals:
        for step in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, run["lr"])
            with precision(options.device):                    # nothing waits for a GPU before the next evaluation
                loss = experiment.loss(trained, run["seed"], step)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

            losses.append(loss.detach().where(norm.isfinite(), torch.nan))  # such a gradient has spoilt the weights
            evaluated, metrics = (step + 1) * EVALUATIONS % steps < EVALUATIONS, {}
            if evaluated:
                model.eval()
                with torch.no_grad(), precision(options.device):
                    metrics = experiment.evaluate(forward)
                model.train()
            stop = bool(signals)
            if evaluated or stop:
                values = (parallel.total(torch.stack(losses)) / parallel.count()).tolist()
                bad = [not math.isfinite(value) for value in (*values, *metrics.values())]
                if any(bad):
                    run["diverged"] = min(step + 1, step + 2 - len(values) + bad.index(True))
                    break
                if evaluated:
                    run["curve"].append({"step": step + 1, "train_loss": sum(values) / len(values), **metrics})
                    losses = []
                run["seconds"] = time.perf_counter() - start
                save(path, experiment, options, run, step + 1, losses, model, optimizer)
            report(step + 1, loss, evaluated)
            if stop:
                break
        if signals:
            raise KeyboardInterrupt

    if "diverged" not in run:
        run["final"] = final(run["curve"])
        if experiment.sample:
            run["sample"] = experiment.sample(model.eval(), run["seed"])


def save(path, experiment, options, run, step, losses, model, optimizer):
    """Write a checkpoint: all that `restore` needs to go on to the same figures, and a user to build the model."""
    file = io.BytesIO()
    torch.save({"task": experiment.task, "config": asdict(model.config), "options": config(options), "run": run,
                "step": step, "losses": losses, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}, file)    # for dropout
    keep(path, file.getvalue())


def keep(path, content):
    """Write a file of the run folder; of several processes only the first does."""
    if parallel.rank() == 0:
        write(path, content)


def restore(path, run, options, model, optimizer):
    """Put a checkpoint back into its run: (steps done, losses since the last evaluation).

    Raises ValueError, which names the file, if it is damaged, or not of this run with these options.
    """
    try:
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None                     # torch does not look at its checksums
        state = torch.load(path, map_location=options["device"], weights_only=True) if whole else {}   # runs no code
        if state["options"] == options and all(state["run"][name] == run[name] for name in ("init", "seed", "lr")):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"].cpu())
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])
            run.update(state["run"])
            return state["step"], state["losses"]
    except Exception:                                          # whatever torch makes of a file that is something else
        pass
    require(False, "resume", str(path.parent), f"a folder with its own checkpoints; {path.name} is damaged, or of "
            "another run: move it away to train this one from its start")


def final(curve):
    return {name: value for name, value in curve[-1].items() if name not in ("step", "train_loss")}


def run_grid(experiment, options):
    """Train each init at each seed and rate, show the progress, print the closing table, and return the runs.

    Raises ValueError, before anything is written, for strengths that are out of range or a folder that is not free.
    """
    model = experiment.model()
    model.blocks = model.blocks[:1]                            # one layer is enough to check the strengths
    initialise(model, "mimetic", options)
    if options.plot:
        from . import figures
        figures.new_figure(1, 1)                               # a ValueError now rather than in an hour
    grid = list(dict.fromkeys(product(options.seed, options.lr, options.init)))
    if options.started is None:
        folder = parallel.from_first(lambda: new_folder(options.out, experiment.task, options.data))
        results = {"task": experiment.task, "data": options.data, "fingerprint": experiment.fingerprint,
                   "python": platform.python_version(), "torch": torch.__version__, "config": config(options),
                   "runs": []}
        keep(folder / "results.json", results_json(results))
    else:
        folder, results = Path(options.resume), options.started
        right = "a folder whose results.json is as it was written, with the runs of its own grid"
        require(is_sound(results.get("runs"), grid, experiment), "resume", options.resume, right)
        right = f"a folder whose data are what they were, but {options.data} has changed since"
        require(results.get("fingerprint") == experiment.fingerprint, "resume", options.resume, right)

    runs, progress = results["runs"], Progress()
    try:
        where = f"{parallel.count()} x {options.device}" if parallel.count() > 1 else options.device
        print(f"{len(grid)} runs of {experiment.steps:,} steps on {where}, into {folder}", flush=True)
        for number in range(len(runs), len(grid)):             # runs finish in the order of the grid
            seed, lr, init = grid[number]
            run = {"init": init, "seed": seed, "lr": lr}

            def report(step, loss, evaluated):
                progress.show(run, step, loss, evaluated, later=experiment.steps * (len(grid) - number - 1))
                if evaluated:
                    keep(folder / "log.csv", log_csv([*runs, run]))

            train(experiment, options, run, checkpoint(folder, run), report)
            if "diverged" in run and parallel.rank() == 0:
                in_place("", done=False)
                what = f"diverged: its loss is not finite at step {run['diverged']:,}; try a lower --lr"
                print(f"train_{experiment.task}.py: {init} with seed {seed} and --lr {lr:g} {what}", file=sys.stderr)
            runs.append(run)
            keep(folder / "log.csv", log_csv(runs))
            keep(folder / "results.json", results_json(results))
    except BaseException as error:
        error.add_note(to_go_on(experiment.task, folder))
        raise
    print("", *table(runs), sep="\n", flush=True)
    if options.plot and parallel.rank() == 0 and any("final" in run for run in runs):
        print("", *figures.draw(folder), sep="\n")
    return runs


def is_sound(runs, grid, experiment):
    """Whether these are results of the first runs of the grid, with all that will be read of them."""
    try:
        points = [point for run in runs for point in run["curve"]]
        finished = [run for run in runs if "diverged" not in run]
        return ([(run["seed"], run["lr"], run["init"]) for run in runs] == grid[: len(runs)]
                and all(run["steps"] == experiment.steps for run in runs)
                and len({tuple(point) for point in points}) <= 1
                and all(isinstance(value, (int, float)) for point in points for value in point.values())
                and all(run["final"] == final(run["curve"]) for run in finished)
                and all(("sample" in run) == (experiment.sample is not None) for run in finished))
    except (KeyError, TypeError, AttributeError, IndexError):
        return False
