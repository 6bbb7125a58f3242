"""DPM-Solver-2 as k-diffusion has it (DPM2), and its ancestral form."""

from collections.abc import Iterator
from math import sqrt

from ddpm_jax.samplers.families.euler import ancestral_step
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.grids.sigma_grids import LevelAt, ratio
from ddpm_jax.samplers.table import EPS, SAVED, X0, Row, Z, row, sampler


@sampler
def kdpm2(grid: Grid, level_at: LevelAt) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + (sigma_t - sigma_s) eps_m, eps_m at the Euler point with log sigma half way.

    Two calls a step, one on a step to sigma = 0.

    Source: Lu et al. 2022 (arXiv:2206.00927), algorithm 1 (DPM-Solver-2, r_1 = 1/2); k-diffusion (sample_dpm_2).

    Args:
      grid: levels of any process.
      level_at: gives the levels half way; `sigma_grids.discrete` or `sigma_grids.continuous`.
    """
    for s, t in grid.steps():
        if t.sigma == 0:
            yield row(s, X=t.alpha * X0)
            continue
        m = level_at(sqrt(ratio(s) * ratio(t)))
        yield row(s, X=m.alpha * (X0 + ratio(m) * EPS), SAVED=X0 + ratio(s) * EPS)
        yield row(m, X=t.alpha * (SAVED + (ratio(t) - ratio(s)) * EPS))


@sampler
def kdpm2_ancestral(grid: Grid, level_at: LevelAt, *, eta: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + (down - sigma_s) eps_m + up z,  up^2 + down^2 = sigma_t^2, as `euler_ancestral`.

    eps_m is that of `kdpm2` for a step to `down`; with eta = 1 its sigma is sigma_t.

    Source: k-diffusion (sample_dpm_2_ancestral).

    Args:
      grid: levels of any process.
      level_at: as in `kdpm2`.
      eta: in [0, 1]; 0 is `kdpm2`.

    Raises:
      ValueError: eta outside [0, 1].
    """
    for s, t in grid.steps():
        up, down = ancestral_step(ratio(s), ratio(t), eta)
        if t.sigma == 0:
            yield row(s, X=t.alpha * X0)
            continue
        m = level_at(sqrt(ratio(s) * down))
        yield row(s, X=m.alpha * (X0 + ratio(m) * EPS), SAVED=X0 + ratio(s) * EPS)
        yield row(m, X=t.alpha * (SAVED + (down - ratio(s)) * EPS + up * Z))
