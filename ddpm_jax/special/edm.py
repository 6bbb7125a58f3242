"""Training at x = x_0 + sigma eps for any sigma > 0, and the networks F of Karras et al. 2022 (arXiv:2206.00364).

  D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                                            eq. 7
  loss        = weight(sigma) (D(x_0 + sigma eps; sigma) - x_0)^2                              eq. 2, 8

`edm`, `vp`, `ve` and `iddpm` are the columns of table 1. `samplers.preconditioned` on grids of
`samplers.sigma_grids.continuous` samples from a network trained with `edm`, here at any sigma or with `objectives.edm`
on the levels of a Schedule. sigma is [B], images are [B, ...].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.process import ModelFn

Denoise = Callable[[jax.Array, jax.Array], jax.Array]  # D(x [B, ...], sigma [B]) -> pred_x_0 like x


class Scalings(NamedTuple):
    """What is done to the network's input and output at sigma; each like sigma."""

    c_skip: jax.Array
    c_out: jax.Array
    c_in: jax.Array
    c_noise: jax.Array


def edm(sigma: jax.Array, *, sigma_data: float = 0.5) -> Scalings:
    """c_skip = sd^2 / (s^2 + sd^2), c_out = s sd / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2), c_noise = ln(s) / 4.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, "Ours".
    """
    std = jnp.hypot(sigma, jnp.full_like(sigma, sigma_data))
    return Scalings((sigma_data / std) ** 2, sigma * sigma_data / std, 1 / std, jnp.log(sigma) / 4)


def vp(sigma: jax.Array, *, beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 1000) -> Scalings:
    """c_skip = 1, c_out = -s, c_in = 1 / sqrt(s^2 + 1), c_noise = (M - 1) t, s^2 + 1 = exp(beta_d t^2/2 + beta_min t).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, "VP"; M is `steps`.
    """
    one = jnp.ones_like(sigma)
    t = (jnp.sqrt(beta_min**2 + 2 * beta_d * jnp.log1p(sigma**2)) - beta_min) / beta_d
    return Scalings(one, -sigma, 1 / jnp.hypot(sigma, one), (steps - 1) * t)


def ve(sigma: jax.Array) -> Scalings:
    """c_skip = 1, c_out = s, c_in = 1, c_noise = ln(s / 2).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, "VE".
    """
    one = jnp.ones_like(sigma)
    return Scalings(one, sigma, one, jnp.log(sigma / 2))


def iddpm(sigma: jax.Array, *, steps: int = 1000, c_1: float = 0.001, c_2: float = 0.008) -> Scalings:
    """c_skip = 1, c_out = -s, c_in = 1 / sqrt(s^2 + 1), c_noise = M - 1 - j with u_j nearest to s (`iddpm_table`).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1, "iDDPM"; M is `steps`.
    """
    one = jnp.ones_like(sigma)
    table = jnp.asarray(iddpm_table(steps, c_1=c_1, c_2=c_2), sigma.dtype)
    nearest = jnp.argmin(jnp.abs(sigma[:, None] - table[None]), axis=1)
    return Scalings(one, -sigma, 1 / jnp.hypot(sigma, one), (steps - 1 - nearest).astype(sigma.dtype))


def iddpm_table(steps: int = 1000, *, c_1: float = 0.001, c_2: float = 0.008) -> np.ndarray:
    """u_{j-1}^2 + 1 = (u_j^2 + 1) / max(a_{j-1} / a_j, c_1), u_M = 0, a_j = sin^2(pi j / (2 M (c_2 + 1))); [M + 1].

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (iDDPM).
    """
    a = np.sin(np.pi / 2 * np.arange(steps + 1) / steps / (c_2 + 1)) ** 2
    growth = np.log(np.maximum(a[:-1] / a[1:], c_1))[::-1]  # of j = M-1 .. 0
    return np.append(np.sqrt(np.expm1(-np.cumsum(growth)))[::-1], 0.0)


def preconditioned(model_fn: ModelFn, scalings: Callable[[jax.Array], Scalings] = edm) -> Denoise:
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7.

    Args:
      model_fn: F(x [B, ...], time [B]) -> like x.
      scalings: one of the functions here; functools.partial gives it other constants.
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        c = scalings(sigma)
        output = model_fn(_column(c.c_in, x) * x, c.c_noise)
        if output.shape != x.shape:
            raise ValueError(f"output must be like x, {x.shape}, got {output.shape}")
        return _column(c.c_skip, x) * x + _column(c.c_out, x) * output

    return denoise


def loss(denoise: Denoise, x_0: jax.Array, sigma: jax.Array, eps: jax.Array, weight: jax.Array) -> jax.Array:
    """mean over pixels of weight (D(x_0 + sigma eps; sigma) - x_0)^2.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 2, 8.

    Args:
      denoise: D, as `preconditioned` makes it.
      x_0: [B, ...] clean data.
      sigma: [B] positive.
      eps: like x_0, standard normal.
      weight: [B], `edm_weight(sigma)`; with the VP and VE networks 1 / sigma^2.

    Returns:
      [B].
    """
    error = denoise(q_sample(x_0, sigma, eps), sigma) - x_0
    return weight * jnp.mean(error**2, axis=tuple(range(1, x_0.ndim)))


def edm_weight(sigma: jax.Array, *, sigma_data: float = 0.5) -> jax.Array:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def lognormal_sigma(normal: jax.Array, *, mean: float = -1.2, std: float = 1.2) -> jax.Array:
    """sigma = exp(mean + std normal): ln sigma ~ N(mean, std^2) if normal ~ N(0, 1).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (P_mean, P_std).
    """
    return jnp.exp(mean + std * normal)


def vp_sigma(uniform: jax.Array, *, beta_d: float = 19.9, beta_min: float = 0.1, time_min: float = 1e-5) -> jax.Array:
    """sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t = 1 - (1 - time_min) uniform: t ~ U(time_min, 1].

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (VP, noise distribution); uniform ~ U[0, 1).
    """
    t = 1 - (1 - time_min) * uniform
    return jnp.sqrt(jnp.expm1(beta_d / 2 * t**2 + beta_min * t))


def ve_sigma(uniform: jax.Array, *, sigma_min: float = 0.02, sigma_max: float = 100.0) -> jax.Array:
    """sigma = sigma_min (sigma_max / sigma_min)^uniform: ln sigma ~ U[ln sigma_min, ln sigma_max).

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (VE, noise distribution); uniform ~ U[0, 1).
    """
    return sigma_min * (sigma_max / sigma_min) ** uniform


def sigma_of(c_noise: jax.Array) -> jax.Array:
    """sigma = exp(4 c_noise): where EDM's network is told c_noise, which diffusers calls the timestep."""
    return jnp.exp(4 * c_noise)


def q_sample(x_0: jax.Array, sigma: jax.Array, eps: jax.Array) -> jax.Array:
    """x = x_0 + sigma eps, a sample of q(x; sigma) if eps ~ N(0, I).

    Source: Karras et al. 2022 (arXiv:2206.00364), section 2.

    Args:
      x_0: [B, ...] clean data.
      sigma: [B], at least 0; `sigma_of` gives it from what the network is told.
      eps: like x_0.

    Raises:
      ValueError: eps not like x_0, or sigma not [B].
    """
    if eps.shape != x_0.shape or sigma.shape != x_0.shape[:1]:
        raise ValueError(f"eps must be like x_0, {x_0.shape}, and sigma [B] of it, got {eps.shape} and {sigma.shape}")
    return x_0 + _column(sigma, x_0) * eps


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
