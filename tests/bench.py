"""How fast is it, against the models that people would take instead? Ratios, measured side by side in one process.

    git clone https://github.com/karpathy/nanoGPT .peers/nanoGPT              the two peers, without which
    git clone https://github.com/lucidrains/vit-pytorch .peers/vit-pytorch    the comparisons with them are left out
    python -m pip install einops                                              vit-pytorch needs it
    python tests/bench.py                                                     five minutes on two cores

A ratio is the peer's time by ours, so 1.02 means 2% faster: the median of all pairs, and in brackets its quartiles. The
two take turns, and the one that begins changes. Not a test: what it prints depends on the machine.
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
from types import SimpleNamespace

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "99")   # torch's profiler says when it begins and ends
BEGUN = time.perf_counter()
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  which the first optimiser would import
import torch.nn.functional as F  # noqa: E402

TORCH_IMPORT = time.perf_counter() - BEGUN
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from mimetic_min.gpt import GPT, GPTConfig  # noqa: E402
from mimetic_min.training import adamw, precision  # noqa: E402
from mimetic_min.vit import Attention, ViT, ViTConfig  # noqa: E402

RECIPE = SimpleNamespace(betas=(0.9, 0.99), weight_decay=0.1)
PEERS = {"nanoGPT": (".peers/nanoGPT/model.py", "karpathy/nanoGPT"),
         "SimpleViT": (".peers/vit-pytorch/vit_pytorch/simple_vit.py", "lucidrains/vit-pytorch")}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def peer(name):
    """The module of a peer, or None, with a line that says how to get it."""
    path, repository = PEERS[name]
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where its dataclass looks for itself
        spec.loader.exec_module(module)
        return module
    except FileNotFoundError:
        print(f"{name} is not here: git clone https://github.com/{repository} {Path(*Path(path).parts[:2])}")
    except ImportError as error:
        print(f"{name} needs a package: python -m pip install {error.name}")


def now():
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def pairs(ours, theirs, count, pause=0.0):
    """Times of `count` calls of both, in turns: (ratios, seconds of ours, seconds of theirs).

    A `pause` before each lets the threads of the other one's library fall asleep: they wait for work busily at first.
    """
    times = {ours: [], theirs: []}
    for n in range(count):
        for call in (ours, theirs) if n % 2 else (theirs, ours):
            time.sleep(pause)
            start = now()
            call()
            times[call].append(now() - start)
    return [b / a for a, b in zip(times[ours], times[theirs])], times[ours], times[theirs]


def show(name, measured, mark, more=""):
    ratios, ours, theirs = measured
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"{name:58} {median:5.2f} [{low:.2f}, {high:.2f}]  at least {mark}   {1000 * statistics.median(ours):.1f} ms "
          f"against {1000 * statistics.median(theirs):.1f}, {len(ratios)} pairs{more}", flush=True)


# 1. One training step


def step_of(model, loss, optimizer):
    """A function that takes one step: forward, backward and optimiser."""
    def step():
        optimizer.zero_grad()
        with precision(DEVICE):
            value = loss(model)
        value.backward()
        optimizer.step()
    return step


def peak(step):
    """The most bytes that one step needs beside the weights and what the optimiser keeps."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = [event for event in json.load(open(file.name))["traceEvents"] if event["name"] == "[memory]"]
    return max(np.cumsum([event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]))


def compare(name, ours, theirs, count):
    for step in 3 * (ours, theirs):
        step()
    memory = peak(ours) / peak(theirs)
    show(name, pairs(ours, theirs, count), 1, f"; peak memory {memory:.2f}, at most 1")


def gpt_steps(nanogpt, dim, depth, heads, context, batch, compiled):
    """Steps of this GPT and of nanoGPT's at the same sizes, each with the AdamW of its own project."""
    model = GPT(GPTConfig(context=context, dim=dim, depth=depth, heads=heads)).to(DEVICE)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = nanogpt.GPT(nanogpt.GPTConfig(block_size=context, vocab_size=256, n_layer=depth, n_head=heads,
                                               n_embd=dim, bias=False)).to(DEVICE)
        optimizer = theirs.configure_optimizers(0.1, 1e-3, (0.9, 0.99), DEVICE)
    tokens = torch.randint(256, (batch, context + 1), device=DEVICE)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    wrap = torch.compile if compiled else lambda model: model
    loss = lambda model: F.cross_entropy(model(x).flatten(0, 1), y.flatten())  # noqa: E731
    return (step_of(wrap(model), loss, adamw(model, RECIPE)),
            step_of(wrap(theirs), lambda model: model(x, y)[1], optimizer))


def vit_steps(simple_vit, dim, depth, heads, patch, size, channels, batch, compiled):
    """Steps of this ViT and of SimpleViT at the same sizes, which brings no optimiser and has torch's as it comes."""
    model = ViT(ViTConfig(size, patch, channels, 10, dim, depth, heads)).to(DEVICE)
    theirs = simple_vit.SimpleViT(image_size=size, patch_size=patch, num_classes=10, dim=dim, depth=depth, heads=heads,
                                  mlp_dim=4 * dim, channels=channels, dim_head=dim // heads).to(DEVICE)
    images, labels = torch.randn(batch, channels, size, size, device=DEVICE), torch.randint(10, (batch,), device=DEVICE)
    wrap = torch.compile if compiled else lambda model: model
    optimizer = torch.optim.AdamW(theirs.parameters(), betas=RECIPE.betas, weight_decay=RECIPE.weight_decay)
    return [step_of(wrap(m), lambda model: F.cross_entropy(model(images), labels), o)
            for m, o in ((model, adamw(model, RECIPE)), (theirs, optimizer))]


def steps(simple_vit, nanogpt):
    for compiled in (False, True) if DEVICE == "cuda" else (False,):
        how = ", --compile" if compiled else ""
        if DEVICE == "cuda":
            vits = [("ViT-Tiny, patch 2, 32x32, batch 512", (192, 12, 3, 2, 32, 3, 512), 21)]
            gpts = [("GPT d 384, 6 layers, context 256, batch 64", (384, 6, 6, 256, 64), 41)]
        else:
            vits = [("ViT of train_vit.py", (64, 4, 4, 2, 8, 1, 50), 201),
                    ("ViT d 384, 6 layers", (384, 6, 6, 2, 8, 1, 50), 41)]
            gpts = [("GPT of train_lm.py", (128, 4, 4, 64, 12), 101),
                    ("GPT d 384, 6 layers", (384, 6, 6, 64, 12), 41)]
        for name, sizes, count in vits if simple_vit else ():
            compare(f"{name}{how}, against SimpleViT", *vit_steps(simple_vit, *sizes, compiled), count)
        for name, sizes, count in gpts if nanogpt else ():
            compare(f"{name}{how}, against nanoGPT", *gpt_steps(nanogpt, *sizes, compiled), count)


# 2. The whole of a script


def script(name):
    """Run a script without options in this process, and print what share of it the training steps have."""
    busy, first, depth = 0.0, None, 0

    def timed(function, counts=lambda self: True):
        def call(self, *args, **kwargs):
            nonlocal busy, first, depth
            if depth or not counts(self):
                return function(self, *args, **kwargs)
            depth, begun = 1, time.perf_counter()
            first = first or begun
            try:
                return function(self, *args, **kwargs)
            finally:
                busy, depth = busy + time.perf_counter() - begun, 0
        return call

    for model in (ViT, GPT):                      # forward, the loss, backward, clipping and AdamW
        model.__call__ = timed(model.__call__, lambda model: model.training)
    F.cross_entropy = timed(F.cross_entropy, lambda logits: logits.requires_grad)
    torch.Tensor.backward = timed(torch.Tensor.backward)
    torch.nn.utils.clip_grad_norm_ = timed(torch.nn.utils.clip_grad_norm_)
    torch.optim.AdamW.step = timed(torch.optim.AdamW.step)
    torch.optim.AdamW.zero_grad = timed(torch.optim.AdamW.zero_grad)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(name).main(["--out", folder])
    wall = time.perf_counter() - begun
    print(f"{name}.py: {busy / wall:.1%} of {wall:.0f} s in forward, backward and optimiser, at least 90%; the first "
          f"step after {first - begun:.2f} s, at most 1; importing torch, {TORCH_IMPORT:.1f} s, aside", flush=True)


# 3. The initialiser


def initialiser():
    """A ViT-Base, layer by layer, against the README's formulas written down as a loop over numpy.linalg.svd."""
    dim, heads = 768, 12
    attention = Attention(dim, heads).to(DEVICE)

    def svd(alpha, beta):
        return np.linalg.svd(alpha * np.random.randn(dim, dim) / np.sqrt(dim) + beta * np.eye(dim))

    def loop():
        k = dim // heads
        for head in range(heads):
            U, S, Vt = svd(0.7, 0.7)
            U[:, :k] @ np.diag(np.sqrt(S[:k])), Vt[:k].T @ np.diag(np.sqrt(S[:k]))
        U, S, Vt = svd(0.4, -0.4)
        U @ np.diag(np.sqrt(S)), np.diag(np.sqrt(S)) @ Vt

    def ours():
        attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)

    ours()
    show("initialiser, a layer of ViT-Base, against numpy.linalg.svd", pairs(ours, loop, 12, pause=0.3), 2)


def machine():
    """What the figures are of."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return platform.processor()


if __name__ == "__main__":
    if sys.argv[1:] == ["initialiser"]:           # in a process of its own, as new as a user's
        initialiser()
    elif sys.argv[1:]:
        script(sys.argv[1])
    else:
        print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
        steps(peer("SimpleViT"), peer("nanoGPT"))
        for name in ("initialiser", "train_vit", "train_lm"):
            subprocess.run([sys.executable, __file__, name], check=True)
