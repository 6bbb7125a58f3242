"""Sets of points [N, D] that metrics compare: what is refused, and distances between them in blocks.

Features come as float32; every metric computes in float64, a block of rows at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.number]
Float = NDArray[np.float64]
BLOCK = 512
"""Rows taken at a time: a block of distances is 2 MiB, and of 2048 features 8 MiB."""


class Estimate(NamedTuple):
    """A number and its standard error, NaN where one set of images does not tell it."""

    value: float
    standard_error: float


def check(points: Points, what: str, least: int = 2) -> None:
    """Whether these are points that a metric takes.

    Args:
      points: [N, D].
      what: they are, in words, for the error.
      least: N that the metric needs.

    Raises:
      ValueError: not [N, D], fewer than `least`, or not finite.
    """
    if points.ndim != 2 or not points.shape[1]:
        raise ValueError(f"{what} must be [N, D], got {list(points.shape)}")
    if len(points) < least:
        raise ValueError(f"{what}: at least {least} images are needed, got {len(points)}")
    for first, rows in blocks(points):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(f"{what}: the features of image {first + int(np.argmin(finite))} are not finite")


def check_two(x: Points, y: Points, least: int = 2) -> None:
    """Whether these are two sets of samples x [N, D] and references y [M, D].

    Raises:
      ValueError: one is refused by `check`, or they have different D.
    """
    check(x, "samples", least)
    check(y, "reference", least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples have {x.shape[1]} features, the reference {y.shape[1]}: not of the same network")


def blocks(points: Points, size: int = BLOCK) -> Iterator[tuple[int, Float]]:
    """(first row, rows in float64), `size` rows at a time."""
    for first in range(0, len(points), size):
        yield first, np.asarray(points[first : first + size], np.float64)


def squared_distances(x: Float, y: Float) -> Float:
    """|x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 x_i y_j, [n, m]; right to rounding of the norms, not of the distance."""
    norms = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)
    return np.maximum(norms - 2 * x @ y.T, 0)
