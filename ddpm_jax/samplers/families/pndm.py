"""Pseudo numerical methods (PNDM): linear multistep and Runge-Kutta with eps averaged and then moved by DDIM's step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.samplers.grids import Grid, Level, Pairs
from ddpm_jax.samplers.table import ACC, EPS, M1, M2, M3, SAVED, X0, Row, X, row, sampler

Average = Literal["eps", "v"]

# Adams-Bashforth weights, newest first.
WEIGHTS = {
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class _Averaged(NamedTuple):
    """Which of the network's answers is averaged over calls."""

    answer: Callable[[Level], np.ndarray]  # at the level of the call
    eps: Callable[[np.ndarray, np.ndarray, Level], np.ndarray]  # from an average and x at a level


AVERAGES = {
    "eps": _Averaged(lambda s: EPS, lambda mean, x, s: mean),
    "v": _Averaged(lambda s: s.alpha * EPS - s.sigma * X0, lambda mean, x, s: s.alpha * mean + s.sigma * x),
}


def _moved(averaged: _Averaged, x: np.ndarray, mean: np.ndarray, s: Level, t: Level) -> np.ndarray:
    """x_t = alpha_t / alpha_s x_s + (sigma_t - sigma_s alpha_t / alpha_s) eps: eq. 11 is DDIM's step."""
    if s.alpha == 0:
        raise ValueError(f"PNDM averages noise, which says nothing about x_0 where alpha is 0, at time {s.time:g}")
    scale = t.alpha / s.alpha
    return scale * x + (t.sigma - s.sigma * scale) * averaged.eps(mean, x, s)


@sampler
def plms(
    grid: Grid | Pairs, *, order: int = 4, average: Average = "eps", restart: Level | None = None
) -> Iterator[Row]:
    """x_t = DDIM step with eps = sum of Adams-Bashforth weights times the last `order` eps; the first step calls twice.

    The first step is repeated with the mean of eps at its two ends, so N steps take N + 1 calls. Order 1 is DDIM.

    Source: Liu et al. 2022 (arXiv:2202.09778), eq. 12 and appendix (S-PNDM's first step), as LDM's PLMS.

    Args:
      grid: levels of a variance-preserving process.
      order: 1 to 4.
      average: "eps", or "v" as diffusers does it with v-prediction: v is averaged over levels and becomes eps at the
        level of the step.
      restart: where the repeated first step starts, by default the first level; diffusers differs with grids that do
        not chain.

    Raises:
      ValueError: order not 1 to 4; unknown average; a level with alpha = 0.
    """
    if order not in WEIGHTS:
        raise ValueError(f"order must be one of {', '.join(map(str, WEIGHTS))}, got {order!r}")
    averaged = choose("average", average, AVERAGES)
    steps = grid.steps()
    (s, t), second = steps[0], [u for u, _ in steps[1:2]]
    if order == 1 or not second:
        yield from _multistep(averaged, steps, 0, order)
        return
    yield row(s, X=_moved(averaged, X, averaged.answer(s), s, t), SAVED=X, M1=averaged.answer(s))
    for u in second:
        mean = (averaged.answer(u) + M1) / 2
        yield row(u, X=_moved(averaged, SAVED, mean, restart or s, u))
    yield from _multistep(averaged, steps[1:], 1, order)


def _multistep(averaged: _Averaged, steps: Sequence[tuple[Level, Level]], known: int, order: int) -> Iterator[Row]:
    """Steps with the weights above; `known` earlier answers are in M1, M2, M3."""
    for i, (s, t) in enumerate(steps):
        history = (averaged.answer(s), M1, M2, M3)
        weights = WEIGHTS[min(known + i + 1, order)]
        mean = sum((w * m for w, m in zip(weights, history, strict=False)), 0 * X)
        yield row(s, X=_moved(averaged, X, mean, s, t), M1=averaged.answer(s), M2=M1, M3=M2)


@sampler
def pndm(
    grid: Grid | Pairs,
    *,
    middle: Sequence[Level],
    reached: Sequence[Level] | None = None,
    average: Average = "eps",
) -> Iterator[Row]:
    """Three Runge-Kutta steps of four calls each, then `plms` of order 4: F-PNDM; N steps take N + 9 calls.

    Source: Liu et al. 2022 (arXiv:2202.09778), algorithm 2 and eq. 13.

    Args:
      grid: levels of a variance-preserving process, at least 4 steps.
      middle: 3 levels half-way along the first three steps, as from `grids.halfway`.
      reached: 3 levels that the first stage of a step goes to, by default `middle`; diffusers differs by one
        timestep where T // N is odd.
      average: as in `plms`.

    Raises:
      ValueError: fewer than 4 steps; not 3 levels; unknown average; a level with alpha = 0.
    """
    averaged = choose("average", average, AVERAGES)
    reached = middle if reached is None else reached
    if grid.num_steps < 4 or len(middle) != 3 or len(reached) != 3:
        raise ValueError(
            "pndm needs at least 4 steps and 3 levels in between, "
            f"got {grid.num_steps} steps and {len(middle)} and {len(reached)} levels"
        )
    steps = grid.steps()
    for (s, _), (t, _), m, r in zip(steps, steps[1:4], middle, reached, strict=False):
        at_s, at_m, at_t = averaged.answer(s), averaged.answer(m), averaged.answer(t)
        yield row(s, X=_moved(averaged, X, at_s, s, r), SAVED=X, ACC=at_s / 6, M1=at_s, M2=M1, M3=M2)
        yield row(m, X=_moved(averaged, SAVED, at_m, s, m), ACC=ACC + at_m / 3)
        yield row(m, X=_moved(averaged, SAVED, at_m, s, t), ACC=ACC + at_m / 3)
        yield row(t, X=_moved(averaged, SAVED, ACC + at_t / 6, s, t))
    yield from _multistep(averaged, steps[3:], 3, 4)
