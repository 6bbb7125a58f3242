"""Grids of noise levels: which levels a sampler visits. Conventions live here, algorithms in the samplers.

A level is (time, alpha, sigma): the network is told `time` and sees x = alpha x_0 + sigma eps. A grid runs from the
noisiest level to the last; the level a step goes to is always the next level of the grid. The last one is where
sampling ends and is never shown to the network: the clean level (alpha 1, sigma 0) unless `last` says otherwise.

"T // N" below is Python's floor division; the references disagree about uniform grids, so each has a name.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, get_args

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.schedules import Schedule, checked_timesteps

LastLevel = Literal["clean", "first"]


class Level(NamedTuple):
    """x = alpha x_0 + sigma eps; float64."""

    time: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Grid:
    """Levels from noisy to clean. N steps have N + 1 levels.

    idle_end: the last level may repeat the one before, as in diffusers' final_sigmas_type="sigma_min" on a grid that
    reaches the lowest level anyway: a call of the network that changes nothing.
    """

    levels: tuple[Level, ...]
    idle_end: bool = False

    def __post_init__(self):
        if len(self.levels) < 2:
            raise ValueError(f"a grid needs at least 2 levels, got {len(self.levels)}")
        for s, t in self.steps()[: -1 if self.idle_end else None]:
            if not t.sigma * s.alpha < s.sigma * t.alpha:
                raise ValueError(
                    f"noise must decrease strictly along a grid, got sigma/alpha {_ratio(s):.6g} at time {s.time:g} "
                    f"followed by {_ratio(t):.6g} at time {t.time:g}"
                )

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    def steps(self) -> list[tuple[Level, Level]]:
        """(level now, level next), one pair a step."""
        return list(zip(self.levels[:-1], self.levels[1:], strict=True))

    def rest(self, step: int) -> Self:
        """The levels from this step's on.

        Raises:
          ValueError: step outside [0, N).
        """
        return replace(self, levels=self.levels[_checked_step(step, self.num_steps) :])


def _ratio(level: Level) -> float:
    return level.sigma / level.alpha if level.alpha else np.inf


@dataclass(frozen=True)
class Pairs:
    """Steps (level now, level next) that do not chain: a step may start at another level than the last one ended at.

    That is an error of the references that do it, and costs accuracy: only samplers that look no further than one
    step take Pairs, to reproduce them.
    """

    pairs: tuple[tuple[Level, Level], ...]

    def __post_init__(self):
        if not self.pairs:
            raise ValueError("Pairs must have at least 1 step, got none")
        for s, t in self.pairs:
            if t.sigma * s.alpha > s.sigma * t.alpha:
                raise ValueError(
                    f"a step must not add noise, got sigma/alpha {_ratio(s):.6g} at time {s.time:g} "
                    f"to {_ratio(t):.6g} at time {t.time:g}"
                )

    @property
    def num_steps(self) -> int:
        return len(self.pairs)

    def steps(self) -> list[tuple[Level, Level]]:
        """(level now, level next), one pair a step."""
        return list(self.pairs)

    def rest(self, step: int) -> Self:
        """The steps from this one on.

        Raises:
          ValueError: step outside [0, N).
        """
        return replace(self, pairs=self.pairs[_checked_step(step, self.num_steps) :])


def _checked_step(step: int, num_steps: int) -> int:
    if not isinstance(step, int | np.integer) or not 0 <= step < num_steps:
        raise ValueError(f"start must be a whole number in [0, {num_steps}), the steps of the grid, got {step!r}")
    return int(step)


def level(schedule: Schedule, index: int, *, last: LastLevel = "clean") -> Level:
    """The level of an entry of the schedule; below 0, the last level, as in `from_timesteps`.

    Raises:
      ValueError: index not below T; unknown `last`.
    """
    if last not in get_args(LastLevel):
        raise unknown("last level", last, get_args(LastLevel))
    if index >= schedule.num_timesteps:
        raise ValueError(f"timesteps must lie in [0, {schedule.num_timesteps}), got {index}")
    if index < 0 and last == "clean":
        return Level(0.0, 1.0, 0.0)
    i = max(index, 0)
    alpha, sigma = schedule.alphas_cumprod_float64[i] ** 0.5, schedule.one_minus_alphas_cumprod_float64[i] ** 0.5
    return Level(float(np.asarray(schedule.timesteps)[i]), float(alpha), float(sigma))


def strided(
    schedule: Schedule, timesteps: Sequence[int] | np.ndarray, stride: int, *, last: LastLevel = "clean"
) -> Pairs:
    """Steps from t to t - stride for these t, whatever the next of them is; below 0, to the last level.

    Source: diffusers' DDIM and PNDM classes, with stride T // N. With "linspace", or N that does not divide T, their
    steps do not chain.

    Raises:
      ValueError: as `from_timesteps`, but the last timestep may be 0.
    """
    from_timesteps(schedule, timesteps)  # checks them
    return Pairs(tuple((level(schedule, t), level(schedule, t - stride, last=last)) for t in map(int, timesteps)))


def from_timesteps(schedule: Schedule, timesteps: Sequence[int] | np.ndarray, *, last: LastLevel = "clean") -> Grid:
    """The levels of these entries of the schedule, in the order given, then the last level.

    Args:
      schedule: Schedule of length T.
      timesteps: [N] strictly decreasing integers in [0, T).
      last: "clean" ends at alpha = 1, sigma = 0 (OpenAI, DDIM; diffusers' set_alpha_to_one=True). "first" ends at the
        level of t = 0, as LDM and Stable Diffusion do (set_alpha_to_one=False); timesteps must then end above 0.

    Raises:
      ValueError: timesteps empty, not integers, outside [0, T), or not decreasing; unknown `last`.
    """
    steps = checked_timesteps(schedule, timesteps)
    if (np.diff(steps) >= 0).any():
        bad = int(np.argmax(np.diff(steps) >= 0))
        raise ValueError(f"timesteps must decrease strictly, got {steps[bad]} followed by {steps[bad + 1]}")
    if last not in get_args(LastLevel):
        raise unknown("last level", last, get_args(LastLevel))
    if last == "first" and steps[-1] == 0:
        raise ValueError("last='first' ends at the level of t = 0, so the last timestep must be above 0, got 0")

    alphas = np.sqrt(schedule.alphas_cumprod_float64)
    sigmas = np.sqrt(schedule.one_minus_alphas_cumprod_float64)
    times = np.asarray(schedule.timesteps)
    levels = [Level(float(times[i]), float(alphas[i]), float(sigmas[i])) for i in steps]
    end = Level(0.0, 1.0, 0.0) if last == "clean" else Level(float(times[0]), float(alphas[0]), float(sigmas[0]))
    return Grid((*levels, end))


def halfway(schedule: Schedule, grid: Grid) -> list[Level]:
    """The level of the timestep half way along every step, rounded down; the last level counts as t = 0.

    Source: Liu et al. 2022 (arXiv:2202.09778), eq. 13.

    Args:
      schedule: Schedule whose timesteps the grid visits.
      grid: from `from_timesteps` with the same schedule.

    Raises:
      ValueError: a level that is not at one of the timesteps.
    """
    times = [s.time for s in grid.levels[:-1]]
    known = np.asarray(schedule.timesteps)
    if not np.isin(times, known).all():
        raise ValueError(f"levels half way need a grid of the schedule's timesteps, got times {times}")
    indices = [*np.searchsorted(known, times), 0]
    return [level(schedule, int(i + j) // 2) for i, j in itertools.pairwise(indices)]


def checked_steps(num_steps: object, most: int = 10**6, *, least: int = 1) -> int:
    """num_steps, a whole number in [least, most].

    Raises:
      ValueError: it is not.
    """
    if not isinstance(num_steps, int | np.integer) or not least <= num_steps <= most:
        raise ValueError(f"num_steps must be a whole number in [{least}, {most}], got {num_steps!r}")
    return int(num_steps)


def leading(schedule: Schedule, num_steps: int, *, offset: int = 0, last: LastLevel = "clean") -> Grid:
    """t = k (T // N) + offset for k = N-1 .. 0.

    Source: diffusers' timestep_spacing "leading" with steps_offset, in its DDPM, DDIM, PNDM and Euler classes.
    """
    stride = schedule.num_timesteps // checked_steps(num_steps, schedule.num_timesteps)
    return from_timesteps(schedule, np.arange(num_steps)[::-1] * stride + offset, last=last)


def trailing(schedule: Schedule, num_steps: int, *, last: LastLevel = "clean") -> Grid:
    """t = round(T - k T / N) - 1 for k = 0 .. N-1: starts at T - 1.

    Source: diffusers' timestep_spacing "trailing"; Lin et al. 2023 (arXiv:2305.08891), table 2.
    """
    length = schedule.num_timesteps
    stride = length / checked_steps(num_steps, schedule.num_timesteps)
    return from_timesteps(schedule, np.round(np.arange(length, 0, -stride)[:num_steps]).astype(int) - 1, last=last)


def linspace(schedule: Schedule, num_steps: int, *, last: LastLevel = "clean") -> Grid:
    """t = round(linspace(0, T-1, N)), reversed: both ends.

    Source: diffusers' timestep_spacing "linspace", in its DDPM, DDIM and PNDM classes.
    """
    steps = np.round(
        np.linspace(0, schedule.num_timesteps - 1, checked_steps(num_steps, schedule.num_timesteps))
    ).astype(int)
    return from_timesteps(schedule, steps[::-1], last=last)


def uniform(schedule: Schedule, num_steps: int, *, last: LastLevel = "clean") -> Grid:
    """t in range(0, T, T // N), reversed. Where N does not divide T this has more than N steps (T = 1000, N = 7: 8).

    Source: Song et al. 2021 (arXiv:2010.02502), appendix D.3 "linear"; their code's skip_type "uniform".
    """
    stride = schedule.num_timesteps // checked_steps(num_steps, schedule.num_timesteps)
    return from_timesteps(schedule, np.arange(0, schedule.num_timesteps, stride)[::-1], last=last)


def quad(schedule: Schedule, num_steps: int, *, last: LastLevel = "clean") -> Grid:
    """t = int(linspace(0, sqrt(0.8 T), N)^2), reversed: starts at 0.8 T.

    Squares that round to the same integer are visited once: the reference's step from a level to itself is a call of
    the network that changes nothing. T = 1000, N = 50 has 49 steps.

    Source: Song et al. 2021 (arXiv:2010.02502), appendix D.3 "quadratic"; their code's skip_type "quad".
    """
    root = np.linspace(0, np.sqrt(0.8 * schedule.num_timesteps), checked_steps(num_steps, schedule.num_timesteps))
    return from_timesteps(schedule, np.unique((root**2).astype(int))[::-1], last=last)


def lucidrains(schedule: Schedule, num_steps: int, *, last: LastLevel = "clean") -> Grid:
    """t = int(linspace(-1, T-1, N+1)), reversed, without the -1, where sampling ends: starts at T - 1.

    Source: lucidrains' denoising-diffusion-pytorch, ddim_sample.
    """
    steps = np.linspace(-1, schedule.num_timesteps - 1, checked_steps(num_steps, schedule.num_timesteps) + 1).astype(
        int
    )
    return from_timesteps(schedule, steps[:0:-1], last=last)


def sections(schedule: Schedule, spacing: int | str | Sequence[int], *, last: LastLevel = "clean") -> Grid:
    """Timesteps of `section_timesteps`, from noisy to clean.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), section 4 and code ("timestep_respacing").
    """
    return from_timesteps(schedule, section_timesteps(schedule.num_timesteps, spacing)[::-1], last=last)


def section_timesteps(num_timesteps: int, spacing: int | str | Sequence[int]) -> np.ndarray:
    """T is cut into equal sections; section i gets spacing[i] evenly spread timesteps, both its ends included.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), code ("timestep_respacing").

    Args:
      num_timesteps: T.
      spacing: steps per section: 50, [10, 15, 20], or those as text ("50", "10,15,20"); or "ddimN": range(0, T, stride)
        with the whole stride that gives exactly N steps; or GLIDE's "fast27": "10,10,3,2,2" with T-3 for its T-1.

    Returns:
      [N] int64, increasing.

    Raises:
      ValueError: text that is neither; more steps than a section has; no whole stride for "ddimN".
    """
    if isinstance(spacing, str):
        if spacing == "fast27":
            steps = section_timesteps(num_timesteps, "10,10,3,2,2")
            return np.sort(np.append(steps[:-1], num_timesteps - 3))
        if spacing.startswith("ddim") and spacing[4:].isdecimal():
            return _ddim_stride(num_timesteps, int(spacing[4:]))
        if not all(part.strip().isdecimal() for part in spacing.split(",")):
            raise ValueError(f"spacing must be like '50', '10,15,20', 'ddim50' or 'fast27', got {spacing!r}")
        spacing = [int(part) for part in spacing.split(",")]
    counts = list(spacing) if isinstance(spacing, Sequence | np.ndarray) else [spacing]
    if not counts or not all(isinstance(count, int | np.integer) for count in counts):
        raise ValueError(f"spacing must be a whole number or a list of some, got {spacing!r}")
    size, extra = divmod(num_timesteps, len(counts))
    steps, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 0 <= count <= length:
            raise ValueError(f"a section of {length} timesteps can give 0 to {length} steps, got {count}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied, as the reference does: the rounding of x.5 depends on it.
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += stride
        start += length
    return np.asarray(steps)


def _ddim_stride(num_timesteps: int, num_steps: int) -> np.ndarray:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return np.arange(0, num_timesteps, stride)
    raise ValueError(f"no whole stride takes {num_steps} of {num_timesteps} timesteps ('ddim{num_steps}')")
