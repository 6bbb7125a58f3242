"""Images as vectors: inner products and projections of every example."""

import jax
import jax.numpy as jnp

Axes = tuple[int, ...] | None


def inner(a: jax.Array, b: jax.Array, axes: Axes = None) -> jax.Array:
    """<a, b>, summed over these axes, all but the first by default; the summed axes are kept, of length 1."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)) if axes is None else axes, keepdims=True)


def along(a: jax.Array, b: jax.Array, axes: Axes = None) -> jax.Array:
    """<a, b> / <b, b> b, the part of a that is parallel to b; 0 where b is 0."""
    square = inner(b, b, axes)
    return inner(a, b, axes) / jnp.where(square > 0, square, 1) * b
