"""The Fréchet distance between two sets of images, each seen as a Gaussian."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
COMPONENTS = 64


def distance(a: Features, b: Features) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with the means and covariances of the rows of a and b.

    Source: Dowson and Landau 1982, J. Multivariate Anal. 12, eq. 4; as a score of samples Heusel et al. 2017
    (arXiv:1706.08500), eq. 6.

    Args:
      a: [n, D], more rows than columns, or its covariance is singular.
      b: [m, D].

    Raises:
      ValueError: rows of different lengths, or fewer than two.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be [n, D] and [m, D] with n, m at least 2, got {a.shape} and {b.shape}")
    difference = a.mean(0) - b.mean(0)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = square_root(covariance_a)
    # tr (S_a S_b)^(1/2) = tr (S_a^(1/2) S_b S_a^(1/2))^(1/2), of a symmetric matrix.
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_b @ root), 0, None)).sum()
    return float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


def square_root(matrix: Features) -> Features:
    """Of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def projection(real: NDArray[np.uint8], components: int = COMPONENTS) -> NDArray[np.float64]:
    """[H W C, D]: the first principal axes of real images [N, H, W, C], all axes where pixels are no more than that."""
    pixels = flat(real)
    count = min(components, pixels.shape[1])
    return np.linalg.eigh(np.atleast_2d(np.cov(pixels, rowvar=False)))[1][:, ::-1][:, :count]


def flat(images: NDArray[np.uint8]) -> Features:
    """[N, H W C], pixels in [-1, 1]."""
    return images.reshape(len(images), -1) / 127.5 - 1
