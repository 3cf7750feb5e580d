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

The file goes from the method to the model. The method and attention are the same in vit.py, to the
letter. If you have read them there, go straight to the language model.
"""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import nn

# ---------------------------------------------------------------------------------------------
# The method. A product of two weights should be near a target, alpha Z + beta I. Make the target,
# then split it into two factors.


def mimetic_target(dim, alpha, beta, generator=None):
    """A = alpha Z + beta I, where Z has entries N(0, 1/dim). Returns A (dim, dim)."""
    # On the CPU and in float32, so that a seed gives the same draws for every model.
    place = {"device": "cpu", "dtype": torch.float32}
    Z = torch.randn(dim, dim, generator=generator, **place) / sqrt(dim)
    I = torch.eye(dim, **place)
    return alpha * Z + beta * I


def balanced_factors(A, rank):
    """Split A (dim, dim) into L (dim, rank) and R (rank, dim), so that L @ R is close to A.

    The singular value decomposition A = U S V^T gives L = U S^(1/2) and R = S^(1/2) V^T, both cut
    to the `rank` largest singular values. No matrix of that rank is closer to A than L @ R (Eckart
    and Young, 1936). At full rank, L @ R is A. Each factor gets the square root of S, so both have
    the same norm, and neither learns faster than the other.
    """
    U, S, Vt = torch.linalg.svd(A)
    root = S[:rank].sqrt()
    L = U[:, :rank] * root
    R = root[:, None] * Vt[:rank]
    return L, R


def check_strengths(**strengths):
    """Raise ValueError for an alpha outside [0, 1] or a beta outside [-1, 1].

    The names of the arguments must end in "alpha" or "beta". The error gives the name.
    """
    for name, value in strengths.items():
        low = 0 if name.endswith("alpha") else -1
        if not low <= value <= 1:
            raise ValueError(f"{name} must be between {low} and 1, but it is {value}")


# ---------------------------------------------------------------------------------------------
# Attention, with its four weights spelled out


class Attention(nn.Module):
    """Multi-head self-attention.

    W_Q, W_K   (heads, dim, head_dim)   one pair per head, since W_Q W_K^T is set per head
    W_V        (dim, dim)               head i has the columns i * head_dim to (i + 1) * head_dim
    W_proj     (dim, dim)               head i has the rows of the same indices

    There are no biases, so the weights act only through the products. With `causal`, as in a
    language model, a token attends only to itself and to earlier tokens. Raises ValueError if
    `heads` does not divide `dim`.
    """

    def __init__(self, dim, heads, causal=False):
        super().__init__()
        if heads < 1 or dim % heads != 0:
            raise ValueError(f"heads must divide dim, but {heads} does not divide {dim}")
        head_dim = dim // heads
        self.causal = causal
        self.W_Q = nn.Parameter(torch.empty(heads, dim, head_dim))
        self.W_K = nn.Parameter(torch.empty(heads, dim, head_dim))
        self.W_V = nn.Parameter(torch.empty(dim, dim))
        self.W_proj = nn.Parameter(torch.empty(dim, dim))
        self.default_init_()

    def forward(self, x):  # (batch, tokens, dim)
        heads, _, head_dim = self.W_Q.shape
        q = torch.einsum("bnd,hdk->bhnk", x, self.W_Q)  # (batch, heads, tokens, head_dim)
        k = torch.einsum("bnd,hdk->bhnk", x, self.W_K)
        v = (x @ self.W_V).unflatten(2, (heads, head_dim)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y = y.transpose(1, 2).flatten(2)  # (batch, tokens, dim): the heads side by side
        return y @ self.W_proj

    def attention_map(self, x):
        """softmax(x W_Q W_K^T x^T / sqrt(head_dim)): what each token (row) attends to.

        From x (batch, tokens, dim) to (batch, heads, tokens, tokens). Each row sums to 1. `forward`
        applies the same map without storing it.
        """
        q = torch.einsum("bnd,hdk->bhnk", x, self.W_Q)
        k = torch.einsum("bnd,hdk->bhnk", x, self.W_K)
        logits = q @ k.mT / sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(future, -torch.inf)
        return logits.softmax(-1)

    def qk_product(self):
        """W_Q W_K^T of each head: (heads, dim, dim), each of rank head_dim."""
        return self.W_Q @ self.W_K.mT

    def vp_product(self):
        """W_V W_proj of the layer, which is the sum over its heads: (dim, dim)."""
        return self.W_V @ self.W_proj

    # The mimetic start. `alpha`, from 0 to 1, is the size of the random part. `beta`, from -1 to 1,
    # is the diagonal: its sign and its size. A value out of range raises ValueError and changes
    # nothing. The draws come from `generator`, a torch.Generator on the CPU, or else from torch's
    # own.

    @torch.no_grad()
    def query_key_init_(self, alpha, beta, generator=None):
        """Set W_Q and W_K: each head's W_Q W_K^T is as near its target as rank head_dim allows.

        The cut to that rank keeps only part of the diagonal. With dim 192, 3 heads, and alpha and
        beta of 0.7, the diagonal has a mean of 0.39.
        """
        check_strengths(alpha=alpha, beta=beta)
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
        check_strengths(alpha=alpha, beta=beta)
        dim = self.W_V.shape[0]
        A = mimetic_target(dim, alpha, beta, generator)
        L, R = balanced_factors(A, rank=dim)
        self.W_V.copy_(L)
        self.W_proj.copy_(R)

    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        """Set all four weights: first query-key, then value-projection."""
        # All four strengths, before any weight is changed.
        check_strengths(qk_alpha=qk_alpha, qk_beta=qk_beta, vp_alpha=vp_alpha, vp_beta=vp_beta)
        self.query_key_init_(qk_alpha, qk_beta, generator)
        self.value_projection_init_(vp_alpha, vp_beta, generator)

    @torch.no_grad()
    def simple_init_(self, qk_sign, vp_sign, generator=None):
        """The paper's simple form: W_Q W_K^T is about qk_sign I, and W_V W_proj about vp_sign I.

        It needs no decomposition. If the entries of a random Z have variance 1/columns, the mean of
        Z Z^T is I, and one draw is I with noise. Only the sign can be chosen. Raises ValueError for
        a sign other than 1 and -1.
        """
        for name, sign in (("qk_sign", qk_sign), ("vp_sign", vp_sign)):
            if sign not in (1, -1):
                raise ValueError(f"{name} must be 1 or -1, but it is {sign}")
        heads, dim, head_dim = self.W_Q.shape
        place = {"device": "cpu", "dtype": torch.float32}
        Z = torch.randn(heads, dim, head_dim, generator=generator, **place) / sqrt(head_dim)
        self.W_Q.copy_(Z)
        self.W_K.copy_(qk_sign * Z)
        Z = torch.randn(dim, dim, generator=generator, **place) / sqrt(dim)
        self.W_V.copy_(Z)
        self.W_proj.copy_(vp_sign * Z.T)

    # Two usual starts, to compare with

    def default_init_(self):
        """Every entry N(0, 0.02^2), as in timm. (The GPT in gpt.py makes W_proj smaller.)"""
        for W in self.parameters():
            nn.init.normal_(W, std=0.02)

    def xavier_init_(self):
        """Every entry uniform with variance 1/dim (Glorot and Bengio, 2010)."""
        bound = sqrt(3 / self.W_V.shape[0])
        for W in self.parameters():
            nn.init.uniform_(W, -bound, bound)


# ---------------------------------------------------------------------------------------------
# The language model, in the order of the data


@dataclass
class GPTConfig:
    """The shape of a GPT. Raises ValueError for a shape that cannot be built.

    `position` also chooses the size of the stream, the vectors x that the layers read and add to.
    Each layer reads LayerNorm(x), whose entries have size 1, and adds its answer to x.

    - "sincos": embeddings and positions have entries of about 1, as in Attention Is All You Need
      (sections 3.4 and 3.5). The defaults of `mimetic_init_` are for this stream.
    - "learned": embeddings and positions start at N(0, 0.02^2), as in GPT-2. Their sum x has
      entries of about 0.028. So a diagonal of -0.4 adds 14 times as much as x itself: it drowns the
      token.
    """

    vocab_size: int = 256  # bytes
    context: int = 64  # the most tokens that the model sees at once
    dim: int = 128
    depth: int = 4
    heads: int = 4
    position: str = "sincos"  # or "learned"

    def __post_init__(self):
        for name in ("vocab_size", "context", "dim", "depth", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number above 0, but it is {value}")
        if self.dim % self.heads != 0:
            raise ValueError(f"heads must divide dim, but {self.heads} does not divide {self.dim}")
        if self.position not in ("sincos", "learned"):
            raise ValueError(f"position must be sincos or learned, but it is {self.position}")
        if self.position == "sincos" and self.dim % 2 != 0:
            raise ValueError(f"dim must be even with sincos positions, but it is {self.dim}")


def sincos(positions, dim):
    """From positions (n,) to their sines and cosines (n, dim).

    As in Attention Is All You Need, section 3.5, but all sines come first. There are dim/2
    wavelengths, from 2 pi up towards 2 pi * 10,000. Nearby positions have similar rows. So with
    W_Q W_K^T near I, a token attends to its neighbours.
    """
    frequencies = 10_000 ** -(torch.arange(dim // 2) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Causal attention and an MLP. Each reads LayerNorm(x) and adds its answer to x."""

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
        x = x + self.mlp(self.norm2(x))
        return x


class GPT(nn.Module):
    """From tokens (batch, tokens) to the logits of each next token (batch, tokens, vocab_size).

    It has no biases, as in nanoGPT's published settings, and no dropout.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        if config.position == "sincos":
            table = sincos(torch.arange(config.context), config.dim)
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = nn.Parameter(0.02 * torch.randn(config.context, config.dim))
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, bias=False)

        # GPT-2's start: N(0, 0.02^2), and smaller for the two weights of a layer that add to the
        # stream.
        for block in self.blocks:
            nn.init.normal_(block.mlp[0].weight, std=0.02)
            for W in (block.attention.W_proj, block.mlp[2].weight):
                nn.init.normal_(W, std=0.02 / sqrt(2 * config.depth))
        # Input and output share the embedding. With sincos, `forward` scales its entries from
        # variance 1/dim to 1, and at each position the logits have a variance near 1. (Only the
        # logit of the byte that stands there is larger: before training, the model mostly repeats
        # its input.)
        embed_std = config.dim**-0.5 if config.position == "sincos" else 0.02
        nn.init.normal_(self.embed.weight, std=embed_std)

    def forward(self, tokens):
        n = tokens.shape[1]
        if n > self.config.context:
            raise ValueError(f"the context holds {self.config.context} tokens, but there are {n}")
        x = self.embed(tokens)  # (batch, tokens, dim)
        if self.config.position == "sincos":
            # From entries of variance 1/dim to entries of variance 1.
            x = x * sqrt(self.config.dim)
        x = x + self.positions[:n]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T

    @torch.no_grad()
    def generate(self, tokens, count, temperature=1.0, generator=None):
        """Append `count` drawn tokens: from (batch, n), where n >= 1, to (batch, n + count).

        Raises ValueError for a temperature that is not above 0.
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, but it is {temperature}")
        for _ in range(count):
            window = tokens[:, -self.config.context :]
            logits = self(window)[:, -1] / temperature
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens

    def mimetic_init_(
        self,
        qk_alpha=0.1,
        qk_beta=0.7,
        vp_alpha=0.1,
        vp_beta=-0.4,
        vp_last_beta=None,
        generator=None,
    ):
        """Attention.mimetic_init_ in every layer. Returns the model.

        The betas are the paper's for vision. An alpha of 0.1 did better on text than the paper's
        0.7 and 0.4. It was chosen on seeds that no other table reports (results/README.md).

        With `vp_last_beta`, the beta of the value-projection changes from layer to layer: it goes
        linearly from vp_beta in the first layer to vp_last_beta in the last. Raises
        ValueError for a strength out of range.
        """
        if vp_last_beta is None:
            vp_last_beta = vp_beta
        check_strengths(vp_beta=vp_beta, vp_last_beta=vp_last_beta)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            way = layer / last if last > 0 else 0
            beta = (1 - way) * vp_beta + way * vp_last_beta
            block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, beta, generator)
        return self
