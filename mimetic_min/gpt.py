"""A small GPT in nanoGPT's style with mimetic initialization, in one file that needs torch alone: copy it anywhere.

    model = GPT(GPTConfig(vocab_size=256, context=64, dim=128, depth=4, heads=4))
    model.mimetic_init_()                # this line is the whole method; leave it out for GPT-2's weights

Mimetic initialization (Trockman and Kolter, ICML 2023, https://arxiv.org/abs/2305.09828) sets the attention weights
of a new model so that two products have diagonals, as in a trained one: W_Q W_K^T of each head, and W_V W_proj. Tokens
are rows and weights act from the right, x @ W. (nn.Linear computes x @ W^T: there, these have to be transposed.)

Read it from top to bottom: the initialiser's two functions, attention (both letter for letter as in vit.py), the
model. Left out on purpose: biases, as in nanoGPT's published settings, and dropout inside the attention map.
"""
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import nn


def require(ok, name, value, right):
    """Raise ValueError, with the name of the argument, its value and what would be right, unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value!r}: it must be {right}")


def mimetic_target(alpha, beta, shape, generator=None):
    """A = alpha Z + beta I for each d x d matrix of `shape` (..., d, d), with fresh Z of entries N(0, 1/d)."""
    device = generator.device if generator else None                 # torch draws where the generator lives
    Z = torch.randn(shape, generator=generator, device=device) / sqrt(shape[-1])
    return alpha * Z + beta * torch.eye(shape[-1], device=device)


def balanced_factors(A, rank):
    """L (..., d, rank) and R (..., rank, d) whose product L R is the best approximation of A (..., d, d) of that rank.

    With the SVD A = U S V^T: L = U_r S_r^(1/2) and R = S_r^(1/2) V_r^T (Eckart and Young, 1936). So L^T L = R R^T.
    """
    if rank < A.shape[-1]:  # A^T A = V S^2 V^T has V_r more quickly, and then the SVD is of a narrow matrix, A V_r
        B = torch.ldexp(A, -A.abs().amax((-2, -1), keepdim=True).frexp().exponent.clamp(min=-120))  # squares not 0
        V = torch.linalg.eigh(B.mT @ B).eigenvectors[..., -rank:]
        L, R = balanced_factors(A @ V, rank)
        return L, R @ V.mT
    U, S, Vt = torch.linalg.svd(A, full_matrices=False)
    root = S.sqrt()
    return U * root[..., None, :], root[..., :, None] * Vt


class Attention(nn.Module):
    """Multi-head self-attention with its four weights spelled out and without biases.

    W_Q, W_K  (heads, dim, head_dim)   a pair for each head
    W_V       (dim, dim)               head i makes the columns from i * head_dim on
    W_proj    (dim, dim)               which meet the rows from i * head_dim on

    If `causal`, a token attends to itself and those before it. Raises ValueError if `heads` does not divide `dim`.
    """

    def __init__(self, dim, heads, causal=False):
        super().__init__()
        require(1 <= heads <= dim and dim % heads == 0, "heads", heads, f"a divisor of dim, {dim}")
        self.causal = causal
        self.W_Q = nn.Parameter(torch.empty(dim, heads, dim // heads).transpose(0, 1))  # side by side in memory, so
        self.W_K = nn.Parameter(torch.empty(dim, heads, dim // heads).transpose(0, 1))  # that `forward` copies nothing
        self.W_V = nn.Parameter(torch.empty(dim, dim))
        self.W_proj = nn.Parameter(torch.empty(dim, dim))
        self.default_init_()

    def forward(self, x):                                            # (batch, tokens, dim)
        if x.is_cuda and torch.is_autocast_enabled("cuda"):          # or each of the three products would convert it
            x = x.to(torch.get_autocast_dtype("cuda"))
        W_Q, W_K = (W.transpose(0, 1).flatten(1) for W in (self.W_Q, self.W_K))     # heads side by side, as in W_V
        q, k, v = ((x @ W).unflatten(-1, (len(self.W_Q), -1)).transpose(1, 2) for W in (W_Q, W_K, self.W_V))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (batch, heads, tokens, head_dim)
        return y.transpose(1, 2).flatten(2) @ self.W_proj            # (batch, tokens, dim)

    def attention_map(self, x):
        """softmax(x W_Q W_K^T x^T / sqrt(head_dim)), the map that `forward` uses: (batch, heads, tokens, tokens)."""
        q = torch.einsum("bnd,hdk->bhnk", x, self.W_Q)
        k = torch.einsum("bnd,hdk->bhnk", x, self.W_K)
        logits = q @ k.mT / sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(future, -torch.inf)
        return logits.softmax(-1)

    def qk_product(self):
        """W_Q W_K^T of each head, of rank head_dim: (heads, dim, dim)."""
        return self.W_Q @ self.W_K.mT

    def vp_product(self):
        """W_V W_proj of all heads together: (dim, dim)."""
        return self.W_V @ self.W_proj

    def default_init_(self, generator=None):
        """The field's usual start: every entry N(0, 0.02^2), as in GPT-2 and in timm's vision transformers."""
        for W in self.parameters():
            nn.init.normal_(W, std=0.02, generator=generator)        # timm's is cut off 100 standard deviations out

    def xavier_init_(self, generator=None):
        """All four uniform with variance 1/dim, as dim x dim matrices have it (Glorot and Bengio, 2010)."""
        bound = sqrt(3 / len(self.W_V))
        for W in self.parameters():
            nn.init.uniform_(W, -bound, bound, generator=generator)

    @torch.no_grad()
    def simple_init_(self, qk_sign, vp_sign, generator=None):
        """The paper's simple form: W_Q W_K^T about qk_sign I in each head, and W_V W_proj about vp_sign I.

        Z Z^T is about I for a random Z with entries of variance 1/columns, so one Z makes both factors of a product.
        The signs are 1 or -1, else ValueError; the strength of the diagonal is no choice here.
        """
        require(qk_sign in (1, -1), "qk_sign", qk_sign, "1 or -1")
        require(vp_sign in (1, -1), "vp_sign", vp_sign, "1 or -1")
        nn.init.normal_(self.W_Q, std=1 / sqrt(self.W_Q.shape[-1]), generator=generator)
        self.W_K.copy_(qk_sign * self.W_Q)
        nn.init.normal_(self.W_V, std=1 / sqrt(len(self.W_V)), generator=generator)
        self.W_proj.copy_(vp_sign * self.W_V.T)

    @torch.no_grad()
    def mimetic_init_(self, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
        """The paper's controlled form: both products about alpha Z + beta I, each with its own alpha and beta.

        alpha, from 0 to 1, is the size of the random part, beta, from -1 to 1, the sign and the size of the diagonal.
        W_Q W_K^T is the best approximation of rank head_dim, each head with a Z of its own; W_V W_proj is exact. Both
        None leave a product as it is. A number out of range raises ValueError, and nothing is changed.
        """
        for name, alpha, beta in (("qk", qk_alpha, qk_beta), ("vp", vp_alpha, vp_beta)):
            require(alpha is None or 0 <= alpha <= 1, f"{name}_alpha", alpha, "from 0 to 1")
            require(beta is None or -1 <= beta <= 1, f"{name}_beta", beta, "from -1 to 1")
            require((alpha is None) == (beta is None), f"{name}_alpha", alpha, f"off (None) just where {name}_beta is")
        heads, dim, head_dim = self.W_Q.shape
        if qk_alpha is not None:
            A = mimetic_target(qk_alpha, qk_beta, (heads, dim, dim), generator)
            W_Q, W_K_transposed = balanced_factors(A.to(self.W_Q.device), head_dim)
            self.W_Q.copy_(W_Q)
            self.W_K.copy_(W_K_transposed.mT)
        if vp_alpha is not None:
            A = mimetic_target(vp_alpha, vp_beta, (dim, dim), generator)
            W_V, W_proj = balanced_factors(A.to(self.W_V.device), dim)
            self.W_V.copy_(W_V)
            self.W_proj.copy_(W_proj)


def sincos(positions, dim):
    """Sines and cosines of the positions (n,) at dim/2 wavelengths, from 2 pi to 2 pi 10,000^(1 - 2/dim): (n, dim).

    Attention Is All You Need, section 3.5, with all sines first. Rows of near positions are the most alike.
    """
    angles = positions[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass
class GPTConfig:
    """The shape of a GPT. Raises ValueError for one that cannot be built."""

    vocab_size: int = 256        # bytes
    context: int = 64            # tokens it can look back on, itself included
    dim: int = 128
    depth: int = 4
    heads: int = 4
    dropout: float = 0.0
    position: str = "learned"    # or "sincos"

    def __post_init__(self):
        for name in ("vocab_size", "context", "dim", "depth", "heads"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, value, "a whole number from 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        require(self.position in ("sincos", "learned"), "position", self.position, "'sincos' or 'learned'")
        require(self.position == "learned" or self.dim % 2 == 0, "dim", self.dim, "even with sincos positions")


class DecoderBlock(nn.Module):
    """Causal attention, then an MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.attention = Attention(dim, heads, causal=True)
        self.norm2 = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Tokens (batch, tokens) to the logits of each next one (batch, tokens, vocab_size)."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(c.dim, c.heads, c.dropout) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, bias=False)
        for module in self.modules():  # GPT-2's default: N(0, 0.02^2) ...
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:      # ... and less for what is added to the stream, layer after layer
            for W in (block.attention.W_proj, block.mlp[2].weight):
                nn.init.normal_(W, std=0.02 / sqrt(2 * c.depth))
        if c.position == "learned":
            self.position = nn.Parameter(0.02 * torch.randn(c.context, c.dim))
        else:  # with the same deviation of 0.02 as the learned ones and the token embedding
            self.register_buffer("position", 0.02 * sqrt(2) * sincos(torch.arange(c.context), c.dim), persistent=False)

    def forward(self, tokens):                                        # (batch, tokens)
        n = tokens.shape[1]
        require(n <= self.config.context, "number of tokens", n, f"at most the context, {self.config.context}")
        x = self.dropout(self.embed(tokens) + self.position[:n])      # (batch, tokens, dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T                     # tied to the embedding, as in GPT-2

    @torch.no_grad()
    def generate(self, tokens, count, temperature=1.0, generator=None):
        """Draw `count` more tokens after `tokens` (batch, 1 or more): (batch, tokens + count)."""
        require(temperature > 0, "temperature", temperature, "above 0")
        for _ in range(count):
            logits = self(tokens[:, -self.config.context :])[:, -1] / temperature
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
        return tokens

    def mimetic_init_(self, qk_alpha=0.4, qk_beta=0.1, vp_alpha=0.02, vp_beta=-0.05, vp_last_beta=None,
                      generator=None):
        """Attention.mimetic_init_ in every layer, by default at the best strengths found here. Returns the model.

        The value-projection's beta goes on a line from vp_beta to vp_last_beta, or is the same in all layers.
        """
        require(vp_last_beta is None or -1 <= vp_last_beta <= 1, "vp_last_beta", vp_last_beta, "from -1 to 1")
        for block, way in zip(self.blocks, torch.linspace(0, 1, len(self.blocks)).tolist()):
            beta = vp_beta if None in (vp_beta, vp_last_beta) else (1 - way) * vp_beta + way * vp_last_beta
            block.attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, beta, generator)
        return self

    def noise_init_(self, qk_alpha=0.4, vp_alpha=0.02, generator=None):
        """The control: mimetic_init_ with both betas 0. What it gains over the default is not due to a diagonal."""
        qk_beta, vp_beta = (None if alpha is None else 0.0 for alpha in (qk_alpha, vp_alpha))
        return self.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator=generator)

    def simple_init_(self, generator=None):
        """Attention.simple_init_ in every layer with the signs of language. Returns the model."""
        for block in self.blocks:
            block.attention.simple_init_(-1, +1, generator)
        return self
