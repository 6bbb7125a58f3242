"""What a task on noisy images draws for a step: t, eps and dropout of each example, from the example's own key.

Every draw of step k for example b of the batch comes from fold_in(fold_in(key, k), b), split once into the keys of t,
eps and dropout.
"""

from typing import Any, NamedTuple

import jax

from ddpm_jax.timesteps import TimestepSampler


class Said(NamedTuple):
    """Of each example, [B]: what a TimestepSampler learns from."""

    t: jax.Array
    losses: jax.Array


class Draws(NamedTuple):
    """Of some examples: t [b] int32 and the weight of its loss [b], eps like x_0, and the keys of the examples.

    example_keys [b] are those that the others came from: what else is drawn folds a number into them.
    """

    t: jax.Array
    weight: jax.Array
    eps: jax.Array
    dropout_keys: jax.Array
    example_keys: jax.Array


def example_keys(key: jax.Array, step: jax.Array, indices: jax.Array) -> jax.Array:
    """The keys [b] that all draws of these examples come from."""
    return jax.vmap(lambda b: jax.random.fold_in(jax.random.fold_in(key, step), b))(indices)


def draw(
    key: jax.Array, sampler: TimestepSampler, task_state: Any, step: jax.Array, x_0: jax.Array, indices: jax.Array,
    batch_size: int,
) -> Draws:  # fmt: skip
    """The draws of some examples of a batch.

    Args:
      key: of the whole run.
      sampler: of t.
      task_state: of the sampler.
      step: k.
      x_0: [b, ...].
      indices: [b] uint32, of the examples in the batch.
      batch_size: of the whole batch.
    """
    key_of = lambda b: jax.random.fold_in(jax.random.fold_in(key, step), b)
    keys_of = lambda b: jax.random.split(key_of(b), 3)
    _, keys_eps, dropout_keys = jax.vmap(keys_of, out_axes=1)(indices)
    eps = jax.vmap(lambda key_eps: jax.random.normal(key_eps, x_0.shape[1:], x_0.dtype))(keys_eps)
    t, weight = sampler.draw(task_state, lambda b: keys_of(b)[0], indices, batch_size)
    return Draws(t, weight, eps, dropout_keys, jax.vmap(key_of)(indices))
