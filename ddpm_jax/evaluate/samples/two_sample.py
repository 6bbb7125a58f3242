"""1-nearest-neighbour two-sample accuracy: can a sample be told from a reference by what lies nearest to it?

Each of N samples and N references is classified as the kind of its nearest other point; a share of the equally near
ones counts as that share. 0.5 is perfect; 1 are samples like nothing real, or one real image repeated; 0 are copies.

Source: Lopez-Paz and Oquab 2017 (arXiv:1610.06545), section 3; as a score of samples Xu et al. 2018 (arXiv:1806.07755).
"""

import numpy as np

from ddpm_jax.evaluate.samples.neighbours import nearest_kind
from ddpm_jax.evaluate.samples.points import Estimate, Points, check_two


def accuracy(samples: Points, reference: Points) -> Estimate:
    """The accuracy of samples [N, D] and reference [N, D], with sqrt(p (1 - p) / (2 N)), as if points were independent.

    Raises:
      ValueError: fewer than 2 images, different numbers of them, different D, features that are not finite.
    """
    check_two(samples, reference)
    if len(samples) != len(reference):
        raise ValueError(
            f"two-sample accuracy needs as many samples as references, got {len(samples)} and {len(reference)}"
        )
    points = np.concatenate([samples, reference])
    p = float(nearest_kind(points, np.arange(len(points)) < len(samples)).mean())
    return Estimate(p, float(np.sqrt(p * (1 - p) / len(points))))
