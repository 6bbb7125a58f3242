"""A folder of pictures as a `Source`."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm_jax.data.images import Images, Source, collect, fit, with_channels

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
GREY_MODES = ("1", "L")

T = TypeVar("T")


def open_folder(folder: Path, image_size: int | None) -> Source:
    """The pictures below `folder`, at any depth, in the order of their relative paths.

    Hidden files (".x") are left out; of an animation the first frame counts; the EXIF orientation is applied. All
    become RGB, unless every one is grey ("L" or "1"); transparency is dropped.

    Args:
      folder: an existing folder.
      image_size: crop and resize as `images.fit` does; None wants all pictures to have one size already.

    Raises:
      ValueError: no picture, one that cannot be read, one with 16-bit channels, or (without image_size) several
        sizes; the message names the first such file.
    """
    files = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.name[0] != "."),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise ValueError(f"no image below the folder {folder}; accepted endings are {', '.join(ENDINGS)}")
    headers = _parallel(_header, files)
    mode = "L" if all(mode in GREY_MODES for mode, _ in headers) else "RGB"
    if image_size is None:
        expected = headers[0][1]
        for file, (_, size) in zip(files, headers, strict=True):
            if size != expected:
                raise ValueError(
                    f"{file} is {size[0]}x{size[1]} pixels, but {files[0]} is {expected[0]}x{expected[1]}; "
                    "pass image_size to crop and resize all to one size"
                )

    def decode(index: int) -> Images:
        return fit(_pixels(files[index], mode), image_size)

    height, width, channels = decode(0).shape
    shape = (height, width, channels)
    return Source(
        name=str(folder),
        num_examples=len(files),
        image_shape=shape,
        read=lambda indices: collect(_parallel(decode, indices), indices, shape, lambda i: files[i]),
    )


def _parallel(function: Callable[..., T], values: Iterable) -> list[T]:
    # Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))


def _header(file: Path) -> tuple[str, tuple[int, int]]:
    """(mode, (width, height)) of a picture, from its header alone."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            mode, size = picture.mode, picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}") from error
    if mode.startswith(("I", "F")):
        raise ValueError(f"{file} has pixels of mode {mode!r}; allowed are pictures with 8 bits a channel")
    return mode, size


def _pixels(file: Path, mode: str) -> Images:
    """uint8 [H, W, C] of a picture, upright, C = 1 for mode "L" and 3 for "RGB"."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            return with_channels(np.array(ImageOps.exif_transpose(picture).convert(mode)))
    # Pillow reports a broken PNG as SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}") from error
