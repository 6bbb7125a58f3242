"""Heun's method on x / alpha as a function of sigma, with Karras' churn."""

from collections.abc import Iterator, Sequence

from ddpm_jax.samplers.families.euler import raised
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, SAVED, X0, Row, Z, row, sampler


@sampler
def heun(grid: Grid, *, hat: Sequence[Level] | None = None, s_noise: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + (sigma_t - sigma_s) (eps_s + eps_t) / 2, eps_t at the point of an Euler step.

    Two calls a step, one on the last: the network never sees the last level. X is a sample at a level of the grid after
    every second row.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2.

    Args:
      grid: levels of any process.
      hat: levels to which noise is raised before each step, from `sigma_grids.churned`; none by default.
      s_noise: inflates that noise.

    Raises:
      ValueError: hat of another length than the steps.
    """
    hat, kicks = raised(grid, hat, s_noise)
    for i, (s, t) in enumerate(zip(hat, grid.levels[1:], strict=True)):
        euler = X0 + ratio(t) * EPS  # x / alpha, as all that follows
        half = X0 + (ratio(s) + ratio(t)) / 2 * EPS
        if t is grid.levels[-1]:
            yield row(s, X=t.alpha * euler)
            continue
        # The noise of a step precedes its call, so the row before adds it.
        u = hat[i + 1]
        yield row(s, X=t.alpha * euler, SAVED=half)
        yield row(t, X=u.alpha * (SAVED + (ratio(t) - ratio(s)) / 2 * EPS + kicks[i + 1] * Z))
