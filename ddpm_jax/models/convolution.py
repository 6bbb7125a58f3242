"""3x3 convolutions, on a CPU with two thirds of the multiplications.

Pairs of output rows by Winograd's F(2, 3) along the height, Lavin and Gray 2015 (arXiv:1509.09308), section 4.1:
with input rows d_0 .. d_3 and kernel rows g_0 .. g_2, each product a convolution along the width,

    m_1 = (d_0 - d_2) g_0              y_0 = m_1 + m_2 + m_3
    m_2 = (d_1 + d_2) (g_0 + g_1 + g_2) / 2
    m_3 = (d_2 - d_1) (g_0 - g_1 + g_2) / 2
    m_4 = (d_1 - d_3) g_2              y_1 = m_2 - m_3 - m_4

Four row convolutions instead of six, and as exact: the largest error in float32 is that of the six. It pays because
XLA's convolutions reach no more of a CPU than these do; accelerators have their own and are given the plain one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

ROWS = ("NWC", "WIO", "NWC")
IMAGES = ("NHWC", "HWIO", "NHWC")

PRODUCT = "product"
"""What rematerialization may keep: results of convolutions and dense layers go by this name."""


def conv_general_dilated(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """lax.conv_general_dilated, for flax.linen.Conv of images: the same numbers, sooner where that is known how.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, O].
      strides, padding, options: as in lax.conv_general_dilated.
    """
    if tuple(strides) == (1, 1) and padding == "SAME" and _pays(x, kernel):
        y = _convolve(x, kernel)
    else:
        y = lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return checkpoint_name(y, PRODUCT)


def _pays(x: jax.Array, kernel: jax.Array) -> bool:
    # Fewer channels leave the products too small, fewer pixels the sums of kernel rows too dear. bfloat16 would lose
    # digits in the sums.
    wide, many = min(kernel.shape[2:]) >= 64, math.prod(x.shape[:3]) >= 512
    return wide and many and x.shape[1] % 2 == 0 and jnp.finfo(x.dtype).bits >= 32


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y = x * kernel, stride 1, zeros around: by the identity above."""
    batch, height, width, channels = x.shape
    middle = 0.5 * (kernel[0] + kernel[2])
    kernels = kernel[0], middle + 0.5 * kernel[1], middle - 0.5 * kernel[1], kernel[2]
    pairs = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))).reshape(batch, height // 2 + 1, 2, width, channels)
    d_0, d_1, d_2, d_3 = pairs[:, :-1, 0], pairs[:, :-1, 1], pairs[:, 1:, 0], pairs[:, 1:, 1]
    # Over one axis XLA's CPU convolution runs on all cores; as 1x3 over two axes it often does not.
    m_1, m_2, m_3, m_4 = (
        lax.conv_general_dilated(rows.reshape(-1, width, channels), part, (1,), "SAME", dimension_numbers=ROWS)
        for rows, part in zip((d_0 - d_2, d_1 + d_2, d_2 - d_1, d_1 - d_3), kernels, strict=True)
    )
    return jnp.stack([m_1 + m_2 + m_3, m_2 - m_3 - m_4], axis=1).reshape(batch, height, width, -1)


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y = x * kernel, stride 1, zeros around: XLA's own."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=IMAGES)


@jax.custom_jvp  # so that a gradient keeps x and the kernel, not the sums of rows
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=winograd, default=direct)


_convolve.defjvps(lambda dx, y, x, kernel: _convolve(dx, kernel), lambda dkernel, y, x, kernel: _convolve(x, dkernel))
