"""Classifier-free guidance."""

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.method import Method, Numbers
from ddpm_jax.process import ModelFn


def combine(answers: tuple[jax.Array, ...], numbers: Numbers) -> jax.Array:
    """u + scale (c - u)."""
    c, u = answers
    return u + numbers["scale"].astype(c.dtype) * (c - u)


CLASSIFIER_FREE = Method(combine)
"""u + scale (c - u), of what the network says told the condition, c, and told nothing, u.

Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, whose weight w is scale - 1.
"""


def classifier_free(
    conditional: ModelFn,
    unconditional: ModelFn,
    *,
    scale: float | jax.Array | None = None,
    weight: float | jax.Array | None = None,
) -> ModelFn:
    """model_fn = u + scale (c - u) = (1 + weight) c - weight u, of the networks' outputs c and u.

    A learned variance, channels that x does not have, is c's: published samplers do not extrapolate it.

    Source: Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, whose w is `weight`; GLIDE, LDM and diffusers say `scale`,
    which is one larger: scale 1 and weight 0 are no guidance.

    Args:
      conditional: c(x, t) -> like x, or with more channels.
      unconditional: u(x, t) -> like c.
      scale: guidance scale; either this or
      weight: guidance weight.

    Raises:
      ValueError: both or none of scale and weight.
    """
    if (scale is None) == (weight is None):
        raise ValueError(f"give either scale or weight (= scale - 1), got scale={scale} and weight={weight}")

    def model_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        c, u = conditional(x, t), unconditional(x, t)
        # Written from u, so that scale 1 is c up to rounding; strict about dtypes where scale is an array.
        s = jnp.asarray(1 + weight if scale is None else scale, c.dtype)  # type: ignore[reportOptionalOperand]
        channels = x.shape[-1]
        guided = u[..., :channels] + s * (c - u)[..., :channels]
        return guided if c.shape[-1] == channels else jnp.concatenate([guided, c[..., channels:]], axis=-1)

    return model_fn
