"""Mean and covariance of features that arrive in batches.

count n, mean m = sum x_i / n, co-moment C = sum (x_i - m)(x_i - m)^T; the covariance is C / (n - 1).
Two sets merge: m = m_a + (n_b / n) d, C = C_a + C_b + (n_a n_b / n) d d^T with d = m_b - m_a.

Source: Chan, Golub and LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
eq. 2.1, for vectors.

Rows are taken in blocks of ROWS, counted from the first one, and merged from left to right: the same rows give the same
bits however they are batched.
"""

from dataclasses import dataclass

import numpy as np

from ddpm_jax.evaluate.samples.points import Float, Points

ROWS = 512
"""Of a block. Another number gives other bits."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A distribution as its mean [D] and covariance [D, D]; count, of the images they are from, where it is known."""

    mean: Float
    covariance: Float
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Moments:
    """Of count rows: the mean [D] and the co-moment [D, D], float64."""

    count: int
    mean: Float
    comoment: Float

    @property
    def gaussian(self) -> Gaussian:
        """Mean and covariance C / (n - 1).

        Raises:
          ValueError: fewer than 2 images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return Gaussian(self.mean, self.comoment / (self.count - 1), self.count)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of a's rows followed by b's."""
    if not a.count:
        return b
    if not b.count:
        return a
    n = a.count + b.count
    d = b.mean - a.mean
    mean = a.mean + (b.count / n) * d
    return Moments(n, mean, a.comoment + b.comoment + (a.count * b.count / n) * np.outer(d, d))


class Stream:
    """Moments of rows that are added batch by batch; memory for ROWS of them, their mean and co-moment."""

    def __init__(self, dimension: int):
        self._merged = Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))
        self._block = np.empty((ROWS, dimension))
        self._filled = 0

    def add(self, features: Points) -> None:
        """The next rows [n, D].

        Raises:
          ValueError: another D, or features that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self._block.shape[1]:
            raise ValueError(f"features must be [N, {self._block.shape[1]}], got {list(features.shape)}")
        while len(features):
            taken = features[: ROWS - self._filled]
            finite = np.isfinite(taken).all(axis=1)
            if not finite.all():
                row = self._merged.count + self._filled + int(np.argmin(finite))
                raise ValueError(f"the features of image {row} are not finite")
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == ROWS:
                self._merged = self.moments
                self._filled = 0
            features = features[len(taken) :]

    @property
    def moments(self) -> Moments:
        """Of all rows added so far."""
        return merge(self._merged, _of_block(self._block[: self._filled]))


def of(features: Points) -> Moments:
    """Moments of features [N, D].

    Raises:
      ValueError: not [N, D], or not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], got {list(features.shape)}")
    stream = Stream(features.shape[1])
    stream.add(features)
    return stream.moments


def _of_block(rows: Float) -> Moments:
    if not len(rows):
        return Moments(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2))
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)
