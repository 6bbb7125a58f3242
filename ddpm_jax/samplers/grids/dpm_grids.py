"""Grids of the log-SNR solvers: how DPM-Solver's authors, and diffusers' DPM classes, choose levels.

diffusers' "leading" and "linspace" are other grids here than in `grids`: of N + 1 timesteps the last is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, sqrt
from typing import Any, Literal, get_args

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.samplers.families.exponential import log_snr
from ddpm_jax.samplers.grids import Grid, Level, checked_steps
from ddpm_jax.samplers.grids.sigma_grids import of_schedule, ratio, scaled
from ddpm_jax.schedules import Schedule, checked_timesteps

Last = Literal["clean", "first", "same"]
Rounding = Literal["none", "nearest", "down"]

CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Ascent(Grid):
    """Levels from clean to noisy, for inversion with a sampler that has no noise. X starts as x_0."""

    def __post_init__(self):
        if len(self.levels) < 2:
            raise ValueError(f"a grid needs at least 2 levels, got {len(self.levels)}")
        for s, t in self.steps()[: -1 if self.idle_end else None]:
            if not ratio(s) < ratio(t):
                raise ValueError(
                    f"noise must increase strictly, got sigma/alpha {ratio(s):.6g} and then {ratio(t):.6g}"
                )


def ending(schedule: Schedule, levels: Sequence[Level], last: Last) -> Grid:
    """These levels, then the last one.

    Args:
      schedule: whose first level "first" is.
      levels: of the calls, noisy to clean.
      last: "clean" (diffusers' final_sigmas_type "zero"); "first", the level of t = 0 ("sigma_min"); "same", the last
        of `levels` again. Where "first" is that as well, the last call changes nothing.

    Raises:
      ValueError: unknown last; levels that do not decrease.
    """
    if last not in get_args(Last):
        raise unknown("last level", last, get_args(Last))
    if last == "clean":
        return Grid((*levels, CLEAN))
    first = float(of_schedule(schedule)[0])
    idle = last == "same" or abs(ratio(levels[-1]) / first - 1) < 1e-6  # rounding of Karras' powers
    return Grid((*levels, levels[-1] if idle else scaled(first, _time(schedule, 0.0))), idle_end=idle)


def _time(schedule: Schedule, position: float) -> float:
    return float(np.interp(position, np.arange(schedule.num_timesteps), np.asarray(schedule.timesteps, float)))


def at_timesteps(schedule: Schedule, timesteps: Sequence[int] | np.ndarray, *, last: Last = "clean") -> Grid:
    """The levels of these entries of the schedule, then the last level; at alphas_cumprod = 0, that of 2^-24.

    Raises:
      ValueError: timesteps empty, not whole numbers in [0, T), or not decreasing; unknown `last`.
    """
    return ending(schedule, levels_at(schedule, timesteps), last)


def levels_at(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> list[Level]:
    """The levels of these entries of the schedule.

    Raises:
      ValueError: timesteps empty, or not whole numbers in [0, T).
    """
    steps = checked_timesteps(schedule, timesteps)
    sigmas = of_schedule(schedule)
    return [scaled(float(sigmas[i]), _time(schedule, float(i))) for i in steps]


def leading(
    schedule: Schedule, num_steps: int, *, offset: int = 0, last: Last = "clean", lambda_min: float = -inf
) -> Grid:
    """t = k (T' // (N + 1)) + offset for k = N .. 1, with the T' timesteps whose log-SNR is at least lambda_min.

    Source: diffusers' timestep_spacing "leading" in its DPM-Solver, UniPC, DEIS and SA-Solver classes.
    """
    length = kept_timesteps(schedule, lambda_min)
    steps = np.arange(checked_steps(num_steps, length - 1) + 1) * (length // (num_steps + 1))
    return at_timesteps(schedule, steps[:0:-1] + offset, last=last)


def linspace(schedule: Schedule, num_steps: int, *, last: Last = "clean", lambda_min: float = -inf) -> Grid:
    """t = round(linspace(0, T'-1, N+1)), reversed and without 0; T' as in `leading`.

    Source: as `leading`, for "linspace"; the only spacing of the singlestep class.
    """
    length = kept_timesteps(schedule, lambda_min)
    steps = np.round(np.linspace(0, length - 1, checked_steps(num_steps, length - 1) + 1)).astype(int)
    return at_timesteps(schedule, steps[:0:-1], last=last)


def trailing(schedule: Schedule, num_steps: int, *, last: Last = "clean", lambda_min: float = -inf) -> Grid:
    """t = round(T' - k T / N) - 1 for k = 0, 1, .. while above 0; T' as in `leading`. Fewer than N where T' < T.

    Source: as `leading`, for "trailing".
    """
    length = kept_timesteps(schedule, lambda_min)
    stride = schedule.num_timesteps / checked_steps(num_steps, schedule.num_timesteps)
    steps = np.round(np.arange(length, 0, -stride)).astype(int) - 1
    return at_timesteps(schedule, steps[:num_steps][steps[:num_steps] >= 0], last=last)  # none that rounds to -1


def kept_timesteps(schedule: Schedule, lambda_min: float) -> int:
    """T', the number of timesteps t = 0 .. T'-1 whose lambda = log(alpha / sigma) is at least lambda_min.

    Raises:
      ValueError: none is.
    """
    kept = int((-np.log(of_schedule(schedule)) >= lambda_min).sum())
    if kept == 0:
        raise ValueError(f"lambda_min must be below the log-SNR of the first timestep, got {lambda_min}")
    return kept


def at_sigmas(
    schedule: Schedule,
    sigmas: Sequence[float] | np.ndarray,
    *,
    last: Last = "clean",
    rounding: Rounding = "nearest",
    positions: np.ndarray | None = None,
) -> Grid:
    """The levels of these sigmas of x / alpha, whose times interpolate in log sigma and may be rounded.

    Source: diffusers' DPM classes with Karras ("nearest"), exponential and beta sigmas ("down").

    Args:
      schedule: whose timesteps the network knows.
      sigmas: decreasing, for instance `sigma_grids.karras_sigmas`.
      last: as in `ending`.
      rounding: of the position in the schedule.
      positions: [N] unrounded positions in the schedule in place of interpolated ones.

    Raises:
      ValueError: unknown rounding or last; sigmas that do not decrease.
    """
    choices = {"none": np.asarray, "nearest": np.round, "down": np.trunc}
    if rounding not in choices:
        raise unknown("rounding", rounding, choices)
    positions = log_positions(sigmas, np.log(of_schedule(schedule))) if positions is None else positions
    times = [_time(schedule, float(position)) for position in choices[rounding](positions)]
    return ending(schedule, [scaled(float(s), t) for s, t in zip(sigmas, times, strict=True)], last)


def log_positions(sigmas: Sequence[float] | np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """Where sigmas lie in a table of log sigma: linear between entries, and at most the ends."""
    return np.interp(np.log(sigmas), log_sigmas, np.arange(len(log_sigmas)))


def time_uniform(schedule: Schedule, num_steps: int, **ends: Any) -> Grid:
    """t = linspace(1, t_end, N+1) of continuous time, as `continuous`.

    Source: dpm-solver's skip_type "time_uniform".
    """
    return continuous(schedule, "time", num_steps, **ends)


def time_quadratic(schedule: Schedule, num_steps: int, **ends: Any) -> Grid:
    """t = linspace(1, sqrt(t_end), N+1)^2 of continuous time, as `continuous`.

    Source: dpm-solver's skip_type "time_quadratic".
    """
    return continuous(schedule, "sqrt_time", num_steps, **ends)


def log_snr_uniform(schedule: Schedule, num_steps: int, **ends: Any) -> Grid:
    """lambda = linspace(lambda(1), lambda(t_end), N+1), as `continuous`.

    Source: Lu et al. 2022 (arXiv:2206.00927), section 3.2; dpm-solver's skip_type "logSNR".
    """
    return continuous(schedule, "log_snr", num_steps, **ends)


def continuous(
    schedule: Schedule,
    coordinate: Literal["time", "sqrt_time", "log_snr"],
    num_steps: int,
    *,
    t_end: float | None = None,
    lambda_min: float = -5.1,
    denoise_to_zero: bool = False,
) -> Grid:
    """N + 1 levels that are uniform in a coordinate, on the continuous process through a schedule's entries.

    Entry i of the T' that are kept is time (i + 1) / T', and log alpha is linear in between.

    Source: Lu et al. 2022 (arXiv:2206.00927), appendix D.4 ("type-1 discrete DPMs") and code.

    Args:
      schedule: discrete process.
      coordinate: what is uniform.
      num_steps: N.
      t_end: in [1/T', 1); None is 1/T', the first entry.
      lambda_min: entries of lower log-SNR are dropped. -5.1 is the authors' for cosine schedules.
      denoise_to_zero: one more step, to the clean level.

    Raises:
      ValueError: t_end outside [1/T', 1); num_steps below 1; unknown coordinate; alphas_cumprod = 0 that is kept.
    """
    kept = kept_timesteps(schedule, lambda_min)
    grid_times = (np.arange(kept) + 1) / kept
    if schedule.alphas_cumprod_float64[kept - 1] == 0:
        raise ValueError(f"lambda_min must drop entries where alphas_cumprod is 0, got {lambda_min}")
    log_alphas = np.log(schedule.alphas_cumprod_float64[:kept]) / 2
    if kept < 2:
        raise ValueError(f"this grid needs at least 2 timesteps whose log-SNR is above lambda_min, got {kept}")
    first = 1 / kept if t_end is None else t_end
    if not 1 / kept <= first < 1:
        raise ValueError(f"t_end must lie in [{1 / kept:g}, 1), got {t_end}")
    checked_steps(num_steps)

    def level(t: float) -> Level:
        log_alpha = float(np.interp(t, grid_times, log_alphas))
        return Level(_time(schedule, t * kept - 1), exp(log_alpha), sqrt(-expm1(2 * log_alpha)))

    def time_of(lam: float) -> float:
        log_alpha = -np.logaddexp(0, -2 * lam) / 2
        return float(np.interp(-log_alpha, -log_alphas, grid_times))

    if coordinate == "time":
        times = np.linspace(1, first, num_steps + 1)
    elif coordinate == "sqrt_time":
        times = np.linspace(1, sqrt(first), num_steps + 1) ** 2
    elif coordinate == "log_snr":
        times = [time_of(lam) for lam in np.linspace(log_snr(level(1.0)), log_snr(level(first)), num_steps + 1)]
    else:
        raise unknown("coordinate", coordinate, ("time", "sqrt_time", "log_snr"))
    return Grid((*map(level, times), *([CLEAN] if denoise_to_zero else [])))
