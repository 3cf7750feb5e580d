"""Does a vision transformer learn faster with mimetic initialization?

This script trains the same small model from several initializations, one after another, and ends
with a table that compares them.

    python train_vit.py                                       five inits, once
    python train_vit.py --init default mimetic --seed 0 1 2   a mean and a spread
    python train_vit.py --data cifar10 --limit 5000 --patch-size 4 --lr 1e-3
    python train_vit.py --data my_pictures/                   your own pictures
    torchrun --nproc_per_node=2 train_vit.py --seed 0 1 2     two runs at a time

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

from mimetic_min import ViT, ViTConfig, data, inits, machine, plot, runs, table, vit

# ---------------------------------------------------------------------------------------------
# Options

# The default of --augment. Other data are not augmented. The digits of SVHN are not
# flipped, since a mirrored digit is no longer that digit.
AUGMENT = {"cifar10": "crop+flip", "cifar100": "crop+flip", "svhn": "crop"}


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
    add("--lr", nargs="+", type=float, default=[2e-3], help="peak learning rate, one or more")
    add("--data", default="shifted-digits", help=f"{', '.join(data.IMAGES)}, an .npz or a folder")
    add("--data-dir", default="data", help="where downloads are kept")
    add("--image-size", type=int, help="pixels per side, for a folder; if not given, 32")
    add("--limit", type=int, help="train on only LIMIT images")
    add(
        "--augment",
        choices=["none", "crop", "crop+flip"],
        help="if not given, chosen to suit --data",
    )
    add("--epochs", type=int, default=20, help="passes over the training images")
    add("--batch-size", type=int, default=50, help="images per step")
    add("--patch-size", type=int, default=ViTConfig.patch_size, help="pixels per side")
    add("--dim", type=int, default=ViTConfig.dim, help="width of the model")
    add("--depth", type=int, default=ViTConfig.depth, help="number of layers")
    add("--heads", type=int, default=ViTConfig.heads, help="heads per layer")
    add(
        "--position",
        choices=["sincos", "learned"],
        default=ViTConfig.position,
        help="position embedding",
    )
    add("--qk-alpha", type=float, default=0.7, help="mimetic: random part of query-key")
    add("--qk-beta", type=float, default=0.7, help="mimetic: diagonal of query-key")
    add("--vp-alpha", type=float, default=0.4, help="mimetic: random part of value-projection")
    add("--vp-beta", type=float, default=-0.4, help="mimetic: diagonal of value-projection")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="torch device")
    add("--out", help="the run folder; if not given, runs/vit-DATA")
    add("--plot", action="store_true", help="save pictures in the run folder (needs matplotlib)")
    return parser


# ---------------------------------------------------------------------------------------------
# Data


class Images:
    """Training and test images, as bytes on the device. A batch becomes floats when it is made."""

    def __init__(self, args, device):
        arrays = data.load_images(args.data, args.data_dir, args.limit, args.image_size)
        if not 0 < args.batch_size <= len(arrays[0]):
            raise ValueError(
                f"--batch-size must be from 1 to {len(arrays[0])} (all training images), but it is "
                f"{args.batch_size}"
            )
        self.checksum = data.checksum(*arrays)
        self.train, self.train_labels, self.test, self.test_labels = [
            array.to(device) for array in arrays
        ]
        self.mean, self.std = [x.to(device) for x in data.mean_and_std(arrays[0])]
        self.augment = args.augment or AUGMENT.get(args.data, "none")
        self.batch_size = args.batch_size
        # An incomplete batch at the end of an epoch is left out.
        self.steps_per_epoch = len(self.train) // args.batch_size
        self.ordered = None  # the seed and the epoch that self.order is for

    def batch(self, seed, step):
        """The images (batch, channels, size, size) and labels (batch,) of a training step.

        They depend only on the seed and the step. So all inits see the same batches, and a resumed
        run sees the ones that would have come next.
        """
        epoch, i = divmod(step, self.steps_per_epoch)
        if self.ordered != (seed, epoch):
            self.ordered = (seed, epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
            self.order = torch.from_numpy(order).to(self.train.device)
        chosen = self.order[i * self.batch_size : (i + 1) * self.batch_size]
        images = self.train[chosen]
        if self.augment != "none":
            # The 1 gives these draws a seed of their own. Without it, the first batch of each epoch
            # (i = 0) would draw with the seed of the order: for NumPy, [seed, epoch, 0] is the same
            # as [seed, epoch].
            random = np.random.default_rng([seed, epoch, i, 1])
            draws = torch.from_numpy(random.random((self.batch_size, 3), np.float32))
            images = data.augment(images, draws.to(images.device), flip="flip" in self.augment)
        return self.normalize(images), self.train_labels[chosen]

    def normalize(self, images):
        """From bytes to numbers with mean 0 and standard deviation 1 in each channel."""
        return (images - self.mean) / self.std


# ---------------------------------------------------------------------------------------------
# Optimizer and schedule


def make_optimizer(model):
    """AdamW with a weight decay of 0.05 for matrices and none for biases and gains."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


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
def accuracy(model, images):
    """The fraction of the test images that the model gets right."""
    logits = torch.cat([model(images.normalize(batch)) for batch in images.test.split(250)])
    return (logits.argmax(-1) == images.test_labels).sum().item() / len(images.test)


# ---------------------------------------------------------------------------------------------
# One training run


def new_model(run, config, strengths):
    """The untrained model of a run. `strengths` are as in ViT.mimetic_init_."""
    # The seed is set before the model is made, so all inits share the weights outside attention.
    torch.manual_seed(run.seed)
    model = ViT(config)
    inits.INITS[run.init]([block.attention for block in model.blocks], strengths)
    return model


def train(run, folder, model, images):
    """Train the model of a run at the peak rate `run.lr`, or resume it."""
    device = images.train.device
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

        batch, labels = images.batch(run.seed, step)
        with autocast:
            loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        # Eight evaluations, the last one at the end
        if (step + 1) * 8 // steps > step * 8 // steps:
            with autocast:
                result = accuracy(model, images)
            rows.append({"step": step + 1, "train_loss": loss.item(), "accuracy": result})
            folder.save(run, rows, model, optimizer)
            left = (time.monotonic() - begun) / (step + 1 - first) * (steps - step - 1)
            print(
                f"{run.init:16}  seed {run.seed}  lr {run.lr:g}  step {step + 1} of {steps}  "
                f"train loss {loss:.3f}  accuracy {result:.1%}  {left:,.0f} s left in this run",
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
        vit.Attention(dim=1, heads=1).mimetic_init_(*strengths)
        if args.plot:
            # This raises ValueError without matplotlib.
            plot.new_figure(1, 1)
        images = Images(args, machine.use_device(args.device))
        _, channels, image_size, _ = images.train.shape
        config = ViTConfig(
            image_size=image_size,
            patch_size=args.patch_size,
            channels=channels,
            classes=int(images.train_labels.max()) + 1,
            dim=args.dim,
            depth=args.depth,
            heads=args.heads,
            position=args.position,
        )
        all_runs = runs.all_runs(args)
        # A run is trained with this, even if --augment is not given.
        args.augment = images.augment
        folder = runs.Folder(args, "vit", args.epochs * images.steps_per_epoch, images.checksum)
        to_do = folder.to_do(all_runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    print(
        f"{len(to_do)} of {len(all_runs)} runs to train, {folder.steps} steps each, "
        f"in {folder.path}"
    )
    for run in to_do:
        train(run, folder, new_model(run, config, strengths), images)

    # The last of several processes to finish finds that all runs have ended.
    rows = {run: folder.load(run) for run in all_runs}
    if all(map(folder.has_ended, rows.values())):
        print("\n" + table.table(rows, "accuracy"))
        if args.plot:
            # The weights and maps of the first seed and rate
            drawn = [run for run in all_runs if run[1:] == all_runs[0][1:]]
            untrained = {run: new_model(run, config, strengths) for run in drawn}
            batch = images.normalize(images.test[:64]).cpu()
            plot.draw(folder, rows, untrained, "accuracy", batch)


if __name__ == "__main__":
    main()
