"""Weights of the Flax classes that diffusers (until 0.39) and transformers (until 4) had, under PyTorch's names.

A file is msgpack of nested mappings, one array each: mid_block/resnets_0/conv1/kernel. The classes are those of PyTorch
layer by layer: FlaxUNet2DConditionModel, FlaxAutoencoderKL and FlaxCLIPTextModel have the arrays of the classes without
"Flax", so what is here are their names and axes, and the maps of the other modules do the rest.
Facts about diffusers 0.4.2 to 0.35.2 and transformers 4.44.2 only: no code of them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

# Of diffusers, which never wrote it in parts.
NAME = "diffusion_flax_model.msgpack"
# Lists of layers: resnets_0 is resnets.0 of PyTorch. Other numbers are part of a name: linear_1.
LISTS = (
    *("attentions", "down_blocks", "downsamplers", "net", "resnets", "to_out", "transformer_blocks"),
    *("up_blocks", "upsamplers"),
)
NUMBERED = re.compile(rf"({'|'.join(LISTS)})_(\d+)")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# From [..., in, out] to [out, in, ...].
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
# First bytes: of a mapping of up to 15, 2^16 - 1 and 2^32 - 1 entries, and of a text, the first key.
MAPPINGS = {**dict.fromkeys(range(0x81, 0x90), 1), 0xDE: 3, 0xDF: 5}
TEXTS = (*range(0xA1, 0xC0), 0xD9)
# What msgpack and NumPy raise about bytes that are none of theirs.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def is_msgpack(start: bytes) -> bool:
    """Whether a file that starts so is msgpack of a mapping from names, as Flax writes it."""
    key = MAPPINGS.get(start[0]) if start else None
    return key is not None and start[key : key + 1] != b"" and start[key] in TEXTS


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of Flax by path, "mid_block/resnets_0/conv1/kernel"; half precision becomes float32.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, or more in it than arrays.
    """
    content = path.read_bytes()
    try:
        tree: Any = serialization.msgpack_restore(content)
        arrays = flatten(tree)
    except DAMAGED as error:
        said = str(error).strip().splitlines()
        raise ValueError(f"a damaged file of Flax: {': '.join([type(error).__name__, *said[:1]])}") from error
    for name, array in arrays.items():
        half = isinstance(array, np.ndarray) and array.dtype.name in ("float16", "bfloat16")
        if not half and not (isinstance(array, np.ndarray) and array.dtype.kind in "biuf"):
            raise ValueError(f"a file of Flax with more than arrays of numbers: {name[:80]} is {str(array)[:40]!r}")
        arrays[name] = array.astype(np.float32) if half else array
    return arrays


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, by path; one that is flat stays as it is."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))  # pyright: ignore[reportArgumentType]


def to_state_dict(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same arrays with the names and axes of PyTorch: resnets_0/conv1/kernel is resnets.0.conv1.weight.

    Args:
      weights: the parameters, nested or by path; alone under "params" where they are so.

    Raises:
      ValueError: an array that is no kernel, scale, embedding or bias; two of one name.
    """
    weights = flatten(weights)
    if all(path.startswith("params/") for path in weights):
        weights = {path.removeprefix("params/"): array for path, array in weights.items()}
    result: dict[str, np.ndarray] = {}
    for path, array in weights.items():
        *layers, leaf = path.split("/")
        if leaf not in LEAVES:
            raise ValueError(f"parameters of Flax are {', '.join(LEAVES)}, got {path!r}")
        name = ".".join([*(NUMBERED.sub(r"\1.\2", layer) for layer in layers), LEAVES[leaf]])
        if name in result:
            raise ValueError(f"parameters of Flax have {path!r} under another name too, which would be {name}")
        axes = AXES.get(np.ndim(array)) if leaf == "kernel" else None
        result[name] = np.asarray(array) if axes is None else np.asarray(array).transpose(axes)
    return result
