"""Mimetic initialization in other people's models: the same four weights, wherever they are kept.

You say which modules are self-attention, in a loop of your own:

    import timm
    from mimetic_min import layouts

    model = timm.create_model("vit_tiny_patch16_224")  # a new model: width 192, 3 heads
    for block in model.blocks:
        layouts.mimetic_init_(block.attn)

    attention = layouts.read(model.blocks[0].attn)     # check it: a copy of the four weights
    for product in (attention.qk_product()[0], attention.vp_product()):
        diagonal = product.diagonal()
        print(diagonal.mean(), diagonal.std())         # 0.39 and 0.07, then -0.40 and 0.03

Look at both numbers. The mean of a diagonal does not tell W_V and W_proj from their transposes: it
would be -0.40 as well, since W_V^T W_proj^T has the same trace. The spread tells: it would be 0.24
instead of 0.03.

The names of the weights in known kinds of attention are listed in the table LAYOUTS. An attention
that has anything else inside is refused with a ValueError, and nothing in it is changed. For
nn.Linear layers of other names, the README shows how to set them.

Names say where the weights are. They do not say what a forward does with them, so a few things are
left to you:

 -  **Cross-attention**: do not set it. Its queries and its keys come from different tokens, for
    which a diagonal means nothing.
 -  **LayerScale**: a factor of 1e-5 after the attention leaves nothing of W_V W_proj. Fill it with
    1, for example `nn.init.ones_(block.ls1.gamma)`.
 -  **A forward that does more, or less, than softmax(Q K^T / sqrt(head_dim)) V**: it has other
    products, and cannot be seen from here if it needs no module and no weights for that. Examples
    are rotary positions that come as an argument (Llama), normalized queries, logits without the
    square root (GPT-Neo) or with a cap, and pooled tokens.
 -  **A small residual stream**, as in GPT-2, whose embeddings are N(0, 0.02^2): each layer adds
    something that is large beside them. Give smaller strengths.
 -  **Queries, keys and values fused head by head** (BLOOM, GPT-NeoX): they are not in the table, on
    purpose. Do not rename them: the table takes all queries first, then all keys, then all values.

`read_checkpoint` reads trained networks from a file, to look at their products.
"""

import re
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from .vit import Attention

# ---------------------------------------------------------------------------------------------
# The table of layouts


class Layout(NamedTuple):
    """Where one kind of attention keeps its four weights."""

    # W_Q, W_K, W_V and W_proj. The first three may be one that has them side by side.
    weights: tuple
    causal: bool = False
    # What else may be inside, because it stands before or after the whole attention: name and type.
    beside: dict = {}


VIT_PYTORCH = {"norm": nn.LayerNorm, "attend": nn.Softmax}

OWN = Layout(("W_Q", "W_K", "W_V", "W_proj"))

LAYOUTS = [
    # torch.nn.MultiheadAttention; with keys or values of another width, which are refused for it
    Layout(("in_proj_weight", "out_proj.weight")),
    Layout(
        ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"),
        beside={"in_proj_bias": nn.Parameter},
    ),
    # timm, DINO, MAE, DINOv2
    Layout(("qkv.weight", "proj.weight")),
    # vit-pytorch, with dropout after the projection and without it
    Layout(("to_qkv.weight", "to_out.0.weight"), beside=VIT_PYTORCH),
    Layout(("to_qkv.weight", "to_out.weight"), beside=VIT_PYTORCH),
    # GPT-2: nanoGPT (nn.Linear) and Hugging Face (Conv1D)
    Layout(("c_attn.weight", "c_proj.weight"), True, {"masked_bias": torch.Tensor}),
    # Hugging Face: ViT, DeiT and DINOv2 in their files and in transformers 4; then BERT
    Layout(
        (
            "attention.query.weight",
            "attention.key.weight",
            "attention.value.weight",
            "output.dense.weight",
        )
    ),
    Layout(
        ("self.query.weight", "self.key.weight", "self.value.weight", "output.dense.weight"),
        beside={"output.LayerNorm": nn.LayerNorm},
    ),
    # Hugging Face: CLIP, SigLIP, the encoder of Whisper; then ViT in transformers 5, SmolLM2
    Layout(("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")),
    Layout(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")),
    # This project
    OWN,
]


def acts_from_the_right(row, W):
    """Whether the first weight of a row, W, acts as x @ W. nn.Linear computes x @ W^T.

    So do the weights of this project, and those of Hugging Face's Conv1D, which stands in the table
    only as GPT-2's (dim, 3 dim).
    """
    return row is OWN or W.shape[-1] == 3 * len(W)


def as_attention(row, tensors, heads, copy):
    """An Attention with the weights {name: W} of a row, in its order. Raises ValueError for shapes
    that do not fit together.

    Without `copy` it shares its memory with them: to write to one is to write to the other.
    """
    *inputs, W_proj = tensors.values()
    heads = len(inputs[0]) if row is OWN else heads
    # On the meta device nothing is drawn, and no memory is taken.
    with torch.device("meta"):
        attention = Attention(len(W_proj), heads, row.causal)

    if not acts_from_the_right(row, inputs[0]):
        *inputs, W_proj = (W.transpose(0, -1) for W in tensors.values())
    try:
        W_Q, W_K, W_V = inputs if len(inputs) == 3 else inputs[0].tensor_split(3, dim=1)
        if row is not OWN:
            # From (dim, dim), with the columns of a head side by side, to (heads, dim, head_dim).
            W_Q, W_K = (W.unflatten(1, (heads, -1)).transpose(0, 1) for W in (W_Q, W_K))
        weights = {
            name: W.clone(memory_format=torch.contiguous_format) if copy else W.detach()
            for name, W in zip(OWN.weights, (W_Q, W_K, W_V, W_proj))
        }
        # It compares the shapes. With `assign` it copies nothing itself.
        attention.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        shapes = ", ".join(f"{name} is {tuple(W.shape)}" for name, W in tensors.items())
        raise ValueError(
            f"{shapes}, but keys, values and all {heads} heads together must be as wide as the "
            "tokens, and there must be as many key-value heads"
        ) from error
    return attention


# ---------------------------------------------------------------------------------------------
# Modules


@torch.no_grad()
def mimetic_init_(attention, qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4, generator=None):
    """Give one self-attention module the weights that Attention.mimetic_init_ of vit.py draws.

    The default strengths are the paper's for vision. The biases of queries, keys, values and
    projection become 0. Everything is drawn and decomposed in float32 on the CPU, and rounded once
    if the module has another dtype. Of a module from torch.compile, the original is set.

    Raises ValueError, and changes nothing, for a strength out of range and for a module that
    `read` refuses.
    """
    # These weights share the module's memory. So they are set where they are.
    weights, biases = find(attention)
    weights.mimetic_init_(qk_alpha, qk_beta, vp_alpha, vp_beta, generator)
    for bias in biases:
        bias.zero_()


@torch.no_grad()
def read(attention):
    """The weights of one self-attention module, as an Attention: a copy of the same dtype, on the
    same device. Biases are left out. `causal` is the module's own attribute of that name, or else
    True in GPT-2's layout alone.

    Raises ValueError for a module that is not in the table; for anything in it besides the four
    weights, their biases, dropout and causal masks; for fewer key-value heads than heads; and for
    weights that cannot be set: parametrized, quantized, on the meta device, made in inference mode,
    or sharing memory.
    """
    return find(attention, copy=True)[0]


def find(attention, copy=False):
    """The four weights as an Attention, which shares the module's memory if it is no copy; and the
    biases.

    Raises ValueError as `read` does. Everything is checked here, so that nobody who writes
    afterwards stops halfway.
    """
    attention = getattr(attention, "_orig_mod", attention)
    # With the duplicates: two names of one parameter are an obstacle.
    parameters = dict(attention.named_parameters(remove_duplicate=False))
    row = next((row for row in LAYOUTS if parameters.keys() >= {*row.weights}), None)
    if row is None:
        raise ValueError(
            f"{type(attention).__name__} has no queries, keys, values and projection under names "
            f"that are known here; it holds {some(attention.state_dict())}; the README shows how "
            "to set nn.Linear layers of other names"
        )
    weights = {name: parameters.pop(name) for name in row.weights}
    names = [name.replace("weight", "bias") for name in weights]
    biases = {name: parameters.pop(name) for name in names if name in parameters}
    obstacle = next(obstacles(attention, row, weights | biases, [*parameters]), None)
    if obstacle is not None:
        raise ValueError(f"{type(attention).__name__} cannot be read or set: {obstacle}")

    found = as_attention(
        row, weights, heads=None if row is OWN else number_of_heads(attention), copy=copy
    )
    found.causal = getattr(attention, "causal", row.causal)
    return found, biases.values()


def some(names):
    """The first dozen of `names`, as text."""
    return ", ".join([*names][:12] + ["..."] * (len(names) > 12)) or "nothing"


def number_of_heads(attention):
    """As the attention, a part of it or their config say."""
    places = [*attention.modules()]
    places += [place.config for place in places if hasattr(place, "config")]
    for place, name in product(places, ("num_heads", "num_attention_heads", "n_head", "heads")):
        if isinstance(getattr(place, name, None), int):
            return getattr(place, name)
    raise ValueError(
        f"{type(attention).__name__} does not say how many heads it has: set its num_heads"
    )


def obstacles(attention, row, tensors, more):
    """What is in the way of reading and setting an attention: a phrase for each thing.

    `tensors` is {name: W} for what will be written to, the weights and their biases. `more` lists
    the names of the other parameters.
    """
    for name, W in tensors.items():
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        faults = {
            "is on the meta device: materialize it first (to_empty)": W.is_meta,
            "was made in inference mode and cannot be changed": W.is_inference(),
            "does not hold plain floating-point numbers": W.dtype not in dtypes,
            "is a special kind of parameter": type(W) is not nn.Parameter,
            "has entries that share memory": 0 in W.stride(),
        }
        yield from (f"{name} {fault}" for fault, is_so in faults.items() if is_so)
    memory = [W.untyped_storage().data_ptr() for W in tensors.values()]
    shared = [name for name, where in zip(tensors, memory) if memory.count(where) > 1]
    if shared:
        yield f"{some(shared)} share memory"
    # An option of torch.nn.MultiheadAttention. It leaves no trace in the weights.
    if getattr(attention, "add_zero_attn", False):
        yield "add_zero_attn gives it a key and a value of zeros"

    more += [name for name, buffer in attention.named_buffers() if not is_causal_mask(buffer)]
    more = [name for name in more if not {name, name.rpartition(".")[0]} & row.beside.keys()]
    if more:
        yield f"besides its four weights, their biases and causal masks it holds {some(more)}"

    # The path to a weight, such as BERT's `self` and `output`, may have any type. A layer may not:
    # its own forward, also in a subclass of nn.Linear, may do anything with the weights.
    plain = (nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for name, child in attention.named_modules():
        owners = (weight.rpartition(".")[0] for weight in tensors)
        is_path = name == "" or any(owner.startswith(name + ".") for owner in owners)
        is_layer = (
            type(child).__name__ == "Conv1D"
            if acts_from_the_right(row, tensors[row.weights[0]])
            else getattr(child.forward, "__func__", None) is nn.Linear.forward
        )
        harmless = type(child) in plain or isinstance(child, row.beside.get(name, ()))
        if not (is_path or is_layer or harmless):
            yield f"{name}, a {type(child).__name__}, may change what the weights do"


def is_causal_mask(buffer):
    """Whether a buffer (..., tokens, tokens) has one value up to the diagonal, another above it."""
    mask = buffer.squeeze()
    if mask.is_meta or mask.ndim != 2 or len(mask) < 2 or mask.shape != mask.T.shape:
        return False
    # The first token sees itself, and not the last one.
    past = torch.ones_like(mask, dtype=torch.bool).tril()
    ideal = torch.where(past, mask[0, 0], mask[0, -1])
    return torch.equal(mask, ideal) and bool(mask[0, 0] != mask[0, -1])


# ---------------------------------------------------------------------------------------------
# Files


def read_checkpoint(path, heads=None):
    """The attention layers in a file of weights, in order: a list of Attention, in float32.

    `path` is a .safetensors, or what torch.save made of a state_dict (.pt, .pth), or of a dict that
    has it under "model" or "state_dict", such as the checkpoint of a run of this project. No code
    in it is run. Every attention whose names are in the table is read, cross-attention too. A
    LayerScale under its published name is part of W_proj, key-value heads are repeated for the
    heads that share them, and biases and everything else are left out.

    `heads` must be given, since files do not hold it: 6 for DINOv2-S, 9 for SmolLM2-135M. Only the
    files of this project say it themselves. `causal` is set for GPT-2's layout alone: set it for
    other language models. Raises ValueError, which names the file, for one that is missing, cannot
    be read, has no known attention, or does not fit `heads`.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("model", "state_dict"):
            content = content.get(name, content)
        return read_layers(content, heads)
    except ImportError as error:
        raise ValueError(
            f"{path}: reading it needs safetensors: pip install safetensors"
        ) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        # A file that is something else makes torch and safetensors raise nearly anything.
        raise ValueError(
            f"{path}: it cannot be read as weights ({type(error).__name__}); if it holds other "
            "Python objects, which torch.load(weights_only=True) refuses, load it where you trust "
            "it, and make a plain file with torch.save(model.state_dict(), path)"
        ) from error


def read_layers(content, heads):
    """A list of Attention from {name: tensor}, in the order of the numbers in the names."""
    # torch.compile puts _orig_mod into the names.
    tensors = {name.replace("_orig_mod.", ""): W for name, W in content.items()}
    layers = []
    for name, row in product(sorted(tensors, key=by_number), LAYOUTS):
        prefix = name.removesuffix(row.weights[0])
        whole = tensors.keys() >= {prefix + weight for weight in row.weights}
        if whole and name != prefix and prefix[-1:] in ("", "."):
            layers.append(read_layer(tensors, prefix, row, heads))
    if not layers:
        raise ValueError(f"it has no attention that is known here; it holds {some(tensors)}")
    return layers


def by_number(name):
    """A key to sort names with: layer 10 comes after layer 9."""
    return [(len(part), part) for part in re.split(r"(\d+)", name)]


def read_layer(tensors, prefix, row, heads):
    """The Attention whose names in {name: tensor} are `prefix` and those of a row."""
    weights = {name: tensors[prefix + name].float() for name in row.weights}
    W_proj = weights[row.weights[-1]]
    if row is not OWN:
        if heads is None or heads < 1 or len(W_proj) % heads != 0:
            raise ValueError(f"heads must be given and divide {len(W_proj)}, but it is {heads}")
        # Several heads may share one head of W_K and W_V: the first ones share the first.
        for name in row.weights[1:-1]:
            by_heads = weights[name].unflatten(0, (-1, len(W_proj) // heads))
            weights[name] = by_heads.repeat_interleave(heads // len(by_heads), dim=0).flatten(0, 1)

    # LayerScale multiplies the coordinates that come out, which are the rows of an nn.Linear.
    block, dot, _ = prefix.removesuffix(".").rpartition(".")
    for name in (f"{block}{dot}layer_scale1.lambda1", f"{block}{dot}ls1.gamma"):
        if name in tensors:
            weights[row.weights[-1]] = W_proj * tensors[name].float()[:, None]
    return as_attention(row, weights, heads, copy=True)
