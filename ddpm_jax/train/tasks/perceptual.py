"""The perceptual distance that a configuration names, with the weights that it is computed by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax

from ddpm_jax.config.first_stage import ReconstructionConfig
from ddpm_jax.evaluate.features import colours
from ddpm_jax.interop import files
from ddpm_jax.interop.features import efficientnet, lpips
from ddpm_jax.models.lpips import LPIPS
from ddpm_jax.models.perceptual import efficientnet_distance
from ddpm_jax.trained import checksum


class Distance(NamedTuple):
    """of(x, y) -> [B], of images [B, H, W, C] in [-1, 1]; the checksum of the weights it is computed by."""

    of: Callable[[jax.Array, jax.Array], jax.Array]
    weights: str


def make(config: ReconstructionConfig) -> Distance | None:
    """None for none. Grey images are seen as three equal colours.

    Raises:
      ImportError: a package with weights is not installed.
      FileNotFoundError, ValueError: no such file; one with other weights.
    """
    if config.perceptual is None:
        return None
    if config.perceptual == "efficientnet":
        params: Any = efficientnet.efficientnet_to_params(files.read_state_dict(efficientnet.find()))
        return Distance(lambda x, y: efficientnet_distance(params, colours(x), colours(y)), checksum(params))
    assert config.weights is not None
    model, params = LPIPS(config.perceptual), lpips.read_lpips(config.perceptual, Path(config.weights))
    of = lambda x, y: cast(jax.Array, model.apply({"params": params}, colours(x), colours(y)))
    return Distance(of, checksum(params))
