"""Images of another size, by the bilinear rules that metrics are defined with: none of them smooths when it shrinks.

jax.image.resize does unless it is told not to, and has no rule without half pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np


def tensorflow_resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """TF-1's bilinear: y_i = x_j + (s - j)(x_{j+1} - x_j), s = i * old / new, j = floor(s), along height and width.

    No half pixels, no smoothing when it shrinks; past the last row is the last row. The arithmetic is TensorFlow's,
    operation by operation.

    Args:
      images: [B, H, W, C] float32.
      size: the new (H, W).
    """
    rows, columns = (_places(old, new, half=0.0) for old, new in zip(images.shape[1:3], size, strict=True))
    across = _between(images, *columns, axis=2)
    return _between(across, *rows, axis=1)


def half_pixel_resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """PyTorch's bilinear, align_corners=False: as `tensorflow_resize`, with s = max((i + 1/2) * old / new - 1/2, 0)."""
    rows, columns = (_places(old, new, half=0.5) for old, new in zip(images.shape[1:3], size, strict=True))
    return _between(_between(images, *columns, axis=2), *rows, axis=1)


def _places(old: int, new: int, *, half: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    step, shift = np.float32(old) / np.float32(new), np.float32(half)
    places = np.maximum((np.arange(new, dtype=np.float32) + shift) * step - shift, np.float32(0))
    lower = np.floor(places).astype(np.int32)
    return np.minimum(lower, old - 1), np.minimum(lower + 1, old - 1), places - lower.astype(np.float32)


def _between(images: jax.Array, lower: np.ndarray, upper: np.ndarray, part: np.ndarray, axis: int) -> jax.Array:
    shape = [1] * images.ndim
    shape[axis] = -1
    low, high = (jnp.take(images, places, axis=axis, unique_indices=False) for places in (lower, upper))
    return low + (high - low) * jnp.asarray(part.reshape(shape))
