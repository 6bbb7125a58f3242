"""The noise that a sampler makes a given image of: its rows solved backwards, each to the rounding of float32.

A deterministic sampler that remembers nothing is a chain of maps X' = row(X) = a x_0(X) + b eps(X), of which the image
is the last value. Backwards, each is an equation for X. With x_0 = (X' - b eps) / a, X = alpha x_0 + sigma eps is

    X = (alpha / a) X' + (sigma - alpha b / a) eps(X),    the same as    X <- X + (alpha / a) (X' - row(X)),

and X is the fixed point. Where eps(X) depends on X strongly, plain iteration is slow or does not converge, so it is
mixed with its last steps (Anderson 1965; Walker & Ni 2011, SIAM J. Numer. Anal. 49, section 2), example by example. A
row with sigma a = alpha b is implicit in nothing: its X is there before the first iteration.

`samplers.ddim_inverse` is the usual approximation: one step, with eps at the wrong X.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import Denoise, Row, Table
from ddpm_jax.samplers.run import check_ends, sample, step

TOLERANCE = 1e-6
"""|X' - row(X)| of the largest number of X' or 1: some roundings of float32. What is nearer is taken where a few more
iterations find it, because the rows that follow may enlarge what is left."""
AIM, FURTHER = 1e-7, 10
"""What is near enough, and how many iterations are spent on it below the tolerance."""
MOST = 300
"""Iterations at a row."""
MEMORY = 8
"""Earlier steps that one is mixed with."""


class Inverted(NamedTuple):
    """What an image comes from.

    Attributes:
      x_t: [B, ...] X of the table's first row: samplers.sample(..., x_t=x_t) makes the image of it.
      error: [B, N] |X' - row(X)| of each row, in units of the largest number of X' or 1.
      calls: [B, N] of the network.
    """

    x_t: jax.Array
    error: jax.Array
    calls: jax.Array


def check_table(table: Table) -> None:
    """Whether a sampler can be run backwards.

    Raises:
      ValueError: it draws noise, or remembers more than X; a row that x_0 has no part in.
    """
    update = np.asarray(table.rows.update)
    if update[:, 0, -1].any():
        raise ValueError("a sampler that draws noise cannot be inverted: take a deterministic one, such as ddim")
    if update.shape[1] > 1:
        raise ValueError(
            f"a sampler that remembers {update.shape[1] - 1} more images than X cannot be inverted row by row: take "
            "one that looks at its last call only, such as ddim or euler"
        )
    if not update[:, 0, -3].all():
        raise ValueError(f"row {np.argmin(update[:, 0, -3] != 0)} of the table makes its image of eps alone")


def invert(
    denoise: Denoise, table: Table, x_0: jax.Array, *, tolerance: float = TOLERANCE, most: int = MOST
) -> Inverted:
    """X of the first row from which the table makes x_0. Traceable; whether it converged, `check` says.

    Args:
      denoise: any, guided or not.
      table: as `check_table` allows, such as those of samplers.ddim and euler.
      x_0: [B, ...] images.
      tolerance: at which a row is solved.
      most: iterations at a row.

    Raises:
      ValueError: a table that cannot be inverted; as samplers.sample.
    """
    check_table(table)
    check_ends(denoise, table, jax.ShapeDtypeStruct(x_0.shape, x_0.dtype))
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, x_0.dtype), table.rows)

    def back(carry: tuple[jax.Array, jax.Array], row: Row) -> tuple[tuple[jax.Array, jax.Array], tuple]:
        after, eps = carry
        found, error, calls = _solved(denoise, row, after, eps, tolerance, most)
        # eps(X), from both X = alpha x_0 + sigma eps and X' = a x_0 + b eps where they are two equations.
        a, b = row.update[0, -3], row.update[0, -2]
        both = a * row.sigma - b * row.alpha
        eps = jnp.where(both == 0, eps, (a * found - row.alpha * after) / jnp.where(both == 0, 1, both))
        return (found, eps), (error, calls)

    (x_t, _), (error, calls) = jax.lax.scan(back, (x_0, jnp.zeros_like(x_0)), rows, reverse=True)
    return Inverted(x_t, error.T, calls.T)


def reconstruct(denoise: Denoise, table: Table, x_t: jax.Array) -> jax.Array:
    """The image x_0 [B, ...] that a deterministic table makes of X of its first row."""
    nothing = jnp.zeros((table.num_calls, *x_t.shape), x_t.dtype)
    return sample(denoise, table, None, x_t.shape, x_t=x_t, noise=nothing)


def check(found: Inverted, tolerance: float = TOLERANCE, most: int = MOST) -> None:
    """Whether every row of every image was solved.

    Raises:
      FloatingPointError: it was not; says how many images, and of the worst the row and how far it is off.
    """
    error = np.asarray(found.error)
    bad = np.flatnonzero(~(error <= tolerance).all(axis=1))
    if not len(bad):
        return
    ordered = np.where(np.isnan(error), np.inf, error)
    image, row = np.unravel_index(np.argmax(ordered), error.shape)
    raise FloatingPointError(
        f"the inversion has not converged for {len(bad)} of {len(error)} images, first image {bad[0]}: row {row} of "
        f"image {image} is off by {error[image, row]:.2g} after {most} iterations, where {tolerance:.2g} is asked for; "
        "it may be that no noise leads there: use more steps, a grid that ends at the first timestep, or less guidance"
    )


def _solved(
    denoise: Denoise, row: Row, after: jax.Array, eps: jax.Array, tolerance: float, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(X with row(X) = after, its error [B], how many calls of the network [B]).

    Args:
      denoise: of the network.
      row: that is solved.
      after: X' [B, ...].
      eps: a guess at eps(X), that of the row after this one.
      tolerance, most: as in `invert`.
    """
    batch, flat = len(after), lambda x: x.reshape(len(x), -1)
    gain = row.alpha / row.update[0, -3]
    scale = jnp.maximum(jnp.abs(flat(after)).max(axis=1), 1)

    def off(x: jax.Array) -> jax.Array:
        """X' - row(X), [B, D]."""
        return flat(after) - flat(step(denoise, row, (x.reshape(after.shape),), jnp.zeros_like(after))[0])

    def size(residual: jax.Array) -> jax.Array:
        return jnp.abs(residual).max(axis=1) / scale

    class State(NamedTuple):
        k: jax.Array
        x: jax.Array
        best: jax.Array
        error: jax.Array
        calls: jax.Array
        further: jax.Array  # [B] iterations below the tolerance
        moves: jax.Array  # [B, M, D] x_k - x_{k-1}
        changes: jax.Array  # [B, M, D] of the residual
        last: tuple[jax.Array, jax.Array]  # x_{k-1} and its residual

    def going(state: State) -> jax.Array:
        return (state.error > min(AIM, tolerance)) & (state.further < FURTHER)

    def more(state: State) -> jax.Array:
        return (state.k < most) & going(state).any()

    def iterate(state: State) -> State:
        residual = gain * off(state.x)
        error = size(residual / gain)
        goes = going(state)  # the others stay what they are, whatever else is in the batch
        better = goes & (error < state.error)
        slot = jnp.maximum(state.k - 1, 0) % MEMORY
        put = lambda kept, new: jnp.where(state.k > 0, kept.at[:, slot].set(new), kept)
        moves = put(state.moves, state.x - state.last[0])
        changes = put(state.changes, residual - state.last[1])
        return State(
            k=state.k + 1,
            x=state.x + residual - _mixed(moves + changes, changes, residual),
            best=jnp.where(better[:, None], state.x, state.best),
            error=jnp.where(better, error, state.error),
            calls=state.calls + goes.astype(jnp.int32),
            further=state.further + (goes & (state.error <= tolerance)).astype(jnp.int32),
            moves=moves,
            changes=changes,
            last=(state.x, residual),
        )

    guess = flat(gain * after + (row.sigma - gain * row.update[0, -2]) * eps)
    nothing = jnp.zeros((batch, MEMORY, guess.shape[1]), guess.dtype)
    none, far = jnp.zeros(batch, jnp.int32), jnp.full(batch, jnp.inf, guess.dtype)
    last = guess, jnp.zeros_like(guess)
    start = State(jnp.int32(0), guess, guess, far, none, none, nothing, nothing, last)
    found = jax.lax.while_loop(more, iterate, start)
    return found.best.reshape(after.shape), found.error, found.calls


def _mixed(directions: jax.Array, changes: jax.Array, residual: jax.Array) -> jax.Array:
    """directions^T w [B, D], w [B, M] making |residual - changes^T w| least, of earlier steps' changes [B, M, D]."""
    length = jnp.sqrt((changes**2).sum(axis=-1, keepdims=True))
    unit = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)  # else the older of them drown in rounding
    changes, directions = changes * unit, directions * unit
    products = jnp.einsum("bmd,bnd->bmn", changes, changes, precision="highest")
    small = 1e-6 * jnp.eye(changes.shape[1], dtype=changes.dtype)  # what is absent, or nearly a repetition, is left out
    right = jnp.einsum("bmd,bd->bm", changes, residual, precision="highest")
    weights = jnp.linalg.solve(products + small[None], right[..., None])
    return (directions * weights).sum(axis=1)
