"""What training minimizes, one number per example."""

import jax
import jax.numpy as jnp

from ddpm_jax import process
from ddpm_jax.process import ModelFn
from ddpm_jax.schedules import Schedule


def simple(model_fn: ModelFn, schedule: Schedule, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """L_simple = mean over pixels of (eps - model_fn(x_t, t))^2,  x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 14. The paper sums over pixels; its code, like everyone's, averages.

    Args:
      model_fn: model_fn(x_t [B, ...], t [B] float32) -> eps like x_t; told schedule.timesteps[t].
      schedule: Schedule of length T.
      x_0: [B, ...] clean data in [-1, 1].
      t: [B] int in [0, T).
      eps: like x_0, standard normal.

    Returns:
      [B] float32.

    Raises:
      ValueError: as process.q_sample; a network whose output is not like x_t.
    """
    x_t = process.q_sample(schedule, x_0, t, eps)
    output = model_fn(x_t, schedule.timesteps[t].astype(jnp.float32))
    if output.shape != x_t.shape:
        raise ValueError(f"the network's output must be like x_t, {x_t.shape}, got {output.shape}")
    return jnp.mean((eps - output) ** 2, axis=tuple(range(1, x_t.ndim)))
