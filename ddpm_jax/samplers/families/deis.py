"""DEIS: exponential Adams-Bashforth with the polynomial in log(sigma / alpha)."""

from collections.abc import Iterator

from ddpm_jax.samplers.families.exponential import advance, checked_order, step_orders
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.table import EPS, M1, M2, Row, X, row, sampler


@sampler
def deis(grid: Grid, *, order: int = 2, lower_order_final: bool = True) -> Iterator[Row]:
    """x_t = alpha_t / alpha_s x_s + alpha_t integral of eps d rho,  rho = sigma / alpha, eps a polynomial in log rho.

    Order 3 is DPM-Solver-3 with the corrected third-order term.

    Source: Zhang & Chen 2022 (arXiv:2204.13902), eq. 15 with the polynomial in log rho ("tAB", appendix H.2).

    Args:
      grid: levels of any process. A step to the clean level is of order 1.
      order: 1, 2 or 3: how many values of eps the polynomial goes through.
      lower_order_final: the last steps have at most the order of the number of steps left.

    Raises:
      ValueError: order not 1 to 3.
    """
    orders = step_orders(
        grid.num_steps,
        checked_order("order", order, 3),
        lower_order_final=lower_order_final,
        clean=grid.levels[-1].sigma == 0,
    )
    for i, (s, t) in enumerate(grid.steps()):
        known = [(grid.levels[i - j], value) for j, value in zip(range(orders[i]), (EPS, M1, M2), strict=False)]
        yield row(s, X=advance(X, s, t, known, "eps"), M1=EPS, M2=M1)
