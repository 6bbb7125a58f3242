"""SA-Solver: stochastic Adams predictor and corrector."""

from collections.abc import Callable, Iterator

import numpy as np

from ddpm_jax.samplers.families.exponential import (
    OUTPUT,
    Interval,
    Predict,
    checked_order,
    integral,
    interval,
    kept,
    step_orders,
)
from ddpm_jax.samplers.grids import Grid
from ddpm_jax.samplers.table import M1, M2, M3, SAVED, Row, X, row, sampler


def tau_of_stable_diffusion(time: float) -> float:
    """1 for timesteps in [200, 800] of 1000, else 0. Source: the default of diffusers 0.42.1."""
    return 1.0 if 200 <= time <= 800 else 0.0


@sampler
def sa_solver(
    grid: Grid,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    predict: Predict = "x_0",
    tau: Callable[[float], float] = tau_of_stable_diffusion,
    lower_order_final: bool = True,
) -> Iterator[Row]:
    """The SDE with noise renewed at rate tau(time)^2, by Adams-Bashforth and then, with the next call, Adams-Moulton.

    The corrector redoes the step with the noise that its predictor drew: SAVED keeps what both share. As in UniPC, X
    holds predicted samples.
    With x_0 and two values the authors' code sets moments[1] = scale c / 2, to be exact to their order for any tau.

    Source: Xue et al. 2023 (arXiv:2309.05019), algorithm 1, eq. 14-18.

    Args:
      grid: levels of any process. A step to the clean level is of order 1.
      predictor_order: how many values the predictor uses, 1 to 4.
      corrector_order: how many values the corrector uses, the new one included, 1 to 4.
      predict: what is integrated.
      tau: of the time that the network is told at the start of a step.
      lower_order_final: the last steps use at most as many values as there are steps left (corrector: one more).

    Raises:
      ValueError: an order not 1 to 4; what `interval` refuses.
    """
    checked_order("corrector_order", corrector_order, 4)
    n, clean = grid.num_steps, grid.levels[-1].sigma == 0
    checked_order("predictor_order", predictor_order, 4)
    orders = step_orders(n, predictor_order, lower_order_final=lower_order_final, clean=clean)
    m = OUTPUT.get(predict, X)
    for i, (s, t) in enumerate(grid.steps()):
        x = X
        if i > 0:
            q, eta = grid.levels[i - 1], tau(grid.levels[i - 1].time) ** 2
            values = min(corrector_order, i + 1, n - i + 2 if lower_order_final else corrector_order)
            known = [(grid.levels[i - j], value) for j, value in zip(range(values), (m, M1, M2, M3), strict=False)]
            x = SAVED + integral(q, s, known, predict, eta, sa_moments(interval(q, s, predict, eta), values, predict))
        p, eta = orders[i], tau(s.time) ** 2
        known = [(grid.levels[i - j], value) for j, value in zip(range(p), (m, M1, M2, M3), strict=False)]
        x = kept(x, s, t, predict, eta)
        y = x + integral(s, t, known, predict, eta, sa_moments(interval(s, t, predict, eta), p, predict))
        yield row(s, X=y, SAVED=x, M1=m, M2=M1, M3=M2)


def sa_moments(step: Interval, values: int, predict: Predict) -> np.ndarray:
    """The exact moments; with two values of x_0, moments[1] = scale c / 2."""
    moments = step.moments.copy()
    if values == 2 and predict == "x_0":
        moments[1] = step.scale * step.c / 2
    return moments
