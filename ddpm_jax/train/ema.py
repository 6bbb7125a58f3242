"""Averages of parameters over training, the parameters one samples from.

theta_i are the parameters after update i = 1, 2, ..., t. Two kinds of averages:

    constant decay d    mean <- d mean + (1 - d) theta_t
    power function      mean = integral_0^t tau^gamma theta(tau) d tau / integral_0^t tau^gamma d tau

The profile of the second keeps its shape while training goes on; its standard deviation in units of t, sigma_rel, is
its name.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ddpm_jax.config.averages import NARROWEST as NARROWEST
from ddpm_jax.config.averages import NONE as NONE
from ddpm_jax.config.averages import WIDEST as WIDEST
from ddpm_jax.config.averages import Averages, gamma_of

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


def init_stack(params: Params, averages: Averages) -> Params | tuple[()]:
    """Copies of params, [R, ...] for R averages; () for none."""
    return jax.tree.map(lambda p: jnp.stack([p] * len(averages)), params) if averages else ()


def update_stack(stack: Params, params: Any, step: jax.Array, averages: Averages) -> Params:
    """mean_r <- beta_r mean_r + (1 - beta_r) params, one row r for each average; copies of params at step 0.

    beta is the decay of a constant one, and (1 - 1/t)^(gamma + 1) of a power function, t = step + 1: then mean is the
    integral above, exactly, of theta(tau) = theta_i for i - 1 < tau <= i.

    Source: Karras et al. 2024 (arXiv:2312.02696), section 3.1 (beta_gamma).

    Args:
      stack: averages so far, [R, ...]; () for none.
      params: after this step's update.
      step: number of updates before this one.
      averages: what the rows are.
    """
    if not averages:
        return stack
    constant = 1 - jnp.where(step == 0, 0, jnp.array(averages.decays, jnp.float32))
    exponents = jnp.array([gamma_of(sigma) + 1 for sigma in averages.sigmas], jnp.float32)
    # 1 - beta, without the rounding of a beta that is almost 1.
    power = -jnp.expm1(exponents * jnp.log1p(-1 / (step + 1).astype(jnp.float32)))
    toward = lambda mean, weight: jax.tree.map(lambda m, p: m + weight * (p - m), mean, params)
    return jax.vmap(toward)(stack, jnp.concatenate([constant, power]))
