"""Guidance by a classifier, as functions around a denoiser.

They go outside of its clipping, as in the code of Dhariwal & Nichol 2021 (arXiv:2105.05233). `gradient(x, t)` is that
of log p(y | x_t) with respect to x_t; for a classifier, of the sum over the batch. The scale is one for all rows, or a
number of the table, from `on_classifier`: then rows where it is 0 do not call the classifier.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.guidance.method import CLASSIFIER_SCALE
from ddpm_jax.names import unknown
from ddpm_jax.process import ModelFn
from ddpm_jax.samplers.denoise import Denoise, Denoised, mean_coefficients
from ddpm_jax.samplers.table import Row, guidance_of

Point = Literal["x_t", "mean"]


def mean_shifted(
    denoise: Denoise, gradient: ModelFn, *, scale: float | jax.Array | None = None, at: Point = "x_t"
) -> Denoise:
    """The mean of p(x_t | x_s) moved by variance * scale * gradient, which is taken at x_s or at that mean.

    For tables of `ddpm`, whose mean is coef1 x_0 + coef2 x_s: x_0 moves by variance / coef1 * scale * gradient.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), algorithm 1.

    Args:
      denoise: what to wrap, clipped or not; its learned variance counts.
      gradient: of log p(y | x_t).
      scale: gradient scale, a number or [B]; None for the table's, which is 1 where it has none.
      at: where the gradient is taken: "x_t" at what the network is given, as in their code; "mean" at the mean, where
        eq. 4 to 7 of the paper expand log p(y | x_t). The classifier is told the row's time at both.

    Raises:
      ValueError: another point; while tracing, a scale that the table has too.
    """
    if at not in get_args(Point):
        raise unknown("at", at, get_args(Point))

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        variance = row.variance if found.noise_scale is None else row.variance * found.noise_scale**2
        coef1, coef2 = mean_coefficients(row)
        point = x if at == "x_t" else coef1 * found.x_0 + coef2 * x
        x_0 = _moved(found.x_0, lambda: variance / coef1 * gradient(point, _time(x, row)), _scale(row, scale, x.ndim))
        return Denoised(x_0, (x - row.alpha * x_0) / row.sigma, found.noise_scale)

    return wrapped


def score_shifted(denoise: Denoise, gradient: ModelFn, *, scale: float | jax.Array | None = None) -> Denoise:
    """eps - sigma * scale * gradient(x, time), and the x_0 that goes with it: for any sampler.

    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), algorithm 2.

    Args:
      denoise: what to wrap, clipped or not.
      gradient: of log p(y | x_t).
      scale: gradient scale, a number or [B]; None for the table's, which is 1 where it has none.

    Raises:
      ValueError: a scale that the table has too. Raised while tracing.
    """

    def wrapped(x: jax.Array, row: Row) -> Denoised:
        found = denoise(x, row)
        eps = _moved(found.eps, lambda: -row.sigma * gradient(x, _time(x, row)), _scale(row, scale, x.ndim))
        return Denoised((x - row.sigma * eps) / row.alpha, eps, found.noise_scale)

    return wrapped


def _moved(image: jax.Array, direction: Callable[[], jax.Array], scale: jax.Array) -> jax.Array:
    """image + scale * direction(), which is called where a scale is not 0."""
    scale = scale.astype(image.dtype)
    return jax.lax.cond(jnp.any(scale != 0), lambda: image + scale * direction(), lambda: image)


def _scale(row: Row, scale: float | jax.Array | None, ndim: int) -> jax.Array:
    """[] or [B, 1, ..., 1].

    Raises:
      ValueError: two scales.
    """
    found = guidance_of(row).get(CLASSIFIER_SCALE)
    if scale is not None and found is not None:
        raise ValueError(f"give either scale or a table from guidance.on_classifier, got scale={scale} and both")
    value = jnp.asarray(scale if scale is not None else 1.0 if found is None else found)
    return value.reshape(*value.shape, *(1,) * (ndim - 1)) if value.ndim else value


def _time(x: jax.Array, row: Row) -> jax.Array:
    return jnp.full(x.shape[:1], row.time, jnp.float32)
