"""iPNDM: Adams-Bashforth with the weights of an even grid, and DDIM's transfer."""

from collections.abc import Iterator

from ddpm_jax.samplers.families.pndm import WEIGHTS
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.grids.sigma_grids import ratio
from ddpm_jax.samplers.table import EPS, M1, M2, M3, X0, Row, row, sampler


@sampler
def ipndm(grid: Grid, *, order: int = 4) -> Iterator[Row]:
    """x_t = alpha_t (x_s - sigma_s e) / alpha_s + sigma_t e,  e = (55 eps - 59 eps' + 37 eps'' - 9 eps''') / 24.

    One call a step: the first steps have the weights of lower orders in place of PNDM's Runge-Kutta. Where alpha_s is
    0, x_s holds nothing of x_0 and x_t = sigma_t e: so diffusers has it, which divides by at least 1e-8.

    Source: Zhang & Chen 2022 (arXiv:2204.13902), appendix on iPNDM; Liu et al. 2022 (arXiv:2202.09778), eq. 11 and 12.

    Args:
      grid: levels of any process.
      order: 1 to 4.

    Raises:
      ValueError: order outside 1 .. 4.
    """
    if order not in WEIGHTS:
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    history = (EPS, M1, M2, M3)[:order]
    for i, (s, t) in enumerate(grid.steps()):
        weights = WEIGHTS[min(i + 1, order)]
        e = sum((w * eps for w, eps in zip(weights, history, strict=False)), 0 * EPS)
        x_0 = X0 + ratio(s) * (EPS - e) if s.alpha > 0 else 0 * X0  # (x_s - sigma_s e) / alpha_s
        yield row(s, X=t.alpha * x_0 + t.sigma * e, **dict(zip(("M1", "M2", "M3"), history[:-1], strict=False)))
