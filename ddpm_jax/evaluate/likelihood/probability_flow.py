"""log p(x_0) by the probability-flow ODE.

A variance-preserving process x = alpha x_0 + sigma eps has alpha = cos(phi), sigma = sin(phi), and its ODE is

  dx/dphi = v(x, phi) = alpha eps - sigma x_0        Salimans & Ho 2022 (arXiv:2202.00512), appendix D
  d log p(x)/dphi = -div v                           along its solutions

with (x_0, eps) what the network says at x. Nothing is divided by alpha or sigma but what its prediction asks for, and
phi needs no derivative of the schedule. The densities are of images in [-1, 1], in nats; bits_per_dim turns them into
those of 256 grey levels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import example_keys
from ddpm_jax.samplers.denoise import Denoise
from ddpm_jax.samplers.grids import checked_steps, sigma_grids
from ddpm_jax.samplers.table import Row
from ddpm_jax.schedules import Schedule

HALF_BIN = 1 / 255  # grey levels are 2/255 apart in [-1, 1]


class Path(NamedTuple):
    """2N + 1 levels from clean to noisy: the ends of N steps and, between them, their middles in phi; float64."""

    time: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


class LogLikelihood(NamedTuple):
    """log_density [B] in nats, of x_0; x_T like x_0, where the ODE ends."""

    log_density: jax.Array
    x_T: jax.Array


def path(schedule: Schedule, num_steps: int) -> Path:
    """Steps uniform in log(sigma/alpha), from the schedule's first level to its last.

    Between timesteps the network is told times as `sigma_grids.discrete` has them: linear in log(sigma/alpha).

    Args:
      schedule: of at least 2 timesteps. One that ends in alphas_cumprod = 0 is followed to sigma/alpha = 4096.
      num_steps: N, at least 1; the network is called 4 N times.

    Raises:
      ValueError: num_steps below 1; a schedule of one timestep.
    """
    if schedule.num_timesteps < 2:
        raise ValueError(f"a path needs a schedule of at least 2 timesteps, got {schedule.num_timesteps}")
    sigmas = sigma_grids.of_schedule(schedule)
    ends = np.arctan(np.geomspace(sigmas[0], sigmas[-1], checked_steps(num_steps) + 1))
    middles = (ends[1:] + ends[:-1]) / 2
    angles = np.append(np.stack([ends[:-1], middles], axis=1).ravel(), ends[-1])
    level_at = sigma_grids.discrete(schedule)
    levels = [level_at(math.tan(angle)) for angle in angles]
    return Path(*(np.array(column) for column in zip(*levels, strict=True)))


def log_likelihood(
    denoise: Denoise,
    path: Path,
    x_0: jax.Array,
    key: jax.Array | None = None,
    *,
    num_probes: int | None = 1,
    first_index: int | jax.Array = 0,
) -> LogLikelihood:
    """log p(x_0) = log N(x_T; 0, I) + integral of div v dphi + d log alpha_first, with x = alpha_first x_0 at first.

    One scan of classical Runge-Kutta steps (order 4). It is the density of x_0 + (sigma/alpha)_first eps, the least
    noise that the network knows: for linear(1000) the standard deviation of that noise is 0.01, about one grey level.

    Source: Song et al. 2021 (arXiv:2011.13456), eq. 39, with the trace of eq. 40 (Hutchinson) or exact.

    Args:
      denoise: from `samplers.denoiser`, usually without clip: a clipped prediction is not the gradient of a density.
      path: from `path`.
      x_0: [B, ...] images in [-1, 1] with the noise of `dequantize`.
      key: of the whole set; example i draws its probes from fold_in(key, i), once for the whole path.
      num_probes: div v is the mean over this many random signs e of e . J e; None takes the d unit vectors, the exact
        trace for d times the cost, and needs no key.
      first_index: the global index of the first example.

    Raises:
      ValueError: no key where probes are drawn; num_probes below 1.
    """
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, or None for the exact trace, got {num_probes}")
    if num_probes is not None and key is None:
        raise ValueError("key must not be None unless num_probes is None (the exact trace)")
    dtype, size = x_0.dtype, math.prod(x_0.shape[1:])
    probe = _probes(key, first_index, x_0, random=num_probes is not None)

    def slope(x: jax.Array, level: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """(v, div v) at x."""
        v, jacobian = jax.linearize(lambda x: _velocity(denoise, x, level), x)
        product = lambda e: jnp.sum(e * jacobian(e), axis=tuple(range(1, e.ndim)))
        add = lambda k, total: total + product(probe(k))
        total = jax.lax.fori_loop(0, num_probes or size, add, jnp.zeros(len(x_0), dtype))
        return v, total / (num_probes or 1)

    def body(state: tuple[jax.Array, jax.Array], step: tuple) -> tuple[tuple[jax.Array, jax.Array], None]:
        (x, integral), (h, first, middle, last) = state, step
        v_1, div_1 = slope(x, first)
        v_2, div_2 = slope(x + h / 2 * v_1, middle)
        v_3, div_3 = slope(x + h / 2 * v_2, middle)
        v_4, div_4 = slope(x + h * v_3, last)
        x = x + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        return (x, integral + h / 6 * (div_1 + 2 * div_2 + 2 * div_3 + div_4)), None

    start = float(path.alpha[0]) * x_0, jnp.zeros(len(x_0), dtype)
    (x_T, integral), _ = jax.lax.scan(body, start, _steps(path, dtype))
    prior = -0.5 * jnp.sum(x_T**2, axis=tuple(range(1, x_T.ndim))) - size / 2 * math.log(2 * math.pi)
    return LogLikelihood(prior + integral + size * math.log(path.alpha[0]), x_T)


def _steps(path: Path, dtype: Any) -> tuple[jax.Array, tuple, tuple, tuple]:
    """(step in phi, level at its start, in its middle, at its end), each stacked over steps."""
    angles = np.arctan2(path.sigma, path.alpha)
    level = lambda part: tuple(column[part] for column in path)
    steps = angles[2::2] - angles[:-2:2], level(slice(0, -2, 2)), level(slice(1, None, 2)), level(slice(2, None, 2))
    return jax.tree.map(lambda column: jnp.asarray(column, dtype), steps)


def _probes(
    key: jax.Array | None, first_index: int | jax.Array, like: jax.Array, *, random: bool
) -> Callable[[jax.Array], jax.Array]:
    """k -> [B, ...]: the k-th random signs of each example, or the k-th unit vector."""
    shape, dtype = like.shape[1:], like.dtype
    if not random:
        unit = lambda k: jax.nn.one_hot(k, math.prod(shape), dtype=dtype).reshape(shape)
        return lambda k: jnp.broadcast_to(unit(k), like.shape)
    assert key is not None  # checked by log_likelihood
    keys = example_keys(key, first_index, len(like))
    # jax.random.rademacher tosses float64 coins, which are others, where x64 is on.
    coins = lambda key, k: jax.random.bernoulli(jax.random.fold_in(key, k), jnp.float32(0.5), shape)
    signs = lambda key, k: jnp.where(coins(key, k), 1, -1).astype(dtype)
    return lambda k: jax.vmap(signs, in_axes=(0, None))(keys, k)


def _velocity(denoise: Denoise, x: jax.Array, level: tuple[jax.Array, ...]) -> jax.Array:
    time, alpha, sigma = level
    zero = jnp.zeros((), x.dtype)  # variance and spread: nothing is sampled here
    found = denoise(x, Row(time, alpha, sigma, zero, zero, None))
    return alpha * found.eps - sigma * found.x_0


def dequantize(x_0: jax.Array, key: jax.Array, *, first_index: int | jax.Array = 0) -> jax.Array:
    """x_0 + u, u ~ Uniform(-1/255, 1/255): anywhere in the bin of its grey level.

    E log p(x_0 + u) + log(bin) is at most log of the probability of the grey level (Jensen), so the bits of
    dequantized images are an upper bound.

    Source: Theis et al. 2016 (arXiv:1511.01844), section 3.1.

    Args:
      x_0: [B, ...] images whose values are grey levels k / 127.5 - 1.
      key: of the whole set; example i draws from fold_in(key, i).
      first_index: the global index of the first example.
    """
    draw = lambda key: jax.random.uniform(key, x_0.shape[1:], x_0.dtype, -HALF_BIN, HALF_BIN)
    return x_0 + jax.vmap(draw)(example_keys(key, first_index, len(x_0)))


def bits_per_dim(log_density: jax.Array, num_dims: int) -> jax.Array:
    """-log_density / (d log 2) + log2(127.5): bits per dimension of 256 grey levels, 1/127.5 apart in [-1, 1].

    Source: Song et al. 2021 (arXiv:2011.13456), appendix C; their scaling by 1/128 makes it log2(128) there.
    """
    return -log_density / (num_dims * math.log(2)) + math.log2(127.5)
