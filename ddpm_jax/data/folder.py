"""A folder of pictures as a `Source`."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm_jax.data import labels, metadata
from ddpm_jax.data.finding import USUAL, Finder
from ddpm_jax.data.images import Images, Say, collect, fit
from ddpm_jax.data.picture import GREY_MODES, MODES, Colour, Header, background, header, pixels, upright_size
from ddpm_jax.data.records import CAPTION, LABEL, Indices, Source, of_images, texts, with_arrays

T = TypeVar("T")


def open_folder(folder: Path, image_size: int | None, transparency: str | None, way: str | None, say: Say) -> Source:
    """The pictures below `folder`, at any depth, in the order of their relative paths.

    Every ending that the installed Pillow reads, as `finding.Finder` finds them; of several frames the first counts;
    the EXIF orientation is applied. All become RGB, unless every one is grey ("L" or "1"); transparent ones are laid on
    a colour. Labels and captions are those of metadata.jsonl or metadata.csv files, see `metadata.read`. Where there is
    no such file and every picture lies in a folder, these are the classes.

    Args:
      folder: an existing folder.
      image_size: crop and resize as `images.fit` does; None wants all pictures to have one size already.
      transparency: the colour behind transparent pictures, white by default; or "drop": their colours as stored.
      way: "folder" or "prefix": labels are the first folders below this one, or what is before the first underscore of
        a picture's name, beside the texts of metadata files; "none": only images are read.
      say: is told in one line each what was left out, converted, and laid on a colour.

    Raises:
      ValueError: no picture, one that cannot be read, one with more than 8 bits a channel, or (without image_size)
        several sizes; the message names the first such file. A picture without a label that others have, or a text.
    """
    behind = background(transparency)
    finder = Finder(folder)
    files, left_out = finder.sorted_files(), finder.said()
    if not files:
        raise ValueError(
            f"no image below the folder {folder}; accepted endings are {', '.join(USUAL)} and what else Pillow reads"
            + (f"; left out: {left_out}" if left_out else "")
        )
    headers = _parallel(header, files)
    if image_size is None:
        _check_sizes(files, headers)
    coloured = behind is not None and len(set(behind)) > 1 and any(header.transparent for header in headers)
    mode = "L" if all(header.mode in GREY_MODES for header in headers) and not coloured else "RGB"
    if left_out:
        say(f"{folder}: {len(files)} pictures; left out: {left_out}")
    for line in _conversions(headers, mode, behind, transparency):
        say(f"{folder}: {line}")

    def decode(index: int) -> Images:
        return fit(pixels(files[index], mode, behind), image_size)

    shape = decode(0).shape

    def images(indices: Indices) -> Images:
        return collect(_parallel(decode, indices), indices, shape, lambda i: files[i])

    said, classes = _said(folder, files, finder.metadata, way)
    source = of_images(str(folder), len(files), shape, images)
    sizes = lambda: [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]
    return with_arrays(dataclasses.replace(source, files=sizes), said, classes)


def _said(
    folder: Path, files: list[Path], described_by: list[Path], way: str | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """The labels and captions of pictures as arrays, and the names of the labels."""
    if way == labels.NONE:
        return {}, None
    text, label = metadata.read(described_by, files) if described_by else (None, None)
    if label is not None and way is not None:
        raise ValueError(f"--data.labels {way}: the labels of {folder} are those of {described_by[0]}; leave it out")
    if way == labels.PREFIX:
        label = labels.of_prefixes(files)
    elif way == labels.FOLDER:
        label = labels.of_folders(folder, files)
    elif way is None and not described_by:
        label = labels.if_of_folders(folder, files)
    arrays = {} if label is None else {LABEL: label[0]}
    if text is not None:
        arrays[CAPTION] = texts(text)
    return arrays, None if label is None else label[1]


def _check_sizes(files: list[Path], headers: list[Header]) -> None:
    """Whether all pictures have one size when they are upright."""
    sizes = [header.size for header in headers]
    if len(set(sizes)) > 1 or sizes[0][0] != sizes[0][1]:
        sizes = _parallel(upright_size, files)  # reads more than a header
    expected = sizes[0]
    for file, size in zip(files, sizes, strict=True):
        if size != expected:
            raise ValueError(
                f"{file} is {size[0]}x{size[1]} pixels, but {files[0]} is {expected[0]}x{expected[1]}; "
                "pass image_size (--data.image-size) to crop and resize all to one size"
            )


def _conversions(headers: list[Header], mode: str, behind: Colour | None, transparency: str | None) -> list[str]:
    """What is done to pictures that are not of the mode of all, opaque and of one frame."""
    lines, all_ = [], f"of {len(headers)} pictures"
    modes = Counter(header.mode for header in headers if header.mode not in (mode, f"{mode}A"))
    if modes:
        which = ", ".join(f"{n} of mode {name} ({MODES[name]})" for name, n in modes.most_common())
        lines.append(f"{all_} {which} become {mode}{' (grey)' if mode == 'L' else ''}")
    if transparent := sum(header.transparent for header in headers):
        done = "their alpha is dropped" if behind is None else f"they are laid on {transparency or 'white'}"
        lines.append(
            f"{all_} {transparent} may be transparent: {done}; --data.transparency is a colour, such as white or "
            "#rrggbb, or drop"
        )
    if several := sum(header.several_frames for header in headers):
        lines.append(f"{all_} {several} have several frames: the first of each is taken")
    return lines


def _parallel(function: Callable[..., T], values: Iterable) -> list[T]:
    # Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))
