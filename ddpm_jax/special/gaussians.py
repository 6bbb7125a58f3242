"""Gaussian divergences and likelihoods, elementwise and in nats; variances by their natural logarithm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def kl_nats(mean_1: ArrayLike, log_variance_1: ArrayLike, mean_2: ArrayLike, log_variance_2: ArrayLike) -> jax.Array:
    """KL(N(m1, v1) || N(m2, v2)) = (log(v2 / v1) + v1 / v2 - 1 + (m1 - m2)^2 / v2) / 2.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 2, "compared in closed form".

    Args:
      mean_1, log_variance_1, mean_2, log_variance_2: arrays that broadcast against each other.
    """
    log_ratio = jnp.subtract(log_variance_1, log_variance_2)
    squared = jnp.subtract(mean_1, mean_2) ** 2 * jnp.exp(jnp.negative(log_variance_2))
    # expm1(r) - r and not exp(r) - 1 - r: of nearly equal variances nothing would be left of the latter.
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + squared)


def discretized_log_likelihood(x_0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """log of the integral of N(x; mean, variance) over the bin of x_0, bins of 1/127.5 with open ends: p(x_0 | x_1).

    The bin of x_0 is [x_0 - 1/255, x_0 + 1/255]; of -1 it starts at -inf, of 1 it ends at inf. As in the paper's code
    the normal distribution function is (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, off by less than 3e-4, and
    probabilities below 1e-12 count as 1e-12, so that the logarithm and its gradient stay finite. Also as there, the
    two distribution functions are float32, whatever the images are: of a probability below 1e-7 their difference keeps
    nothing, and everybody's bits per dimension contain that.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 13.

    Args:
      x_0: 8-bit data scaled to [-1, 1].
      mean: like x_0.
      log_variance: like x_0, or with axes of 1.

    Returns:
      Like x_0, nats.

    Raises:
      ValueError: x_0 outside [-1, 1]. Not checked while tracing, where nobody knows.
    """
    if not isinstance(x_0, Tracer):
        known = np.asarray(x_0)  # jnp would trace it too, while something else is traced
        if not (np.abs(known) <= 1).all():
            raise ValueError(f"x_0 must lie in [-1, 1], got values in [{known.min():g}, {known.max():g}]")
    dtype = x_0.dtype
    x_0, mean, log_variance = (jnp.asarray(a, jnp.float32) for a in (x_0, mean, log_variance))
    inverse_std = jnp.exp(-0.5 * log_variance)
    below_upper = _normal_cdf(inverse_std * (x_0 - mean + 1 / 255))
    below_lower = _normal_cdf(inverse_std * (x_0 - mean - 1 / 255))
    probability = jnp.where(x_0 > 0.999, 1, below_upper) - jnp.where(x_0 < -0.999, 0, below_lower)
    return jnp.log(jnp.maximum(probability, 1e-12)).astype(dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + _tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@jax.custom_jvp
def _tanh(x: jax.Array) -> jax.Array:
    """tanh, float32, with the last bit right: XLA's is off by several near -1 and 1, and tails are made of that bit."""
    wide = x.astype(float)  # float64 where there is one
    size = jnp.abs(wide)
    near_one = jnp.sign(wide) * (1 - 2 * jax.nn.sigmoid(-2 * size))
    return jnp.where(size < 0.5, jnp.tanh(wide), near_one).astype(x.dtype)


@_tanh.defjvp
def _tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = _tanh(*primals)
    return y, tangents[0] * ((1 - y) * (1 + y))
