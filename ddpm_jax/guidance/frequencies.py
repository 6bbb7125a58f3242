"""Frequency-decoupled guidance (FDG)."""

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.geometry import along
from ddpm_jax.guidance.method import Method, Numbers


def _blurred(images: jax.Array) -> jax.Array:
    """Convolved with (1, 4, 6, 4, 1) / 16 along height and width, borders reflected."""
    kernel = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    for axis in (1, 2):
        padding = [(2, 2) if k == axis else (0, 0) for k in range(images.ndim)]
        padded, size = jnp.pad(images, padding, mode="reflect"), images.shape[axis]
        shifted = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(5))
        images = sum((w * part for w, part in zip(kernel, shifted, strict=True)), jnp.zeros_like(images))
    return images


def low(images: jax.Array) -> jax.Array:
    """Half the height and width: blurred, then the mean of four pixels."""
    b, h, w, c = images.shape
    if h % 2 or w % 2 or min(h, w) < 6:
        raise ValueError(f"frequencies of images need an even height and width of at least 6, got {h} x {w}")
    return _blurred(images).reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def up(images: jax.Array) -> jax.Array:
    """Twice the height and width: bilinear, then blurred."""
    b, h, w, c = images.shape
    return _blurred(jax.image.resize(images, (b, 2 * h, 2 * w, c), "linear"))


def _combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    c, u = answers
    of = lambda name: numbers[name].astype(c.dtype)

    def guided(c: jax.Array, u: jax.Array, scale: jax.Array, parallel: jax.Array) -> jax.Array:
        d = c - u
        return u + scale * (d + (parallel - 1) * along(d, c))

    c_low, u_low = low(c), low(u)
    coarse = guided(c_low, u_low, of("low"), of("parallel_low"))
    return up(coarse) + guided(c - up(c_low), u - up(u_low), of("scale"), of("parallel"))


FREQUENCY_DECOUPLED = Method(
    _combine, {"low": None, "parallel": 1.0, "parallel_low": 1.0}, given_at=None, nothing_at=None
)
"""u + scale (c - u) of the fine details and u + low (c - u) of the rest: the two levels of a Laplacian pyramid.

`parallel`, `parallel_low`: what of the difference is parallel to c, of each level, is multiplied by this.

Source: Sadat et al. 2025 (arXiv:2506.19713), algorithm 2; the pyramid is kornia's, a blur by (1, 4, 6, 4, 1) / 16.
"""
