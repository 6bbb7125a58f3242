"""One key per example or sample, by its global index: results do not depend on how the set is cut into batches."""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, first_index: int | jax.Array, count: int) -> jax.Array:
    """fold_in(key, i) for i = first_index .. first_index + count - 1; keys [count]."""
    indices = jnp.asarray(first_index, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
