"""Kernels k(x, y), and the maximum mean discrepancy of two samples: what KID and CMMD are made of.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y). Kernel matrices are made in blocks and only their sums are kept.

Source: Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13, eq. 3 ("unbiased"), 4 ("u-statistic"), 5 ("biased").
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.evaluate.samples.points import Estimate, Float, Points, blocks, check_two, squared_distances
from ddpm_jax.names import unknown

Kernel = Callable[[Float, Float], Float]
Estimator = Literal["unbiased", "u-statistic", "biased"]


class Polynomial(NamedTuple):
    """k(x, y) = (gamma x^T y + offset)^degree; gamma None is 1 / D."""

    degree: int = 3
    gamma: float | None = None
    offset: float = 1.0

    def __call__(self, x: Float, y: Float) -> Float:
        gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
        base = x @ y.T
        base *= gamma
        base += self.offset
        values = base.copy()
        for _ in range(self.degree - 1):  # NumPy's ** takes twenty times as long
            values *= base
        return values


class Radial(NamedTuple):
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2))."""

    sigma: float

    def __call__(self, x: Float, y: Float) -> Float:
        return np.exp(squared_distances(x, y) / (-2 * self.sigma**2))


class Sums(NamedTuple):
    """Of a kernel matrix: sums over the rows, over the columns, and the diagonal, which the sums do not hold."""

    rows: Float
    columns: Float
    diagonal: Float


def sums(x: Points, y: Points, kernel: Kernel) -> Sums:
    """Of k(x_i, y_j); x and y the same array: half of it is computed."""
    rows, columns, diagonal = np.zeros(len(x)), np.zeros(len(y)), np.zeros(min(len(x), len(y)))
    same = x is y
    for i, some in blocks(x):
        for j, others in blocks(y):
            if same and j < i:
                continue
            values = kernel(some, others)
            if i == j:  # the blocks are of one size, so that others hold no diagonal
                count = min(values.shape)
                diagonal[i : i + count] = np.diagonal(values)
                np.fill_diagonal(values, 0)
            rows[i : i + len(some)] += values.sum(axis=1)
            columns[j : j + len(others)] += values.sum(axis=0)
            if same and i != j:
                rows[j : j + len(others)] += values.sum(axis=0)
                columns[i : i + len(some)] += values.sum(axis=1)
    return Sums(rows, columns, diagonal)


def mmd2(x: Points, y: Points, kernel: Kernel, estimator: Estimator = "unbiased") -> Estimate:
    """MMD^2 of samples x [N, D] and reference y [M, D], with the standard error of its first-order part.

    unbiased: pairs i != j within a set, all pairs between the sets; u-statistic: pairs i != j between them too, and
    N = M; biased: all pairs, never negative. The standard error is the root of var(g) / N + var(h) / M with
    g_i = 2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), h_j alike.

    Raises:
      ValueError: fewer than 2 images, different D, features that are not finite; no such estimator; different numbers
        for "u-statistic".
    """
    check_two(x, y)
    n, m = len(x), len(y)
    if estimator not in get_args(Estimator):
        raise unknown("estimator", estimator, get_args(Estimator))
    if estimator == "u-statistic" and n != m:
        raise ValueError(f"the estimator u-statistic needs as many samples as references, got {n} and {m}")
    xx, yy, xy = sums(x, x, kernel), sums(y, y, kernel), sums(x, y, kernel)
    across = xy.rows.sum() + (0 if estimator == "u-statistic" else xy.diagonal.sum())
    if estimator == "biased":
        within = (xx.rows.sum() + xx.diagonal.sum()) / n**2 + (yy.rows.sum() + yy.diagonal.sum()) / m**2
    else:
        within = xx.rows.sum() / (n * (n - 1)) + yy.rows.sum() / (m * (m - 1))
    pairs = n * (n - 1) if estimator == "u-statistic" else n * m
    rows, columns = xy.rows.copy(), xy.columns.copy()
    rows[: len(xy.diagonal)] += xy.diagonal
    columns[: len(xy.diagonal)] += xy.diagonal
    g = 2 * (xx.rows / (n - 1) - rows / m)
    h = 2 * (yy.rows / (m - 1) - columns / n)
    error = np.sqrt(g.var(ddof=1) / n + h.var(ddof=1) / m)
    return Estimate(float(within - 2 * across / pairs), float(error))
