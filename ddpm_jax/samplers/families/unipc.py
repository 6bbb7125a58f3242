"""UniPC: a predictor, and a corrector that uses the next call of the network to redo the step before it."""

from collections.abc import Collection, Iterator
from typing import Literal, get_args

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
from ddpm_jax.samplers.table import M1, M2, M3, SAVED, Row, X, row, sampler

Variant = Literal["bh1", "bh2"]


@sampler
def unipc(
    grid: Grid,
    *,
    order: int = 2,
    variant: Variant = "bh2",
    predict: Predict = "x_0",
    corrector: bool = True,
    disable_corrector: Collection[int] = (),
    lower_order_final: bool = True,
) -> Iterator[Row]:
    """UniP: x_t through the p known values of m; UniC: the same step again, through the value at its end as well.

    The register X holds predicted samples, at which the network is called; corrected ones are never shown to it.
    The weights of the paper's B(h) cancel except where it sets its one weight to 1/2: predictor of order 2 and
    corrector of order 1.

    Source: Zhao et al. 2023 (arXiv:2302.04867), algorithms 1-4 and appendix F; B_1(h) = h, B_2(h) = e^h - 1.

    Args:
      grid: levels of any process. A step to the clean level is of order 1.
      order: 1, 2 or 3; the corrector adds one.
      variant: B(h).
      predict: what is integrated.
      corrector: False leaves the predictor alone.
      disable_corrector: steps that are not corrected, counted from 0.
      lower_order_final: the last steps have at most the order of the number of steps left.

    Raises:
      ValueError: unknown choice; order not 1 to 3.
    """
    if variant not in get_args(Variant):
        raise unknown("variant", variant, get_args(Variant))
    orders = step_orders(
        grid.num_steps,
        checked_order("order", order, 3),
        lower_order_final=lower_order_final,
        clean=grid.levels[-1].sigma == 0,
    )
    m = OUTPUT.get(predict, X)
    for i, (s, t) in enumerate(grid.steps()):
        x = X
        if corrector and i > 0 and i - 1 not in disable_corrector:
            q, p = grid.levels[i - 1], orders[i - 1]
            known = [(grid.levels[i - 1 - j], value) for j, value in zip(range(p), (M1, M2, M3), strict=False)]
            moments = unipc_moments(interval(q, s, predict), p == 1, variant)
            x = advance(SAVED, q, s, [*known, (s, m)], predict, moments=moments)
        p = orders[i]
        known = [(grid.levels[i - j], value) for j, value in zip(range(p), (m, M1, M2), strict=False)]
        moments = unipc_moments(interval(s, t, predict), p == 2, variant)
        yield row(s, X=advance(x, s, t, known, predict, moments=moments), SAVED=x, M1=m, M2=M1, M3=M2)


def unipc_moments(step: Interval, half: bool, variant: Variant) -> np.ndarray:
    """The exact moments; where `half`, moments[1] is B(h) / 2, with B(h) = scale c (bh1) or moments[0] (bh2)."""
    moments = step.moments.copy()
    if half:
        moments[1] = (step.scale * step.c if variant == "bh1" else moments[0]) / 2
    return moments
