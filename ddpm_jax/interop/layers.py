"""Translate a PyTorch state dict into a Flax parameter tree, given the names of the layers.

A name map takes our layer, "down_0_res_1/conv_1", to theirs, "down_blocks.0.resnets.1.conv1". What is left is the
same everywhere: the names and layouts of a layer's arrays.

    ours                      theirs
    kernel [H, W, I, O]       weight [O, I, H, W]     convolution
    kernel [I, O]             weight [O, I]           dense
    kernel [I, O]             weight [O, I, 1, 1]     dense written as a 1x1 convolution
    kernel [I, O]             weight [O, I, 1]        dense written as a convolution over one axis
    embedding [N, C]          weight [N, C]           table of embeddings
    scale [C]                 weight [C]              norm
    bias                      bias
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ddpm_jax import keys
from ddpm_jax.interop import files
from ddpm_jax.models.unet import UNet


def shapes(
    model: nn.Module, image_shape: tuple[int, int, int], **conditioning: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of model(x_t, t, **conditioning) for images [H, W, C], allocating none."""
    x_t, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    return param_shapes(model, x_t, t, **conditioning)


def unet_shapes(
    model: UNet, image_shape: tuple[int, int, int], **conditioning: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
    """shapes of a U-Net, with a class if it takes one."""
    if model.num_classes is None and model.class_embed_type is None:
        return shapes(model, image_shape, **conditioning)
    size = (1, 4 * model.channels) if model.class_embed_type == "identity" else (1,)
    dtype = jnp.int32 if model.class_embed_type is None else jnp.float32
    return shapes(model, image_shape, y=jax.ShapeDtypeStruct(size, dtype), **conditioning)


REPEATED = (
    *("layers_per_block", "num_layers", "transformer_layers_per_block", "encoder_layers"),  # of diffusers
    *("num_res_blocks", "transformer_depth", "depth", "n_layer"),  # of OpenAI, latent-diffusion and DiT
)
"""Settings that say how often layers follow each other."""
FEW = 64
"""That many are traced whatever the file holds, so that what is missing is said by name."""


def check_repeated(settings: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Whether a file can hold as many layers as its settings say, whose network would be traced for minutes.

    Every layer that is repeated has at least four arrays.

    Raises:
      ValueError: it cannot.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            check_repeated(value, weights)
        counts = value if isinstance(value, list | tuple) else [value]
        for count in counts if name in REPEATED else []:
            if isinstance(count, int) and count > max(FEW, len(weights) // 4):
                raise ValueError(
                    f"weights do not fit the model: {name} is {value}, for a file of {len(weights)} arrays"
                )


def param_shapes(model: nn.Module, *inputs: Any, **keywords: Any) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of model(*inputs, **keywords), for inputs of which only shapes are read."""
    params = jax.eval_shape(model.init, keys.make(0), *inputs, **keywords)["params"]
    return {path: leaf.shape for path, leaf in _flatten(params).items()}


class Levels(Protocol):
    """A network of levels with the same number of res blocks each."""

    @property
    def channel_multipliers(self) -> Sequence[float]: ...
    @property
    def num_res_blocks(self) -> int: ...


def unet_names(
    model: Levels,
    blocks: Mapping[str, str],
    res: Mapping[str, str],
    attention: Mapping[str, str],
    resampling: Mapping[str, str] = MappingProxyType({}),
    place: Callable[[int, int], Mapping[str, int]] | None = None,
) -> dict[str, str]:
    """Our layer to their layer for each layer a U-Net of this depth can have, from the tables.

    Args:
      blocks: patterns in level, from_deepest (levels counted from the coarsest) and i (res block of the level).
      res: the layers inside a res block.
      attention: the layers inside an attention block.
      resampling: the same patterns as in blocks, for the res blocks that down- and upsample.
      place: what else the patterns of a (level, i) name.
    """
    names = {}
    depth = len(model.channel_multipliers)
    kinds = [
        (item, res if "_res_" in item[0] else attention if "attention" in item[0] else {}) for item in blocks.items()
    ]
    kinds += [(item, res) for item in resampling.items()]
    for level, i in itertools.product(range(depth), range(model.num_res_blocks + 1)):
        here = {"level": level, "from_deepest": depth - 1 - level, "i": i, **(place(level, i) if place else {})}
        for (ours, theirs), inside in kinds:
            ours, theirs = ours.format(**here), theirs.format(**here)
            names |= {f"{ours}/{ours_in}": f"{theirs}.{theirs_in}" for ours_in, theirs_in in inside.items()}
            names |= {} if inside else {ours: theirs}
    return names


def their_name(path: str, names: Mapping[str, str]) -> str:
    """The state dict's name of our parameter: names says the layer, the leaf says the rest.

    A parameter outside of any layer is in names itself.
    """
    if path in names:
        return names[path]
    layer, leaf = path.rsplit("/", 1)
    return names[layer] + (".bias" if leaf == "bias" else ".weight")


def their_shape(
    path: str, shape: tuple[int, ...], conv1x1: frozenset[str], conv1d: frozenset[str] = frozenset()
) -> tuple[int, ...]:
    """The state dict's shape of our parameter; the sets hold the dense layers which are convolutions there."""
    if path.endswith("/embedding"):
        return shape
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    if len(shape) == 2:
        layer = path.rpartition("/")[0].rpartition("/")[2]
        return *shape[::-1], *((1, 1) if layer in conv1x1 else (1,) if layer in conv1d else ())
    return shape


def to_params(
    state_dict: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    conv1x1: frozenset[str],
    conv1d: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Our parameter tree from their state dict.

    Args:
      state_dict: their arrays by name.
      names: our layer to their layer.
      wanted: path and shape of each of our parameters.
      conv1x1: last names of our dense layers that are 1x1 convolutions there.
      conv1d: and of those that are convolutions over one axis.

    Raises:
      ValueError: lists every array that is missing, left over, or of another shape.
    """
    expected = {their_name(path, names): their_shape(path, shape, conv1x1, conv1d) for path, shape in wanted.items()}
    _require_same(expected, {name: array.shape for name, array in state_dict.items()})
    flat = {}
    for path, shape in wanted.items():
        array = state_dict[their_name(path, names)]
        if not path.endswith("/embedding"):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        flat[path] = np.array(array, order="C").reshape(shape)
        files.let_go(array)  # so that weights of float32 are never in memory twice
    return nested(flat)


def to_state_dict(
    params: Mapping[str, Any],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    conv1x1: frozenset[str],
    conv1d: frozenset[str] = frozenset(),
) -> dict[str, np.ndarray]:
    """Their state dict from our parameter tree; the inverse of to_params, with the same arguments and errors."""
    flat = {path: np.asarray(leaf) for path, leaf in _flatten(params).items()}
    _require_same(wanted, {path: array.shape for path, array in flat.items()})
    state_dict = {}
    for path, array in flat.items():
        if not path.endswith("/embedding"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        shape = their_shape(path, wanted[path], conv1x1, conv1d)
        state_dict[their_name(path, names)] = np.ascontiguousarray(array).reshape(shape)
    return state_dict


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split_rows(state_dict: Mapping[str, np.ndarray], layer: str, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The state dict with every dense layer of that last name cut into equal parts of its outputs.

    "attn.qkv.weight" becomes "attn.qkv[q].weight" and so on, one for each of the parts.
    """
    result = {}
    for name, array in state_dict.items():
        owner, _, leaf = name.rpartition(".")
        if owner.split(".")[-1] == layer:
            # A number of rows that does not divide becomes a wrong shape, which to_params reports.
            pieces = np.array_split(array, len(parts))
            result |= {f"{owner}[{part}].{leaf}": piece for part, piece in zip(parts, pieces, strict=True)}
        else:
            result[name] = array
    return result


def join_rows(state_dict: Mapping[str, np.ndarray], layer: str, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The inverse of split_rows."""
    result = {}
    for name, array in state_dict.items():
        if f".{layer}[" not in name:
            result[name] = array
        elif f"[{parts[0]}]" in name:
            pieces = [state_dict[name.replace(f"[{parts[0]}]", f"[{part}]")] for part in parts]
            result[name.replace(f"[{parts[0]}]", "")] = np.concatenate(pieces)
    return result


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")  # pyright: ignore[reportReturnType]


def _require_same(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"left over {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError("weights do not fit the model: " + "; ".join(problems))
