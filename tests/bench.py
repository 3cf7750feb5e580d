"""Time of a training step: a model of this project against the one in a file that you name.

    python tests/bench.py model.py         our GPT against nanoGPT (github.com/karpathy/nanoGPT)
    python tests/bench.py simple_vit.py    our ViT against SimpleViT (lucidrains/vit-pytorch)

SimpleViT needs `python -m pip install einops`. Each line is about one width:

    ratio       our time divided by theirs. Below 1, ours is faster
    products    the time of the matrix products alone, divided by ours. No step can take less

A step is forward, loss, backward and AdamW, on the CPU with one thread. Both models have four
layers, the same shapes, and 64 tokens. They take turns, step by step, and the ratio is the median
over these pairs, with the quartiles in brackets. This is not a test: it depends on the machine.
"""

import runpy
import sys
from statistics import median, quantiles
from timeit import timeit

# It finds the project, and sets one thread.
import conftest  # noqa: F401
import torch
import torch.nn.functional as F

from mimetic_min import GPT, GPTConfig, ViT, ViTConfig

DEPTH = 4
TOKENS = 64


def gpt_steps(theirs, dim, heads, batch=12):
    """A step of our GPT, one of nanoGPT, and their matrix products."""
    gpt = GPT(GPTConfig(256, TOKENS, dim, DEPTH, heads))
    nanogpt = theirs["GPT"](theirs["GPTConfig"](TOKENS, 256, DEPTH, heads, dim, bias=False))
    text, targets = torch.randint(256, (2, batch, TOKENS))
    return (
        training_step(gpt, lambda: F.cross_entropy(gpt(text).flatten(0, 1), targets.flatten())),
        training_step(nanogpt, lambda: nanogpt(text, targets)[1]),
        matrix_products(dim, heads, batch, outer=256),
    )


def vit_steps(theirs, dim, heads, batch=50):
    """A step of our ViT, one of SimpleViT, and their matrix products, on CIFAR-10's shape."""
    vit = ViT(ViTConfig(32, 4, 3, 10, dim, DEPTH, heads))
    simple_vit = theirs["SimpleViT"](
        image_size=32,
        patch_size=4,
        num_classes=10,
        dim=dim,
        depth=DEPTH,
        heads=heads,
        mlp_dim=4 * dim,
        dim_head=dim // heads,
    )
    images = torch.randn(batch, 3, 32, 32)
    labels = torch.randint(10, (batch,))
    return (
        training_step(vit, lambda: F.cross_entropy(vit(images), labels)),
        training_step(simple_vit, lambda: F.cross_entropy(simple_vit(images), labels)),
        matrix_products(dim, heads, batch, outer=3 * 4 * 4),
    )


def training_step(model, loss):
    """A function that takes one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def matrix_products(dim, heads, batch, outer):
    """A function that computes the matrix products of a step, and nothing else.

    Outside the layers there is one: with the pixels of a patch, or with the vocabulary (`outer`).
    """
    layer = [
        *[((batch * TOKENS, dim), (dim, dim))] * 4,  # W_Q, W_K, W_V, W_proj
        # The attention map, and what it does with the values
        ((batch * heads, TOKENS, dim // heads), (batch * heads, dim // heads, TOKENS)),
        ((batch * heads, TOKENS, TOKENS), (batch * heads, TOKENS, dim // heads)),
        ((batch * TOKENS, dim), (dim, 4 * dim)),
        ((batch * TOKENS, 4 * dim), (4 * dim, dim)),
    ]
    factors = [
        (torch.randn(left), torch.randn(right))
        for left, right in layer * DEPTH + [((batch * TOKENS, dim), (dim, outer))]
    ]

    def products():
        for A, B in factors:
            C = A @ B
            # The gradients of A and of B
            C @ B.mT
            A.mT @ C

    return products


def main(path, rounds=30):
    theirs = runpy.run_path(path)
    make_steps, shapes = (
        (gpt_steps, [(128, 4), (384, 6)])
        if "GPT" in theirs
        else (vit_steps, [(64, 4), (96, 3), (192, 3)])
    )
    for dim, heads in shapes:
        steps = make_steps(theirs, dim, heads)
        # Seconds (2 * rounds, 3). Of two steps beside each other, each comes first in half the
        # rounds. The very first steps are slower, but the median hardly notices.
        seconds = [
            [timeit(step, number=1) for step in steps[::way]][::way] for way in [1, -1] * rounds
        ]
        ratios = quantiles([ours / other for ours, other, _ in seconds], n=4)
        ours, _, products = map(median, zip(*seconds))
        print(
            f"dim {dim:3}: ratio {ratios[1]:.3f} [{ratios[0]:.3f}, {ratios[2]:.3f}],"
            f" products {products / ours:.0%}, our step {1000 * ours:.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
