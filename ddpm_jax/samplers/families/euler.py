"""Euler's method on x / alpha as a function of sigma, and its ancestral form."""

from collections.abc import Iterator, Sequence
from math import sqrt

from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, X0, Row, Z, row, sampler


@sampler
def euler(grid: Grid, *, hat: Sequence[Level] | None = None, s_noise: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = x_s / alpha_s + (sigma_t - sigma_s) eps = x_0 + sigma_t eps, with sigma that of x / alpha.

    That is DDIM with eta = 0.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without its correction (lines 7-8).

    Args:
      grid: levels of any process.
      hat: levels to which noise is raised before each step, from `sigma_grids.churned`; none by default.
      s_noise: inflates that noise.

    Raises:
      ValueError: hat of another length than the steps.
    """
    hat, kicks = raised(grid, hat, s_noise)
    targets = [*hat[1:], grid.levels[-1]]
    for s, t, u, kick in zip(hat, grid.levels[1:], targets, kicks[1:], strict=True):
        # The noise of a step precedes its call, so the row before adds it.
        yield row(s, X=u.alpha * (X0 + ratio(t) * EPS + kick * Z))


def raised(grid: Grid, hat: Sequence[Level] | None, s_noise: float) -> tuple[Sequence[Level], list[float]]:
    """The levels of the calls and the std of the noise that raises x / alpha to them; N + 1 numbers, the last 0.

    What raises the first level is already in the table's init: X starts at the first level called, hat[0].

    Raises:
      ValueError: hat of another length than the steps.
    """
    hat = grid.levels[:-1] if hat is None else hat
    if len(hat) != grid.num_steps:
        raise ValueError(f"hat must have one level a step, {grid.num_steps}, got {len(hat)}")
    kicks = [s_noise * sqrt(max(ratio(h) ** 2 - ratio(s) ** 2, 0)) for h, (s, _) in zip(hat, grid.steps(), strict=True)]
    return hat, [*kicks, 0.0]


@sampler
def euler_ancestral(grid: Grid, *, eta: float = 1.0) -> Iterator[Row]:
    """x_t / alpha_t = x_0 + down eps + up z,  up^2 + down^2 = sigma_t^2: DDIM with this eta.

    up = eta sigma_t sqrt(1 - sigma_t^2 / sigma_s^2), with sigma that of x / alpha.

    Source: k-diffusion (sample_euler_ancestral); Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.

    Args:
      grid: levels of any process.
      eta: in [0, 1].

    Raises:
      ValueError: eta outside [0, 1].
    """
    for s, t in grid.steps():
        up, down = ancestral_step(ratio(s), ratio(t), eta)
        yield row(s, X=t.alpha * (X0 + down * EPS + up * Z))


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(up, down): the part of sigma_next that is drawn anew, and the part that is stepped down to.

    Raises:
      ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    up = eta * sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)
    return up, sqrt(sigma_next**2 - up**2)
