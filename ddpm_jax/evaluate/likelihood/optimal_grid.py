"""The N timesteps with the best variational bound, from one table of the network's errors.

The cost of one reverse step from timestep t to an earlier s depends on the data through the mean squared error of
pred_x_0 at t alone, so the bounds of all strided processes follow from the table of one pass over the data.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ddpm_jax.names import unknown
from ddpm_jax.samplers.grids import checked_steps
from ddpm_jax.schedules import Schedule

CostVariance = Literal["fixed_small", "fixed_large", "analytic"]


def step_costs(schedule: Schedule, x_0_mse: ArrayLike, *, variance: CostVariance = "fixed_small") -> np.ndarray:
    """E KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for all s < t, in bits per dimension; float64 [T, T], inf for s >= t.

    With gain = (SNR_s - SNR_t) x_0_mse_t and r = p's variance / beta_tilde of the step from t to s, it is
    (log r + (1 + gain) / r - 1) / 2 nats. Row t, column s.

    Source: Watson et al. 2021 (arXiv:2106.03802), section 3.2; gain is that of Kingma et al. 2021 (arXiv:2107.00630),
    eq. 13.

    Args:
      schedule: of length T.
      x_0_mse: [T] mean over data, noise and pixels of (x_0 - pred_x_0)^2 at each t.
      variance: of p: "fixed_small", r = 1; "fixed_large", beta of the step; "analytic", the best, r = 1 + gain, which
        also stands for a learned variance.

    Raises:
      ValueError: another number of errors than T, or one that is negative or not finite; unknown variance.
    """
    mse = np.asarray(x_0_mse, np.float64)
    if mse.shape != (schedule.num_timesteps,):
        raise ValueError(f"x_0_mse must be one number a timestep, [{schedule.num_timesteps}], got {mse.shape}")
    if not (np.isfinite(mse) & (mse >= 0)).all():
        bad = int(np.argmin(np.isfinite(mse) & (mse >= 0)))
        raise ValueError(f"x_0_mse must be finite and not negative, got {mse[bad]} at t = {bad}")
    if variance not in get_args(CostVariance):
        raise unknown("variance", variance, get_args(CostVariance))
    keep, noise = schedule.alphas_cumprod_float64, schedule.one_minus_alphas_cumprod_float64
    snr = keep / noise
    later = np.tri(schedule.num_timesteps, k=-1, dtype=bool)  # s < t
    gain = np.where(later, snr[None, :] - snr[:, None], 0) * mse[:, None]
    # r = beta / beta_tilde = (1 - ac_t) / (1 - ac_s).
    ratio = {"fixed_small": 1.0, "fixed_large": noise[:, None] / noise[None, :], "analytic": 1 + gain}[variance]
    nats = (np.log(ratio) + (1 + gain) / ratio - 1) / 2
    return np.where(later, nats / np.log(2), np.inf)


def optimal_timesteps(costs: ArrayLike, num_steps: int) -> np.ndarray:
    """argmin over T-1 = t_1 > t_2 > ... > t_N = 0 of the sum of costs[t_i, t_(i+1)].

    Both ends are fixed: the prior is that of T-1, and the decoder, which must resolve single grey levels, that of 0.

    Source: Watson et al. 2021 (arXiv:2106.03802), algorithm 1 (vectorized).

    Args:
      costs: [T, T]; row t, column s is the cost of the step from t to s; from `step_costs`, or any other.
      num_steps: N, calls of the network, in [2, T].

    Returns:
      [N] int64, decreasing: for `samplers.grids.from_timesteps`; reversed, for `schedules.respace`.

    Raises:
      ValueError: costs not square; num_steps outside [2, T].
    """
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f"costs must be [T, T], got shape {costs.shape}")
    checked_steps(num_steps, len(costs), least=2)
    costs = np.where(np.tri(len(costs), k=-1, dtype=bool), costs, np.inf)
    best = np.full(len(costs), np.inf)  # the least cost of getting from T-1 to t in so many steps
    best[-1] = 0
    came_from = []
    for _ in range(num_steps - 1):
        through = best[:, None] + costs
        came_from.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    steps = [0]
    for previous in reversed(came_from):
        steps.append(int(previous[steps[-1]]))
    return np.array(steps[::-1])
