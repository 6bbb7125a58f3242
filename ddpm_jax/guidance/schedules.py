"""Scales that change from row to row: [N] numbers for `on`.

t / T falls from almost 1 to 0 while a sampler runs, so both ramps rise: little guidance in the noise, most at the end.
Their mean over t is the value that is given, so they compare with a constant of the same value.

Source: Wang et al. 2024 (arXiv:2404.13040), section 4. Its omega is u's: (1 + omega) c - omega u, the weight.
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax.samplers.table import Table


def linear(table: Table, value: float, num_timesteps: int) -> np.ndarray:
    """[N], 2 value (1 - t / T).

    Args:
      table: of any sampler, which tells the network its time t in [0, T).
      value: the mean over t.
      num_timesteps: T.

    Raises:
      ValueError: a row whose time is not in [0, T].
    """
    return _ramp(table, value, num_timesteps, lambda share: 2 * (1 - share))


def cosine(table: Table, value: float, num_timesteps: int) -> np.ndarray:
    """[N], value (1 + cos(pi t / T)). Arguments and errors are those of `linear`."""
    return _ramp(table, value, num_timesteps, lambda share: 1 + np.cos(np.pi * share))


def _ramp(table: Table, value: float, num_timesteps: int, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    share = np.asarray(table.rows.time, np.float64) / num_timesteps
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(
            f"num_timesteps={num_timesteps} must be that of the network's time, got rows at times "
            f"{table.rows.time.min():g} to {table.rows.time.max():g}"
        )
    return value * shape(share)
