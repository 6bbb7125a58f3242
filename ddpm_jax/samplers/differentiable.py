"""Tables as differentiable functions of the levels they visit, and levels of a schedule's tables.

    levels = levels_of(schedule, [999, 749, 499, 249])          # [N + 1, 3]: time, alpha, sigma of every level
    table = table_at(unipc, grid, levels)                       # unipc(grid), with these numbers for grid's
    samplers.sample(denoise, table, ...)                        # now a function of the schedule and the levels

A sampler is NumPy in float64, which JAX cannot see into. So the table is computed by a callback, and its Jacobian in
alpha and sigma by central differences there: what a relative change of a level does is known to about 1e-9, far below
the rounding of float32. One gradient takes 4 (N + 1) tables: milliseconds for few steps, half a minute for 1000.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.names import choose
from ddpm_jax.samplers.grids import Grid, LastLevel, Level
from ddpm_jax.samplers.table import Table
from ddpm_jax.schedules import Schedule, checked_timesteps

RELATIVE_STEP = 1e-6  # rounding error 1e-16 / 1e-6 against the 1e-12 of the third derivative
TIME_STEP = 1e-6


def levels_of(schedule: Schedule, timesteps: Sequence[int] | np.ndarray, *, last: LastLevel = "clean") -> jax.Array:
    """(time, alpha, sigma) [N + 1, 3] of `grids.from_timesteps`, as a function of the schedule's leaves.

    alpha is sqrt_alphas_cumprod and sigma sqrt_one_minus_alphas_cumprod, in float32 as they are; what else a schedule
    holds has no part in it. jax.grad with respect to a whole Schedule needs allow_int, for its timesteps.

    Args:
      schedule: Schedule of length T; may be traced.
      timesteps: [N] integers in [0, T).
      last: as in `grids.from_timesteps`.

    Raises:
      ValueError: timesteps empty, not integers, or outside [0, T); unknown last.
    """
    steps = checked_timesteps(schedule, timesteps)
    alphas, sigmas = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    entries = jnp.stack([schedule.timesteps.astype(alphas.dtype), alphas, sigmas], axis=-1)
    clean = jnp.asarray([0, 1, 0], alphas.dtype)
    end = choose("last level", last, {"clean": clean, "first": entries[0]})
    return jnp.concatenate([entries[steps], end[None]])


def table_at(make: Callable[[Grid], Table], grid: Grid, levels: jax.Array) -> Table:
    """make(grid) with other numbers in the grid's levels, differentiable in them; traceable, under jit and vmap too.

    Numbers that are exactly 0, such as sigma of the clean level, are constants. Times are handed through to the rows
    that tell them to the network. First derivatives only.

    Args:
      make: a sampler, with its options if any: lambda grid: samplers.unipc(grid, order=3).
      grid: a grid of as many levels, and clean at the end or not, as meant: what decides the shape of the table.
      levels: [N + 1, 3] time, alpha and sigma of every level; np.asarray(grid.levels) are its own.

    Returns:
      Table with leaves of the dtype of levels.

    Raises:
      ValueError: levels of another shape. When run, as an error of the callback: levels that `grid` would refuse, or
        with which the table has another shape.
    """
    if levels.shape != (len(grid.levels), 3):
        raise ValueError(f"levels must have shape {(len(grid.levels), 3)}, those of the grid, got {levels.shape}")
    dtype, made = levels.dtype, make(grid)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), dtype), _unguided(made))
    slopes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, *levels.shape), dtype), shapes)

    def build(values: np.ndarray) -> Table:
        table = _unguided(make(dataclasses.replace(grid, levels=tuple(Level(*map(float, value)) for value in values))))
        found, expected = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (table, shapes))
        if found != expected:
            raise ValueError(f"at these levels the table has leaves of shapes {found}, not {expected} as at the grid's")
        return table

    def call(function: Callable[[np.ndarray], Table], result: Table, levels: jax.Array) -> Table:
        compute = lambda levels: jax.tree.map(dtype.type, function(np.asarray(levels, np.float64)))
        return jax.pure_callback(compute, result, levels, vmap_method="sequential")

    @jax.custom_jvp
    def table(levels: jax.Array) -> Table:
        return call(build, shapes, levels)

    @table.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Table, Table]:
        # The contraction is outside the callback: linear in the tangent, so that JAX can transpose it.
        along = lambda slope: jnp.tensordot(slope, tangents[0], 2, precision=jax.lax.Precision.HIGHEST)
        jacobian = call(lambda values: _jacobian(build, values), slopes, primals[0])
        return table(primals[0]), jax.tree.map(along, jacobian)

    found = table(levels)
    guidance = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), made.rows.guidance)  # whatever the levels are
    return found._replace(rows=found.rows._replace(guidance=guidance))


def _unguided(table: Table) -> Table:
    return table._replace(rows=table.rows._replace(guidance=None))


def _jacobian(build: Callable[[np.ndarray], Table], levels: np.ndarray) -> Table:
    """The derivative of every leaf of build(levels) with respect to levels, in two more axes [N + 1, 3]."""

    def derivatives() -> Iterator[Table]:
        for place in np.ndindex(*levels.shape):
            step = np.zeros_like(levels)
            step[place] = RELATIVE_STEP * levels[place] * (place[1] > 0)
            length = 2 * step[place]
            if length == 0:
                yield jax.tree.map(np.zeros_like, table)
            else:
                difference = lambda up, down, length=length: (up - down) / length
                yield jax.tree.map(difference, build(levels + step), build(levels - step))

    table = build(levels)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, -1).reshape(*leaves[0].shape, -1, 3), *derivatives())
    stacked.rows.time[:, :, 0] = _told(build, levels, table)
    return stacked


def _told(build: Callable[[np.ndarray], Table], levels: np.ndarray, table: Table) -> np.ndarray:
    """[rows, N + 1]: 1 where a row tells the network the time of a level.

    Times moved by 1, 2, 3, .. steps say which level's it is. Unlike the numbers, a time is never used for more than
    that, but for thresholds that a derivative must not cross.
    """
    steps = np.zeros_like(levels)
    steps[:, 0] = TIME_STEP * np.arange(1, len(levels) + 1)
    moved = np.round((build(levels + steps).rows.time - table.rows.time) / TIME_STEP)
    return moved[:, None] == np.arange(1, len(levels) + 1)
