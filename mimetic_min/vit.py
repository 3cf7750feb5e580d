"""A small Vision Transformer with mimetic initialization.

This file needs only torch. Copy it anywhere.

    model = ViT(ViTConfig(image_size=32, patch_size=4, channels=3))
    model.mimetic_init_()

Without the second line the model has the usual random weights. With it, the diagonals of two
products stand out, as in a trained vision transformer (Trockman and Kolter, "Mimetic Initialization
of Self-Attention Layers", ICML 2023, https://arxiv.org/abs/2305.09828):

    W_Q W_K^T    of each head    has a positive diagonal: tokens attend to tokens like themselves
    W_V W_proj   of each layer   has a negative diagonal: a layer subtracts some of what it sees

Tokens are rows, and weights act from the right: x @ W, as in the paper. (nn.Linear computes
x @ W^T. If you put these weights into an nn.Linear, transpose them.)

The file goes from the method to the model: a target and its factors, attention, the vision
transformer.
"""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import nn

# ---------------------------------------------------------------------------------------------
# The method. A product of two weights should be near a target, alpha Z + beta I. Make the target,
# then split it into two factors.

# The method draws on the CPU and in float32, so that a seed gives every model the same numbers.
ON_CPU = {"device": "cpu", "dtype": torch.float32}


def mimetic_target(dim, alpha, beta, generator=None):
    """A = alpha Z + beta I, where Z has entries N(0, 1/dim). Returns A (dim, dim).

    `alpha`, from 0 to 1, is the size of the random part. `beta`, from -1 to 1, is the diagonal: its
    sign and its size. Raises ValueError for a value out of range. The draws come from `generator`,
    a torch.Generator on the CPU. Without one, they come from torch's own.
    """
    # Written this way, the check rejects NaN, too.
    if not (0 <= alpha <= 1 and -1 <= beta <= 1):
        raise ValueError(
            "alpha must be between 0 and 1, and beta between -1 and 1, "
            f"but they are {alpha} and {beta}"
        )
    Z = torch.randn(dim, dim, generator=generator, **ON_CPU) / sqrt(dim)
    return alpha * Z + beta * torch.eye(dim, **ON_CPU)


def balanced_factors(A, rank):
    """Split A (dim, dim) into L (dim, rank) and R (rank, dim), so that L @ R is close to A.

    The singular value decomposition A = U S V^T gives L = U S^(1/2) and R = S^(1/2) V^T, both cut
    to the `rank` largest singular values. No matrix of that rank is closer to A than L @ R (Eckart
    and Young, 1936). At full rank, L @ R is A. Each factor gets the square root of S, so both have
    the same norm.

    For example, A = [[0, 4], [1, 0]] has the singular values 4 and 1. At rank 2, L = [[2, 0],
    [0, 1]] and R = [[0, 2], [1, 0]]. At rank 1, L = [[2], [0]] and R = [[0, 2]]: their product
    [[0, 4], [0, 0]] keeps the 4 and loses the 1. (A column of L and its row of R may both come with
    the opposite sign.)
    """
    U, S, Vt = torch.linalg.svd(A)
    root = S[:rank].sqrt()
    L = U[:, :rank] * root
    R = root[:, None] * Vt[:rank]
    return L, R


# ---------------------------------------------------------------------------------------------
# Attention, with its four weights spelled out


class Attention(nn.Module):
    """Multi-head self-attention.

    W_Q, W_K   (heads, dim, head_dim)   one pair per head, since W_Q W_K^T is set per head
    W_V        (dim, dim)               head i uses columns i * head_dim to (i + 1) * head_dim
    W_proj     (dim, dim)               head i uses the rows with the same indices

    There are no biases, so the weights act only through the products. With `causal`, as in a
    language model, a token attends only to itself and to earlier tokens. Raises ValueError if
    `heads` does not divide `dim`.
    """

    def __init__(self, dim, heads, causal=False):
        super().__init__()
        if heads < 1 or dim % heads != 0:
            raise ValueError(f"heads must divide dim, but {heads} does not divide {dim}")
        self.causal = causal
        self.W_Q = nn.Parameter(torch.empty(heads, dim, dim // heads))
        self.W_K = nn.Parameter(torch.empty(heads, dim, dim // heads))
        self.W_V = nn.Parameter(torch.empty(dim, dim))
        self.W_proj = nn.Parameter(torch.empty(dim, dim))
        # The default: every entry N(0, 0.02^2), as in timm. (The GPT makes W_proj smaller.)
        for W in self.parameters():
            nn.init.normal_(W, std=0.02)

    def forward(self, x):  # (batch, tokens, dim)
        q, k = self.queries_and_keys(x)
        v = self.split_heads(x @ self.W_V)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y = y.transpose(1, 2).flatten(2)  # (batch, tokens, dim): the heads side by side
        return y @ self.W_proj

    def queries_and_keys(self, x):
        """From x (batch, tokens, dim) to q and k, both (batch, heads, tokens, head_dim)."""
        # With the heads side by side, one product with a (dim, dim) matrix computes all of them.
        q = x @ self.W_Q.transpose(0, 1).flatten(1)
        k = x @ self.W_K.transpose(0, 1).flatten(1)
        return self.split_heads(q), self.split_heads(k)

    def split_heads(self, x):
        """From (batch, tokens, dim) to (batch, heads, tokens, head_dim)."""
        return x.unflatten(2, (len(self.W_Q), -1)).transpose(1, 2)

    def attention_map(self, x):
        """softmax(x W_Q W_K^T x^T / sqrt(head_dim)): what each token (row) attends to.

        From x (batch, tokens, dim) to (batch, heads, tokens, tokens). Each row sums to 1. `forward`
        applies the same map without storing it.
        """
        q, k = self.queries_and_keys(x)
        logits = q @ k.mT / sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones_like(logits, dtype=torch.bool).triu(1)
            logits = logits.masked_fill(future, -torch.inf)
        return logits.softmax(-1)

    def qk_product(self):
        """W_Q W_K^T of each head: (heads, dim, dim), each of rank head_dim."""
        return self.W_Q @ self.W_K.mT

    def vp_product(self):
        """W_V W_proj of the layer, which is the sum over its heads: (dim, dim)."""
        return self.W_V @ self.W_proj

    # Mimetic initialization. Strengths (alpha and beta), generator and ValueError are as in
    # mimetic_target.

    @torch.no_grad()
    def query_key_init_(self, alpha, beta, generator=None):
        """Set W_Q and W_K: each head's W_Q W_K^T is as near its target as rank head_dim allows.

        The cut to that rank keeps only part of the diagonal. With dim 192, 3 heads, and alpha and
        beta of 0.7, the diagonal has a mean of 0.39. With alpha 0, all heads would be equal.
        """
        heads, dim, head_dim = self.W_Q.shape
        for head in range(heads):
            # Each head draws a Z of its own. With one Z for all, every head would look the same.
            A = mimetic_target(dim, alpha, beta, generator)
            L, R = balanced_factors(A, rank=head_dim)
            self.W_Q[head] = L
            self.W_K[head] = R.T

    @torch.no_grad()
    def value_projection_init_(self, alpha, beta, generator=None):
        """Set W_V and W_proj. W_V W_proj is the target itself: at full rank nothing is cut."""
        dim = len(self.W_V)
        A = mimetic_target(dim, alpha, beta, generator)
        L, R = balanced_factors(A, rank=dim)
        self.W_V.copy_(L)
        self.W_proj.copy_(R)

    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        """Set all four weights: first query-key, then value-projection."""
        self.query_key_init_(qk_alpha, qk_beta, generator)
        self.value_projection_init_(vp_alpha, vp_beta, generator)

    @torch.no_grad()
    def simple_init_(self, qk_sign, vp_sign, generator=None):
        """The paper's simple form: the products are qk_sign I and vp_sign I, with noise.

        It needs no decomposition. If the entries of a random Z have variance 1/columns, the mean of
        Z Z^T is I. Only the sign can be chosen, 1 or -1.
        """
        Z = torch.randn(self.W_Q.shape, generator=generator, **ON_CPU) / sqrt(self.W_Q.shape[-1])
        self.W_Q.copy_(Z)
        self.W_K.copy_(qk_sign * Z)
        Z = torch.randn(self.W_V.shape, generator=generator, **ON_CPU) / sqrt(len(self.W_V))
        self.W_V.copy_(Z)
        self.W_proj.copy_(vp_sign * Z.T)


# ---------------------------------------------------------------------------------------------
# The vision transformer, in the order the data flows


@dataclass
class ViTConfig:
    """The shape of a ViT. Raises ValueError for a shape that cannot be built."""

    image_size: int = 8  # pixels per side
    patch_size: int = 2  # pixels per side
    channels: int = 1
    classes: int = 10
    dim: int = 64
    depth: int = 4
    heads: int = 4
    position: str = "sincos"  # or "learned"

    def __post_init__(self):
        sizes = (self.image_size, self.patch_size, self.channels, self.classes)
        if (
            min(*sizes, self.dim, self.depth, self.heads) < 1
            or self.image_size % self.patch_size != 0
            or self.dim % self.heads != 0
        ):
            raise ValueError(
                "every size must be above 0, patch_size must divide image_size, and heads must "
                f"divide dim, but this is {self}"
            )
        if self.position != "learned" and (self.position != "sincos" or self.dim % 4 != 0):
            raise ValueError(
                "position must be learned, or sincos with a dim that is a multiple of 4, but it is "
                f"{self.position} with a dim of {self.dim}"
            )


def sincos(positions, dim):
    """From positions (n,) to their sines and cosines (n, dim).

    As in Attention Is All You Need, section 3.5, but all sines come first. There are dim/2
    wavelengths, from 2 pi up toward 2 pi * 10,000. Nearby positions have similar rows. So with
    W_Q W_K^T near I, a token attends to its neighbors.
    """
    frequencies = 10_000 ** -(torch.arange(dim // 2) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid, dim):
    """Positions of grid x grid patches, row by row: (grid^2, dim).

    The first dim/2 entries of a position encode the row of the patch, the others its column.
    """
    patch = torch.arange(grid * grid)
    return torch.cat([sincos(patch // grid, dim // 2), sincos(patch % grid, dim // 2)], dim=1)


class Block(nn.Module):
    """Attention and an MLP. Each reads LayerNorm(x) and adds its output to x."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """From images (batch, channels, image_size, image_size) to logits (batch, classes).

    Pixels should have a mean near 0 and a standard deviation near 1. There is no class token and no
    dropout: the classifier reads the mean of the tokens, as in SimpleViT (Beyer et al., 2022, arXiv
    2205.01580).
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch_size
        patch_dim = config.channels * config.patch_size**2
        self.embed = nn.Linear(patch_dim, config.dim)
        if config.position == "sincos":
            self.register_buffer("positions", sincos_2d(grid, config.dim), persistent=False)
        else:
            # As in timm.
            self.positions = nn.Parameter(0.02 * torch.randn(grid * grid, config.dim))
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.classes)

        # As in timm: linear layers N(0, 0.02^2), and biases 0. Not self.embed: in timm it is a
        # convolution, which keeps PyTorch's own initialization.
        for module in [*self.blocks.modules(), self.head]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images):
        patches = F.pixel_unshuffle(images, self.config.patch_size)
        patches = patches.flatten(2).mT  # (batch, tokens, patch_dim)
        x = self.embed(patches) + self.positions  # (batch, tokens, dim)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).mean(1)  # (batch, dim)
        return self.head(x)

    def mimetic_init_(self, qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4, generator=None):
        """Attention.mimetic_init_ in every layer. Returns the model.

        The defaults are the paper's strengths for vision. Raises ValueError for a strength out of
        range.
        """
        for block in self.blocks:
            block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator)
        return self
