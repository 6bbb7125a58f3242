"""The two sides of an adversary: what the discriminator minimizes, and what the autoencoder does against it.

Logits are of any shape, large for what looks real, and every loss is a mean over them. Source of the whole: Esser et
al. 2020 (arXiv:2012.09841), section 3.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

MOST_WEIGHT = 1e4


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(E max(0, 1 - D(x)) + E max(0, 1 + D(x^))) / 2; 1 for a discriminator that says 0.

    Source: Lim and Ye 2017 (arXiv:1705.02894), eq. 7; the half is taming's.
    """
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(-E log sigmoid(D(x)) - E log(1 - sigmoid(D(x^)))) / 2; log 2 for a discriminator that says 0.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1; the half is taming's.
    """
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"hinge": hinge, "vanilla": vanilla}


def to_fool(fake: jax.Array) -> jax.Array:
    """-E D(x^): what the autoencoder minimizes, whichever loss the discriminator has.

    Source: Lim and Ye 2017 (arXiv:1705.02894), eq. 8.
    """
    return -jnp.mean(fake)


def gradient_penalty(discriminator: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """E |d/dx mean over patches of D(x)|^2 / 2 at images of the data, R1 without its gamma: a scalar.

    Source: Mescheder et al. 2018 (arXiv:1801.04406), eq. 9.

    Args:
      discriminator: of images [B, H, W, C]; what it says of one must not depend on the others.
      x: [B, H, W, C].
    """
    total = lambda x: jnp.sum(jnp.mean(discriminator(x), axis=(1, 2, 3)))
    return 0.5 * jnp.mean(jnp.sum(jax.grad(total)(x) ** 2, axis=(1, 2, 3)))


def adaptive_weight(of_reconstruction: Any, of_generator: Any) -> jax.Array:
    """|gradient of the reconstruction loss| / (|that of -E D(x^)| + 1e-4), in [0, 1e4], a constant to gradients.

    Both gradients are with respect to the last layer of the decoder; the reconstruction's is of the whole, perceptual
    distance included, and without KL or codebook. Its size is that of the loss: latent-diffusion's KL loss sums over an
    image's numbers, and its weight is H W C times as large as of the mean.

    Source: Esser et al. 2020 (arXiv:2012.09841), eq. 7; the clip, which the paper does not have, is taming's.
    """
    ratio = jnp.linalg.norm(jnp.ravel(of_reconstruction)) / (jnp.linalg.norm(jnp.ravel(of_generator)) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, MOST_WEIGHT))
