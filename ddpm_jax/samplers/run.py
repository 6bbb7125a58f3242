"""The one loop that runs every sampler.

Randomness: sample i (a global index) has the key fold_in(key, i); its noise at row k comes from fold_in(that, k), rows
being numbered from table.first, and its starting point from fold_in(that, 2^32 - 1). So what sample i draws is the same
in any batch and on any number of devices, bit for bit; its pixels are the same up to how a network rounds in batches of
another size.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import example_keys
from ddpm_jax.samplers.denoise import Denoise, Denoised, Remembering, remembering
from ddpm_jax.samplers.table import Row, Table

Registers = tuple[jax.Array, ...]
START = np.uint32(2**32 - 1)  # the "row" at which x_T is drawn


class _Noise(NamedTuple):
    keys: jax.Array | None  # one per sample

    def __call__(self, k: jax.Array | np.uint32, like: jax.ShapeDtypeStruct) -> jax.Array:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, k), like.shape[1:], like.dtype)
        return jax.vmap(draw)(self.keys)


def step(denoise: Denoise, row: Row, registers: Registers, z: jax.Array) -> Registers:
    """registers <- row.update @ [registers, x_0, eps, z], all at once, with (x_0, eps) = denoise(registers[0]).

    Where the denoiser has learned a variance, z is scaled by its noise_scale. What of X is not alpha x_0 + sigma eps is
    added with the weight that the sampler gave X.
    """
    return updated(denoise(registers[0], row), row, registers, z)


def updated(found: Denoised, row: Row, registers: Registers, z: jax.Array) -> Registers:
    """What `step` makes of the registers, with what the denoiser found at registers[0]."""
    x_0, eps, noise_scale, rest = found
    z = z if noise_scale is None else noise_scale * z
    basis = (*registers, x_0, eps, z)
    # Multiply-adds rather than a matrix product, which accelerators would round to TF32 or bf16.
    combine = lambda weights: functools.reduce(operator.add, (weights[j] * image for j, image in enumerate(basis)))
    new = tuple(combine(weights) for weights in row.update)
    if rest is None or row.of_x is None:
        return new
    return tuple(image + weight * rest for image, weight in zip(new, row.of_x, strict=True))


def check_ends(denoise: Denoise | Remembering, table: Table, like: jax.ShapeDtypeStruct) -> None:
    """Traces the network once more where a row has alpha = 0 or sigma = 0, if that is known while tracing.

    Raises:
      ValueError: a prediction that would be divided by 0 there.
    """
    rows, (start, call) = table.rows, remembering(denoise)
    if not all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(rows._replace(guidance=None))):
        return
    for k in np.flatnonzero((rows.alpha == 0) | (rows.sigma == 0)):
        arrays = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf[k], like.dtype), rows)
        row = Row(*(float(leaf[k]) for leaf in rows[:5]), *arrays[5:])
        jax.eval_shape(lambda x, row=row: call(x, row, start(like)), like)


def sample(
    denoise: Denoise | Remembering,
    table: Table,
    key: jax.Array | None,
    shape: tuple[int, ...],
    *,
    x_T: jax.Array | None = None,
    x_t: jax.Array | None = None,
    noise: jax.Array | None = None,
    first_index: int | jax.Array = 0,
    num_calls: int | jax.Array | None = None,
) -> jax.Array:
    """x_0 [B, ...]: the table run from x_T ~ N(0, I), or on from x_t, with one lax.scan. Traceable; jit it.

    Args:
      denoise: from `denoiser`.
      table: from a sampler such as `ddim`.
      key: of the whole set of samples; may be None where x_T or x_t, and noise are given.
      shape: [B, ...] of the result.
      x_T: [B, ...] standard normal start instead of a drawn one; scaled inside, by table.init.
      x_t: [B, ...] start instead that is X as it is, alpha x_0 + sigma eps of the first row's level: `process.q_sample`
        where the grid is one of timesteps. See `start_at` for a table that begins in the middle.
      noise: [N, B, ...] standard normal z of every row instead of drawn ones.
      first_index: the global index of the first sample of this batch.
      num_calls: run the first num_calls rows only, in a loop instead of a scan: the number may then be traced, but
        there is no gradient. For padded tables, see `Runner`.

    Returns:
      Like x_T or x_t, else float32.

    Raises:
      ValueError: x_T, x_t or noise of another shape; both x_T and x_t; no key where something must be drawn; a
        prediction that says nothing at one of the levels (eps at alpha = 0).
    """
    return _run(denoise, table, key, shape, x_T, x_t, noise, first_index, num_calls)[0]


def trajectory(
    denoise: Denoise | Remembering,
    table: Table,
    key: jax.Array | None,
    shape: tuple[int, ...],
    *,
    x_T: jax.Array | None = None,
    x_t: jax.Array | None = None,
    noise: jax.Array | None = None,
    first_index: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
    """x_0 as `sample` returns it, and X [N, B, ...] at every call of the network: row k's, at its alpha and sigma.

    Arguments and errors are those of `sample`. X of the first row is x_T times table.init, or x_t.
    """
    return _run(denoise, table, key, shape, x_T, x_t, noise, first_index, None, kept=lambda registers: registers[0])


def _run(
    denoise: Denoise | Remembering,
    table: Table,
    key: jax.Array | None,
    shape: tuple[int, ...],
    x_T: jax.Array | None,
    x_t: jax.Array | None,
    noise: jax.Array | None,
    first_index: int | jax.Array,
    num_calls: int | jax.Array | None,
    kept: Callable[[Registers], Any] = lambda registers: None,
) -> tuple[jax.Array, Any]:
    """x_0, and what `kept` makes of the registers before every row."""
    given = x_T if x_t is None else x_t
    if (given is None or noise is None) and key is None:
        raise ValueError("key must not be None unless both x_T or x_t, and noise are given")
    if x_T is not None and x_t is not None:
        raise ValueError("give either x_T, which is scaled by table.init, or x_t, which is X itself, not both")
    for name, array, expected in (
        ("x_T", x_T, shape),
        ("x_t", x_t, shape),
        ("noise", noise, (table.num_calls, *shape)),
    ):
        if array is not None and array.shape != tuple(expected):
            raise ValueError(f"{name} must have shape {tuple(expected)}, got {array.shape}")

    dtype = jnp.float32 if given is None else given.dtype
    like = jax.ShapeDtypeStruct(shape, dtype)
    check_ends(denoise, table, like)
    draw = _Noise(None if key is None else example_keys(key, first_index, shape[0]))
    first = jnp.asarray(0 if table.first is None else table.first).astype(jnp.uint32)
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), table)
    start = table.init * (draw(START, like) if x_T is None else x_T) if x_t is None else x_t

    def z_of(k: jax.Array, row: Row) -> jax.Array:
        if noise is not None:
            return jax.lax.dynamic_index_in_dim(noise, k, keepdims=False).astype(dtype)
        # Drawing costs more than the update of a small image: skip it where nothing uses it.
        return jax.lax.cond(
            jnp.any(row.update[:, -1] != 0), lambda: draw(first + k, like), lambda: jnp.zeros(shape, dtype)
        )

    remembered, call = remembering(denoise)

    @jax.checkpoint  # so that a gradient through the scan stores one state per row, not the network's activations
    def body(state: tuple[Registers, Any], inputs: tuple[jax.Array, Row]) -> tuple[tuple[Registers, Any], Any]:
        (registers, memory), (k, row) = state, inputs
        found, memory = call(registers[0], row, memory)
        return (updated(found, row, registers, z_of(k, row)), memory), kept(registers)

    zeros = jnp.zeros(shape, dtype)
    state = (start, *(zeros for _ in range(table.rows.update.shape[1] - 1))), remembered(like)
    if num_calls is not None:
        row_at = lambda k: jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, k, keepdims=False), table.rows)
        step_at = lambda k, state: body(state, (k.astype(jnp.uint32), row_at(k)))[0]
        return jax.lax.fori_loop(0, num_calls, step_at, state)[0][0], None
    rows = jnp.arange(table.num_calls, dtype=jnp.uint32), table.rows
    (registers, _), states = jax.lax.scan(body, state, rows)
    return registers[0], states
