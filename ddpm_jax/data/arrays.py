"""The images of a .npy or .npz file as a `Source`."""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import labels
from ddpm_jax.data.images import Images, Say, check_order, collect, fit, pointer
from ddpm_jax.data.records import (
    CAPTION,
    IMAGE,
    LABEL,
    Indices,
    Record,
    Source,
    from_arrays,
    of_images,
    texts,
    with_arrays,
)
from ddpm_jax.host import archives
from ddpm_jax.names import unknown

# What np.load ends in on bytes that are none of its: it checks some of what it reads, not all of it.
UNREADABLE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError,
              TypeError, ValueError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)  # fmt: skip
ADM, ADM_LABELS = "arr_0", "arr_1"
"""What guided-diffusion's sample scripts and its evaluator call images and labels, which NumPy calls the first and the
second array without a name."""


class Held(NamedTuple):
    """What the header of an array says."""

    dtype: np.dtype
    shape: tuple[int, ...]
    checksum: int = 0
    """Of the whole array, as its archive has it."""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def open_array(path: Path, image_size: int | None, key: str | None, say: Say, *, only_images: bool = False) -> Source:
    """The images of a .npy or .npz file, uint8 [N, H, W, C] or [N, H, W], and the labels and captions beside them.

    Of a .npz file: the array `key`, or "images", or ADM's "arr_0", or the only one that can be images; what
    the others are called says `_beside`.

    Args:
      path: of the file.
      image_size: crop and resize as `images.fit` does.
      key: of the array.
      say: is told which other arrays could have been meant, and which labels and captions are none.
      only_images: leave the others out.

    Raises:
      ValueError: a file that NumPy cannot read; no array of images in it, or several and no key; an array of another
        type or order of axes; labels or captions of another number than images; negative labels.
    """
    found, place = _arrays(path, key, say, only_images)
    array = found.pop(IMAGE)
    _check(place, Held(array.dtype, array.shape))
    images: Images = array[..., None] if array.ndim == 3 else array
    others, classes = _others(path, found)
    if image_size is None or images.shape[1:3] == (image_size, image_size):
        return from_arrays(str(path), {IMAGE: images, **others}, classes)
    shape = (image_size, image_size, images.shape[-1])

    def fitted(indices: Indices) -> Images:
        each = (fit(images[index], image_size) for index in indices)
        return collect(each, indices, shape, lambda i: f"image {i} of {path}")

    return with_arrays(of_images(str(path), len(images), shape, fitted), others, classes)


def _others(path: Path, found: Record) -> tuple[Record, tuple[str, ...] | None]:
    """Labels and captions as a record has them, and the names of the classes."""
    others, classes = {}, None
    if (label := found.get(LABEL)) is not None:
        values = label.reshape(len(label)).tolist()
        if label.dtype.kind in "US":
            others[LABEL], classes = labels.of_names(_strings(path, values))
        else:
            others[LABEL], classes = labels.of_numbers(values, lambda i: f"image {i} of {path} has")
    if (caption := found.get(CAPTION)) is not None:
        others[CAPTION] = texts(_strings(path, caption.tolist()))
    return others, classes


def _strings(path: Path, values: list[str | bytes]) -> list[str]:
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the texts of {path}: {error}; {labels.HINT}") from error


def _check(place: str, held: Held) -> None:
    """Whether an array can be images.

    Raises:
      ValueError: it cannot; says why not.
    """
    shape = held.shape
    if held.dtype != np.uint8:
        raise ValueError(f"{place} holds {held.dtype}; allowed is uint8, values 0 to 255")
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(
            f"{place} holds an array of shape {shape}; allowed are [N, H, W, C] and [N, H, W], none of them 0"
        )
    if len(shape) == 4:
        check_order(place, shape)
    elif shape[-1] in (3, 4) and shape[-2] > 4:
        raise ValueError(f"{place} has shape {shape}, one picture [H, W, C]; expected is [N, H, W, C] or [N, H, W]")


def _can_be_images(held: Held) -> bool:
    try:
        _check("", held)
    except ValueError:
        return False
    return True


def _arrays(path: Path, key: str | None, say: Say, only_images: bool) -> tuple[Record, str]:
    """The arrays of a file by the names of a record, and what to call that of images.

    A .npy file is mapped, so that one larger than memory can be read.
    """
    try:
        content = np.load(path, mmap_mode="r")
        held = {} if isinstance(content, np.ndarray) else _headers(path)
    except UNREADABLE as error:
        raise ValueError(f"cannot read {path} as a NumPy file: {_reason(path, error)}") from error
    if isinstance(content, np.ndarray):
        if key is not None:
            raise ValueError(f"{path} holds one array without a name, got --data.key {key!r}")
        return {IMAGE: content}, str(path)
    with content:
        name = _chosen(path, held, key, say)
        place = str(path) if len(held) == 1 else f"{name!r} of {path}"
        try:
            _check(place, held[name])  # before it is read
        except ValueError as error:
            others = [other for other, what in held.items() if _can_be_images(what)]
            hint = f"; --data.key NAME takes another, such as {', '.join(others)}" if others else ""
            raise ValueError(f"{error}{hint}") from None
        chosen = {IMAGE: name, **({} if only_images else _beside(path, held, name, say))}
        try:
            archives.check(path, [f"{each}.npy" for each in chosen.values()])
            return {feature: np.asarray(content[each]) for feature, each in chosen.items()}, place
        except UNREADABLE as error:
            raise ValueError(f"cannot read {path} as a NumPy file: {', '.join(chosen.values())}: {error}") from error


def _beside(path: Path, held: dict[str, Held], name: str, say: Say) -> dict[str, str]:
    """Which arrays are the labels and the captions of the images `name`.

    Of "images" these are "labels" and "captions", of "train_images" "train_labels" and "train_captions"; of Keras's
    "x_train" the labels are "y_train", of ADM's "arr_0" and its like "arr_1"; of another name, "labels" and "captions".

    Raises:
      ValueError: as many as there are not images.
    """
    names = {LABEL: f"y{name[1:]}"} if name.startswith("x_") else {LABEL: _called(name, LABEL)}
    adm = names[LABEL] not in held and held.get(ADM) == held[name]
    names = {LABEL: ADM_LABELS} if adm else names
    names[CAPTION] = _called(name, CAPTION)
    found = {}
    for feature, other in names.items():
        if other not in held:
            continue
        kinds, allowed = ("iuUS", "whole numbers or names") if feature == LABEL else ("US", "strings")
        shape = held[other].shape
        flat = len(shape) == 1 or (feature == LABEL and shape[1:] == (1,))
        as_many = shape[:1] == held[name].shape[:1]
        if other == ADM_LABELS and not (flat and as_many and held[other].dtype.kind in kinds):
            continue  # two without a name need not be ADM's
        if not flat or held[other].dtype.kind not in kinds:
            say(f"{path}: {other!r} ({held[other]}) are no {feature}s, which are {allowed} [N]")
        elif not as_many:
            raise ValueError(
                f"{path} holds {held[name].shape[0]} images in {name!r}, but {shape[0]} {feature}s in {other!r}; there "
                f"must be as many of each; {labels.HINT}"
            )
        else:
            found[feature] = other
    return found


def _called(name: str, feature: str) -> str:
    return name.replace(IMAGE, feature) if IMAGE in name else f"{feature}s"


def _reason(path: Path, error: BaseException) -> str:
    """Why np.load failed; of a file that is none of its it speaks of pickles."""
    if isinstance(error, OSError):
        return str(error)
    if said := pointer(path):
        return said
    with open(path, "rb") as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
    return str(error) if start.startswith((np.lib.format.MAGIC_PREFIX, b"PK")) or not start else "it is none"


def _headers(path: Path) -> dict[str, Held]:
    """The arrays of a .npz file by name, without their numbers; what is no plain array is left out."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    header = archives.npy_header(file)
                if header is not None:
                    checksum = archive.getinfo(name).CRC
                    found[name.removesuffix(".npy")] = Held(header.dtype, header.shape, checksum)
    return found


def _chosen(path: Path, held: dict[str, Held], key: str | None, say: Say) -> str:
    """Which array of a .npz file is its images.

    Raises:
      ValueError: no array `key`; or without it, none that can be images, or several.
    """
    if key is not None:
        if key not in held:
            raise unknown(f"--data.key of {path}", key, held)
        return key
    candidates = [name for name, what in held.items() if _can_be_images(what)]
    if "images" in held:
        chosen = "images"
    elif ADM in candidates and ADM_LABELS not in candidates:  # two without a name need not be ADM's
        chosen = ADM
    elif len(candidates) == 1:
        chosen = candidates[0]
    elif candidates:
        raise ValueError(
            f"cannot read {path} as a NumPy file: it holds {', '.join(candidates)}; one is needed, or one called "
            "images, or --data.key NAME"
        )
    else:
        chosen = _least_wrong(path, held)
    if chosen in candidates and (others := _passed_over(held, chosen, candidates)):
        say(f"{path}: the images are {chosen!r}, not {', '.join(others)}; --data.key NAME would take another")
    return chosen


def _passed_over(held: dict[str, Held], chosen: str, candidates: list[str]) -> list[str]:
    """What else somebody could take for the images: arrays that can be, or as many of another type or order."""
    length = held[chosen].shape[0]
    similar = lambda what: len(what.shape) in (3, 4) and what.shape[0] == length
    return [
        f"{name} ({what})"
        for name, what in held.items()
        # pictures.save_npz writes the same twice.
        if what != held[chosen] and (name in candidates or similar(what))
    ]


def _least_wrong(path: Path, held: dict[str, Held]) -> str:
    """Of arrays that cannot be images, the one that is meant, for its check to say why not."""
    shaped = [name for name, what in held.items() if len(what.shape) in (3, 4)] or list(held)
    if len(shaped) == 1:
        return shaped[0]
    contents = ", ".join(f"{name} ({what})" for name, what in held.items()) or "no array"
    raise ValueError(f"{path} holds {contents}; images are uint8 [N, H, W, C] or [N, H, W]")
