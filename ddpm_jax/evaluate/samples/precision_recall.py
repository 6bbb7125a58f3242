"""Precision and recall of samples: who lies in whose manifold, balls that reach the k-th neighbour of a centre.

precision = mean_i 1[sample i is in a ball of the reference], recall = mean_j 1[reference j is in a ball of samples].

Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
"""

from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.evaluate.samples import neighbours
from ddpm_jax.evaluate.samples.points import Estimate, Points, check_two
from ddpm_jax.names import choose

Edge = Literal["inside", "outside"]
BELOW = {"inside": False, "outside": True}
"""Whether a point of a ball is nearer than the edge, by where the edge lies."""


class PrecisionRecall(NamedTuple):
    """Each with its standard error sqrt(p (1 - p) / n), of the points that lie inside, the balls given."""

    precision: Estimate
    recall: Estimate

    @property
    def f_score(self) -> float:
        """2 p r / (p + r), 0 where both are 0."""
        total = self.precision.value + self.recall.value
        return 2 * self.precision.value * self.recall.value / total if total else 0.0


def of(samples: Points, reference: Points, *, k: int = 3, edge: Edge = "inside") -> PrecisionRecall:
    """Precision and recall of samples [N, D] and reference [M, D].

    Args:
      samples: generated; torch-fidelity's input 1.
      reference: real.
      k: neighbours of a centre that its ball reaches, itself not counted.
      edge: where a point lies that is as far from a centre as its k-th neighbour: "inside" (the paper, torch-fidelity,
        ADM's evaluator; equal sets have precision and recall 1) or "outside" (prdc; twins of k others are in no ball).

    Raises:
      ValueError: fewer images than k + 1, different D, features that are not finite, no such edge.
    """
    check_two(samples, reference, k + 1)
    below = choose("edge", edge, BELOW)
    precise, _ = neighbours.inside(samples, reference, neighbours.radii(reference, k), below=below)
    recalled, _ = neighbours.inside(reference, samples, neighbours.radii(samples, k), below=below)
    return PrecisionRecall(share(precise > 0), share(recalled > 0))


def share(found: np.ndarray) -> Estimate:
    """The mean of bool [N], with sqrt(p (1 - p) / N)."""
    p = float(found.mean())
    return Estimate(p, float(np.sqrt(p * (1 - p) / len(found))))
