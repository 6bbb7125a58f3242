"""DPM-Solver and DPM-Solver++, singlestep: Runge-Kutta blocks that forget what was before them."""

from collections.abc import Iterator
from math import exp
from typing import Literal, get_args

from ddpm_jax.names import unknown
from ddpm_jax.samplers.families.dpm_solver import Method, multistep_moments
from ddpm_jax.samplers.families.euler import ancestral_step
from ddpm_jax.samplers.families.exponential import OUTPUT, Predict, advance, checked_order, interval, log_snr
from ddpm_jax.samplers.grids import Grid, Level
from ddpm_jax.samplers.grids.sigma_grids import LevelAt, ratio
from ddpm_jax.samplers.table import M1, M2, SAVED, Row, X, Z, row, sampler

ThirdStage = Literal["exact", "diffusers_sde"]


@sampler
def dpm_solver_singlestep(
    grid: Grid,
    *,
    order: int = 2,
    predict: Predict = "x_0",
    eta: float = 0.0,
    method: Method = "midpoint",
    inner: Method | None = None,
    third_order: ThirdStage = "exact",
    lower_order_final: bool = True,
    num_before: int = 0,
) -> Iterator[Row]:
    """Blocks of `order` steps of the grid; the j-th goes from the block's start, through the block's j values of m.

    The inner stages are at levels of the grid; on a grid uniform in log-SNR they lie at 1/2, or 1/3 and 2/3, as in the
    paper. A step to the clean level is a block of its own.

    Source: Lu et al. 2022 (arXiv:2206.00927), algorithms 1-4; (arXiv:2211.01095), algorithm 1; diffusers for eta > 0.
    The paper's third order is method="midpoint" with inner="heun".

    Args:
      grid: levels of any process.
      order: 1, 2 or 3.
      predict: what is integrated.
      eta: 0 is the flow, 1 the SDE.
      method: second stage: "heun", exact for linear m, or "midpoint", moments[1] = moments[0] / 2. Third stage: "heun",
        exact for quadratic m, or "midpoint", exact for the line through the first and third value.
      inner: the method of the second stage of third order, where it is not the same.
      third_order: "diffusers_sde" gives moments[2] of "heun" the wrong sign of one term.
      lower_order_final: steps that do not fill a block become shorter blocks, and the last two steps are such.
      num_before: how many steps of a longer grid were before this one: the blocks are the longer one's, and what is
        left of one that had begun before is a block of its own. Source: diffusers 0.42.1.

    Raises:
      ValueError: unknown choice; without lower_order_final, a number of steps that is not a multiple of order.
    """
    checked_order("order", order, 3)
    orders = block_orders(num_before + grid.num_steps, order, lower_order_final=lower_order_final)[num_before:]
    orders = [min(p, i + 1) for i, p in enumerate(orders)]
    if grid.levels[-1].sigma == 0:
        orders[-1] = 1
    m, start = OUTPUT.get(predict, X), grid.levels[0]
    if third_order not in get_args(ThirdStage):
        raise unknown("third_order", third_order, get_args(ThirdStage))
    for i, ((s, t), p) in enumerate(zip(grid.steps(), orders, strict=True)):
        if p == 1:
            start = s
            yield row(s, X=advance(X, s, t, [(s, m)], predict, eta), SAVED=X, M1=m)
            continue
        known = [(s, m), (grid.levels[i - 1], M1), (start, M2)][:p]
        step = interval(start, t, predict, eta)
        moments = multistep_moments(step, p, method if inner is None or p == order else inner, "corrected")
        if p == 3 and third_order == "diffusers_sde":
            moments[2] -= 2 * step.scale
        if p == 3 and method == "midpoint":
            known = [known[0], known[2]]
        yield row(s, X=advance(SAVED, start, t, known, predict, eta, moments), M1=m, M2=M1)


def block_orders(num_steps: int, order: int, *, lower_order_final: bool) -> list[int]:
    """1, 2, .., order, again and again: the order of every step.

    Source: diffusers 0.42.1, whose last block of full order is one block earlier than that of the paper for order 2.

    Raises:
      ValueError: without lower_order_final, num_steps is not a multiple of order.
    """
    blocks, rest = divmod(num_steps, order)
    block = list(range(1, order + 1))
    if not lower_order_final:
        if rest:
            raise ValueError(f"without lower_order_final num_steps must be a multiple of {order}, got {num_steps}")
        return block * blocks
    if rest or order == 1:
        return block * blocks + block[:rest]
    return block * (blocks - 1) + block[:-1] + [1]


@sampler
def dpm_solver_2s_ancestral(grid: Grid, level_at: LevelAt, *, eta: float = 1.0) -> Iterator[Row]:
    """DPM-Solver++ of second order through the middle, in log-SNR, of every step down; then noise up to the next level.

    Two calls a step, one on the way to the clean level.

    Source: k-diffusion (sample_dpmpp_2s_ancestral).

    Args:
      grid: levels of any process.
      level_at: sigma of x / alpha -> Level, from `sigma_grids`; the middle is none of the grid's levels.
      eta: in [0, 1].

    Raises:
      ValueError: eta outside [0, 1].
    """
    m = OUTPUT["x_0"]
    for s, t in grid.steps():
        up, down = ancestral_step(ratio(s), ratio(t), eta)
        lower = Level(t.time, t.alpha, t.alpha * down)
        if down == 0:
            yield row(s, X=advance(X, s, lower, [(s, m)], "x_0") + t.alpha * up * Z)
            continue
        middle = level_at(exp(-(log_snr(s) + log_snr(lower)) / 2))
        yield row(s, X=advance(X, s, middle, [(s, m)], "x_0"), SAVED=X)
        yield row(middle, X=advance(SAVED, s, lower, [(middle, m)], "x_0") + t.alpha * up * Z)
