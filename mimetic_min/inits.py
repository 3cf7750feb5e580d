"""The initializations that both scripts compare.

Each is a function that takes a list of Attention layers, first layer first, and the four strengths
(qk_alpha, qk_beta, vp_alpha, vp_beta). It changes the weights in place, and draws from torch's own
generator. The first line of its docstring is its line in --help. To compare an initialization of
your own, write a function here and add it to INITS: both scripts will have it. After changing it,
delete its runs, since the scripts do not notice.
"""

from math import sqrt

import torch
from torch import nn


def off(layers, strengths):
    """no attention: W_V and W_proj are 0, and stay 0"""
    # They stay 0 because the gradient of each is a product with the other.
    for attention in layers:
        attention.value_projection_init_(0, 0)


def default(layers, strengths):
    """the model's own: N(0, 0.02^2), and in the GPT a smaller W_proj"""


def xavier(layers, strengths):
    """every entry uniform with variance 1/dim (Glorot and Bengio, 2010)"""
    for attention in layers:
        bound = sqrt(3 / len(attention.W_V))
        for W in attention.parameters():
            nn.init.uniform_(W, -bound, bound)


@torch.no_grad()
def shuffled(layers, strengths):
    """the control: mimetic, then the columns of both products in random order

    W_Q W_K^T of each head and W_V W_proj keep their entries, singular values, norms and rank. They
    lose the alignment of rows with columns: the diagonal, and with it symmetry and eigenvalues. So
    mimetic minus shuffled is what the alignment is worth, and shuffled minus default is what
    weights of this size and with these singular values are worth in a random alignment.
    """
    mimetic(layers, strengths)
    for attention in layers:
        # Moving columns of the second factor (W_K^T of a head, or W_proj) moves the product's.
        for factor in (*attention.W_K.mT, attention.W_proj):
            order = torch.randperm(factor.shape[1])
            factor.copy_(factor[:, order])


def mimetic(layers, strengths):
    """mimetic initialization"""
    for attention in layers:
        attention.mimetic_init_(*strengths)


def simple(layers, strengths):
    """the paper's simple form, with diagonals of about 1 and -1"""
    for attention in layers:
        attention.simple_init_(qk_sign=1, vp_sign=-1)


def query_key(layers, strengths):
    """mimetic for W_Q and W_K, default for W_V and W_proj"""
    for attention in layers:
        attention.query_key_init_(*strengths[:2])


def value_projection(layers, strengths):
    """mimetic for W_V and W_proj, default for W_Q and W_K"""
    for attention in layers:
        attention.value_projection_init_(*strengths[2:])


def language(layers, strengths):
    """mimetic with the signs that the paper saw in trained GPT-2s"""
    # Query-key is negative. Value-projection goes from negative in the first layer to positive in
    # the last (the paper's Figure 2).
    qk_alpha, qk_beta, vp_alpha, vp_beta = strengths
    for i, attention in enumerate(layers):
        factor = 1 - 2 * i / max(1, len(layers) - 1)
        attention.mimetic_init_(qk_alpha, -qk_beta, vp_alpha, vp_beta * factor)


INITS = {
    "off": off,
    "default": default,
    "xavier": xavier,
    "shuffled": shuffled,
    "mimetic": mimetic,
    "simple": simple,
    "query-key": query_key,
    "value-projection": value_projection,
    "language": language,
}

# What --help says about them
HELP = "\n".join(f"  {name:18}{init.__doc__.splitlines()[0]}" for name, init in INITS.items())
