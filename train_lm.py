"""Does a GPT learn faster with mimetic initialization?

This script trains the same small model from several initializations, one after the other, and ends
with a table that compares them.

    python train_lm.py                                        five inits, once
    python train_lm.py --init default mimetic --seed 0 1 2    a mean and a spread
    python train_lm.py --data shakespeare --steps 2000        nanoGPT's sizes for a CPU
    python train_lm.py --data my_text.txt                     your own text
    torchrun --nproc_per_node=2 train_lm.py --seed 0 1 2      two runs at a time

After a stop, the same command resumes. With other seeds, rates or inits, it adds their runs.

It reads from top to bottom: options, data, initializations, optimizer, evaluation, one training
run, all runs.
"""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import GPT, GPTConfig, data, gpt, plot, runs

# ---------------------------------------------------------------------------------------------
# Options

INITS = {
    "off": "no attention: W_V and W_proj are 0, and stay 0",
    "default": "every entry N(0, 0.02^2), and W_proj smaller, as in GPT-2",
    "xavier": "every entry uniform with variance 1/dim",
    "shuffled": "the control: mimetic, then the columns of both products in random order",
    "mimetic": "mimetic initialization",
    "simple": "the paper's simple form, with diagonals of about 1 and -1",
    "language": "mimetic with the signs of trained GPT-2s",
    "query-key": "mimetic for W_Q and W_K, default for W_V and W_proj",
    "value-projection": "mimetic for W_V and W_proj, default for W_Q and W_K",
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default, and keeps the line breaks of the epilog."""


def make_parser():
    inits = "\n".join(f"  {name:18}{meaning}" for name, meaning in INITS.items())
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"inits:\n{inits}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--init",
        nargs="+",
        choices=INITS,
        default=["off", "default", "xavier", "shuffled", "mimetic"],
        metavar="INIT",
        help="one or more, see below",
    )
    add("--seed", nargs="+", type=int, default=[0], help="one or more: 0 1 2")
    add("--lr", nargs="+", type=float, default=[4e-3], help="peak learning rate, one or more")
    add("--data", default="pydoc", help=f"{', '.join(data.TEXTS)}, or a file of your own")
    add("--data-dir", help="a folder with the files of a data set, instead of a download")
    add("--steps", type=int, default=500, help="batches to train on")
    add("--batch-size", type=int, default=12, help="windows per step")
    add("--context", type=int, default=GPTConfig.context, help="bytes that the model sees")
    add("--dim", type=int, default=GPTConfig.dim, help="width of the model")
    add("--depth", type=int, default=GPTConfig.depth, help="number of layers")
    add("--heads", type=int, default=GPTConfig.heads, help="heads per layer")
    add(
        "--position", choices=["sincos", "learned"], default=GPTConfig.position, help="of the bytes"
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
    add("--device", default=device, help="where torch computes")
    add("--out", help="the run folder; without it, one in runs/")
    add("--sample", type=int, default=200, help="bytes that a mimetic model writes")
    add("--plot", action="store_true", help="draw pictures into the run folder (needs matplotlib)")
    return parser


def check(args):
    """Raise ValueError for numbers that make no sense."""
    if min(args.steps, args.batch_size, args.sample) < 1:
        raise ValueError("--steps, --batch-size and --sample must be above 0")
    gpt.check_strengths(
        qk_alpha=args.qk_alpha, qk_beta=args.qk_beta, vp_alpha=args.vp_alpha, vp_beta=args.vp_beta
    )
    if args.plot:
        plot.require_matplotlib()


# ---------------------------------------------------------------------------------------------
# Data


class Text:
    """Training and validation text, as bytes. A window is `context` bytes and the next one."""

    def __init__(self, args, device):
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
        """Windows at random places of the training text.

        They depend on the seed and the step alone. So all inits see the same batches, and a run
        that goes on after a stop sees those that would have come next.
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
# Initializations


def initialize(model, init, args):
    """Give a new model the initialization `init`. Outside the attention all are the same.

    A new model has "default" already.
    """
    attentions = [block.attention for block in model.blocks]
    if init == "off":
        # Both factors are 0. The gradient of each contains the other, so both stay 0.
        for attention in attentions:
            attention.value_projection_init_(0, 0)
    elif init == "xavier":
        for attention in attentions:
            attention.xavier_init_()
    elif init == "simple":
        for attention in attentions:
            attention.simple_init_(qk_sign=1, vp_sign=-1)
    elif init == "language":
        # The paper's Figure 2, trained GPT-2s: query-key is negative. Value-projection goes from
        # negative in the first layer to positive in the last.
        for layer, attention in enumerate(attentions):
            vp_beta = args.vp_beta * (1 - 2 * layer / max(1, len(attentions) - 1))
            attention.mimetic_init_(args.qk_alpha, -args.qk_beta, args.vp_alpha, vp_beta)
    elif init == "query-key":
        for attention in attentions:
            attention.query_key_init_(args.qk_alpha, args.qk_beta)
    elif init == "value-projection":
        for attention in attentions:
            attention.value_projection_init_(args.vp_alpha, args.vp_beta)
    elif init in ("mimetic", "shuffled"):
        model.mimetic_init_(args.qk_alpha, args.qk_beta, args.vp_alpha, args.vp_beta)
    if init == "shuffled":
        # After all layers are mimetic, so that the entries are those of mimetic with this seed.
        for attention in attentions:
            attention.shuffle_()


# ---------------------------------------------------------------------------------------------
# Optimizer and evaluation


def make_optimizer(model):
    """AdamW with nanoGPT's settings for a text of characters. Gains have no weight decay."""
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


@torch.no_grad()
def validation_loss(model, text):
    """The loss on the validation text, in nats per byte."""
    inputs, targets = text.validation_windows()
    return F.cross_entropy(model(inputs).mT, targets).item()


def sample(model, count, seed):
    """A text of `count` bytes that the model writes after a line break."""
    prompt = torch.tensor([[ord("\n")]])
    tokens = model.generate(prompt, count, 0.8, torch.Generator().manual_seed(seed))
    return bytes(tokens[0, 1:].tolist()).decode(errors="replace")


# ---------------------------------------------------------------------------------------------
# Training


def new_model(run, args, config):
    """The untrained model of a run."""
    # The seed is set before the model is made, so all inits share the weights outside the
    # attention.
    torch.manual_seed(run.seed)
    model = GPT(config)
    initialize(model, run.init, args)
    return model


def trained_model(run, folder, config):
    """The model of a run, with the weights of its newest checkpoint."""
    model = GPT(config)
    model.load_state_dict(folder.load(run)["model"])
    return model


def train(run, folder, args, config, text):
    """Train one run: a model with the initialization `run.init`, at the peak rate `run.lr`."""
    device = text.device
    model = new_model(run, args, config).to(device)
    optimizer = make_optimizer(model)

    # On CUDA, matrix products are computed in bfloat16, as in nanoGPT. Elsewhere nothing changes.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    for step in range(folder.resume(run, model, optimizer), folder.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, folder.steps, run.lr)

        inputs, targets = text.batch(run.seed, step)
        with autocast:
            # The mean over all bytes. F.cross_entropy wants (batch, 256, context).
            loss = F.cross_entropy(model(inputs).mT, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        result = None
        if folder.evaluates(step):
            with autocast:
                result = validation_loss(model, text)
        if not folder.keep(run, step, model, optimizer, loss, result):
            break  # The loss is no longer finite.


# ---------------------------------------------------------------------------------------------
# All runs


def draw(all_runs, folder, args, config, text):
    """Save pictures in the run folder: the curves of all runs, and the weights and the attention of
    those with the first seed and rate.
    """
    models = {}
    for run in all_runs:
        if (run.seed, run.lr) == (all_runs[0].seed, all_runs[0].lr):
            models[run.init] = (new_model(run, args, config), trained_model(run, folder, config))
    rows = [row for run in all_runs for row in folder.load(run)["rows"]]
    batch = text.validation_windows()[0][:16].cpu()
    which = f"{args.data}, seed {all_runs[0].seed}, lr {all_runs[0].lr:g}"
    print(plot.curves(folder.path / "curves.png", rows, "loss", args.data))
    print(plot.products(folder.path / "products.png", models, which))
    print(plot.attention_maps(folder.path / "attention.png", models, batch, which))


def main():
    parser = make_parser()
    args = parser.parse_args()
    try:
        check(args)
        config = GPTConfig(
            context=args.context,
            dim=args.dim,
            depth=args.depth,
            heads=args.heads,
            position=args.position,
            stream=args.stream,
        )
        text = Text(args, runs.use_device(args.device))
        # For each seed and rate, all inits one after the other.
        all_runs = [
            runs.Run(init, seed, lr)
            for seed in dict.fromkeys(args.seed)
            for lr in dict.fromkeys(args.lr)
            for init in dict.fromkeys(args.init)
        ]
        # If one of these files has changed, resuming says so.
        folder = runs.open_folder(
            args, "lm", "loss", args.steps, text.checksum, [__file__, gpt.__file__, data.__file__]
        )
        to_do = folder.to_do(all_runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    print(
        f"{len(to_do)} of {len(all_runs)} runs to train, {args.steps} steps each, in {folder.path}"
    )
    try:
        for run in to_do:
            train(run, folder, args, config, text)
    except KeyboardInterrupt:
        print("\nStopped. The same command resumes.")
        raise SystemExit(130) from None

    # Of several processes, the one that ends last has all runs done. Without anything to do, it is
    # the first.
    if (to_do or runs.RANK == 0) and all(map(folder.is_done, all_runs)):
        last = {run: folder.load(run)["rows"][-1] for run in all_runs}
        print(
            f"\n{runs.table(last.values(), 'loss')}\n\nPerplexity per byte: e to the nats per byte."
        )
        run = runs.Run("mimetic", args.seed[0], args.lr[0])
        if run in last and runs.is_finite(last[run]):
            writes = sample(trained_model(run, folder, config), args.sample, seed=0)
            print(f"\n{run} writes:\n{writes}")
        if not to_do:
            print(
                f"\nAll was finished before. To train anew, delete {folder.path} or give an --out."
            )
        if args.plot:
            draw(all_runs, folder, args, config, text)


if __name__ == "__main__":
    main()
