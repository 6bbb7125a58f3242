"""FastDPM's grids: some of the timesteps (STEP), or noise levels of a shorter process placed in continuous time (VAR).

FastDPM is not a sampler of its own: DDPM-rev with kappa and DDIM-rev are `ddim` on these grids with eta = kappa, 1 and
0 in the paper's names.
"""

from collections.abc import Callable
from math import exp, expm1, lgamma, log, sqrt
from typing import Literal, get_args

import numpy as np
from scipy.optimize import brentq

from ddpm_jax.names import unknown
from ddpm_jax.samplers.grids import Grid, Level, checked_steps, from_timesteps, quad
from ddpm_jax.schedules import Schedule

Shape = Literal["linear", "quadratic"]
Search = Literal["exact", "bounded"]


def step_grid(schedule: Schedule, num_steps: int, shape: Shape = "linear") -> Grid:
    """t = floor(i (T-1) / (N-1)), or "quadratic": `grids.quad`. "STEP".

    Source: Kong & Ping 2021 (arXiv:2106.00132), section 3.2 ("noise level approximation by steps") and code.

    Raises:
      ValueError: unknown shape; num_steps outside [1, T].
    """
    _check(shape, Shape, "shape")
    if shape == "quadratic":
        return quad(schedule, num_steps)
    checked_steps(num_steps, schedule.num_timesteps)
    steps = np.arange(num_steps) * (schedule.num_timesteps - 1) // max(num_steps - 1, 1)
    return from_timesteps(schedule, steps[::-1])


def var_grid(schedule: Schedule, num_steps: int, shape: Shape = "linear", search: Search = "exact") -> Grid:
    """Levels of N betas whose product of 1 - beta is that of the T betas, told to the network as fractional t. "VAR".

    "linear": beta_i from beta_0 in equal steps; "quadratic": beta_i = beta_0 (1 + i x)^2.

    Source: Kong & Ping 2021 (arXiv:2106.00132), section 3.1 ("variances") and appendix B; code.

    Args:
      schedule: one with linear betas.
      num_steps: N, at least 2.
      shape: of the betas.
      search: "exact" finds x; "bounded" looks no further than x = 0.95 / (N sqrt(beta_0)), as the code does for
        "quadratic", which therefore starts below t = T-1 for N up to about 20 (at t = 617 for N = 10).

    Raises:
      ValueError: unknown shape or search; N outside [2, T]; betas that are not linear; N so small that no such betas
        below 1 exist.
    """
    _check(shape, Shape, "shape")
    _check(search, Search, "search")
    checked_steps(num_steps, schedule.num_timesteps, least=2)
    first = schedule.betas_float64[0]
    index = np.arange(num_steps)
    grow = {"linear": lambda x: first * (1 + index * x), "quadratic": lambda x: first * (1 + index * x) ** 2}[shape]
    target = np.log1p(-schedule.betas_float64).sum()
    # The largest x that keeps all betas below 1.
    top = ((1 / first) ** (1 if shape == "linear" else 0.5) - 1) / (num_steps - 1) * (1 - 1e-12)
    excess = lambda x: np.log1p(-grow(x)).sum() - target
    if excess(0.0) < 0 or excess(top) > 0:
        raise ValueError(f"no {num_steps} {shape} betas in (0, 1) have the product of this schedule")
    x = _root(excess, 0.0, top, 1e-15)
    if search == "bounded" and shape == "quadratic":
        x = min(x, 0.95 / (num_steps * sqrt(first)))
    log_keep = np.cumsum(np.log1p(-grow(x)))[::-1]
    times = times_of(schedule, log_keep)
    levels = (Level(t, exp(y / 2), sqrt(-expm1(y))) for t, y in zip(times, log_keep, strict=True))
    return Grid((*levels, Level(0.0, 1.0, 0.0)))


def times_of(schedule: Schedule, log_alphas_cumprod: np.ndarray) -> list[float]:
    """Fractional t with log alphas_cumprod(t) = these, where the product of 1 - beta_0 - i delta runs to real t.

    log alphas_cumprod(t) = (t + 1) log delta + log Gamma(c + 1) - log Gamma(c - t),  c = (1 - beta_0) / delta.

    Source: Kong & Ping 2021 (arXiv:2106.00132), eq. 13; their code approximates log Gamma by Stirling's series.

    Raises:
      ValueError: betas that are not linear and growing.
    """
    betas = schedule.betas_float64
    delta = (betas[-1] - betas[0]) / max(len(betas) - 1, 1)
    if not delta > 0 or np.abs(np.diff(betas) - delta).max() > 1e-9 * betas[-1]:
        raise ValueError("betas must grow linearly for noise levels between timesteps to be known")
    c = (1 - betas[0]) / delta
    at = lambda t: (t + 1) * log(delta) + lgamma(c + 1) - lgamma(c - t)
    end = min(len(betas) + 1.0, c - 1e-6)
    return [_root(lambda t, y=y: at(t) - y, -1.0, end, 1e-10) for y in log_alphas_cumprod]


def _root(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    return float(brentq(function, low, high, xtol=tolerance))  # type: ignore[reportArgumentType]


def _check(value: str, allowed: object, kind: str) -> None:
    if value not in get_args(allowed):
        raise unknown(kind, value, get_args(allowed))
