"""Nearest neighbours of points [N, D], with distances that are exact where a comparison hangs on them.

|x|^2 + |y|^2 - 2 x y is fast, and right to the rounding of the norms: twins come out a little apart, and a ball around
x that reaches y may not hold y. Distances within that rounding of what they are compared with are therefore taken again
as sum (x_d - y_d)^2, which is 0 for twins and the same from both ends. Memory is a block of rows times the number of
points.
"""

import numpy as np

from ddpm_jax.evaluate.samples.points import BLOCK, Float, Points, blocks, squared_distances

PAIRS = 4 << 20
"""Numbers of the differences that are taken at a time."""


def between(x: Points, y: Points, i: np.ndarray, j: np.ndarray) -> Float:
    """|x_i - y_j|^2 for pairs (i, j) of rows, [P]."""
    found, step = np.empty(len(i)), max(1, PAIRS // x.shape[1])
    for first in range(0, len(i), step):
        part = slice(first, first + step)
        difference = np.asarray(x[i[part]], np.float64) - np.asarray(y[j[part]], np.float64)
        found[part] = np.square(difference).sum(axis=1)
    return found


def radii(points: Points, k: int) -> Float:
    """Squared distance of each point [N, D] to its k-th nearest other one, [N].

    Raises:
      ValueError: k is not from 1 to N - 1.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"k must be from 1 to {len(points) - 1}, the other images there are, got {k}")
    found = np.empty(len(points))
    for first, rows in blocks(points):
        distances, slack = _rough(rows, points)
        own = np.arange(len(rows))
        distances[own, first + own] = np.inf
        bound = np.partition(distances, k - 1, axis=1)[:, k - 1] + slack
        i, j = np.nonzero(distances <= bound[:, None])
        exact = between(rows, points, i, j)
        order = np.lexsort((exact, i))
        starts = np.searchsorted(i, own)
        found[first : first + len(rows)] = exact[order][starts + k - 1]
    return found


def inside(x: Points, centres: Points, squares: Float, *, below: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """How many balls hold each point, and how many points each ball holds: int [N], int [M].

    Args:
      x: points [N, D].
      centres: of the balls, [M, D].
      squares: of their radii, [M].
      below: a point on the sphere is outside.
    """
    of_points, of_balls = np.zeros(len(x), np.int64), np.zeros(len(centres), np.int64)
    for first, rows in blocks(x):
        distances, slack = _rough(rows, centres)
        held = distances < squares
        i, j = np.nonzero(np.abs(distances - squares) <= slack[:, None])
        exact = between(rows, centres, i, j)
        held[i, j] = exact < squares[j] if below else exact <= squares[j]
        of_points[first : first + len(rows)] = held.sum(axis=1)
        of_balls += held.sum(axis=0)
    return of_points, of_balls


def nearest_kind(points: Points, kind: np.ndarray) -> Float:
    """The share of each point's nearest others, more than one where they are equally near, of its own kind, [N]."""
    squares, same = radii(points, 1), np.empty(len(points))
    for first, rows in blocks(points):
        distances, slack = _rough(rows, points)
        own = np.arange(len(rows))
        distances[own, first + own] = np.inf
        i, j = np.nonzero(distances <= (squares[first : first + len(rows)] + slack)[:, None])
        tied = between(rows, points, i, j) == squares[first + i]
        i, j = i[tied], j[tied]
        agree = np.bincount(i, kind[j] == kind[first + i], len(rows))
        same[first : first + len(rows)] = agree / np.bincount(i, minlength=len(rows))
    return same


def _rough(rows: Float, points: Points) -> tuple[Float, Float]:
    """|rows_i - points_j|^2, and how far off they may be in each row: twice the rounding of a sum of D products."""
    distances = np.empty((len(rows), len(points)))
    largest = 0.0
    for first, others in blocks(points, BLOCK):
        distances[:, first : first + len(others)] = squared_distances(rows, others)
        largest = max(largest, float(np.square(others).sum(axis=1).max()))
    rounding = 8 * rows.shape[1] * np.finfo(np.float64).eps
    return distances, rounding * (np.square(rows).sum(axis=1) + largest)
