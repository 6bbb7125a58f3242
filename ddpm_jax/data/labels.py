"""Class labels, int32 [N], by the conventions that people name their classes with.

Names become the numbers of their sorted order, so a set that is read again, on any machine, has the same numbers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER, PREFIX, NONE = "folder", "prefix", "none"
WAYS = (FOLDER, PREFIX, NONE)
"""What --data.labels may be; by default they are those that a set says it has."""
MOST_CLASSES = 2**16
HINT = "--data.labels none reads the images alone"

Labels = tuple[NDArray[np.int32], tuple[str, ...]]
"""The label of each example, and the names of the classes."""


def of_names(names: Sequence[str]) -> Labels:
    """The place of each name among all of them, sorted."""
    classes = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int32), classes


def of_numbers(numbers: Sequence[int], holder: Callable[[int], str]) -> Labels:
    """The numbers themselves, of the classes "0", "1", ... up to the largest; `holder` as of `checked`.

    Raises:
      ValueError: a number below 0, or so large that it counts no classes.
    """
    classes = tuple(map(str, range(min(max(0, *numbers) + 1, MOST_CLASSES))))
    return checked(numbers, classes, holder), classes


def checked(numbers: Sequence[int], classes: Sequence[str], holder: Callable[[int], str]) -> NDArray[np.int32]:
    """The numbers as int32 [n], all of them those of classes.

    Args:
      numbers: n whole numbers.
      classes: their names.
      holder: holder(i) is what has the i-th number, in the error.

    Raises:
      ValueError: a number outside [0, number of classes).
    """
    for i, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            raise ValueError(f"{holder(i)} label {number}; allowed are 0 to {len(classes) - 1}; {HINT}")
    return np.array(numbers, np.int32)


def of_folders(folder: Path, files: Sequence[Path]) -> Labels:
    """Of pictures folder/CLASS/picture.png, or deeper: their first folder below `folder`.

    Raises:
      ValueError: a picture that lies in none.
    """
    for file in files:
        if file.parent == folder:
            raise ValueError(f"--data.labels folder reads CLASS/picture.png, but {file} lies in no folder of a class")
    return of_names([file.relative_to(folder).parts[0] for file in files])


def if_of_folders(folder: Path, files: Sequence[Path]) -> Labels | None:
    """The same; None if a picture lies in no folder, or all in one, which is none of several classes."""
    if any(file.parent == folder for file in files):
        return None
    found = of_folders(folder, files)
    return found if len(found[1]) > 1 else None


def of_prefixes(files: Sequence[Path]) -> Labels:
    """Of pictures CLASS_0001.png: what is before the first underscore, as in the code of Nichol & Dhariwal 2021.

    Raises:
      ValueError: a file without it.
    """
    for file in files:
        if not file.name.partition("_")[0] or "_" not in file.name:
            raise ValueError(f"--data.labels prefix reads CLASS_0001.png, but {file} has no class before an underscore")
    return of_names([file.name.partition("_")[0] for file in files])
