"""Does a GPT learn faster with mimetic initialization?

This script trains the same small model from several initializations, one after another, and ends
with a table that compares them.

    python train_lm.py                                        five inits, once
    python train_lm.py --init default mimetic --seed 0 1 2    a mean and a spread
    python train_lm.py --data shakespeare --steps 2000        nanoGPT's sizes for a CPU
    python train_lm.py --data my_text.txt                     your own text
    torchrun --nproc_per_node=2 train_lm.py --seed 0 1 2      two runs at a time

If it is stopped, rerun it to resume. With more seeds, rates or inits, it trains only what is new.

It reads from top to bottom: options, data, optimizer and schedule, evaluation, one training run,
all runs. The initializations are in mimetic_min/inits.py.
"""

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import GPT, GPTConfig, data, gpt, inits, machine, plot, runs, table

# ---------------------------------------------------------------------------------------------
# Options


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default, and keeps the line breaks of the epilog."""


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"inits:\n{inits.HELP}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--init",
        nargs="+",
        choices=inits.INITS,
        default=["off", "default", "xavier", "shuffled", "mimetic"],
        metavar="INIT",
        help="one or more, see below",
    )
    add("--seed", nargs="+", type=int, default=[0], help="one or more: 0 1 2")
    add("--lr", nargs="+", type=float, default=[4e-3], help="peak learning rate, one or more")
    add("--data", default="pydoc", help=f"{', '.join(data.TEXTS)}, or a file of your own")
    add("--data-dir", default="data", help="where downloads are kept")
    add("--steps", type=int, default=500, help="batches to train on")
    add("--batch-size", type=int, default=12, help="windows per step")
    add("--context", type=int, default=GPTConfig.context, help="context length in bytes")
    add("--dim", type=int, default=GPTConfig.dim, help="width of the model")
    add("--depth", type=int, default=GPTConfig.depth, help="number of layers")
    add("--heads", type=int, default=GPTConfig.heads, help="heads per layer")
    add(
        "--position",
        choices=["sincos", "learned"],
        default=GPTConfig.position,
        help="position embedding",
    )
    add(
        "--stream",
        choices=["unit", "gpt2"],
        default=GPTConfig.stream,
        help="size of the embeddings",
    )
    add("--qk-alpha", type=float, default=0.1, help="mimetic: random part of query-key")
    add("--qk-beta", type=float, default=0.7, help="mimetic: diagonal of query-key")
    add("--vp-alpha", type=float, default=0.1, help="mimetic: random part of value-projection")
    add("--vp-beta", type=float, default=-0.4, help="mimetic: diagonal of value-projection")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="torch device")
    add("--out", help="the run folder; if not given, runs/lm-DATA")
    add("--plot", action="store_true", help="save pictures in the run folder (needs matplotlib)")
    return parser


# ---------------------------------------------------------------------------------------------
# Data


class Text:
    """Training and validation text, as bytes. A window is `context` bytes and the next one."""

    def __init__(self, args, device):
        if args.batch_size < 1:
            raise ValueError(f"--batch-size must be above 0, but it is {args.batch_size}")
        self.train, self.validation = data.load_text(args.data, args.context, args.data_dir)
        self.checksum = data.checksum(self.train, self.validation)
        self.args = args
        self.device = device

    def windows(self, text, offsets):
        """Inputs and targets, both (batch, context): each target is the byte after its input."""
        positions = offsets[:, None] + np.arange(self.args.context + 1)
        tokens = torch.from_numpy(text[positions]).to(self.device).long()
        return tokens[:, :-1], tokens[:, 1:]

    def batch(self, seed, step):
        """Windows at random places in the training text.

        They depend only on the seed and the step. So all inits see the same batches, and a resumed
        run sees the ones that would have come next.
        """
        places = len(self.train) - self.args.context
        offsets = np.random.default_rng([seed, step]).integers(0, places, self.args.batch_size)
        return self.windows(self.train, offsets)

    def validation_windows(self):
        """256 windows, or as many as there are, spread evenly over the validation text."""
        available = (len(self.validation) - 1) // self.args.context
        chosen = np.linspace(0, available - 1, min(available, 256)).astype(int)
        return self.windows(self.validation, chosen * self.args.context)


# ---------------------------------------------------------------------------------------------
# Optimizer and schedule


def make_optimizer(model):
    """AdamW with nanoGPT's settings for character-level text. Gains have no weight decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)


def learning_rate(step, steps, peak):
    """nanoGPT's schedule: warm up, then follow a cosine down to a tenth of the peak."""
    # 1. The warmup takes 100 steps, or a tenth of the run if that is less.
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    # 2. The cosine goes from 1 to -1, and the rate from the peak to a tenth of it.
    progress = (step - warmup) / (steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------
# Evaluation


@torch.no_grad()
def validation_loss(model, text):
    """The loss on windows of the validation text, in nats per byte."""
    inputs, targets = text.validation_windows()
    return F.cross_entropy(model(inputs).mT, targets).item()


# ---------------------------------------------------------------------------------------------
# One training run


def new_model(run, config, strengths):
    """The untrained model of a run. `strengths` are as in GPT.mimetic_init_."""
    # The seed is set before the model is made, so all inits share the weights outside attention.
    torch.manual_seed(run.seed)
    model = GPT(config)
    inits.INITS[run.init]([block.attention for block in model.blocks], strengths)
    return model


def train(run, folder, model, text):
    """Train the model of a run at the peak rate `run.lr`, or resume it."""
    device = text.device
    model = model.to(device)
    optimizer = make_optimizer(model)
    steps = folder.steps

    # On CUDA, matrix products are computed in bfloat16, as in nanoGPT. Elsewhere nothing changes.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    # Resume from the newest checkpoint, if there is one
    rows = folder.load(run, model=model, optimizer=optimizer)
    first = rows[-1]["step"] if rows else 0
    begun = time.monotonic()
    for step in range(first, steps):
        # A run ends early where its loss is no longer finite.
        if folder.has_ended(rows):
            break

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, run.lr)

        inputs, targets = text.batch(run.seed, step)
        with autocast:
            # The mean over all bytes. F.cross_entropy wants (batch, 256, context).
            loss = F.cross_entropy(model(inputs).mT, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        # Eight evaluations, the last one at the end
        if (step + 1) * 8 // steps > step * 8 // steps:
            with autocast:
                result = validation_loss(model, text)
            rows.append({"step": step + 1, "train_loss": loss.item(), "loss": result})
            folder.save(run, rows, model, optimizer)
            left = (time.monotonic() - begun) / (step + 1 - first) * (steps - step - 1)
            print(
                f"{run.init:16}  seed {run.seed}  lr {run.lr:g}  step {step + 1} of {steps}  "
                f"train loss {loss:.3f}  loss {result:.3f}  {left:,.0f} s left in this run",
                flush=True,
            )


# ---------------------------------------------------------------------------------------------
# All runs


@machine.ctrl_c_stops()
def main(words=None):
    parser = make_parser()
    args = parser.parse_args(words)
    strengths = (args.qk_alpha, args.qk_beta, args.vp_alpha, args.vp_beta)
    try:
        # This raises ValueError for strengths out of range, before anything is trained.
        gpt.Attention(dim=1, heads=1).mimetic_init_(*strengths)
        if args.plot:
            # This raises ValueError without matplotlib.
            plot.new_figure(1, 1)
        config = GPTConfig(
            context=args.context,
            dim=args.dim,
            depth=args.depth,
            heads=args.heads,
            position=args.position,
            stream=args.stream,
        )
        text = Text(args, machine.use_device(args.device))
        all_runs = runs.all_runs(args)
        folder = runs.Folder(args, "lm", args.steps, text.checksum)
        to_do = folder.to_do(all_runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    print(
        f"{len(to_do)} of {len(all_runs)} runs to train, {folder.steps} steps each, "
        f"in {folder.path}"
    )
    for run in to_do:
        train(run, folder, new_model(run, config, strengths), text)

    # The last of several processes to finish finds that all runs have ended.
    rows = {run: folder.load(run) for run in all_runs}
    if all(map(folder.has_ended, rows.values())):
        print("\n" + table.table(rows, "loss"))
        if args.plot:
            # The weights and maps of the first seed and rate
            drawn = [run for run in all_runs if run[1:] == all_runs[0][1:]]
            untrained = {run: new_model(run, config, strengths) for run in drawn}
            batch = text.validation_windows()[0][:16].cpu()
            plot.draw(folder, rows, untrained, "loss", batch)


if __name__ == "__main__":
    main()
