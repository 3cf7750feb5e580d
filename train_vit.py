"""Does a vision transformer learn better from a mimetic start?

This script trains the same small model from several starts, one after the other, and ends with a
table that compares them.

    python train_vit.py                                       off, default, noise and mimetic
    python train_vit.py --init default mimetic --seed 0 1 2   a mean and a spread
    python train_vit.py --data cifar10 --patch-size 4 --dim 96 --depth 6 --heads 3 --lr 1e-3
    python train_vit.py --data my_pictures/                   your own pictures
    python train_vit.py --resume runs/vit-shifted-digits      go on after a stop

It reads from top to bottom: options, data, starts, optimizer, evaluation, one training run, all
runs.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import ViT, ViTConfig
from mimetic_min.data import augment, fingerprint, load_images, mean_and_std
from mimetic_min.lab import figures, options, parallel, runs, script, table

# ---------------------------------------------------------------------------------------------
# Options

INITS = {
    "off": "no attention: W_V and W_proj are 0, and stay 0",
    "default": "every entry N(0, 0.02^2)",
    "xavier": "every entry uniform with variance 1/dim",
    "noise": "the control: the mimetic start without its diagonals",
    "simple": "the paper's simple form, with diagonals of strength 1",
    "mimetic": "the mimetic start",
    "query-key": "mimetic for W_Q and W_K, default for W_V and W_proj",
    "value-projection": "the other way round",
}


def make_parser():
    # The options that train_lm.py has too: --init, --seed, --lr, --dim, --qk-alpha and so on. The
    # defaults of the shape are those of ViTConfig, and those of the strengths are in the signature
    # of ViT.mimetic_init_.
    parser, add = options.shared_parser(
        description=__doc__.splitlines()[0],
        inits=INITS,
        default_inits=["off", "default", "noise", "mimetic"],
        config=ViTConfig,
        mimetic_init_=ViT.mimetic_init_,
        lr=2e-3,
        batch_size=50,
    )
    data_sets = "shifted-digits, digits, cifar10, cifar100, svhn, tiny-imagenet"
    add("--data", f"{data_sets}, an .npz, or a folder of pictures", "shifted-digits")
    add("--data-dir", "a folder with the files of a data set, instead of a download")
    add("--image-size", "pixels per side, for a folder of pictures", type=options.whole_number)
    add("--limit", "train only on the first LIMIT images", type=options.whole_number)
    kinds = options.one_of(["none", "crop", "crop+flip"])
    add("--augment", "none, crop or crop+flip (without it: what suits the data)", type=kinds)
    add(
        "--patch-size",
        "pixels per side of a patch",
        ViTConfig.patch_size,
        type=options.whole_number,
    )
    add("--epochs", "passes over the training images", 40, type=options.whole_number)
    return parser


# ---------------------------------------------------------------------------------------------
# Data


# The default of --augment. Data sets that are not listed have none. SVHN is not mirrored, since a
# mirrored digit is no digit.
AUGMENT = {
    "cifar10": "crop+flip",
    "cifar100": "crop+flip",
    "tiny-imagenet": "crop+flip",
    "svhn": "crop",
}


class Images:
    """Training and test images, as bytes on the device. A batch becomes floats when it is made."""

    def __init__(self, args):
        arrays = load_images(args.data, args.limit, args.data_dir, args.image_size)
        train, train_labels, _, _ = arrays
        self.fingerprint = fingerprint(*arrays)
        self.classes = int(train_labels.max()) + 1
        mean, std = mean_and_std(train)
        self.mean = mean.to(args.device)
        self.std = std.to(args.device)
        on_device = [array.to(args.device) for array in arrays]
        self.train, self.train_labels, self.test, self.test_labels = on_device
        self.augment = args.augment or AUGMENT.get(args.data, "none")
        self.batch_size = args.batch_size
        self.steps_per_epoch = len(self.train) // args.batch_size

    def normalise(self, images):
        """From bytes to numbers with mean 0 and standard deviation 1 in each channel."""
        return (images - self.mean) / self.std

    def batch(self, seed, step):
        """The images (batch, channels, size, size) and labels (batch,) of a training step.

        They depend only on the seed and the step. So every start sees the same batches, and a run
        that goes on after a stop sees those that would have come next. That is why the order of the
        epoch is made anew in every step. An incomplete batch at the end of an epoch is left out.
        """
        epoch, i = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
        # Under torchrun, parallel.share takes the part of this process. Otherwise it takes all.
        chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
        chosen = torch.from_numpy(parallel.share(chosen)).to(self.train.device)
        images = self.train[chosen]
        labels = self.train_labels[chosen]
        if self.augment != "none":
            # The 1 gives these draws a seed of their own. Without it, the first batch of each epoch
            # (i = 0) would draw with the seed of `order`: for NumPy, [seed, epoch, 0] is the same
            # as [seed, epoch].
            draws = np.random.default_rng([seed, epoch, i, 1]).random(
                (self.batch_size, 3), np.float32
            )
            draws = torch.from_numpy(parallel.share(draws)).to(images.device)
            images = augment(images, draws, flip=self.augment == "crop+flip")
        return self.normalise(images), labels


# ---------------------------------------------------------------------------------------------
# The starts


def initialise(model, init, args):
    """Give a new model the start called `init`. Outside the attention all starts are the same."""
    attentions = [block.attention for block in model.blocks]
    if init == "off":
        # Both factors are 0. The gradient of each contains the other, so both stay 0.
        for attention in attentions:
            attention.value_projection_init_(0, 0)
    elif init == "default":
        pass  # A new model has it.
    elif init == "xavier":
        for attention in attentions:
            attention.xavier_init_()
    elif init == "noise":
        model.mimetic_init_(args.qk_alpha, 0, args.vp_alpha, 0)
    elif init == "simple":
        for attention in attentions:
            attention.simple_init_(qk_sign=1, vp_sign=-1)
    elif init == "mimetic":
        model.mimetic_init_(args.qk_alpha, args.qk_beta, args.vp_alpha, args.vp_beta)
    elif init == "query-key":
        for attention in attentions:
            attention.query_key_init_(args.qk_alpha, args.qk_beta)
    elif init == "value-projection":
        for attention in attentions:
            attention.value_projection_init_(args.vp_alpha, args.vp_beta)


# ---------------------------------------------------------------------------------------------
# Optimizer and evaluation


def make_optimizer(model):
    """AdamW with a weight decay of 0.05 for matrices and none for biases and gains."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
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
    test = parallel.share(images.test).split(250)
    test_labels = parallel.share(images.test_labels).split(250)
    correct = 0
    for batch, labels in zip(test, test_labels):
        logits = model(images.normalise(batch))
        correct += (logits.argmax(-1) == labels).sum()
    return parallel.total(correct).item() / len(images.test)


# ---------------------------------------------------------------------------------------------
# Training


def train(run, args, config, images):
    """Train one run: a model with the start `run.init`, at the peak learning rate `run.lr`."""
    # The seed is set before the model is made, so all starts share the weights outside the
    # attention.
    torch.manual_seed(run.seed)
    model = ViT(config)
    initialise(model, run.init, args)
    model.to(args.device)
    # It shares its weights with `model`, compiled or wrapped in DistributedDataParallel.
    train_model = parallel.wrap(torch.compile(model) if args.compile else model)
    optimizer = make_optimizer(model)

    # On CUDA, matrix products are computed in bfloat16, as in nanoGPT. Elsewhere nothing changes.
    device_type = torch.device(args.device).type
    autocast = torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda")

    # run.steps puts the newest checkpoint, if there is one, into the model and the optimizer, and
    # yields the steps that are still to be done. Between the steps it saves checkpoints. It ends
    # early if the run diverges.
    for step in run.steps(model, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run.total_steps, run.lr)

        batch, labels = images.batch(run.seed, step)
        with autocast:
            loss = F.cross_entropy(train_model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.log(step, loss)

        # Eight times per run. The table has the last one, which comes after the last step.
        if run.evaluates(step):
            with autocast:
                run.record(step, accuracy=accuracy(model, images))


# ---------------------------------------------------------------------------------------------
# All runs


def prepare(argv=None):
    """Everything before the training. Raises ValueError for a mistake in options or data."""
    parallel.join()
    args = options.parse(make_parser(), argv, task="vit")
    with parallel.first_process_first():
        images = Images(args)
    _, channels, image_size, _ = images.train.shape
    config = ViTConfig(
        image_size=image_size,
        patch_size=args.patch_size,
        channels=channels,
        classes=images.classes,
        dim=args.dim,
        depth=args.depth,
        heads=args.heads,
        position=args.position,
    )
    tokens = args.batch_size * (image_size // args.patch_size) ** 2
    options.check_memory(config, tokens, args.device)
    if args.batch_size > len(images.train):
        raise ValueError(
            f"--batch-size must be at most {len(images.train)}, the number of training images,"
            f" but it is {args.batch_size}"
        )
    grid = runs.open_grid("vit", args, args.epochs * images.steps_per_epoch, images.fingerprint)
    return args, config, images, grid


def train_grid(args, config, images, grid):
    """Train every start at every learning rate and seed, then print the table."""
    with grid:
        for run in grid.unfinished():
            train(run, args, config, images)
            grid.finish(run)
        print("\n" + table.closing_table(grid.results["runs"]), flush=True)
        if args.plot:
            draw(config, images, grid)


def draw(config, images, grid):
    """Save pictures in the run folder: the curves of all runs, and the weights and the attention of
    the finished runs of one seed and learning rate.
    """
    models = {}
    which = ""
    for run in grid.to_draw():
        which = f"seed {run.seed}, lr {run.lr:g}"
        for when in ("start", "trained"):
            model = ViT(config)
            model.load_state_dict(run.weights(when))
            models[run.init, when] = model
    batch = images.normalise(images.test[:64]).cpu()
    for path in figures.draw_run(grid.folder, grid.results["runs"], models, batch, which):
        print(path)


def main(argv=None):
    """The whole experiment, for use from Python: main(["--epochs", "4"])."""
    train_grid(*prepare(argv))


if __name__ == "__main__":
    # Like main, but a mistake in the options or the data is one line and no traceback, and Ctrl-C
    # says how to go on.
    script.run(prepare, train_grid)
