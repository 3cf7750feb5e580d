"""Does a vision transformer learn faster with mimetic initialization?

This script trains the same small model from several initializations, one after the other, and ends
with a table that compares them.

    python train_vit.py                                       five inits, once
    python train_vit.py --init default mimetic --seed 0 1 2   a mean and a spread
    python train_vit.py --data cifar10 --limit 5000 --patch-size 4 --lr 1e-3
    python train_vit.py --data my_pictures/                   your own pictures
    torchrun --nproc_per_node=2 train_vit.py --seed 0 1 2     two runs at a time

After a stop, the same command resumes. With other seeds, rates or inits, it adds their runs.

It reads from top to bottom: options, data, initializations, optimizer, evaluation, one training
run, all runs.
"""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import ViT, ViTConfig, data, plot, runs, vit

# ---------------------------------------------------------------------------------------------
# Options

INITS = {
    "off": "no attention: W_V and W_proj are 0, and stay 0",
    "default": "every entry N(0, 0.02^2)",
    "xavier": "every entry uniform with variance 1/dim",
    "shuffled": "the control: mimetic, then the columns of both products in random order",
    "mimetic": "mimetic initialization",
    "simple": "the paper's simple form, with diagonals of about 1 and -1",
    "query-key": "mimetic for W_Q and W_K, default for W_V and W_proj",
    "value-projection": "mimetic for W_V and W_proj, default for W_Q and W_K",
}

# The default of --augment. Other data sets have none. SVHN is not mirrored, since a mirrored digit
# is no digit.
AUGMENT = {
    "cifar10": "crop+flip",
    "cifar100": "crop+flip",
    "tiny-imagenet": "crop+flip",
    "svhn": "crop",
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
    add("--lr", nargs="+", type=float, default=[2e-3], help="peak learning rate, one or more")
    add("--data", default="shifted-digits", help=f"{', '.join(data.IMAGES)}, an .npz or a folder")
    add("--data-dir", help="a folder with the files of a data set, instead of a download")
    add("--image-size", type=int, help="pixels per side, for a folder of pictures")
    add("--limit", type=int, help="train only on the first LIMIT images")
    add("--augment", choices=["none", "crop", "crop+flip"], help="by default what suits the data")
    add("--epochs", type=int, default=20, help="passes over the training images")
    add("--batch-size", type=int, default=50, help="images per step")
    add("--patch-size", type=int, default=ViTConfig.patch_size, help="pixels per side")
    add("--dim", type=int, default=ViTConfig.dim, help="width of the model")
    add("--depth", type=int, default=ViTConfig.depth, help="number of layers")
    add("--heads", type=int, default=ViTConfig.heads, help="heads per layer")
    add("--position", choices=["sincos", "learned"], default=ViTConfig.position, help="of patches")
    add("--qk-alpha", type=float, default=0.7, help="mimetic: random part of query-key")
    add("--qk-beta", type=float, default=0.7, help="mimetic: diagonal of query-key")
    add("--vp-alpha", type=float, default=0.4, help="mimetic: random part of value-projection")
    add("--vp-beta", type=float, default=-0.4, help="mimetic: diagonal of value-projection")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="where torch computes")
    add("--out", help="the run folder; without it, one in runs/")
    add("--plot", action="store_true", help="draw pictures into the run folder (needs matplotlib)")
    return parser


def check(args):
    """Raise ValueError for numbers that make no sense."""
    if min(args.epochs, args.batch_size) < 1:
        raise ValueError("--epochs and --batch-size must be above 0")
    vit.check_strengths(
        qk_alpha=args.qk_alpha, qk_beta=args.qk_beta, vp_alpha=args.vp_alpha, vp_beta=args.vp_beta
    )
    if args.plot:
        plot.require_matplotlib()


# ---------------------------------------------------------------------------------------------
# Data


class Images:
    """Training and test images, as bytes on the device. A batch becomes floats when it is made."""

    def __init__(self, args, device):
        arrays = data.load_images(args.data, args.limit, args.data_dir, args.image_size)
        if args.batch_size > len(arrays[0]):
            raise ValueError(f"--batch-size must be at most {len(arrays[0])}, all training images")
        self.checksum = data.checksum(*arrays)
        self.train, self.train_labels, self.test, self.test_labels = [
            array.to(device) for array in arrays
        ]
        self.mean, self.std = [x.to(device) for x in data.mean_and_std(arrays[0])]
        self.augment = args.augment or AUGMENT.get(args.data, "none")
        self.batch_size = args.batch_size
        # An incomplete batch at the end of an epoch is left out.
        self.steps_per_epoch = len(self.train) // args.batch_size

    def batch(self, seed, step):
        """The images (batch, channels, size, size) and labels (batch,) of a training step.

        They depend on the seed and the step alone. So all inits see the same batches, and a run
        that goes on after a stop sees those that would have come next. That is why the order of the
        epoch is made anew in every step.
        """
        epoch, i = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
        chosen = torch.from_numpy(order[i * self.batch_size : (i + 1) * self.batch_size])
        chosen = chosen.to(self.train.device)
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


@torch.no_grad()
def accuracy(model, images):
    """The fraction of the test images that the model gets right."""
    correct = 0
    for test, labels in zip(images.test.split(250), images.test_labels.split(250)):
        logits = model(images.normalize(test))
        correct += (logits.argmax(-1) == labels).sum().item()
    return correct / len(images.test)


# ---------------------------------------------------------------------------------------------
# Training


def new_model(run, args, config):
    """The untrained model of a run."""
    # The seed is set before the model is made, so all inits share the weights outside the
    # attention.
    torch.manual_seed(run.seed)
    model = ViT(config)
    initialize(model, run.init, args)
    return model


def train(run, folder, args, config, images):
    """Train one run: a model with the initialization `run.init`, at the peak rate `run.lr`."""
    device = images.train.device
    model = new_model(run, args, config).to(device)
    optimizer = make_optimizer(model)

    # On CUDA, matrix products are computed in bfloat16, as in nanoGPT. Elsewhere nothing changes.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    for step in range(folder.resume(run, model, optimizer), folder.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, folder.steps, run.lr)

        batch, labels = images.batch(run.seed, step)
        with autocast:
            loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        result = None
        if folder.evaluates(step):
            with autocast:
                result = accuracy(model, images)
        if not folder.keep(run, step, model, optimizer, loss, result):
            break  # The loss is no longer finite.


# ---------------------------------------------------------------------------------------------
# All runs


def draw(all_runs, folder, args, config, images):
    """Save pictures in the run folder: the curves of all runs, and the weights and the attention of
    those with the first seed and rate.
    """
    models = {}
    for run in all_runs:
        if (run.seed, run.lr) == (all_runs[0].seed, all_runs[0].lr):
            trained = ViT(config)
            trained.load_state_dict(folder.load(run)["model"])
            models[run.init] = (new_model(run, args, config), trained)
    rows = [row for run in all_runs for row in folder.load(run)["rows"]]
    batch = images.normalize(images.test[:64]).cpu()
    which = f"{args.data}, seed {all_runs[0].seed}, lr {all_runs[0].lr:g}"
    print(plot.curves(folder.path / "curves.png", rows, "accuracy", args.data))
    print(plot.products(folder.path / "products.png", models, which))
    print(plot.attention_maps(folder.path / "attention.png", models, batch, which))


def main():
    parser = make_parser()
    args = parser.parse_args()
    try:
        check(args)
        images = Images(args, runs.use_device(args.device))
        _, channels, image_size, _ = images.train.shape
        config = ViTConfig(
            image_size=image_size,
            patch_size=args.patch_size,
            channels=channels,
            classes=int(torch.cat([images.train_labels, images.test_labels]).max()) + 1,
            dim=args.dim,
            depth=args.depth,
            heads=args.heads,
            position=args.position,
        )
        steps = args.epochs * images.steps_per_epoch
        # For each seed and rate, all inits one after the other.
        all_runs = [
            runs.Run(init, seed, lr)
            for seed in dict.fromkeys(args.seed)
            for lr in dict.fromkeys(args.lr)
            for init in dict.fromkeys(args.init)
        ]
        # If one of these files has changed, resuming says so.
        folder = runs.open_folder(
            args, "vit", "accuracy", steps, images.checksum, [__file__, vit.__file__, data.__file__]
        )
        to_do = folder.to_do(all_runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    print(f"{len(to_do)} of {len(all_runs)} runs to train, {steps} steps each, in {folder.path}")
    try:
        for run in to_do:
            train(run, folder, args, config, images)
    except KeyboardInterrupt:
        print("\nStopped. The same command resumes.")
        raise SystemExit(130) from None

    # Of several processes, the one that ends last has all runs done. Without anything to do, it is
    # the first.
    if (to_do or runs.RANK == 0) and all(map(folder.is_done, all_runs)):
        print("\n" + runs.table([folder.load(run)["rows"][-1] for run in all_runs], "accuracy"))
        if not to_do:
            print(
                f"\nAll was finished before. To train anew, delete {folder.path} or give an --out."
            )
        if args.plot:
            draw(all_runs, folder, args, config, images)


if __name__ == "__main__":
    main()
