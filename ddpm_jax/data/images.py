"""Images as arrays uint8 [H, W, C]: which arrays can be some, and how they get one size."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.host import lfs

MOST_CHANNELS = 4

Images = NDArray[np.uint8]
Say = Callable[[str], None]


def collect(
    images: Iterable[Images],
    indices: Iterable[int],
    image_shape: tuple[int, ...],
    describe: Callable[[int], object],
) -> Images:
    """One array [n, H, W, C] of the given images; an image of another shape raises with its name.

    Args:
      images: n arrays [H, W, C].
      indices: their n indices.
      image_shape: the (H, W, C) they must have.
      describe: what to call image i in the error.
    """
    indices = list(indices)
    array = np.empty((len(indices), *image_shape), np.uint8)
    for row, index, image in zip(array, indices, images, strict=True):
        if image.shape != image_shape:
            raise ValueError(
                f"{describe(index)} has shape {image.shape}, but {describe(0)} has {tuple(image_shape)}; "
                "pass image_size (--data.image-size) to crop and resize all to one size"
            )
        row[...] = image
    return array


def check_order(place: str, shape: tuple[int, ...]) -> None:
    """Whether arrays of shape [..., H, W, C] can be images, whose C is 1 to 4.

    Raises:
      ValueError: they cannot; names the order that is expected, and that which it looks like.
    """
    names = ["N", "H", "W", "C"][-len(shape) :]
    first, height, width, channels = (0, *shape)[-4:]
    square = height in (1, 3) and height != width == channels > 1  # [3, 4, 4] is hardly 3 x 4 with 4 channels
    if channels <= MOST_CHANNELS and not square:
        return
    looks = ""
    if height <= MOST_CHANNELS:
        looks = f"looks like [{', '.join([*names[:-3], 'C', 'H', 'W'])}], channels first: np.moveaxis(images, -3, -1)"
    elif first and width <= MOST_CHANNELS:
        looks = "looks like [H, W, C, N], images last: np.moveaxis(images, -1, 0)"
    raise ValueError(
        f"{place} has shape {tuple(shape)}; expected is [{', '.join(names)}], the last axis being 1 to "
        f"{MOST_CHANNELS} channels, but it {looks or f'would be {channels} channels'}"
    )


def fit(image: Images, image_size: int | None) -> Images:
    """The central square of an image [H, W, C], resized to [image_size, image_size, C].

    As in OpenAI's guided-diffusion: halve by averaging 2x2 boxes while the shorter side is at least twice
    image_size, make the shorter side image_size by bicubic interpolation, then cut the longer side evenly. An image
    that already has the size is returned as it is, and so is any image when image_size is None.
    """
    if image_size is None:
        return image
    from PIL import Image

    def resize(plane: Images) -> Images:
        picture = Image.fromarray(np.ascontiguousarray(plane))
        while min(picture.size) >= 2 * image_size:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = image_size / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))

    # Plane by plane, so that any number of channels works and alpha is not mixed into the colours.
    resized = np.stack([resize(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)
    top = (resized.shape[0] - image_size) // 2
    left = (resized.shape[1] - image_size) // 2
    return resized[top : top + image_size, left : left + image_size]


def pointer(file: Path) -> str:
    """What to say of a file that git-lfs has not fetched; empty of others."""
    try:
        found = lfs.is_pointer(file)
    except OSError:
        return ""  # whose reason is what is said
    return "it is a pointer of git-lfs: `git lfs pull` fetches the file itself" if found else ""


def with_channels(image: Images) -> Images:
    """The image as [H, W, C]: a grey [H, W] one gets C = 1."""
    return image[..., None] if image.ndim == 2 else image
