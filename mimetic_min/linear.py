"""Mimetic initialization in any model: name the four weights, then check the model itself.

For example, in a timm ViT with dim 192 and three heads:

    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        linear.mimetic_init_(q, k, v, block.attn.proj.weight, heads=3)

    diagonal = linear.vp_product(model.blocks[0].attn, dim=192).diagonal()
    print(diagonal.mean(), diagonal.std())  # about -0.40 and 0.03

`q`, `k`, `v` and `proj` are weights of nn.Linear, (dim, dim). In q, k and v the heads are stacked
vertically. An nn.Linear computes x @ weight.T, so each weight is the transpose of a matrix in
vit.py. If a layer computes x @ weight, like Conv1D in Hugging Face's GPT-2, pass its weight.T.
"""

import copy

import torch

from .vit import Attention


def matrices(q, k, v, proj, heads):
    """Views of the four weights in the shapes of W_Q, W_K, W_V and W_proj in vit.py."""
    for name, weight in {"q": q, "k": k, "v": v, "proj": proj}.items():
        if weight.shape != (len(proj), len(proj)):
            raise ValueError(
                f"{name} must have the shape (dim, dim), here {(len(proj), len(proj))}, but it has "
                f"{tuple(weight.shape)}. The model probably uses grouped-query attention (fewer "
                "heads for keys and values) or a different head dimension, and linear.py supports "
                "neither"
            )
    # Without .data, autograd would not let us modify the chunks of a weight in place.
    q, k, v, proj = (weight.data for weight in (q, k, v, proj))
    return q.unflatten(0, (heads, -1)).mT, k.unflatten(0, (heads, -1)).mT, v.T, proj.T


@torch.no_grad()
def read(q, k, v, proj, heads):
    """An Attention with a copy of the four weights, to look at its qk_product and vp_product.

    Raises ValueError if a weight is not (dim, dim), or if `heads` does not divide dim.
    """
    # The default weights, which are overwritten here, should not advance torch's generator.
    with torch.random.fork_rng(devices=[]):
        attention = Attention(len(proj), heads)
    for W, weight in zip(attention.parameters(), matrices(q, k, v, proj, heads)):
        W.copy_(weight)
    return attention


@torch.no_grad()
def mimetic_init_(
    q, k, v, proj, heads, qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4, generator=None
):
    """Attention.mimetic_init_ for the four weights, in place, whatever their dtype and device.

    The defaults are the paper's strengths for vision. If `read` would fail, a strength is out of
    range, or two of the weights begin at the same place in memory, it raises ValueError before it
    changes anything.
    """
    attention = read(q, k, v, proj, heads)
    # The three chunks of one weight begin at different places.
    if len({weight.data_ptr() for weight in (q, k, v, proj)}) < 4:
        raise ValueError("two of the four weights share memory: is one of them named twice?")
    attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator)
    for weight, W in zip(matrices(q, k, v, proj, heads), attention.parameters()):
        weight.copy_(W)


@torch.no_grad()
def vp_product(attention, dim):
    """W_V W_proj (dim, dim), as the forward of `attention` computes it.

    In a sequence of one token the attention map is 1, whatever the queries and keys. So attention
    returns x W_V W_proj plus its biases. We feed it the rows of I, each as a sequence of one token,
    and subtract what it returns for x = 0.

    `attention` takes x (batch, tokens, dim) and returns the same shape, or a tuple that starts with
    it. (A layer of torch.nn does so only with batch_first=True.) It is a module, or a function that
    calls one: lambda x: module(x, x, x). A module is run in eval mode, since dropout would change
    the output. (If you pass a function, call model.eval() first. It gets x in float32 on the CPU.)
    Raises ValueError if the output has a different shape.
    """
    # I with a row of zeros below it, each row a sequence of one token
    x = torch.eye(dim + 1, dim)[:, None]
    if isinstance(attention, torch.nn.Module):
        # A copy, so that the module itself stays in its mode.
        attention = copy.deepcopy(attention).eval()
        x = x.to(next(attention.parameters(), x))
    output = attention(x)
    output = output[0] if isinstance(output, tuple) else output
    if output.shape != x.shape:
        raise ValueError(
            f"attention must return the shape of x, {tuple(x.shape)}, but returns "
            f"{tuple(output.shape)}"
        )
    return (output[:-1] - output[-1]).squeeze(1)
