"""The distance of two images in the features of EfficientNet-Lite0, for what needs no file of LPIPS.

    d(a, b) = sum over l of the mean over h, w of |f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)||^2

f_l is what the last block of each width gives, |.| is over channels.

Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1 with all w_l 1, in another network than theirs.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp

from ddpm_jax.models.efficientnet import STAGES, EfficientNetLite0, normalized
from ddpm_jax.models.lpips import unit


def efficientnet_distance(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    """d(a, b) [B].

    Args:
      params: of EfficientNetLite0.
      a, b: [B, H, W, 3] images in [-1, 1], seen at their own size.
    """
    pairs = zip(taps(params, a), taps(params, b), strict=True)
    return sum((jnp.square(unit(of_a) - unit(of_b)).sum(-1).mean((1, 2)) for of_a, of_b in pairs), jnp.zeros(len(a)))


def taps(params: Any, x: jax.Array) -> list[jax.Array]:
    """f_l [B, h, w, C] of images in [-1, 1], the widest first."""
    lasts, count = [], 0
    for stage in STAGES:
        count += stage.repeats
        lasts.append(f"block_{count - 1}")
    _, found = EfficientNetLite0().apply(
        {"params": params}, normalized(127.5 * (x + 1)), capture_intermediates=lambda module, _: module.name in lasts
    )
    return [cast(jax.Array, found["intermediates"][name]["__call__"][0]) for name in lasts]
