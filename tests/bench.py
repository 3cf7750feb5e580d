"""How fast is it, against the models that people would take instead?

    git clone https://github.com/karpathy/nanoGPT .peers/nanoGPT
    git clone https://github.com/lucidrains/vit-pytorch .peers/vit-pytorch
    python -m pip install einops
    python tests/bench.py

The two repositories and einops are for the comparison with nanoGPT and SimpleViT. Without them the
rest is measured. It takes about five minutes on two cores.

A ratio is the other's time divided by ours: 1.02 means that ours is 2% faster. It is the median
over pairs of steps that take turns in one process; the quartiles stand in brackets. Beside each
step stands the time of its matrix products without anything else, measured with the same sizes: no
step can take less. This is not a test, since its figures depend on the machine.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# torch's profiler would say when it begins and ends.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_lm
import train_vit
from mimetic_min import GPT, GPTConfig, ViT, ViTConfig
from mimetic_min.vit import Attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = {
    "nanoGPT": ".peers/nanoGPT/model.py",
    "SimpleViT": ".peers/vit-pytorch/vit_pytorch/simple_vit.py",
}


def load_peer(name):
    """The module of a peer, or None, with a line that says what is missing."""
    path = ROOT / PEERS[name]
    if not path.exists():
        print(f"{name} is left out: {PEERS[name]} is missing")
        return None
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        # Its dataclass looks for itself there.
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        print(f"{name} is left out: it needs the package {error.name}")
        return None


# ---------------------------------------------------------------------------------------------
# Time and memory


def now():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call):
    start = now()
    call()
    return now() - start


def time_turns(calls, count, pause=0.0):
    """Seconds of `count` calls of each function, one list per function. They take turns.

    A `pause` before each call lets the threads of another library fall asleep.
    """
    times = [[] for _ in calls]
    for n in range(count):
        order = list(range(len(calls)))
        if n % 2 == 0:
            order.reverse()
        for i in order:
            time.sleep(pause)
            times[i].append(seconds(calls[i]))
    return times


def show(name, our_times, their_times, target, more=""):
    ratios = [theirs / ours for ours, theirs in zip(our_times, their_times)]
    low, median, high = statistics.quantiles(ratios, n=4)
    ours = 1000 * statistics.median(our_times)
    theirs = 1000 * statistics.median(their_times)
    print(
        f"{name:52} {median:.2f} [{low:.2f}, {high:.2f}]  wanted: {target}"
        f"   {ours:.1f} ms against {theirs:.1f} ms{more}",
        flush=True,
    )


def peak_memory(step):
    """The most bytes that one step needs, beside the weights and the optimizer's state."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    allocations = [event for event in events if event["name"] == "[memory]"]
    allocations.sort(key=lambda event: event["ts"])
    return max(np.cumsum([event["args"]["Bytes"] for event in allocations]))


# ---------------------------------------------------------------------------------------------
# One training step


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


def make_step(model, loss_of, optimizer):
    """A function that takes one training step."""

    def step():
        with autocast():
            loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def make_products(dim, depth, heads, tokens, batch, outer):
    """A function that computes the matrix products of a step and nothing else.

    Each product of the forward pass, X W, comes with the two of its backward pass, for the
    gradients of X and of W. `outer` are the (rows, columns, inner) of the products outside the
    blocks.
    """
    rows = batch * tokens
    head_dim = dim // heads
    sizes = [*outer]
    for _ in range(depth):
        sizes += 4 * [(rows, dim, dim)]  # W_Q, W_K, W_V, W_proj
        sizes += [(rows, 4 * dim, dim), (rows, dim, 4 * dim)]  # the MLP
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    operands = []
    for n, m, k in sizes:
        X = torch.randn(n, k, device=DEVICE, dtype=dtype)
        W = torch.randn(k, m, device=DEVICE, dtype=dtype)
        Y = torch.randn(n, m, device=DEVICE, dtype=dtype)
        operands.append((X, W, Y))
    q = torch.randn(batch * heads, tokens, head_dim, device=DEVICE, dtype=dtype)
    attention = torch.randn(batch * heads, tokens, tokens, device=DEVICE, dtype=dtype)

    def products():
        for X, W, Y in operands:
            X @ W
            Y @ W.T
            X.T @ Y
        for _ in range(depth):
            for _ in range(3):  # forward, and the gradients of both factors
                q @ q.mT
                attention @ q

    return products


def compare(name, ours, theirs, products, count):
    for _ in range(3):
        ours()
        theirs()
        products()
    memory = peak_memory(ours) / peak_memory(theirs)
    our_times, their_times, product_times = time_turns([ours, theirs, products], count)
    share = statistics.median(product_times) / statistics.median(our_times)
    more = f"; matrix products {share:.0%} of ours; peak memory {memory:.2f} of theirs"
    show(name, our_times, their_times, "1", more)


def compare_vit(name, simple_vit, config, batch, count, compiled):
    """A step of this ViT against one of SimpleViT of the same sizes."""
    model = ViT(config).to(DEVICE)
    peer = simple_vit.SimpleViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.classes,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        mlp_dim=4 * config.dim,
        channels=config.channels,
        dim_head=config.dim // config.heads,
    ).to(DEVICE)
    images = torch.randn(batch, config.channels, config.image_size, config.image_size).to(DEVICE)
    labels = torch.randint(config.classes, (batch,), device=DEVICE)

    def loss_of(model):
        return F.cross_entropy(model(images), labels)

    # SimpleViT brings no optimizer. It gets PyTorch's AdamW as it is.
    peer_optimizer = torch.optim.AdamW(peer.parameters(), weight_decay=0.05)
    wrap = torch.compile if compiled else lambda model: model
    ours = make_step(wrap(model), loss_of, train_vit.make_optimizer(model))
    theirs = make_step(wrap(peer), loss_of, peer_optimizer)
    tokens = (config.image_size // config.patch_size) ** 2
    pixels = config.channels * config.patch_size**2
    outer = [(batch * tokens, config.dim, pixels), (batch, config.classes, config.dim)]
    products = make_products(config.dim, config.depth, config.heads, tokens, batch, outer)
    compare(f"{name}, against SimpleViT", ours, theirs, products, count)


def compare_gpt(name, nanogpt, config, batch, count, compiled):
    """A step of this GPT against one of nanoGPT's of the same sizes, each with its own AdamW."""
    model = GPT(config).to(DEVICE)
    peer_config = nanogpt.GPTConfig(
        block_size=config.context,
        vocab_size=config.vocab_size,
        n_layer=config.depth,
        n_head=config.heads,
        n_embd=config.dim,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        peer = nanogpt.GPT(peer_config).to(DEVICE)
        peer_optimizer = peer.configure_optimizers(0.1, 1e-3, (0.9, 0.99), DEVICE)
    tokens = torch.randint(config.vocab_size, (batch, config.context + 1), device=DEVICE)
    inputs = tokens[:, :-1].contiguous()
    targets = tokens[:, 1:].contiguous()

    def our_loss(model):
        return train_lm.cross_entropy(model(inputs), targets)

    def their_loss(model):
        return model(inputs, targets)[1]

    wrap = torch.compile if compiled else lambda model: model
    ours = make_step(wrap(model), our_loss, train_lm.make_optimizer(model))
    theirs = make_step(wrap(peer), their_loss, peer_optimizer)
    rows = batch * config.context
    outer = [(rows, config.vocab_size, config.dim)]
    products = make_products(config.dim, config.depth, config.heads, config.context, batch, outer)
    compare(f"{name}, against nanoGPT", ours, theirs, products, count)


def compare_steps():
    simple_vit = load_peer("SimpleViT")
    nanogpt = load_peer("nanoGPT")
    if DEVICE == "cuda":
        vits = [
            ("ViT-Tiny, patch 2 on 32x32, batch 512", ViTConfig(32, 2, 3, 10, 192, 12, 3), 512, 21)
        ]
        gpts = [("GPT, dim 384, context 256, batch 64", GPTConfig(256, 256, 384, 6, 6), 64, 41)]
    else:
        vits = [
            ("ViT of train_vit.py", ViTConfig(image_size=12), 50, 101),
            ("ViT, dim 384, 6 layers", ViTConfig(dim=384, depth=6, heads=6), 50, 41),
        ]
        gpts = [
            ("GPT of train_lm.py", GPTConfig(), 12, 101),
            ("GPT, dim 384, 6 layers", GPTConfig(dim=384, depth=6, heads=6), 12, 41),
        ]
    for compiled in [False, True] if DEVICE == "cuda" else [False]:
        how = ", compiled" if compiled else ""
        for name, config, batch, count in vits if simple_vit else []:
            compare_vit(name + how, simple_vit, config, batch, count, compiled)
        for name, config, batch, count in gpts if nanogpt else []:
            compare_gpt(name + how, nanogpt, config, batch, count, compiled)


# ---------------------------------------------------------------------------------------------
# The initialiser


def compare_initialiser():
    """A layer of ViT-Base, against the formulas of the paper as a loop over numpy.linalg.svd."""
    dim = 768
    heads = 12
    head_dim = dim // heads
    attention = Attention(dim, heads)

    def numpy_factors(alpha, beta, rank):
        Z = np.random.randn(dim, dim) / np.sqrt(dim)
        U, S, Vt = np.linalg.svd(alpha * Z + beta * np.eye(dim))
        root = np.diag(np.sqrt(S[:rank]))
        return U[:, :rank] @ root, root @ Vt[:rank]

    def theirs():
        for _ in range(heads):
            numpy_factors(0.7, 0.7, head_dim)
        numpy_factors(0.4, -0.4, dim)

    def ours():
        attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)

    ours()
    times = time_turns([ours, theirs], 8, pause=0.3)
    show("initialiser, a layer of ViT-Base, against NumPy", *times, "1.8")


# ---------------------------------------------------------------------------------------------
# A whole script


def time_script(name):
    """Run a script without options, and print which share of its time the training steps have."""
    busy = 0.0
    inside = False

    def timed(function, counts=lambda *args: True):
        def call(*args, **kwargs):
            nonlocal busy, inside
            if inside or not counts(*args):
                return function(*args, **kwargs)
            inside = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                busy += time.perf_counter() - start
                inside = False

        return call

    # Forward, loss, backward, clipping and AdamW; not the evaluations, which have no gradient.
    for model in (ViT, GPT):
        model.__call__ = timed(model.__call__, lambda *args: torch.is_grad_enabled())
    F.cross_entropy = timed(F.cross_entropy, lambda *args: torch.is_grad_enabled())
    torch.Tensor.backward = timed(torch.Tensor.backward)
    torch.nn.utils.clip_grad_norm_ = timed(torch.nn.utils.clip_grad_norm_)
    torch.optim.AdamW.step = timed(torch.optim.AdamW.step)
    torch.optim.AdamW.zero_grad = timed(torch.optim.AdamW.zero_grad)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(name).main(["--out", folder])
    wall = time.perf_counter() - start
    print(
        f"{name}.py: {busy / wall:.1%} of {wall:.0f} s is training steps  wanted: 90%", flush=True
    )


def machine():
    """What the figures were measured on."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(": ")[1]
    return platform.processor()


PARTS = {
    "steps": compare_steps,
    "initialiser": compare_initialiser,
    "train_vit": lambda: time_script("train_vit"),
    "train_lm": lambda: time_script("train_lm"),
}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(
            f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True
        )
        # Each part has a process of its own, as new as a user's.
        for part in PARTS:
            subprocess.run([sys.executable, __file__, part], check=True)
    elif sys.argv[1] in PARTS:
        PARTS[sys.argv[1]]()
    else:
        sys.exit(f"bench.py: the parts are {', '.join(PARTS)}, but this is {sys.argv[1]}")
