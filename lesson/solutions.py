"""The solutions. They are short; try for yourself first.

python lesson/check.py lesson/solutions.py
"""

import statistics
from math import sqrt

import torch
from torch import nn

# ---------------------------------------------------------------------------------------------
# Exercise 1: the simple form


def simple_form(dim, head_dim):
    """W_Q and W_K (dim, head_dim), W_V and W_proj (dim, dim)."""
    Z = torch.randn(dim, head_dim) / sqrt(head_dim)
    W_Q = Z
    W_K = Z
    Z = torch.randn(dim, dim) / sqrt(dim)
    W_V = Z
    W_proj = -Z.T
    return W_Q, W_K, W_V, W_proj


# ---------------------------------------------------------------------------------------------
# Exercise 2: the controlled form


def factors(dim, rank, alpha, beta, generator):
    """L (dim, rank) and R (rank, dim), whose product is near alpha Z + beta I."""
    Z = torch.randn(dim, dim, generator=generator) / sqrt(dim)
    A = alpha * Z + beta * torch.eye(dim)
    U, S, Vt = torch.linalg.svd(A)
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.W_Q = nn.Parameter(torch.zeros(heads, dim, dim // heads))
        self.W_K = nn.Parameter(torch.zeros(heads, dim, dim // heads))
        self.W_V = nn.Parameter(torch.zeros(dim, dim))
        self.W_proj = nn.Parameter(torch.zeros(dim, dim))

    @torch.no_grad()
    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        heads, dim, head_dim = self.W_Q.shape
        for head in range(heads):
            L, R = factors(dim, head_dim, qk_alpha, qk_beta, generator)
            self.W_Q[head] = L
            self.W_K[head] = R.T
        L, R = factors(dim, dim, vp_alpha, vp_beta, generator)
        self.W_V.copy_(L)
        self.W_proj.copy_(R)


# ---------------------------------------------------------------------------------------------
# Exercise 3: the transposed weight


def find_transposed(layers):
    """0 or 1: the layer whose W_V W_proj has the wider spread on its diagonal."""
    spreads = []
    for layer in layers:
        W_V = layer.V.weight.T
        W_proj = layer.proj.weight.T
        spreads.append((W_V @ W_proj).diagonal().std().item())
    return spreads.index(max(spreads))


# ---------------------------------------------------------------------------------------------
# Exercise 4 has no solution here. What is right is what your own runs say, and check.py prints it.
# results/README.md has the same starts.


# ---------------------------------------------------------------------------------------------
# Exercise 5: nn.MultiheadAttention


@torch.no_grad()
def put_into(module, attention):
    """Give module, an nn.MultiheadAttention, the four weights of an Attention.

    nn.Linear computes x @ weight.T, so each W is transposed.
    """
    W_Q = attention.W_Q.mT.flatten(0, 1)  # (heads * head_dim, dim)
    W_K = attention.W_K.mT.flatten(0, 1)
    W_V = attention.W_V.T
    module.in_proj_weight.copy_(torch.cat([W_Q, W_K, W_V]))
    module.out_proj.weight.copy_(attention.W_proj.T)
    module.in_proj_bias.zero_()
    module.out_proj.bias.zero_()


# ---------------------------------------------------------------------------------------------
# Exercise 6: the learning rate at which the gain ends


def accuracies(runs, init, lr):
    """One per seed. A run without a "final" diverged, and counts as 0."""
    found = []
    for run in runs:
        if run["init"] == init and run["lr"] == lr:
            found.append(run["final"]["accuracy"] if "final" in run else 0)
    return found


def rates_with_gain(runs, other):
    """The rates at which mimetic is ahead of `other` by twice the standard error or more."""
    rates = []
    for lr in sorted({run["lr"] for run in runs}):
        mimetic = [run for run in runs if (run["init"], run["lr"]) == ("mimetic", lr)]
        if any("final" not in run for run in mimetic):
            continue
        of_mimetic = accuracies(runs, "mimetic", lr)
        of_other = accuracies(runs, other, lr)
        gain = statistics.mean(of_mimetic) - statistics.mean(of_other)
        error = sqrt(
            statistics.variance(of_mimetic) / len(of_mimetic)
            + statistics.variance(of_other) / len(of_other)
        )
        if gain >= 2 * error:
            rates.append(lr)
    return rates


# ---------------------------------------------------------------------------------------------
# Exercise 7: the cut to rank k


def mean_after_the_cut(dim, rank, alpha, beta):
    """The mean of the diagonal of the best approximation, over ten Z."""
    means = []
    for _ in range(10):
        L, R = factors(dim, rank, alpha, beta, generator=None)
        means.append((L @ R).diagonal().mean().item())
    return statistics.mean(means)
