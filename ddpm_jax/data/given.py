"""Pictures that somebody gives to be worked on, a file or a folder of them, as arrays of the shape of a network's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax.data.finding import Finder
from ddpm_jax.data.images import Images, Say, fit
from ddpm_jax.data.picture import GREY_MODES, background, header, pixels

MODES = {1: "L", 3: "RGB"}
Shape = tuple[int, int, int]


def files_of(place: Path) -> list[Path]:
    """The picture, or those below a folder in the order of their relative paths.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: a folder without pictures.
    """
    if place.is_dir():
        if not (files := Finder(place).sorted_files()):
            raise ValueError(f"no picture below the folder {place}")
        return files
    if not place.exists():
        raise FileNotFoundError(f"no picture or folder {place}")
    return [place]


def read(place: Path, shape: Shape, resize: bool, say: Say) -> Images:
    """uint8 [N, H, W, C] of a picture or a folder.

    Args:
      place: of the pictures.
      shape: (H, W, C) that they must have.
      resize: crop and resize as `images.fit` does.
      say: is told in one line how many lose or gain colours.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: no pictures; one of another size, without resize; a shape that pictures do not have.
    """
    if shape[-1] not in MODES:
        raise ValueError(f"the network's images have {shape[-1]} channels, and pictures have 1 or 3")
    mode, files = MODES[shape[-1]], files_of(place)
    changed = sum((header(file).mode in (*GREY_MODES, "LA")) != (mode == "L") for file in files)
    if changed:
        become = "colours become grey" if mode == "L" else "grey becomes three equal colours"
        say(f"{place}: of {changed} of {len(files)} pictures the {become}, which the network knows")
    found = _of_size(files, mode, shape[:2], resize)
    return np.stack(found)


def read_masks(place: Path, size: tuple[int, int], resize: bool, count: int) -> np.ndarray:
    """bool [count, H, W, 1]: what is white in a picture, or in each of `count` in a folder; at least half white counts.

    Args:
      place: of one mask for all pictures, or of as many masks.
      size: (H, W) of the pictures.
      resize: as in `read`.
      count: of the pictures.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: another number of masks; one of another size, without resize; nothing white in one.
    """
    files = files_of(place)
    if len(files) not in (1, count):
        raise ValueError(f"--mask must be one picture, or one for each of {count}, got {len(files)} in {place}")
    masks = np.stack(_of_size(files, "L", size, resize)) >= 128
    for file, mask in zip(files, masks, strict=True):
        if not mask.any():
            raise ValueError(f"nothing is white in --mask {file}, and white is what is painted anew")
    return np.broadcast_to(masks, (count, *masks.shape[1:]))


def read_smaller(place: Path, shape: Shape) -> Images:
    """uint8 [N, h, w, C] of a picture or a folder, all of one size, as H x W in proportion and no larger.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: no pictures; one of another size than the first, larger than H x W, or of other proportions.
    """
    height, width, channels = shape
    if channels not in MODES:
        raise ValueError(f"the network's images have {channels} channels, and pictures have 1 or 3")
    files = files_of(place)
    first = pixels(files[0], MODES[channels], background(None)).shape[:2]
    if first[0] > height or first[1] > width or first[0] * width != first[1] * height:
        raise ValueError(
            f"{files[0]} is {_size(first)} pixels: allowed is what the network can make {_size(shape[:2])} of, "
            "smaller and of the same proportions"
        )
    return np.stack(_all(files, MODES[channels], lambda file, image: _check(file, image, first, f"{files[0]} is")))


def _of_size(files: list[Path], mode: str, size: tuple[int, int], resize: bool) -> list[Images]:
    if resize and size[0] != size[1]:
        raise ValueError(f"--resize makes squares, and the network's images are {_size(size)} pixels")

    def sized(file: Path, image: Images) -> Images:
        if resize:
            return fit(image, size[0])
        return _check(file, image, size, "the network's images are", "; --resize crops and resizes it")

    return _all(files, mode, sized)


def _all(files: list[Path], mode: str, sized: Callable[[Path, Images], Images]) -> list[Images]:
    return [sized(file, pixels(file, mode, background(None))) for file in files]


def _check(file: Path, image: Images, size: tuple[int, ...], whose: str, hint: str = "") -> Images:
    if image.shape[:2] != tuple(size):
        raise ValueError(f"{file} is {_size(image.shape)} pixels, but {whose} {_size(size)}{hint}")
    return image


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
