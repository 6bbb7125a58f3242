"""What a data set is here: numbered uint8 images of one shape, read by index.

Every reader (`folder`, `prepared`, arrays in `source`) turns a place into a `Source`. Images are [H, W, C] with
C = 1 for grey and 3 for RGB, values 0..255; scaling to [-1, 1] belongs to training, not to reading.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.host import lfs

MEMORY_BOUND = 1 << 30
"""Sets of at most this many bytes once decoded (1 GiB) are kept in memory; larger ones are decoded per batch."""

CHUNK = 1024

MOST_CHANNELS = 4

Images = NDArray[np.uint8]
Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Images x_i, i in [0, num_examples), all of one shape.

    Attributes:
      name: what to call the data set in messages.
      num_examples: number of images, at least 1.
      image_shape: (H, W, C) of every image.
      read: int64 [n] -> uint8 [n, H, W, C], a new array at each call. Called from several threads by `prefetch`.
    """

    name: str
    num_examples: int
    image_shape: tuple[int, int, int]
    read: Callable[[NDArray[np.int64]], Images]

    def __len__(self) -> int:
        return self.num_examples

    def images(self, indices: Sequence[int] | NDArray[np.integer]) -> Images:
        """The images x_i for i in `indices`, uint8 [n, H, W, C]; the caller may write into them."""
        indices = np.asarray(indices, np.int64)
        outside = indices[(indices < 0) | (indices >= self.num_examples)]
        if outside.size:
            raise IndexError(f"image {outside[0]} asked of {self.name}, which has images 0 to {self.num_examples - 1}")
        return self.read(indices)


def in_memory(source: Source, progress: Progress | None = None) -> Source:
    """The same images, decoded once into one array if that takes at most MEMORY_BOUND bytes.

    Args:
      source: where the images come from.
      progress: called as progress(images decoded so far, images in all) after every chunk.
    """
    if len(source) * int(np.prod(source.image_shape)) > MEMORY_BOUND:
        return source
    array = np.empty((len(source), *source.image_shape), np.uint8)
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        array[start:stop] = source.images(np.arange(start, stop))
        if progress is not None:
            progress(stop, len(source))
    return from_array(source.name, array)


def from_array(name: str, array: Images) -> Source:
    """The rows of one uint8 array [N, H, W, C], in memory or mapped from a file."""
    height, width, channels = array.shape[1:]
    # np.asarray: indexing a memory map would hand out another np.memmap.
    return Source(name, len(array), (height, width, channels), lambda indices: np.asarray(array[indices]))


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
