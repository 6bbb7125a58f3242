"""Grids given by sigma, the noise level of x / alpha = x_0 + sigma eps ("variance exploding" or Karras form).

A sigma is a level once it is known what the network is told there. `LevelAt` is that function: `discrete(schedule)`
for networks trained at the timesteps of a schedule, `continuous(sigma_data)` for Karras' log(sigma) / 4. Both scale x
to what the network takes in, by 1 / sqrt(sigma^2 + sigma_data^2), so X is the network's input; sigma_data is 1 for
networks of a variance-preserving process. The last level of every grid here has alpha = 1.
"""

import itertools
from collections.abc import Callable, Sequence
from math import hypot, inf, log, sqrt

import numpy as np
from scipy.special import betaincinv

from ddpm_jax.samplers.grids import Grid, Level, checked_steps
from ddpm_jax.schedules import Schedule
from ddpm_jax.special.edm import iddpm_table

LevelAt = Callable[[float], Level]

ZERO_SNR_SIGMA = sqrt((1 - 2.0**-24) / 2.0**-24)  # in place of infinity; diffusers' alphas_cumprod of 2^-24


def ratio(level: Level) -> float:
    """sigma / alpha: the noise level of x / alpha.

    Raises:
      ValueError: alpha is 0.
    """
    if level.alpha == 0:
        raise ValueError(f"this sampler cannot start from pure noise: alpha is 0 at time {level.time:g} of the grid")
    return level.sigma / level.alpha


def scaled(sigma: float, time: float, sigma_data: float = 1.0) -> Level:
    """The level of x = (x_0 + sigma eps) / sqrt(sigma^2 + sigma_data^2)."""
    std = hypot(sigma, sigma_data)
    return Level(time, 1 / std, sigma / std)


def of_schedule(schedule: Schedule) -> np.ndarray:
    """sigma_t = sqrt((1 - alphas_cumprod_t) / alphas_cumprod_t), float64 [T], increasing.

    Where the schedule ends in alphas_cumprod = 0 the last is 4096, not infinity: sigma-form samplers divide by it.
    """
    keep = schedule.alphas_cumprod_float64
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt(schedule.one_minus_alphas_cumprod_float64 / keep)
    return np.where(keep > 0, sigmas, ZERO_SNR_SIGMA)


def discrete(schedule: Schedule) -> LevelAt:
    """Levels whose time interpolates the schedule's timesteps linearly in log sigma, and stops at its ends.

    Source: Karras et al.'s k-diffusion and diffusers ("sigma_to_t").
    """
    return interpolated(of_schedule(schedule), np.asarray(schedule.timesteps, np.float64))


def interpolated(sigmas: np.ndarray, times: np.ndarray) -> LevelAt:
    """As `discrete`, for a network that is told times[i] at sigmas[i], both increasing."""
    log_sigmas = np.log(sigmas)
    return lambda sigma: scaled(sigma, float(np.interp(log(sigma), log_sigmas, times)))


def continuous(sigma_data: float = 0.5) -> LevelAt:
    """Levels with time = log(sigma) / 4.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (c_noise and c_in).
    """
    return lambda sigma: scaled(sigma, log(sigma) / 4, sigma_data)


def from_sigmas(level_at: LevelAt, sigmas: Sequence[float] | np.ndarray) -> Grid:
    """The levels of these sigmas, in the order given; the last is where sampling ends, usually 0.

    Raises:
      ValueError: fewer than 2 sigmas; not decreasing; a last one that is negative.
    """
    values = [float(sigma) for sigma in sigmas]
    if len(values) < 2 or values[-1] < 0 or not all(s > t for s, t in itertools.pairwise(values)):
        raise ValueError(f"sigmas must be at least 2 numbers that decrease strictly to 0 or above, got {values}")
    return Grid((*(level_at(sigma) for sigma in values[:-1]), Level(0.0, 1.0, values[-1])))


def from_times(schedule: Schedule, times: Sequence[float] | np.ndarray) -> Grid:
    """The levels of these times, then sigma = 0; between timesteps sigma is interpolated linearly.

    Source: diffusers' Euler, Heun, DPM-2 and LMS classes, whose "linspace" spacing has fractional times.

    Raises:
      ValueError: times that do not decrease strictly, or lie outside the schedule's.
    """
    known = np.asarray(schedule.timesteps, np.float64)
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or times.size == 0 or not ((known[0] <= times) & (times <= known[-1])).all():
        raise ValueError(f"times must be a list of numbers in [{known[0]:g}, {known[-1]:g}], got {times}")
    sigmas = np.interp(times, known, of_schedule(schedule))
    return Grid((*(scaled(float(s), float(t)) for s, t in zip(sigmas, times, strict=True)), Level(0.0, 1.0, 0.0)))


def linspace(schedule: Schedule, num_steps: int) -> Grid:
    """Times linspace(T - 1, 0, N), not rounded, then sigma = 0.

    Source: diffusers' timestep_spacing "linspace" in its sigma-form classes; k-diffusion's get_sigmas.
    """
    return from_times(schedule, np.linspace(schedule.num_timesteps - 1, 0, checked_steps(num_steps)))


def karras(
    schedule: Schedule,
    num_steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Grid:
    """sigma_i of `karras_sigmas`, then 0. None for an end is the schedule's.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5.
    """
    ends = _ends(schedule, sigma_min, sigma_max)
    return from_sigmas(discrete(schedule), [*karras_sigmas(num_steps, *ends, rho=rho), 0])


def exponential(
    schedule: Schedule, num_steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """sigma_i of `exponential_sigmas`, uniform in log-SNR, then 0. None for an end is the schedule's."""
    ends = _ends(schedule, sigma_min, sigma_max)
    return from_sigmas(discrete(schedule), [*exponential_sigmas(num_steps, *ends), 0])


def beta(
    schedule: Schedule,
    num_steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    a: float = 0.6,
    b: float = 0.6,
) -> Grid:
    """sigma_i of `beta_sigmas`, then 0. None for an end is the schedule's.

    Source: Lee et al. 2024 (arXiv:2407.12173), as diffusers applies it, to sigma rather than to time.
    """
    ends = _ends(schedule, sigma_min, sigma_max)
    return from_sigmas(discrete(schedule), [*beta_sigmas(num_steps, *ends, a=a, b=b), 0])


def edm(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, sigma_data: float = 0.5
) -> Grid:
    """sigma_i of `karras_sigmas`, then 0, for networks under `denoise.preconditioned`.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5 and table 1.
    """
    return from_sigmas(continuous(sigma_data), [*karras_sigmas(num_steps, sigma_min, sigma_max, rho=rho), 0])


def karras_sigmas(num: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0) -> np.ndarray:
    """sigma_i = (sigma_max^(1/rho) + i / (num - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0 .. num-1.

    Raises:
      ValueError: a rho that is not positive, or with which these powers are not finite.
    """
    if not 0 < rho < 1e6:
        raise ValueError(f"rho must lie in (0, 1e6), got {rho}")
    with np.errstate(over="ignore", invalid="ignore"):
        start, end = np.power([sigma_max, sigma_min], 1 / rho)
        sigmas = (start + np.linspace(0, 1, checked_steps(num)) * (end - start)) ** rho
    if not np.isfinite(sigmas).all():
        raise ValueError(f"rho {rho} is too small: sigma_max {sigma_max:g} to the power of 1 / rho is not finite")
    return sigmas


def exponential_sigmas(num: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """sigma_i = sigma_max^(1 - u) sigma_min^u,  u = i / (num - 1)."""
    return np.exp(np.linspace(log(sigma_max), log(sigma_min), checked_steps(num)))


def beta_sigmas(num: int, sigma_min: float, sigma_max: float, *, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """sigma_i = sigma_min + (sigma_max - sigma_min) Q(1 - i / (num - 1)), Q the quantiles of the Beta(a, b) law."""
    return sigma_min + (sigma_max - sigma_min) * betaincinv(a, b, 1 - np.linspace(0, 1, checked_steps(num)))


def vp_sigmas(num: int, *, beta_d: float = 19.9, beta_min: float = 0.1, time_min: float = 1e-3) -> np.ndarray:
    """sigma_i = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) for t from 1 to time_min, evenly.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (VP); Song et al. 2021 (arXiv:2011.13456), appendix C.
    """
    t = np.linspace(1, time_min, checked_steps(num))
    return np.sqrt(np.expm1(beta_d / 2 * t**2 + beta_min * t))


def iddpm_sigmas(
    num: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    steps: int = 1000,
    c_1: float = 0.001,
    c_2: float = 0.008,
) -> np.ndarray:
    """sigma_i = u_j of `edm.iddpm_table` at even whole j; only those u_j > 0 that lie in [sigma_min, sigma_max].

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (iDDPM).
    """
    u = iddpm_table(steps, c_1=c_1, c_2=c_2)[:-1]
    u = u[(sigma_min <= u) & (u <= sigma_max)]
    return u[np.round(np.linspace(0, len(u) - 1, checked_steps(num))).astype(int)]


def churned(
    grid: Grid, level_at: LevelAt, *, s_churn: float, s_tmin: float = 0.0, s_tmax: float = inf
) -> tuple[Level, ...]:
    """The levels (1 + gamma) sigma to which noise is raised before each step: `hat` of `heun` and `euler`.

    gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= sigma <= s_tmax, else 0.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2.
    """
    gamma = min(s_churn / grid.num_steps, sqrt(2) - 1)
    raised = lambda level: gamma > 0 and s_tmin <= ratio(level) <= s_tmax
    return tuple(level_at(ratio(s) * (1 + gamma)) if raised(s) else s for s in grid.levels[:-1])


def _ends(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    sigmas = of_schedule(schedule)
    return (
        float(sigmas[0]) if sigma_min is None else sigma_min,
        float(sigmas[-1]) if sigma_max is None else sigma_max,
    )
