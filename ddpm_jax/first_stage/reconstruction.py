"""How far a reconstruction is from its image, as an autoencoder minimizes it.

Everything here is a mean: over the numbers of an image, then over the batch. latent-diffusion's loss for a KL sums over
the numbers of an image and divides by the batch's size only, and there the one perceptual distance of an image is added
to each of its H W C differences; so its total is H W C times ours with the same weight of the KL, which is summed over
an image's latents there and divided by H W C here. Its loss for a codebook is the mean, as ours. `summed=True` is the
KL's loss as it is there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

PIXELS: dict[str, Callable[[jax.Array], jax.Array]] = {"l1": jnp.abs, "l2": jnp.square}
"""Of a difference, by name."""


class Reconstructed(NamedTuple):
    """Of a batch, scalars.

    nll is what is minimized: the negative log-likelihood of the images but for a constant where the pixel's term is
    that of a Laplace or a normal distribution. pixel is the mean difference, perceptual the mean distance.
    """

    nll: jax.Array
    pixel: jax.Array
    perceptual: jax.Array


def reconstruction(
    x: jax.Array,
    decoded: jax.Array,
    distances: jax.Array | None = None,
    *,
    pixel: str = "l1",
    perceptual_weight: float = 1.0,
    log_variance: float | jax.Array = 0.0,
    summed: bool = False,
) -> Reconstructed:
    """mean((d(x - x^) + perceptual_weight distance) / exp(log_variance) + log_variance).

    Source: Rombach et al. 2021 (arXiv:2112.10752), appendix G, eq. 25, first term, as in the published code.

    Args:
      x: [B, H, W, C] images in [-1, 1].
      decoded: their reconstructions.
      distances: [B] perceptual distances of the two; None for 0.
      pixel: d, "l1" or "l2".
      perceptual_weight: of the distance against d of one number.
      log_variance: of the decoder; a constant of the published configurations, where no optimizer has it.
      summed: over the numbers of an image, instead of their mean.
    """
    differences = PIXELS[pixel](x - decoded)
    each = jnp.mean(differences, axis=(1, 2, 3))
    perceptual = jnp.zeros_like(each) if distances is None else distances
    nll = (each + perceptual_weight * perceptual) / jnp.exp(log_variance) + log_variance
    times = x[0].size if summed else 1
    return Reconstructed(times * jnp.mean(nll), jnp.mean(each), jnp.mean(perceptual))
