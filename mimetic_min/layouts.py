"""The four weights in other people's attention: read them, write them, and give a model a mimetic start.

This is where copies go wrong. nn.Linear computes x @ W^T, so its weight is the transpose of the paper's W; and W_Q, W_K
and W_V stand side by side in one matrix. Three layouts are known, by the names of their parameters:

    torch.nn.MultiheadAttention    in_proj_weight, out_proj    nn.TransformerEncoderLayer has it as .self_attn
    timm's vision transformers     qkv, proj                   block.attn
    GPT-2                          c_attn, c_proj              block.attn, of nn.Linear in nanoGPT, of Conv1D elsewhere

    for block in vit.blocks:
        layouts.mimetic_init_(block.attn, 0.7, 0.7, 0.4, -0.4)
    for block in gpt2.transformer.h:
        layouts.mimetic_init_(block.attn, 0.4, 0.1, 0.02, -0.05)
"""
import re
import warnings

import torch

from .vit import Attention, require

LAYOUTS = [("in_proj_weight", "out_proj.weight"), ("qkv.weight", "proj.weight"), ("c_attn.weight", "c_proj.weight")]
KNOWN = " or ".join(" with ".join(names) for names in LAYOUTS)
OWN = ("W_Q", "W_K", "W_V", "W_proj")


def read(module):
    """The weights of `module`, an attention in one of the three layouts, as an Attention. ValueError for any other."""
    W_in, W_out, heads, _ = _parts(module)
    return _attention(W_in, W_out, heads)


@torch.no_grad()
def write(module, attention):
    """Give `module` the weights of `attention`, which is of its size, and zero its biases. ValueError if it is not.

    A bias of Q or K would add to the logits what W_Q W_K^T does not say.
    """
    W_in, W_out, heads, biases = _parts(module)
    d = len(W_out)
    right = f"{(heads, d, d // heads)}, (heads, dim, head_dim) of the module"
    require(attention.W_Q.shape == (heads, d, d // heads), "shape of W_Q", tuple(attention.W_Q.shape), right)
    W_in.copy_(_side_by_side(attention.W_Q, attention.W_K, attention.W_V))
    W_out.copy_(attention.W_proj)
    for bias in biases:
        bias.zero_()


def mimetic_init_(module, qk_alpha, qk_beta, vp_alpha, vp_beta, generator=None):
    """Attention.mimetic_init_ for `module`, an attention in one of the three layouts. ValueError for any other."""
    attention = read(module)
    attention.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator)
    write(module, attention)


def _parts(module):
    """(W_in (d, 3d), W_out (d, d), heads, biases): the module's own parameters, seen as x @ W has them."""
    found = dict(module.named_parameters())
    for names in LAYOUTS:
        biases = [name.replace("weight", "bias") for name in names]
        if found.keys() - biases == set(names):                # and nothing else, such as a norm of the queries
            heads = getattr(module, "n_head", None) or getattr(module, "num_heads", None)
            require(heads, "heads", heads, "in the module, as .n_head or .num_heads")
            W_in, W_out = _as_rows_have_them(*(found[name].detach() for name in names))
            return W_in, W_out, heads, [found[name] for name in biases if name in found]
    require(False, "module", type(module).__name__, f"an attention with {KNOWN} and no more; it has {_some(found)}")


def _as_rows_have_them(W_in, W_out):
    """Views of W_in as (d, 3d) and W_out as (d, d): transposed where W_in is (3d, d), as in nn.Linear."""
    d = W_out.shape[-1] if W_out.ndim == 2 else 0
    right = "(dim, 3 dim), or (3 dim, dim) of a Linear, with an output weight (dim, dim)"
    ok = d and W_out.shape == (d, d) and W_in.shape in ((d, 3 * d), (3 * d, d))
    require(ok, "shape", (tuple(W_in.shape), tuple(W_out.shape)), right)
    return (W_in, W_out) if len(W_in) == d else (W_in.T, W_out.T)


def _side_by_side(W_Q, W_K, W_V):
    """Head beside head, and all three: (d, 3d)."""
    return torch.cat([W_Q.transpose(0, 1).flatten(1), W_K.transpose(0, 1).flatten(1), W_V], dim=1)


@torch.no_grad()
def _attention(W_in, W_out, heads):
    with torch.random.fork_rng(devices=[]):                    # reading is not to change what is drawn later
        attention = Attention(len(W_out), heads).to(W_out)     # its dtype and device
    W_Q, W_K, W_V = W_in.chunk(3, dim=1)
    attention.W_Q.copy_(W_Q.unflatten(1, (heads, -1)).transpose(0, 1))
    attention.W_K.copy_(W_K.unflatten(1, (heads, -1)).transpose(0, 1))
    attention.W_V.copy_(W_V)
    attention.W_proj.copy_(W_out)
    return attention


def read_checkpoint(path, heads=None):
    """A list of Attention in float32: the layers, from the first to the last, in a file of weights.

    The file is a state_dict that PyTorch saved (.pth, .bin, .pt), which is read without running code in it, or a
    .safetensors, if that package is installed. The names in it end as in the three layouts, or are this project's.
    `heads` is not in the others' files: the published ViTs and GPT-2s have dim / 64 of them, which is the default.
    Raises ValueError, which names the file and what is wrong with it.
    """
    def check(ok, right):
        require(ok, "checkpoint", str(path), right)

    weights, attentions = _load(path, check), {}
    for name, W in weights.items():
        for name_in, name_out in LAYOUTS:
            prefix = name.removesuffix(name_in)
            if prefix != name and prefix + name_out in weights:
                W_in, W_out = _as_rows_have_them(W, weights[prefix + name_out])
                check(heads or len(W_out) % 64 == 0, f"given with --heads: its width {len(W_out)} is no multiple of 64")
                attentions[prefix] = _attention(W_in, W_out, heads or len(W_out) // 64)
        prefix = name.removesuffix("W_Q")
        if prefix != name and all(prefix + other in weights for other in OWN):
            W_Q, W_K, W_V, W_proj = (weights[prefix + other] for other in OWN)
            d = W_V.shape[-1] if W_V.ndim == 2 else 0
            sizes = W_Q.ndim == 3 and W_Q.shape == W_K.shape and W_V.shape == W_proj.shape == (d, d)
            fit = sizes and W_Q.shape[::2].numel() == W_Q.shape[1] == d
            check(fit, f"a file of weights that fit, also in {prefix}")
            attentions[prefix] = _attention(_side_by_side(W_Q, W_K, W_V), W_proj, len(W_Q))
    check(attentions, f"a file with {KNOWN}; in this one there are {_some(weights)}")
    stacks = {re.sub(r"\d+", "#", prefix) for prefix in attentions}
    check(len(stacks) == 1, f"a file of one model's layers; this one has {_some(sorted(stacks))}")
    for prefix, attention in attentions.items():
        check(all(W.isfinite().all() for W in attention.parameters()), f"of finite weights; those of {prefix} are not")
    in_order = sorted(attentions, key=lambda prefix: [int(number) for number in re.findall(r"\d+", prefix)])
    return [attentions[prefix] for prefix in in_order]


def _load(path, check):
    """{name: tensor in float32} of a file, which may have them under "model" or "state_dict"."""
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file
            found = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):     # one line is enough for a file that is something else
                found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        check(False, "read with safetensors: python -m pip install safetensors")
    except OSError as error:
        check(False, f"a file of weights; it cannot be read ({error.strerror or error})")
    except Exception:                                          # whatever they make of a file that is something else
        check(False, "a file of weights, of PyTorch or .safetensors; it cannot be read as one without running code")
    for name in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    check(isinstance(found, dict), f"a file of named weights; in this one there is a {type(found).__name__}")
    weights = {name: W.float() for name, W in found.items() if isinstance(name, str) and torch.is_tensor(W)
               and W.is_floating_point() and W.layout == torch.strided and W.device.type == "cpu"}
    check(weights, f"a file with {KNOWN}; in this one there are {_some(map(str, found)) or 'no weights'}")
    return weights


def _some(names):
    """The first of `names`, and how many more."""
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
