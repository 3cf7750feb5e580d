"""Does a GPT learn better from a mimetic start?

This script trains the same small model from several starts, one after the other, and ends with a
table that compares them.

    python train_lm.py                                        default, xavier, noise and mimetic
    python train_lm.py --init default mimetic --seed 0 1 2    a mean and a spread
    python train_lm.py --data shakespeare --steps 2000        nanoGPT's sizes for a CPU
    python train_lm.py --data my_text.txt                     your own text
    python train_lm.py --resume runs/lm-docs                  go on after a stop

It reads from top to bottom: options, data, starts, optimizer, evaluation, one training run, all
runs.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from mimetic_min import GPT, GPTConfig
from mimetic_min.data import fingerprint, load_text
from mimetic_min.lab import figures, options, parallel, runs, script, table

# ---------------------------------------------------------------------------------------------
# Options

INITS = {
    "off": "no attention: W_V and W_proj are 0, and stay 0",
    "default": "every entry N(0, 0.02^2), and W_proj smaller, as in GPT-2",
    "xavier": "every entry uniform with variance 1/dim",
    "noise": "the control: the mimetic start without its diagonals",
    "simple": "the paper's simple form, with diagonals of strength 1",
    "mimetic": "the mimetic start",
    "language": "mimetic with the signs of trained GPT-2s",
    "query-key": "mimetic for W_Q and W_K, default for W_V and W_proj",
    "value-projection": "the other way round, with --vp-beta in all layers",
}


def make_parser():
    # The options that train_vit.py has too: --init, --seed, --lr, --dim, --qk-alpha and so on. The
    # defaults of the shape are those of GPTConfig, and those of the strengths are in the signature
    # of GPT.mimetic_init_.
    parser, add = options.shared_parser(
        description=__doc__.splitlines()[0],
        inits=INITS,
        default_inits=["default", "xavier", "noise", "mimetic"],
        config=GPTConfig,
        mimetic_init_=GPT.mimetic_init_,
        lr=4e-3,
        batch_size=12,
    )
    add(
        "--data",
        "docs (the Python reference), shakespeare, enwik8, wikitext-103, or a file",
        "docs",
    )
    add("--data-dir", "a folder with the files of a data set, instead of a download")
    add("--context", "bytes that the model sees", 64, type=options.whole_number)
    add("--steps", "batches to train on", 1000, type=options.whole_number)
    add("--sample", "bytes that each trained model writes", 200, type=options.whole_number)
    return parser


# ---------------------------------------------------------------------------------------------
# Data


class Text:
    """Training and validation text, as bytes. A window is `context` bytes and the next one."""

    def __init__(self, args):
        self.train, self.validation = load_text(args.data, args.context, args.data_dir)
        self.fingerprint = fingerprint(self.train, self.validation)
        self.context = args.context
        self.batch_size = args.batch_size
        self.device = args.device

    def windows(self, text, offsets):
        """Inputs and targets, both (batch, context): each target is the byte after its input."""
        positions = offsets[:, None] + np.arange(self.context + 1)
        tokens = torch.from_numpy(text[positions]).to(self.device).long()
        return tokens[:, :-1], tokens[:, 1:]

    def batch(self, seed, step):
        """Windows at random places of the training text.

        They depend only on the seed and the step. So every start sees the same batches, and a run
        that goes on after a stop sees those that would have come next.
        """
        places = len(self.train) - self.context
        offsets = np.random.default_rng([seed, step]).integers(0, places, self.batch_size)
        return self.windows(self.train, parallel.share(offsets))

    def validation_offsets(self):
        """256 places, or as many as there are, spread evenly over the validation text."""
        available = (len(self.validation) - 1) // self.context
        windows = np.linspace(0, available - 1, min(available, 256)).astype(int)
        return windows * self.context


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
        model.mimetic_init_(
            args.qk_alpha, args.qk_beta, args.vp_alpha, args.vp_beta, args.vp_last_beta
        )
    elif init == "language":
        # The paper's Figure 2: query-key is negative. Value-projection goes from negative in
        # the first layer to positive in the last.
        model.mimetic_init_(
            args.qk_alpha, -args.qk_beta, args.vp_alpha, args.vp_beta, vp_last_beta=-args.vp_beta
        )
    elif init == "query-key":
        for attention in attentions:
            attention.query_key_init_(args.qk_alpha, args.qk_beta)
    elif init == "value-projection":
        for attention in attentions:
            attention.value_projection_init_(args.vp_alpha, args.vp_beta)


# ---------------------------------------------------------------------------------------------
# Optimizer and evaluation


def make_optimizer(model):
    """AdamW with nanoGPT's settings for a text of characters. Gains have no weight decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
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


def cross_entropy(logits, targets):
    """The mean over all tokens, in nats per byte. From (batch, tokens, 256) and (batch, tokens)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model, text):
    """The loss on the validation text, in nats per byte."""
    offsets = text.validation_offsets()
    share = parallel.share(offsets)
    loss = torch.zeros((), device=text.device)
    for i in range(0, len(share), 32):
        inputs, targets = text.windows(text.validation, share[i : i + 32])
        loss += cross_entropy(model(inputs), targets) * len(inputs)
    return parallel.total(loss).item() / len(offsets)


def sample(model, count, seed):
    """A text that the model writes after a line break."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.tensor([[ord("\n")]], device=device)
    tokens = model.generate(tokens, count, temperature=0.8, generator=generator)
    return bytes(tokens[0, 1:].tolist()).decode(errors="replace")


# ---------------------------------------------------------------------------------------------
# Training


def train(run, args, config, text):
    """Train one run: a model with the start `run.init`, at the peak learning rate `run.lr`."""
    # The seed is set before the model is made, so all starts share the weights outside the
    # attention.
    torch.manual_seed(run.seed)
    model = GPT(config)
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

        inputs, targets = text.batch(run.seed, step)
        with autocast:
            loss = cross_entropy(train_model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.log(step, loss)

        # Eight times per run. The table has the last one, which comes after the last step.
        if run.evaluates(step):
            with autocast:
                loss = validation_loss(model, text)
            bits = loss / math.log(2)
            # 2.0**1024 is too large for a float.
            run.record(step, loss=loss, bpc=bits, perplexity=2 ** min(bits, 1000))

    # A run that diverged has no final result and no sample.
    if "final" in run.result:
        run.result["sample"] = sample(model, args.sample, run.seed)


# ---------------------------------------------------------------------------------------------
# All runs


def prepare(argv=None):
    """Everything before the training. Raises ValueError for a mistake in options or data."""
    parallel.join()
    args = options.parse(make_parser(), argv, task="lm")
    config = GPTConfig(
        context=args.context,
        dim=args.dim,
        depth=args.depth,
        heads=args.heads,
        position=args.position,
    )
    options.check_memory(config, args.batch_size * args.context, args.device)
    with parallel.first_process_first():
        text = Text(args)
    grid = runs.open_grid("lm", args, args.steps, text.fingerprint)
    return args, config, text, grid


def train_grid(args, config, text, grid):
    """Train every start at every learning rate and seed, then print the table."""
    with grid:
        for run in grid.unfinished():
            train(run, args, config, text)
            grid.finish(run)
        print("\n" + table.closing_table(grid.results["runs"]), flush=True)
        show_samples(grid)
        if args.plot:
            draw(config, text, grid)


def show_samples(grid):
    """Print what the first model of each start writes."""
    shown = set()
    for result in grid.results["runs"]:
        if "sample" in result and result["init"] not in shown:
            shown.add(result["init"])
            print(f"\n---- {result['init']} writes (seed {result['seed']}, lr {result['lr']:g}):")
            print(result["sample"])


def draw(config, text, grid):
    """Save pictures in the run folder: the curves of all runs, and the weights and the attention of
    the finished runs of one seed and learning rate.
    """
    models = {}
    which = ""
    for run in grid.to_draw():
        which = f"seed {run.seed}, lr {run.lr:g}"
        for when in ("start", "trained"):
            model = GPT(config)
            model.load_state_dict(run.weights(when))
            models[run.init, when] = model
    batch, _ = text.windows(text.validation, text.validation_offsets()[:16])
    for path in figures.draw_run(grid.folder, grid.results["runs"], models, batch.cpu(), which):
        print(path)


def main(argv=None):
    """The whole experiment, for use from Python: main(["--steps", "40"])."""
    train_grid(*prepare(argv))


if __name__ == "__main__":
    # Like main, but a mistake in the options or the data is one line and no traceback, and Ctrl-C
    # says how to go on.
    script.run(prepare, train_grid)
