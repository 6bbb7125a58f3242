"""The gradients of a step of an autoencoder and its adversary, kept apart.

The adaptive weight is a ratio of two gradients of the whole batch, at the last layer of the decoder. So these are not
added up here: over the parts of a batch and over devices each is a mean, and the weight of the means is that of the
batch however it was cut.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.first_stage.adversary import adaptive_weight
from ddpm_jax.first_stage.reconstruction import Reconstructed

LAST_LAYER = ("decoder", "conv_out", "kernel")


class Gradients(NamedTuple):
    """Trees like the autoencoder's parameters: of reconstruction and penalty, and of -E D(x^); () without adversary."""

    autoencoder: Any
    generator: Any = ()


class Found(NamedTuple):
    """What one pass found: the reconstruction's terms, the penalty, -E D(x^), and what the forward pass returned."""

    reconstructed: Reconstructed
    penalty: jax.Array
    to_fool: Any
    decoded: jax.Array
    passed: Any


def autoencoder_gradients(
    forward: Callable[[Any], tuple[tuple[jax.Array, jax.Array], Any]],
    params: Any,
    *,
    reconstruct: Callable[[jax.Array], Reconstructed],
    penalty_weight: float,
    fool: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Gradients, Found]:
    """The gradients of nll + penalty_weight penalty, and of what fools the discriminator, from one forward pass.

    Args:
      forward: params -> ((x^, penalty), more), see `forward`.
      params: of the autoencoder.
      reconstruct: x^ -> terms, of which nll is minimized.
      penalty_weight: of the KL, or of the codebook's loss.
      fool: x^ -> -E D(x^), a scalar; the discriminator's own parameters are constants in it.
    """
    (decoded, penalty), pull, passed = jax.vjp(forward, params, has_aux=True)

    def nll(decoded: jax.Array) -> tuple[jax.Array, Reconstructed]:
        terms = reconstruct(decoded)
        return terms.nll, terms

    at_image, terms = jax.grad(nll, has_aux=True)(decoded)
    (own,) = pull((at_image, jnp.full_like(penalty, penalty_weight)))
    if fool is None:
        return Gradients(own), Found(terms, penalty, (), decoded, passed)
    to_fool, at_image = jax.value_and_grad(fool)(decoded)
    (generator,) = pull((at_image, jnp.zeros_like(penalty)))
    return Gradients(own, generator), Found(terms, penalty, to_fool, decoded, passed)


def weight_of(gradients: Gradients) -> jax.Array:
    """The adaptive weight: the penalty, which does not reach the decoder, is no part of it."""
    return adaptive_weight(last_layer(gradients.autoencoder), last_layer(gradients.generator))


def combined(gradients: Gradients, weight: jax.Array | float) -> Any:
    """The gradient of nll + penalty + weight (-E D(x^))."""
    return jax.tree.map(lambda own, generator: own + weight * generator, *gradients)


def last_layer(tree: Any) -> jax.Array:
    """The kernel of the decoder's last convolution."""
    for name in LAST_LAYER:
        tree = tree[name]
    return tree
