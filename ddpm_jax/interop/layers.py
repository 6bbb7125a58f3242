"""Translate a PyTorch state dict into a Flax parameter tree, given the names of the layers.

A name map takes our layer, "down_0_res_1/conv_1", to theirs, "down_blocks.0.resnets.1.conv1". What is left is the
same everywhere: the names and layouts of a layer's arrays.

    ours                      theirs
    kernel [H, W, I, O]       weight [O, I, H, W]     convolution
    kernel [I, O]             weight [O, I]           dense
    kernel [I, O]             weight [O, I, 1, 1]     dense written as a 1x1 convolution
    scale [C]                 weight [C]              group norm
    bias                      bias
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ..models.unet import UNet


def shapes(model: UNet, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of model(x_t, t) for images [H, W, C], without allocating any."""
    x_t, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x_t, t)["params"]
    return {path: leaf.shape for path, leaf in _flatten(params).items()}


def unet_names(
    model: UNet, blocks: Mapping[str, str], res: Mapping[str, str], attention: Mapping[str, str]
) -> dict[str, str]:
    """Our layer to their layer for each layer a UNet of this depth can have, from the three tables.

    Args:
      blocks: patterns in level, from_deepest (levels counted from the coarsest) and i (res block of the level).
      res: the layers inside a res block.
      attention: the layers inside an attention block.
    """
    names = {}
    depth = len(model.channel_multipliers)
    for level, i in itertools.product(range(depth), range(model.num_res_blocks + 1)):
        for ours, theirs in blocks.items():
            inside = res if "_res_" in ours else attention if "attention" in ours else {}
            place = {"level": level, "from_deepest": depth - 1 - level, "i": i}
            ours, theirs = ours.format(**place), theirs.format(**place)
            names |= {f"{ours}/{ours_in}": f"{theirs}.{theirs_in}" for ours_in, theirs_in in inside.items()}
            names |= {} if inside else {ours: theirs}
    return names


def their_name(path: str, names: Mapping[str, str]) -> str:
    """The state dict's name of our parameter: names says the layer, the leaf says the rest."""
    layer, leaf = path.rsplit("/", 1)
    return names[layer] + (".bias" if leaf == "bias" else ".weight")


def their_shape(path: str, shape: tuple[int, ...], conv1x1: frozenset[str]) -> tuple[int, ...]:
    """The state dict's shape of our parameter; conv1x1 holds the dense layers which are 1x1 convolutions there."""
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    if len(shape) == 2:
        return (*shape[::-1], 1, 1) if path.split("/")[-2] in conv1x1 else shape[::-1]
    return shape


def to_params(
    state_dict: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    conv1x1: frozenset[str],
) -> dict[str, Any]:
    """Our parameter tree from their state dict.

    Args:
      state_dict: their arrays by name.
      names: our layer to their layer.
      wanted: path and shape of each of our parameters.
      conv1x1: last names of our dense layers that are 1x1 convolutions there.

    Raises:
      ValueError: lists every array that is missing, left over, or of another shape.
    """
    expected = {their_name(path, names): their_shape(path, shape, conv1x1) for path, shape in wanted.items()}
    _require_same(expected, {name: array.shape for name, array in state_dict.items()})
    flat = {}
    for path, shape in wanted.items():
        array = state_dict[their_name(path, names)]
        flat[path] = np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T).reshape(shape)
    return traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(
    params: Mapping[str, Any],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    conv1x1: frozenset[str],
) -> dict[str, np.ndarray]:
    """Their state dict from our parameter tree; the inverse of to_params, with the same arguments and errors."""
    flat = {path: np.asarray(leaf) for path, leaf in _flatten(params).items()}
    _require_same(wanted, {path: array.shape for path, array in flat.items()})
    state_dict = {}
    for path, array in flat.items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        shape = their_shape(path, wanted[path], conv1x1)
        state_dict[their_name(path, names)] = np.ascontiguousarray(array).reshape(shape)
    return state_dict


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
