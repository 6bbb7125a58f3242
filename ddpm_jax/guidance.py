"""Guidance as functions around functions: towards a condition, by a second network call or by a classifier.

`classifier_free` combines two networks into one model_fn; `mean_shifted` and `score_shifted` wrap a denoiser and go
outside of its clipping, as in the code of Dhariwal & Nichol 2021 (arXiv:2105.05233). `gradient(x, t)` is that of
log p(y | x_t) with respect to x_t; for a classifier, of the sum over the batch.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise, Denoised, mean_coefficients
from ddpm_jax.samplers.table import Row


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


def mean_shifted(denoise: Denoise, gradient: ModelFn, *, scale: float = 1.0) -> Denoise:
    """The mean of p(x_t | x_s) moved by variance * scale * gradient(x_s, time).

    For tables of `ddpm`, whose mean is coef1 x_0 + coef2 x_s: x_0 moves by variance / coef1 * scale * gradient.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), algorithm 1; like their code with the gradient at x_s, where the
    paper has it at the mean.

    Args:
      denoise: what to wrap, clipped or not; its learned variance counts.
      gradient: of log p(y | x_t).
      scale: gradient scale.
    """

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        variance = row.variance if found.noise_scale is None else row.variance * found.noise_scale**2
        coef1, _ = mean_coefficients(row)
        x_0 = found.x_0 + variance / coef1 * scale * gradient(x, jnp.full(x.shape[:1], row.time, jnp.float32))
        return Denoised(x_0, (x - row.alpha * x_0) / row.sigma, found.noise_scale)

    return wrapped


def score_shifted(denoise: Denoise, gradient: ModelFn, *, scale: float = 1.0) -> Denoise:
    """eps - sigma * scale * gradient(x, time), and the x_0 that goes with it: for any sampler.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), algorithm 2.

    Args:
      denoise: what to wrap, clipped or not.
      gradient: of log p(y | x_t).
      scale: gradient scale.
    """

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        eps = found.eps - row.sigma * scale * gradient(x, jnp.full(x.shape[:1], row.time, jnp.float32))
        return Denoised((x - row.sigma * eps) / row.alpha, eps, found.noise_scale)

    return wrapped
