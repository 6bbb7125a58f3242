"""CMMD: MMD^2 with a Gaussian kernel between embeddings, times 1000; meant for CLIP's, of unit length.

Source: Jayasumana et al. 2024 (arXiv:2401.09603), section 4: sigma 10, the biased estimator, which is never below 0.
"""

from ddpm_jax.evaluate.samples.kernels import Estimator, Radial, mmd2
from ddpm_jax.evaluate.samples.points import Estimate, Points

SCALE = 1000.0


def distance(samples: Points, reference: Points, *, sigma: float = 10.0, estimator: Estimator = "biased") -> Estimate:
    """1000 MMD^2 of samples [N, D] and reference [M, D], k(x, y) = exp(-|x - y|^2 / (2 sigma^2)).

    Args:
      samples: embeddings, as they come: none is scaled to unit length here.
      reference: embeddings.
      sigma: width of the kernel.
      estimator: "biased" as published; its expectation for equal laws is about 1000 (1 / N + 1 / M) (1 - E k).

    Raises:
      ValueError: as of `kernels.mmd2`; a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    value, error = mmd2(samples, reference, Radial(sigma), estimator)
    return Estimate(SCALE * value, SCALE * error)
