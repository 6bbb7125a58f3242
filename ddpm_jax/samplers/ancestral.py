"""Ancestral sampling (DDPM) on any grid."""

from collections.abc import Iterator
from math import sqrt
from typing import Literal

from ddpm_jax.names import unknown
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.table import X0, Row, X, Z, row, sampler


def transition_variance(s: Level, t: Level) -> float:
    """Variance of q(x_s | x_t) for a level t cleaner than s: beta of one step as long as from t to s."""
    return 1 - (s.alpha / t.alpha) ** 2


def posterior_variance(s: Level, t: Level) -> float:
    """Variance of q(x_t | x_s, x_0) for a level t cleaner than s.

    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 7, for a step of any length.
    """
    return t.sigma**2 / s.sigma**2 * transition_variance(s, t)


@sampler
def ddpm(grid: Grid, *, variance: Literal["fixed_small", "fixed_large"] = "fixed_large") -> Iterator[Row]:
    """x_t = mean of q(x_t | x_s, pred_x_0) + std z, for neighbours s, t of the grid.

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 2 with the mean of eq. 7; strides as Nichol & Dhariwal 2021
    (arXiv:2102.09672), eq. 19. No noise is added on the way to the last level.

    Args:
      grid: levels of a variance-preserving process.
      variance: "fixed_small", posterior_variance(s, t), or "fixed_large", transition_variance(s, t).

    Raises:
      ValueError: unknown variance.
    """
    variances = {"fixed_small": posterior_variance, "fixed_large": transition_variance}
    if variance not in variances:
        raise unknown("variance", variance, variances)
    for s, t in grid.steps():
        beta = transition_variance(s, t)
        coef1 = beta * t.alpha / s.sigma**2
        coef2 = t.sigma**2 * s.alpha / (s.sigma**2 * t.alpha)
        std = sqrt(variances[variance](s, t)) if t is not grid.levels[-1] else 0
        yield row(s, X=coef1 * X0 + coef2 * X + std * Z)
