"""Density and coverage: how many balls of the reference hold a sample, and how many of them hold any.

density = sum_i #{j : sample i lies in ball j} / (k N), coverage = mean_j 1[ball j holds a sample]; ball j reaches the
k-th neighbour of reference j. Density is 1 for equal laws and may be above.

Source: Naeem et al. 2020 (arXiv:2002.09797), eq. 3 and 4; their program, prdc, puts the edge of a ball outside.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluate.samples import neighbours
from ddpm_jax.evaluate.samples.points import Estimate, Points, check_two
from ddpm_jax.evaluate.samples.precision_recall import BELOW, Edge, share
from ddpm_jax.names import choose


class DensityCoverage(NamedTuple):
    """Each with its standard error, of the points counted, the balls given."""

    density: Estimate
    coverage: Estimate


def of(samples: Points, reference: Points, *, k: int = 5, edge: Edge = "outside") -> DensityCoverage:
    """Density and coverage of samples [N, D] and reference [M, D].

    Args:
      samples: generated.
      reference: real.
      k: neighbours of a centre that its ball reaches, itself not counted.
      edge: as of `precision_recall.of`.

    Raises:
      ValueError: fewer images than k + 1, different D, features that are not finite, no such edge.
    """
    check_two(samples, reference, k + 1)
    below = choose("edge", edge, BELOW)
    balls, points = neighbours.inside(samples, reference, neighbours.radii(reference, k), below=below)
    error = balls.std(ddof=1) / np.sqrt(len(samples)) / k
    return DensityCoverage(Estimate(float(balls.mean() / k), float(error)), share(points > 0))
