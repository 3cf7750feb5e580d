"""The method in other people's models: set their attention weights, and read them.

You have a model whose attention somebody else wrote. Setting its weights takes a minute:

    import timm
    from mimetic_min import layouts

    model = timm.create_model("vit_tiny_patch16_224")   # a new model: width 192, 3 heads
    layouts.mimetic_init_(model)                        # returns 12, the layers that were set

    attention = layouts.read(model.blocks[0])           # check it: the first layer's four weights
    for product in (attention.qk_product()[0], attention.vp_product()):
        diagonal = product.diagonal()
        print(diagonal.mean(), diagonal.std())          # 0.39 and 0.07, then -0.40 and 0.03

Look at both numbers. A diagonal must be there, but its mean is not enough: if both W_V and W_proj
had been copied the wrong way round, it would still be -0.40, since W_V^T W_proj^T has the same
trace. The spread tells: it would be 0.24 instead of 0.03.

 -  **A model from timm, torchvision, torch.nn, vit-pytorch or Hugging Face's transformers**: the
    lines above work as they stand, with the name that your model has for its first block. What is
    known is listed in the table LAYOUTS.
 -  **A model with linear layers of your own**: name them as a row of the table does, for example
    `qkv` and `proj`, or `q_proj`, `k_proj`, `v_proj` and `out_proj`, and give the module that holds
    them a `num_heads`. Or do by hand what `four_weights` does. Mind that nn.Linear computes
    x @ W^T, so its `weight` is the transpose of the W in this project.
 -  **A trained network in a file**: `layouts.read_checkpoint(path)` gives its layers as Attention.
    This prints the diagonal of both products in each layer, and draws them:

        python -m mimetic_min.layouts model.safetensors --picture diagonals.png

The file goes from the table of layouts to the two routines that everything else uses: `find`, which
looks for attention among named tensors, and `four_weights`, which shows the tensors found as W_Q,
W_K, W_V and W_proj. Modules and files both hold named tensors, so each routine exists once.
"""

import inspect
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .vit import Attention

# ---------------------------------------------------------------------------------------------
# The table of layouts

# The recipe supposes that the coordinates of a token, on its way through the layers, are of about
# unit size.
RECIPE = {"qk_alpha": 0.7, "qk_beta": 0.7, "vp_alpha": 0.4, "vp_beta": -0.4}

# In GPT-2 they are of size 0.03. There these strengths are a little better than GPT-2's own start,
# but most of that gain comes from the noise (results/README.md, GPT-2's stream).
RECIPE_OF_GPT2 = {"qk_alpha": 0.4, "qk_beta": 0.1, "vp_alpha": 0.02, "vp_beta": -0.05}


@dataclass(frozen=True)
class Layout:
    """How one project names the weights of one attention."""

    # W_Q, W_K and W_V: three names, or one name if they stand side by side in one tensor.
    inputs: tuple
    # W_proj.
    output: str
    # Beginnings of other names in such an attention. They do not change the two products: masks, a
    # normalization before or after the whole attention, tables of angles.
    harmless: tuple = ()
    # The strengths that mimetic_init_ has by default. None means RECIPE.
    strengths: dict = None

    @property
    def weights(self):
        return (*self.inputs, self.output)

    @property
    def biases(self):
        return [name.replace("weight", "bias") for name in self.weights if "weight" in name]


def separate(folder, names, output, harmless=()):
    """A Layout with three linear layers for W_Q, W_K and W_V."""
    inputs = tuple(f"{folder}{name}.weight" for name in names)
    return Layout(inputs, f"{output}.weight", harmless)


PROJ = ("q_proj", "k_proj", "v_proj")
WORDS = ("query", "key", "value")

OWN = Layout(("W_Q", "W_K", "W_V"), "W_proj")

LAYOUTS = [
    # torch.nn.MultiheadAttention, and what holds it: nn.Transformer, torchvision's ViT
    Layout(("in_proj_weight",), "out_proj.weight"),
    # timm's ViTs, and the first releases of DINO, MAE and DINOv2
    Layout(("qkv.weight",), "proj.weight"),
    # vit-pytorch, with dropout after the output and without it
    Layout(("to_qkv.weight",), "to_out.0.weight", ("norm.",)),
    Layout(("to_qkv.weight",), "to_out.weight", ("norm.",)),
    # GPT-2, as nanoGPT has it (nn.Linear) and as Hugging Face has it (Conv1D, not transposed)
    Layout(("c_attn.weight",), "c_proj.weight", ("bias", "masked_bias"), RECIPE_OF_GPT2),
    # Hugging Face: the files of ViT, DeiT and DINOv2, and the models in transformers 4
    separate("attention.", WORDS, "output.dense"),
    # Hugging Face: BERT
    separate("self.", WORDS, "output.dense", ("output.LayerNorm.",)),
    # Hugging Face: CLIP, SigLIP, Whisper
    separate("", PROJ, "out_proj"),
    # Hugging Face: Llama, SmolLM2; and ViT, DeiT and DINOv2 as models in transformers 5
    separate("", PROJ, "o_proj", ("rotary_emb.",)),
    # This project
    OWN,
]

# LayerScale multiplies what the attention of a block adds to the stream by one factor per
# coordinate. These are the factors' names in the block: timm (two), Hugging Face (two), open_clip.
LAYER_SCALES = ("ls1.gamma", "gamma_1", "layer_scale1.lambda1", "lambda_1", "ls_1.gamma")


# ---------------------------------------------------------------------------------------------
# Finding attention among named tensors


@dataclass
class Found:
    """One self-attention among named tensors: the names of its weights begin with `prefix`."""

    tensors: dict
    prefix: str
    layout: Layout

    @property
    def name(self):
        return self.prefix.removesuffix(".") or "this attention"

    @property
    def block(self):
        """What the names of the block that holds the attention begin with."""
        parent = self.prefix.removesuffix(".").rpartition(".")[0]
        return parent + "." if parent else ""

    def weight(self, name):
        return self.tensors[self.prefix + name].detach()

    def biases(self):
        names = [self.prefix + name for name in self.layout.biases]
        return [self.tensors[name].detach() for name in names if name in self.tensors]

    def layer_scale(self):
        """LayerScale's factors (dim,), or None. They are seen if the whole block is given."""
        if self.prefix:
            for name in LAYER_SCALES:
                if self.block + name in self.tensors:
                    return self.tensors[self.block + name].detach()
        return None


def find(tensors):
    """Every self-attention in {name: tensor}, in the order of the names: a list of Found.

    Cross-attention is left out. Raises ValueError if there is no self-attention, and for one with
    more in it than its layout has.
    """
    everything = []
    for name in tensors:
        for layout in LAYOUTS:
            first = layout.inputs[0]
            if name == first or name.endswith("." + first):
                prefix = name.removesuffix(first)
                if all(prefix + other in tensors for other in layout.weights):
                    everything.append(Found(tensors, prefix, layout))
    found = [attention for attention in everything if not is_cross_attention(attention)]
    if not found:
        known = ", ".join(" with ".join(layout.weights) for layout in LAYOUTS)
        raise ValueError(
            f"found no self-attention in a known layout among {some(tensors)}; looked for {known}"
        )
    for attention in found:
        check_nothing_else(attention)
        check_tensors(attention)
    return found


def is_cross_attention(found):
    """Whether the queries come from other tokens than the keys. The names around it tell."""
    own_name = found.prefix.removesuffix(".").rpartition(".")[2]
    # nn.TransformerDecoderLayer has self_attn and multihead_attn.
    beside_self_attn = found.block + "self_attn.in_proj_weight" in found.tensors
    return (
        # GPT-2's and BERT's crossattention
        "cross" in own_name.lower()
        # BART's and Whisper's decoders
        or own_name == "encoder_attn"
        or (own_name == "multihead_attn" and beside_self_attn)
        # SigLIP's pooling, where the only query is a parameter of its own
        or (found.prefix != "" and found.block + "probe" in found.tensors)
    )


def check_nothing_else(found):
    """Raise ValueError if the attention holds more than its four weights and their biases.

    It could be a norm of the queries, a bias of the logits, a gate: whatever it is, the layer would
    not compute what its two products say.
    """
    layout = found.layout
    expected = {*layout.weights, *layout.biases}
    inside = [name for name in found.tensors if name.startswith(found.prefix)]
    inside = [name.removeprefix(found.prefix) for name in inside]
    more = [name for name in inside if name not in expected]
    more = [name for name in more if not name.startswith(layout.harmless)]
    if more:
        raise ValueError(
            f"{found.name} cannot be read or set: it holds {some(more)} besides its four weights, "
            "so W_Q W_K^T and W_V W_proj do not say what it computes"
        )


def check_tensors(found):
    """Raise ValueError for weights that are not plain floating-point numbers in memory."""
    tensors = {found.prefix + name: found.weight(name) for name in found.layout.weights}
    scale = found.layer_scale()
    if scale is not None:
        tensors[f"the LayerScale of {found.name}"] = scale
    for name, W in tensors.items():
        plain = W.is_floating_point() and W.layout == torch.strided and not W.is_meta
        # A tensor in a file may claim more entries than it stores.
        if not plain or W.untyped_storage().nbytes() < W.numel() * W.element_size():
            raise ValueError(
                f"{name} must hold plain floating-point numbers in memory, but it is a tensor of "
                f"{W.dtype}, {W.layout}, on {W.device}"
            )


def some(names):
    """The first few of `names`, and how many more there are."""
    names = [str(name) for name in names]
    if not names:
        return "nothing"
    text = ", ".join(names[:6])
    return text if len(names) <= 6 else f"{text} and {len(names) - 6} more"


# ---------------------------------------------------------------------------------------------
# The four weights


def four_weights(found, heads):
    """The tensors of one attention, seen as this project has them: whoever writes to these views
    writes to the tensors.

    Returns W_Q (heads, dim, head_dim), W_K and W_V (key_value_heads, dim, head_dim) and W_proj
    (dim, dim). This project's own files and modules do not need `heads`. Raises ValueError if the
    shapes do not fit together.
    """
    W_in = [found.weight(name) for name in found.layout.inputs]
    W_proj = found.weight(found.layout.output)
    if W_proj.ndim != 2 or W_proj.shape[0] != W_proj.shape[1] or W_proj.numel() == 0:
        raise misfit(found)
    dim = len(W_proj)

    # This project: W_Q and W_K say how many heads there are. Only W_V is still without its heads.
    if found.layout is OWN:
        W_Q, W_K, W_V = W_in
        fit = W_Q.ndim == 3 and W_Q.shape == W_K.shape and W_V.shape == W_proj.shape
        if not fit or W_Q.shape[1] != dim or W_Q.shape[0] * W_Q.shape[2] != dim:
            raise misfit(found)
        return W_Q, W_K, by_heads(W_V, W_Q.shape[2]), W_proj

    # The others: transpose what acts from the left, and cut what stands side by side.
    if heads < 1 or dim % heads != 0:
        raise ValueError(
            f"the number of heads of {found.name} must divide its width, but {heads} does not "
            f"divide {dim}"
        )
    if any(W.ndim != 2 for W in W_in):
        raise misfit(found)
    if len(W_in) == 3:
        W_Q, W_K, W_V = (W.T for W in W_in)
        W_proj = W_proj.T
    elif W_in[0].shape == (3 * dim, dim):
        W_Q, W_K, W_V = W_in[0].T.chunk(3, dim=1)  # (dim, dim) each
        W_proj = W_proj.T
    elif W_in[0].shape == (dim, 3 * dim):
        # GPT-2's Conv1D acts from the right already.
        W_Q, W_K, W_V = W_in[0].chunk(3, dim=1)
    else:
        raise misfit(found)

    # The columns of a head stand together. Several query heads may share one head of K and V.
    head_dim = dim // heads
    width = W_K.shape[1]
    fits = width > 0 and width % head_dim == 0 and dim % width == 0
    if W_Q.shape != (dim, dim) or W_K.shape != (dim, width) or W_V.shape != W_K.shape or not fits:
        raise misfit(found)
    return by_heads(W_Q, head_dim), by_heads(W_K, head_dim), by_heads(W_V, head_dim), W_proj


def misfit(found):
    """The ValueError for shapes that do not fit together."""
    shapes = [f"{name} is {tuple(found.weight(name).shape)}" for name in found.layout.weights]
    return ValueError(
        f"the weights of {found.name} do not fit together: {', '.join(shapes)}; the heads together "
        "must be as wide as what the layer reads and writes"
    )


def by_heads(W, head_dim):
    """From (dim, heads * head_dim) to (heads, dim, head_dim), without a copy."""
    return W.unflatten(1, (-1, head_dim)).transpose(0, 1)


def side_by_side(W):
    """From (heads, dim, head_dim) to (dim, heads * head_dim)."""
    return W.transpose(0, 1).flatten(1)


@torch.no_grad()
def read_found(found, heads, dtype):
    """The attention as an Attention with its own memory, LayerScale included."""
    W_Q, W_K, W_V, W_proj = (W.to(dtype) for W in four_weights(found, heads))
    heads, dim, _ = W_Q.shape

    # Query head i reads key-value head i // group.
    group = heads // len(W_K)
    W_K = W_K.repeat_interleave(group, dim=0)
    W_V = W_V.repeat_interleave(group, dim=0)

    # LayerScale acts on the output coordinates, which are the columns of W_proj.
    scale = found.layer_scale()
    if scale is not None:
        check_layer_scale(found, scale, dim)
        W_proj = W_proj * scale.to(dtype)

    attention = new_attention(dim, heads)
    attention.W_Q = nn.Parameter(contiguous_copy(W_Q))
    attention.W_K = nn.Parameter(contiguous_copy(W_K))
    attention.W_V = nn.Parameter(contiguous_copy(side_by_side(W_V)))
    attention.W_proj = nn.Parameter(contiguous_copy(W_proj))
    return attention


def contiguous_copy(W):
    return W.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def write_found(found, heads, attention):
    """Copy an Attention into the attention found. Biases become 0, LayerScale 1."""
    W_Q, W_K, W_V, W_proj = four_weights(found, heads)
    W_Q.copy_(attention.W_Q)
    W_K.copy_(attention.W_K)
    W_V.copy_(by_heads(attention.W_V, W_Q.shape[2]))
    W_proj.copy_(attention.W_proj)
    for bias in found.biases():
        bias.zero_()
    scale = found.layer_scale()
    if scale is not None:
        scale.fill_(1)


def check_layer_scale(found, scale, dim):
    if scale.shape != (dim,):
        raise ValueError(
            f"the LayerScale of {found.name} must have {dim} factors, but its shape is "
            f"{tuple(scale.shape)}"
        )


def new_attention(dim, heads):
    """An Attention without numbers in it, to be filled. It draws no random numbers."""
    with torch.device("meta"):
        return Attention(dim, heads)


# ---------------------------------------------------------------------------------------------
# Modules


def find_in(module):
    """Every self-attention in `module`: a list of (Found, heads).

    Raises ValueError as `find` does, and if an attention does not say how many heads it has.
    """
    try:
        everything = find(dict(module.named_parameters()))
    except ValueError as error:
        raise ValueError(f"{type(module).__name__}: {error}") from None
    return [(found, number_of_heads(module, found)) for found in everything]


def number_of_heads(module, found):
    """The number of heads, as the attention, its parts or their configs say.

    None for this project's Attention, whose W_Q says it.
    """
    if found.layout is OWN:
        return None
    attention = module.get_submodule(found.prefix.removesuffix("."))
    places = [attention, *attention.children()]
    places += [place.config for place in places if hasattr(place, "config")]
    for place in places:
        for name in ("num_heads", "n_head", "num_attention_heads", "heads", "n_heads"):
            heads = getattr(place, name, None)
            if isinstance(heads, int):
                return heads
    raise ValueError(
        f"{found.name} does not say how many heads it has; give the {type(attention).__name__} a "
        "num_heads"
    )


def read(module):
    """The weights of an attention as an Attention of the same dtype, on the same device: a copy.

    `module` is one attention, or something that holds one, such as a block. Give the block if it
    has LayerScale: its factors belong to W_proj, and the attention does not know them. Key-value
    heads that several query heads share are repeated. Biases are left out. So is what the weights
    do not say: rotary positions, and whether the layer is causal (for a GPT, set `causal` of what
    is returned).

    Raises ValueError for a module without an attention in a known layout, or with several.
    """
    attentions = find_in(module)
    if len(attentions) > 1:
        names = some(found.name for found, _ in attentions)
        raise ValueError(
            f"read takes one attention, but {type(module).__name__} has {len(attentions)}: {names}"
            "; use read_all"
        )
    return read_all(module)[0]


def read_all(model):
    """A list of Attention: every self-attention of a model, as `read` gives it."""
    layers = []
    for found, heads in find_in(model):
        dtype = found.weight(found.layout.output).dtype
        layers.append(read_found(found, heads, dtype))
    return layers


def write(module, attention):
    """Give a module the weights of an Attention. `module` holds one attention of the same shape.

    Its biases become 0 and its LayerScale 1, as with mimetic_init_. Raises ValueError for what
    mimetic_init_ refuses, and for another shape.
    """
    attentions = find_in(module)
    if len(attentions) > 1:
        raise ValueError(
            f"write takes one attention, but {type(module).__name__} has {len(attentions)}"
        )
    found, heads = attentions[0]
    check_can_be_set(module, found, heads)
    W_Q = four_weights(found, heads)[0]
    if attention.W_Q.shape != W_Q.shape:
        raise ValueError(
            f"W_Q must be {tuple(W_Q.shape)}, (heads, dim, head_dim) of the module, but it is "
            f"{tuple(attention.W_Q.shape)}"
        )
    write_found(found, heads, attention)


@torch.no_grad()
def mimetic_init_(module, qk_alpha=None, qk_beta=None, vp_alpha=None, vp_beta=None, generator=None):
    """Give every self-attention in `module` a mimetic start. Returns how many there are.

    `module` is one attention or a whole new model. Cross-attention is left alone. Each attention
    gets what Attention.mimetic_init_ of vit.py draws from `generator`, and besides:

     -  Biases become 0. A bias of Q or K adds something to the logits that is not in W_Q W_K^T.
     -  The LayerScale of the attention, if the block has one, becomes 1; that of the MLP stays. Its
        usual start, 1e-5, says that a layer adds nothing at first, so W_V W_proj would have no
        effect. To divide W_proj by it is no way out: Adam's first step moves a factor from 1e-5 to
        about 1e-3, and what the layer adds would grow a hundredfold. An attention that is given by
        itself does not know its LayerScale. Give the block, or the model.

    The strengths. None means the recipe: qk_alpha 0.7, qk_beta 0.7, vp_alpha 0.4, vp_beta -0.4. On
    GPT-2's layout it means 0.4, 0.1, 0.02, -0.05. In GPT-2 a token starts as a sum of embeddings
    N(0, 0.02^2), so its coordinates are of size 0.03. A layer reads them normalized to size 1, and
    with the recipe it would add something ten times as large as the token itself. Other models with
    such embeddings and a LayerNorm before each attention (the text model of CLIP) need GPT-2's
    strengths, too. If a model in GPT-2's layout has coordinates of unit size (embeddings N(0, 1),
    or a LayerNorm on them), give it the recipe by its numbers.

    Everything is checked before the first weight is changed. Raises ValueError for a module without
    self-attention in a known layout; for rotary positions or shared key-value heads, where no
    choice of weights gives the products; and for a strength out of range.
    """
    given = {"qk_alpha": qk_alpha, "qk_beta": qk_beta, "vp_alpha": vp_alpha, "vp_beta": vp_beta}
    given = {name: value for name, value in given.items() if value is not None}
    attentions = find_in(module)
    for found, heads in attentions:
        check_can_be_set(module, found, heads)
    for found, heads in attentions:
        W_Q = four_weights(found, heads)[0]
        attention = new_attention(dim=W_Q.shape[1], heads=W_Q.shape[0]).to_empty(device="cpu")
        strengths = (found.layout.strengths or RECIPE) | given
        # A strength out of range is refused here, the first time, before anything is written.
        attention.mimetic_init_(**strengths, generator=generator)
        write_found(found, heads, attention)
    return len(attentions)


def check_can_be_set(module, found, heads):
    """Raise ValueError, with the reason, if no choice of weights gives the products asked for."""
    W_Q, W_K, _, W_proj = four_weights(found, heads)
    if is_rotary(module, found):
        raise ValueError(
            f"{found.name} can be read, but not set: its rotary positions turn queries and keys, "
            "so W_Q W_K^T does not decide which tokens attend to each other"
        )
    if len(W_K) != len(W_Q):
        raise ValueError(
            f"{found.name} can be read, but not set: {len(W_Q)} query heads share {len(W_K)} "
            "key-value heads, so W_Q W_K^T cannot be chosen for each head, nor W_V W_proj"
        )
    scale = found.layer_scale()
    if scale is not None:
        check_layer_scale(found, scale, len(W_proj))


def is_rotary(module, found):
    """Whether the names of modules, buffers, settings or arguments speak of rotary positions."""
    attention = module.get_submodule(found.prefix.removesuffix("."))
    names = list(inspect.signature(attention.forward).parameters)
    names += [name for name, _ in module.named_buffers()]
    for name, part in module.named_modules():
        names += [name, type(part).__name__]
    config = getattr(attention, "config", None)
    if hasattr(config, "__dict__"):
        names += [name for name, value in vars(config).items() if value is not None]
    return any(re.search(r"(?<![a-z])rope|Rope|RoPE|[Rr]otary|freqs_cis", name) for name in names)


# ---------------------------------------------------------------------------------------------
# Files


def read_checkpoint(path, heads=None):
    """The attention layers in a file of weights, from the first to the last: a list of Attention
    in float32.

    The file is a .safetensors, which needs the package of that name, or what torch.save made of a
    state_dict (.pth, .pt, .bin), or of a dict that has it under "model" or "state_dict". No code
    in it is run. Other weights in it are ignored. As with `read`, LayerScale is part of W_proj,
    key-value heads that several query heads share are repeated, and biases are left out.

    `heads` is not in the files. Published ViTs, GPT-2s and SmolLM2 have width / 64, the default.
    The files of this project know it themselves. Raises ValueError, which names the file, for one
    that it cannot read.
    """
    try:
        everything = find(load(path))
        stacks = dict.fromkeys(re.sub(r"\d+", "#", found.name) for found in everything)
        if len(stacks) > 1:
            raise ValueError(f"it must hold the layers of one model, but it has {some(stacks)}")
        everything.sort(key=lambda found: [int(n) for n in re.findall(r"\d+", found.prefix)])
        return [read_from_file(found, heads) for found in everything]
    except ValueError as error:
        # A name in a damaged file may hold anything. The message stays one line.
        message = "".join(c if c.isprintable() else "?" for c in str(error))
        raise ValueError(f"{path}: {message}") from None


def read_from_file(found, heads):
    dim = found.weight(found.layout.output).shape[-1:].numel()
    if heads is None and dim % 64 != 0 and found.layout is not OWN:
        raise ValueError(
            f"the number of heads must be given (--heads), since 64 does not divide the width {dim}"
        )
    attention = read_found(found, dim // 64 if heads is None else heads, torch.float32)
    for name, W in attention.named_parameters():
        if not W.isfinite().all():
            raise ValueError(f"the weights must be finite, but {name} of {found.name} is not")
    return attention


def load(path):
    """{name: tensor} of a file. Raises ValueError if it is no file of weights."""
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            # No warnings: for a file that is something else, the error below is enough.
            with warnings.catch_warnings(action="ignore"):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(
            "reading it needs the package safetensors: python -m pip install safetensors"
        ) from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None
    except Exception:
        # A damaged file makes torch and safetensors raise nearly anything.
        raise ValueError("it cannot be read as a file of weights without running code") from None

    # A checkpoint has the weights beside other things.
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"it must hold named weights, but it holds a {type(content).__name__}")
    tensors = {}
    for name, W in content.items():
        if isinstance(name, str) and isinstance(W, torch.Tensor):
            tensors[name] = W
    if not tensors:
        raise ValueError(f"it must hold named weights, but it holds {some(content)}")
    return tensors


# ---------------------------------------------------------------------------------------------
# python -m mimetic_min.layouts FILE ...: the diagonals of trained networks


@torch.no_grad()
def diagonal(product):
    """The mean of a product's diagonal, and that divided by the standard deviation of all entries.

    With one product per head, (heads, dim, dim), their mean is taken first. The second number
    compares networks of any scale. Without a diagonal it is about 1 / sqrt(dim) in size.
    """
    if product.ndim == 3:
        product = product.mean(0)
    mean = product.diagonal().mean().item()
    std = product.std(correction=0).item()
    # A product of zeros has no diagonal.
    return mean, mean / std if std > 0 else 0.0


def table(attentions):
    """The lines of a table: both diagonals in each layer."""
    lines = ["layer   query-key: mean   mean/std   value-projection: mean   mean/std"]
    positive = [0, 0]
    for layer, attention in enumerate(attentions, start=1):
        qk_mean, qk_ratio = diagonal(attention.qk_product())
        vp_mean, vp_ratio = diagonal(attention.vp_product())
        lines.append(f"{layer:5} {qk_mean:17.4f} {qk_ratio:10.2f} {vp_mean:24.4f} {vp_ratio:10.2f}")
        positive[0] += qk_mean > 0
        positive[1] += vp_mean > 0
    lines.append(
        f"positive: query-key in {positive[0]} of {len(attentions)} layers, "
        f"value-projection in {positive[1]} of {len(attentions)}"
    )
    return lines


def run(argv):
    # The laboratory is needed only here, and matplotlib only for a picture.
    from .lab import figures
    from .lab.options import Parser, whole_number

    parser = Parser(
        prog="python -m mimetic_min.layouts",
        description="The diagonals of W_Q W_K^T and W_V W_proj in each layer of trained networks.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help=".safetensors, .pth, .pt or .bin")
    parser.add_argument("--heads", type=whole_number, help="heads per layer (default: width / 64)")
    parser.add_argument("--picture", metavar="OUT.png", help="draw them, too (needs matplotlib)")
    args = parser.parse_args(argv)
    if args.picture is not None and Path(args.picture).exists():
        raise ValueError(f"--picture must be a new file, but {args.picture} exists")

    networks = {path: read_checkpoint(path, args.heads) for path in args.files}
    # Draw before printing: then an error is the only line.
    if args.picture is not None:
        figures.save(figures.trained_networks(networks), args.picture)
    for path, attentions in networks.items():
        heads, dim, _ = attentions[0].W_Q.shape
        print(f"{path}: {len(attentions)} layers, width {dim}, {heads} heads")
        print("\n".join(table(attentions)))


def main(argv=None):
    try:
        run(argv)
    except (ValueError, OSError) as error:
        print(f"layouts.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
