"""Gradient accumulation: a batch that is too large for the device's memory, in micro-batches."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Means = TypeVar("Means")
Said = TypeVar("Said")


def accumulated(
    gradient: Callable[..., tuple[Means, Said]], num_parts: int, *, unroll: bool
) -> Callable[..., tuple[Means, Said]]:
    """mean_b g_b = mean_i (mean over part i of g_b): a batch's gradient, part by part.

    Part i is every num_parts-th example from the i-th on: so each device of a mesh, which holds examples that lie side
    by side, computes a share of every part. Draws depend on an example's index only, so they are those of the batch.

    Args:
      gradient: gradient(state, a tree of arrays [b, ...], indices [b], batch_size) -> (means over b, arrays [b, ...]).
      num_parts: micro-batches; divides b.
      unroll: compile every part for itself, for CPUs: there the weight gradient of a convolution takes 100 times as
        long inside a loop. It saves no memory: XLA plans the parts side by side. Otherwise the gradient is compiled
        once and scanned, with one part in memory at a time.

    Returns:
      A function with the arguments and the results of `gradient`.
    """
    if num_parts == 1:
        return gradient

    def whole(state: Any, batch: Any, indices: jax.Array, batch_size: int) -> tuple[Means, Said]:
        def add(total: Means, part: tuple[Any, jax.Array]) -> tuple[Means, Said]:
            means, said = gradient(state, *part, batch_size)
            return jax.tree.map(jnp.add, total, means), said

        parts = jax.tree.map(lambda x: _cut(x, num_parts), (batch, indices))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes, _ = jax.eval_shape(lambda part: gradient(state, *part, batch_size), first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, said = jax.lax.scan(add, zeros, parts, unroll=num_parts if unroll else 1)
        return jax.tree.map(lambda x: x / num_parts, total), jax.tree.map(_join, said)

    return whole


def _cut(x: jax.Array, num_parts: int) -> jax.Array:
    """[b, ...] -> [num_parts, b / num_parts, ...], part i being x[i::num_parts]."""
    return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)


def _join(parts: jax.Array) -> jax.Array:
    """The inverse of _cut."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])
