"""Denoising diffusion implicit models (DDIM) on any grid."""

from collections.abc import Iterator
from math import sqrt

from ddpm_jax.samplers.ancestral import posterior_variance
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.table import EPS, X0, Row, Z, row, sampler


@sampler
def ddim(grid: Grid, *, eta: float = 0.0) -> Iterator[Row]:
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
        yield row(s, X=t.alpha * X0 + sqrt(t.sigma**2 - std**2) * EPS + std * Z)
