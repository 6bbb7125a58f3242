"""Between the pictures people look at, uint8 in [0, 255], and the images networks see, float32 in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np


def to_float(images: jax.Array | np.ndarray) -> jax.Array:
    """x / 127.5 - 1: uint8 [0, 255] to float32 [-1, 1].

    Source: Ho et al. 2020 (arXiv:2006.11239), section 3.3.

    Raises:
      ValueError: images that are not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images: jax.Array | np.ndarray) -> np.ndarray:
    """round((x + 1) * 127.5), clipped: the inverse of `to_float`. The reference truncates instead of rounding.

    NaN is black; who must not take it for a picture asks for it before.
    """
    levels = np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255)
    return np.nan_to_num(levels, copy=False).astype(np.uint8)


def not_finite(images: jax.Array | np.ndarray) -> np.ndarray:
    """The indices of those of images [N, H, W, C] that have NaN or infinity."""
    return np.flatnonzero(~np.isfinite(np.asarray(images)).all(axis=(1, 2, 3)))


AS_THEY_ARE = (1, 3, 4)
"""Channels that a picture can show: grey, colours, colours and their opacity."""


def viewable(images: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, C] as somebody can look at it: any other number of channels than 1, 3 and 4 becomes grey planes
    side by side, [..., H, C (W + 1) - 1, 1], with a white line between them."""
    channels = images.shape[-1]
    if channels in AS_THEY_ARE:
        return images
    line = np.full((*images.shape[:-2], 1, 1), 255, np.uint8)
    planes = [part for i in range(channels) for part in (line, images[..., i : i + 1])]
    return np.concatenate(planes[1:], axis=-2)


def shown_as(channels: int) -> str | None:
    """What is to be said of pictures of so many channels, None where they show what they are."""
    if channels in AS_THEY_ARE:
        return None
    return f"pictures show the {channels} channels of an image as grey planes side by side"


def grid(images: np.ndarray, *, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """uint8 [N, H, W, C] side by side: one uint8 picture [rows (H + gap) + gap, columns (W + gap) + gap, C].

    As square as it can be, unless the number of columns is given. They are made `viewable` before.
    """
    images = viewable(images)
    n, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    picture = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture
