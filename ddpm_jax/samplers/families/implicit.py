"""Denoising diffusion implicit models (DDIM) on any grid, and the same steps backwards."""

from collections.abc import Iterator
from math import sqrt
from typing import Literal, get_args

from ddpm_jax.names import unknown
from ddpm_jax.samplers.families.ancestral import posterior_variance
from ddpm_jax.samplers.grids import Grid, Level, Pairs
from ddpm_jax.samplers.table import EPS, X0, Row, Z, row, sampler

Told = Literal["next", "now"]


@sampler
def ddim(grid: Grid | Pairs, *, eta: float = 0.0) -> Iterator[Row]:
    """x_t = alpha_t x_0 + sqrt(sigma_t^2 - std^2) eps + std z,  std = eta sqrt(posterior_variance(s, t)).

    Source: Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16. eta = 0 is deterministic; eta = 1 has the variance of
    ancestral sampling with "fixed_small".

    Args:
      grid: levels of a variance-preserving process.
      eta: in [0, 1].

    Raises:
      ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    for s, t in grid.steps():
        std = eta * sqrt(posterior_variance(s, t))
        # At eta = 1 and alpha_s = 0 the difference is 0, and may come out just below.
        yield row(s, X=t.alpha * X0 + sqrt(max(t.sigma**2 - std**2, 0)) * EPS + std * Z)


@sampler
def ddim_inverse(grid: Grid | Pairs, *, told: Told = "next") -> Iterator[Row]:
    """x_s = alpha_s x_0 + sigma_s eps, from clean to noisy: the steps (s, t) of `ddim` with eta = 0, backwards.

    X starts as x_0, and is not scaled. eps changes little over a step, so eps at x_t stands for eps at x_s.

    Source: Song et al. 2021 (arXiv:2010.02502), eq. 14 and section 5.4; Dhariwal & Nichol 2021 (arXiv:2105.05233),
    code ("ddim_reverse_sample").

    Args:
      grid: levels of a variance-preserving process, noisy to clean as for `ddim`.
      told: the time that the network is told at x_t. "next": that of s, where eps is meant to be (diffusers; starts
        at the grid's last level and ends at its first). "now": that of t itself (OpenAI; takes the image for a
        sample of the level before the last, and ends in pure noise).

    Raises:
      ValueError: unknown told.
    """
    if told not in get_args(Told):
        raise unknown("told", told, get_args(Told))
    if told == "next":
        for s, t in reversed(grid.steps()):
            yield row(Level(s.time, t.alpha, t.sigma), X=s.alpha * X0 + s.sigma * EPS)
    else:
        starts = [s for s, _ in reversed(grid.steps())]
        for t, s in zip(starts, [*starts[1:], Level(0.0, 0.0, 1.0)], strict=True):
            yield row(t, X=s.alpha * X0 + s.sigma * EPS)
