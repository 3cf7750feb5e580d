"""A small GPT in nanoGPT's style with mimetic initialization.

This file needs only torch. Copy it anywhere.

    model = GPT(GPTConfig(vocab_size=256, context=64))
    model.mimetic_init_()

Without the second line, attention has GPT-2's random weights. With it, the diagonals of two
products stand out, as in a trained vision transformer (Trockman and Kolter, "Mimetic Initialization
of Self-Attention Layers", ICML 2023, https://arxiv.org/abs/2305.09828): W_Q W_K^T of each head, and
W_V W_proj of each layer.

Tokens are rows, and weights act from the right: x @ W, as in the paper. (nn.Linear computes
x @ W^T. If you put these weights into an nn.Linear, transpose them.)

The file goes from the method to the model. The method and attention match vit.py to the letter. If
you have read them there, go straight to the language model.
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
# The language model, in the order the data flows


@dataclass
class GPTConfig:
    """The shape of a GPT. Raises ValueError for a shape that cannot be built.

    `stream` is the size of the residual stream: the vectors x that the layers read and add to. Each
    layer reads LayerNorm(x), whose entries have size 1, and adds its output to x itself.

    - "unit": the entries of x have a size of about 1, too, as in Attention Is All You Need (section
      3.4). The defaults of `mimetic_init_` are for this stream.
    - "gpt2": embeddings and learned positions are N(0, 0.02^2), as in nanoGPT, so the entries of x
      have a size of about 0.028. Then a diagonal of -0.4 subtracts more than ten times x, and
      drowns out the token.

    `position` says where the positions come from: sines and cosines, or learned weights. Within a
    stream both have the same root mean square: sqrt(1/2) (as sines and cosines do) in the unit
    stream and 0.02 in GPT-2's.
    """

    vocab_size: int = 256  # bytes
    context: int = 64  # the most tokens that the model sees at once
    dim: int = 128
    depth: int = 4
    heads: int = 4
    position: str = "sincos"  # or "learned"
    stream: str = "unit"  # or "gpt2"

    def __post_init__(self):
        sizes = (self.vocab_size, self.context, self.dim, self.depth, self.heads)
        if min(sizes) < 1 or self.dim % self.heads != 0:
            raise ValueError(
                f"every size must be above 0, and heads must divide dim, but this is {self}"
            )
        if self.position != "learned" and (self.position != "sincos" or self.dim % 2 != 0):
            raise ValueError(
                "position must be learned, or sincos with an even dim, but it is "
                f"{self.position} with a dim of {self.dim}"
            )
        if self.stream not in ("unit", "gpt2"):
            raise ValueError(f"stream must be unit or gpt2, but it is {self.stream}")


def sincos(positions, dim):
    """From positions (n,) to their sines and cosines (n, dim).

    As in Attention Is All You Need, section 3.5, but all sines come first. There are dim/2
    wavelengths, from 2 pi up toward 2 pi * 10,000. Nearby positions have similar rows. So with
    W_Q W_K^T near I, a token attends to its neighbors.
    """
    frequencies = 10_000 ** -(torch.arange(dim // 2) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Causal attention and an MLP. Each reads LayerNorm(x) and adds its output to x."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.attention = Attention(dim, heads, causal=True)
        self.norm2 = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim, bias=False),
            nn.GELU(),
            nn.Linear(4 * dim, dim, bias=False),
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """From tokens (batch, tokens) to the logits of each next token (batch, tokens, vocab_size).

    It has no biases, as in nanoGPT's published settings, and no dropout.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        # In the unit stream, embeddings have variance 1/dim, and `forward` scales them to 1. The
        # output layer shares them, so the logits at each position have a variance near 1. (Only the
        # current byte's own logit is larger: before training, the model mostly repeats its input.)
        unit = config.stream == "unit"
        self.scale = sqrt(config.dim) if unit else 1.0
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embed.weight, std=1 / self.scale if unit else 0.02)

        position_size = sqrt(1 / 2) if unit else 0.02
        if config.position == "sincos":
            # Sines and cosines have a root mean square of sqrt(1/2) already.
            table = sincos(torch.arange(config.context), config.dim) * (position_size / sqrt(1 / 2))
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = nn.Parameter(position_size * torch.randn(config.context, config.dim))
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, bias=False)

        # As in GPT-2: N(0, 0.02^2), and smaller for the two weights of a layer that add to the
        # stream.
        for block in self.blocks:
            nn.init.normal_(block.mlp[0].weight, std=0.02)
            for W in (block.attention.W_proj, block.mlp[2].weight):
                nn.init.normal_(W, std=0.02 / sqrt(2 * config.depth))

    def forward(self, tokens):
        positions = self.positions[: tokens.shape[1]]  # at most `context` tokens
        x = self.scale * self.embed(tokens) + positions  # (batch, tokens, dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T

    def mimetic_init_(self, qk_alpha=0.1, qk_beta=0.7, vp_alpha=0.1, vp_beta=-0.4, generator=None):
        """Attention.mimetic_init_ in every layer. Returns the model.

        The betas are the paper's for vision. An alpha of 0.1 did better on text than the paper's
        0.7 and 0.4. It was chosen on seeds that no table reports. Raises ValueError for a strength
        out of range.
        """
        for block in self.blocks:
            block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator)
        return self
