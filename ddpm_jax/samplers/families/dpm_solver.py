"""DPM-Solver and DPM-Solver++, multistep, as flows or as SDEs."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.samplers.families.exponential import (
    OUTPUT,
    Interval,
    Predict,
    advance,
    checked_order,
    interval,
    step_orders,
)
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.table import M1, M2, Row, Table, X, row, sampler

Method = Literal["midpoint", "heun"]
ThirdOrder = Literal["reference", "corrected", "diffusers_sde"]


@sampler
def dpm_solver(
    grid: Grid,
    *,
    order: int = 2,
    predict: Predict = "x_0",
    eta: float = 0.0,
    method: Method = "midpoint",
    third_order: ThirdOrder = "reference",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Row]:
    """x_t = keep x_s + moments[0] D_0 + moments[1] D_1 + moments[2] D_2 + std z,  D_k divided differences of m.

    predict="x_0" is DPM-Solver++ (2M, 3M; with eta = 1 2M-SDE and 3M-SDE), predict="eps" is DPM-Solver.

    Third order: D_2 is half of the second derivative, but the published solvers weigh it as if it were all of it, by
    moments[2] / 2. They are of second order for that; "corrected" is of third. Both keep the factor of the first.

    k-diffusion's functions are, on its grids, which end in sigma = 0:

        sample_dpmpp_2m      order=2
        sample_dpmpp_2m_sde  order=2, eta=1; with solver_type="heun", method="heun"
        sample_dpmpp_3m_sde  order=3, eta=1, method="heun", lower_order_final=False

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2, eq. 12 and appendix B; (arXiv:2206.00927) for eps; the third
    order from the authors' code, with noise from k-diffusion.

    Args:
      grid: levels of any process. A step to the clean level is of order 1.
      order: 1, 2 or 3.
      predict: what is integrated.
      eta: 0 is the flow, 1 the SDE.
      method: moments[1] at second order: "heun", exact, or "midpoint", moments[0] / 2.
      third_order: "reference", "corrected", or "diffusers_sde", where moments[2] / 2 has the wrong sign of one term.
      lower_order_final: the last steps have at most the order of the number of steps left.
      euler_at_final: the last step has order 1.

    Raises:
      ValueError: unknown choice; order not 1 to 3; what `interval` refuses.
    """
    orders = step_orders(
        grid.num_steps,
        checked_order("order", order, 3),
        lower_order_final=lower_order_final,
        clean=euler_at_final or grid.levels[-1].sigma == 0,
    )
    m = OUTPUT.get(predict, X)
    for i, (s, t) in enumerate(grid.steps()):
        known = [(grid.levels[i - j], value) for j, value in zip(range(orders[i]), (m, M1, M2), strict=False)]
        moments = multistep_moments(interval(s, t, predict, eta), orders[i], method, third_order)
        yield row(s, X=advance(X, s, t, known, predict, eta, moments), M1=m, M2=M1)


def dpm_solver_pp(grid: Grid, **options: Any) -> Table:
    """`dpm_solver` of x_0: DPM-Solver++(1), (2M), (3M) and their SDEs, by order and eta; k-diffusion's too."""
    return dpm_solver(grid, predict="x_0", **options)


def multistep_moments(step: Interval, order: int, method: Method, third_order: ThirdOrder) -> np.ndarray:
    """The moments that DPM-Solver uses: exact ones, but for moments[1] at order 2 and moments[2] at order 3.

    Raises:
      ValueError: unknown method or third_order.
    """
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    if third_order not in get_args(ThirdOrder):
        raise unknown("third_order", third_order, get_args(ThirdOrder))
    moments = step.moments.copy()
    if order == 2 and method == "midpoint":
        moments[1] = moments[0] / 2
    if order == 3 and third_order != "corrected":
        moments[2] = moments[2] / 2 - (step.scale if third_order == "diffusers_sde" else 0)
    return moments
