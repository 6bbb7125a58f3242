"""A distance at infinitely many samples, from distances at fewer: d_N = d_inf + slope / N.

Source: Chong and Forsyth 2020 (arXiv:1911.07023), section 3.3.
"""

import numpy as np

from ddpm_jax.evaluate.samples import frechet, moments
from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.evaluate.samples.points import Estimate, Points, check

POINTS = 15


def frechet_distance(
    samples: Points, reference: Gaussian, *, smallest: int, points: int = POINTS, seed: int = 0
) -> Estimate:
    """The Fréchet distance of infinitely many samples to a reference, which is taken as it is: its bias stays.

    The distance is computed of `points` numbers of samples, evenly from `smallest` to all, each chosen by chance.

    Args:
      samples: features [N, D].
      reference: mean and covariance.
      smallest: number of samples; above D, where the distance is linear in 1 / N. The paper's is 5000 of 50000.
      points: distances.
      seed: of the choice.

    Raises:
      ValueError: as of `frechet.distance`; fewer than 3 points, or `smallest` not above D and below N.
    """
    check(samples, "samples")
    n, dimension = samples.shape
    if not dimension < smallest < n:
        raise ValueError(f"smallest must be above {dimension} features and below {n} images, got {smallest}")
    draws, sizes = np.random.default_rng(seed), np.linspace(smallest, n, points).astype(int)
    chosen = (samples[draws.permutation(n)[:size]] for size in sizes)
    return extrapolate(sizes, np.array([frechet.distance(moments.of(x).gaussian, reference) for x in chosen]))


def extrapolate(sizes: np.ndarray, values: np.ndarray) -> Estimate:
    """Value and standard error, of its residuals, of the line through (1 / sizes, values) at 0.

    The subsets overlap: the error is that of the line, not of another draw of all samples.

    Raises:
      ValueError: fewer than 3 points, or sizes that are all one.
    """
    if len(sizes) < 3 or len(np.unique(sizes)) < 2:
        raise ValueError(f"a line and its error need at least 3 points of 2 sizes, got sizes {list(map(int, sizes))}")
    design = np.stack([np.ones(len(sizes)), 1 / np.asarray(sizes, np.float64)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    line = inverse @ design.T @ values
    variance = np.square(values - design @ line).sum() / (len(sizes) - 2)
    return Estimate(float(line[0]), float(np.sqrt(variance * inverse[0, 0])))
