"""What metadata.jsonl or metadata.csv files say of the pictures of a folder: texts and labels.

The convention is that of Hugging Face's ImageFolder: any folder may hold such a file; a line has `file_name`, relative
to the file's own folder, and `text` or `label` or both. All files of a set are of one kind.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.data import labels
from ddpm_jax.data.images import pointer

NAMES = ("metadata.jsonl", "metadata.csv")
FILE_NAME, LABEL = "file_name", "label"
TEXTS = ("text", "caption")
"""Either may be the column of texts; the first is the convention."""


class Line(NamedTuple):
    """What a metadata file says of one picture, and where."""

    place: str
    values: Mapping[str, Any]


def read(metadata: Sequence[Path], files: Sequence[Path]) -> tuple[list[str] | None, labels.Labels | None]:
    """The texts and the labels of pictures, in their order; None for what the lines do not have.

    A label is a name or a whole number, the same of all; in a .csv file all of them are numbers, or they are names.

    Args:
      metadata: the metadata files.
      files: all pictures.

    Raises:
      ValueError: a file that cannot be read, or files of both kinds; a line that names no picture, or one that another
        line names; a picture without a line; neither texts nor labels, some without, or labels of several kinds.
    """
    try:
        lines = _of_pictures(metadata, files)
        text = _column(lines, TEXTS)
        label: list[Any] | None = _column(lines, (LABEL,))
        if text is None and label is None:
            columns = ", ".join(sorted({name for line in lines for name in line.values}))
            raise ValueError(f"{metadata[0]} has neither text nor label; its columns are {columns}")
        _check(lines, text or [], "text", (str,), "a string")
        if label is not None and metadata[0].suffix == ".csv" and all(each.isdecimal() for each in label):
            label = [int(each) for each in label]
        _check(lines, label or [], LABEL, (int, str), "whole numbers of all or names of all")
    except ValueError as error:
        raise ValueError(f"{error}; {labels.HINT}") from error
    if label is None or isinstance(label[0], str):
        return text, None if label is None else labels.of_names(label)
    return text, labels.of_numbers(label, lambda i: f"{lines[i].place} has the")


def _of_pictures(metadata: Sequence[Path], files: Sequence[Path]) -> list[Line]:
    """The line of each picture."""
    if len({path.suffix for path in metadata}) > 1:
        raise ValueError(f"{metadata[0]} and {metadata[-1]}: allowed are files of one of these kinds in a folder")
    pictures = {os.path.realpath(file) for file in files}
    found: dict[str, Line] = {}
    for path in metadata:
        for line in _lines(path):
            name = line.values.get(FILE_NAME)
            if not isinstance(name, str) or not name:
                raise ValueError(f"{line.place} has no file_name; a line has file_name and text or label")
            picture = path.parent / name
            real = os.path.realpath(picture)
            if real not in pictures:
                why = "which is none of the pictures read" if os.path.exists(picture) else "which is not there"
                raise ValueError(f"{line.place} names {picture}, {why}")
            if real in found:
                raise ValueError(f"{line.place} names {picture}, as {found[real].place} does")
            found[real] = line
    for file in files:
        if os.path.realpath(file) not in found:
            raise ValueError(f"{file} has no line in {', '.join(map(str, metadata[:3]))}; every picture needs one")
    return [found[os.path.realpath(file)] for file in files]


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a file, with the values that are there: no nulls and, in a .csv file, no empty cells."""
    if said := pointer(path):
        raise ValueError(f"cannot read {path}: {said}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, values in _csv(file) if path.suffix == ".csv" else _jsonl(file):
                if not isinstance(values, dict) or None in values:
                    raise ValueError(f"line {number} does not have the columns of the file")
                there = {name: value for name, value in values.items() if value is not None}
                yield Line(f"line {number} of {path}", there)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _csv(file: Any) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(file)
    for values in reader:
        yield reader.line_num, {name: None if value == "" else value for name, value in values.items()}


def _jsonl(file: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line.rstrip())
            except json.JSONDecodeError as error:  # which counts from the line's own beginning
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error


def _column(lines: Sequence[Line], names: Sequence[str]) -> list[Any] | None:
    """The values of the first of these columns that is there.

    Raises:
      ValueError: some lines have none.
    """
    name = next((name for name in names if any(name in line.values for line in lines)), None)
    if name is None:
        return None
    for line in lines:
        if name not in line.values:
            raise ValueError(f"{line.place} has no {name}, which other lines have")
    return [line.values[name] for line in lines]


def _check(lines: Sequence[Line], values: list[Any], name: str, kinds: tuple[type, ...], allowed: str) -> None:
    """Whether all values are of one of these kinds, and the same one."""
    for line, value in zip(lines, values, strict=bool(values)):
        if type(value) not in kinds or type(value) is not type(values[0]):
            raise ValueError(
                f"{line.place} has the {name} {value!r} and {lines[0].place} {values[0]!r}; allowed is {allowed}"
            )
