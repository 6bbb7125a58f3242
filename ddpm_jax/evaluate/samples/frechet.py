"""Fréchet distance between two Gaussians, and FID and sFID with it: they differ in the features alone.

d^2 = |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

With S = F F^T, S_a S_b has the eigenvalues of the symmetric F_a^T S_b F_a = (F_a^T F_b)(F_a^T F_b)^T, so the last trace
is the sum of the singular values of F_a^T F_b. No matrix square root is taken of a product that is not symmetric: of
singular covariances that root is complex, and what is added to their diagonal moves the distance.

Source: Dowson and Landau 1982, J. Multivariate Anal. 12, eq. 4; as a score of samples Heusel et al. 2017
(arXiv:1706.08500), eq. 6; of spatial features (sFID) Nash et al. 2021 (arXiv:2103.03841), section 5.
"""

import numpy as np

from ddpm_jax.evaluate.samples import moments
from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.evaluate.samples.points import Estimate, Float, Points, blocks, check_two


def distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), exactly 0 for equal Gaussians and never negative.

    Raises:
      ValueError: the Gaussians have different dimensions, or are not finite.
    """
    _check(a, b)
    if np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance):
        return 0.0
    mixed = np.linalg.svd(factor(a.covariance).T @ factor(b.covariance), compute_uv=False).sum()
    return _sum(a, b, mixed)


def estimate(samples: Points, reference: Points) -> Estimate:
    """The distance between the moments of samples [N, D] and of reference [M, D], and its standard error from both.

    Raises:
      ValueError: fewer than 2 images, different D, features that are not finite.
    """
    check_two(samples, reference)
    a, b = moments.of(samples).gaussian, moments.of(reference).gaussian
    error = np.hypot(standard_error(samples, a, b), standard_error(reference, b, a))
    return Estimate(distance(a, b), float(error))


def standard_error(features: Points, own: Gaussian, other: Gaussian) -> float:
    """sqrt(var(h) / n), h(x) = 2 (m_a - m_b)^T (x - m_a) + (x - m_a)^T (I - T) (x - m_a): from a's draw alone.

    h is the gradient of the distance in m_a and S_a, and T = S_a^(-1/2) (S_a^(1/2) S_b S_a^(1/2))^(1/2) S_a^(-1/2) the
    optimal map between the Gaussians, on the span of S_a. It holds where n is large against D (at n = D it is 1.4
    times too large) and says nothing of the bias, which is of the order of D / n.

    Args:
      features: [n, D], the rows of which `own` is the mean and covariance.
      own: a.
      other: b, taken as it is.
    """
    _check(own, other)
    root = factor(own.covariance)
    # T = R^(-T) (R^T S_b R)^(1/2) R^(-1) for any root R of S_a.
    squares, vectors = np.linalg.eigh(root.T @ other.covariance @ root)
    fourth = vectors * np.clip(squares, 0, None) ** 0.25
    square = root.shape[0] == root.shape[1]
    to_root = np.linalg.solve(root.T, fourth) if square else (root / np.square(root).sum(axis=0)) @ fourth
    difference = own.mean - other.mean
    influence = np.empty(len(features))
    for first, rows in blocks(features):
        centred = rows - own.mean
        mapped = centred @ to_root
        quadratic = np.einsum("nd,nd->n", centred, centred) - np.einsum("nd,nd->n", mapped, mapped)
        influence[first : first + len(rows)] = 2 * centred @ difference + quadratic
    return float(influence.std(ddof=1) / np.sqrt(len(features)))


def note(a: Gaussian, b: Gaussian) -> str | None:
    """What must be said beside the distance, in one line: a covariance of no more images than features is singular."""
    counts = [g.count for g in (a, b) if g.count is not None]
    dimension = len(a.mean)
    if not counts or min(counts) > dimension:
        return None
    return (
        f"{min(counts)} images for {dimension} features: a covariance is singular, "
        "and the Fréchet distance mostly bias (KID has none)"
    )


def factor(covariance: Float) -> Float:
    """F [D, r] with F F^T = S, to rounding; r < D where S is singular, and the columns are orthogonal then."""
    scale = len(covariance) * np.finfo(np.float64).eps
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        lower = None
    # Pivots of the size of their rounding are noise, and their roots 1e-8 of the largest deviation.
    if lower is not None and np.diagonal(lower).min() ** 2 > scale * np.diagonal(covariance).max():
        return lower
    values, vectors = np.linalg.eigh(covariance)
    kept = values > scale * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _sum(a: Gaussian, b: Gaussian, mixed: float) -> float:
    difference = a.mean - b.mean
    total = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * mixed
    return max(float(total), 0.0)  # of equal ones, rounding is of either sign


def _check(a: Gaussian, b: Gaussian) -> None:
    for g, what in ((a, "samples"), (b, "reference")):
        if g.mean.ndim != 1 or g.covariance.shape != (len(g.mean),) * 2:
            raise ValueError(f"{what}: a mean [D] has a covariance [D, D], got {g.mean.shape} and {g.covariance.shape}")
        if not (np.isfinite(g.mean).all() and np.isfinite(g.covariance).all()):
            raise ValueError(f"{what}: the mean or covariance is not finite")
    if len(a.mean) != len(b.mean):
        raise ValueError(f"samples have {len(a.mean)} features, the reference {len(b.mean)}: not of the same network")
