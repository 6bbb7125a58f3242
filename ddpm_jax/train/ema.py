"""Averages of parameters over training, the parameters one samples from."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Params = TypeVar("Params")


def update(ema_params: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """ema <- decay ema + (1 - decay) params; a copy of params at step 0.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B, decay 0.9999. The copy is their code's (decay 1e-10 at
    step 0): the random initialization does not stay in the average.

    Args:
      ema_params: average so far.
      params: after this step's update.
      step: number of updates before this one.
      decay: in [0, 1).
    """
    decay_now = jnp.where(step == 0, 0, jnp.float32(decay))
    return jax.tree.map(lambda e, p: e + (1 - decay_now) * (p - e), ema_params, params)
