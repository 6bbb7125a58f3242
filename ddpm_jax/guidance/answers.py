"""What one network says when it is told different things, or what several networks say."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.process import ModelFn

Network = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(x [B, ...], t [B], what it is told: a tree of arrays [B, ...]) -> its output."""


class Answers(NamedTuple):
    """Several model_fns of the same output: the one that is told the condition is the first.

    Attributes:
      each: the model_fns, to be asked alone.
      together: (x, t) -> what all of them return.
    """

    each: tuple[ModelFn, ...]
    together: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]


def asked(network: Network, given: Any, *others: Any) -> Answers:
    """(network(x, t, given), network(x, t, other), ...), in one call of so many times the batch.

    Args:
      network: which treats the examples of a batch one by one.
      given: what it is told of the condition.
      others: what else it is told: nothing, or a negative prompt; trees like `given`.

    Raises:
      ValueError: trees, shapes or dtypes that differ. Raised while tracing.
    """
    described = lambda told: jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", told)
    for other in others:
        if described(other) != described(given):
            raise ValueError(f"all must be told alike: {described(given)} and {described(other)}")
    each = tuple(lambda x, t, told=told: network(x, t, told) for told in (given, *others))

    def together(x: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
        n = len(each)
        told = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), given, *others)
        return tuple(jnp.split(network(jnp.concatenate([x] * n), jnp.concatenate([t] * n), told), n))

    return Answers(each, together)


def of_each(first: ModelFn, *others: ModelFn) -> Answers:
    """What several networks say, each in a call of its own: the better one first, for `autoguidance`."""
    return Answers((first, *others), lambda x, t: tuple(model_fn(x, t) for model_fn in (first, *others)))
