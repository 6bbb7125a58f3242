"""What a condition is, two of them at once, and the one that a training step tells the network."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

Conditioning = Mapping[str, jax.Array]
Record = Mapping[str, jax.Array]


class Condition(Protocol):
    """Two pure functions of one example, and which features of its record they read."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Features of a record, beside its image."""
        ...

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        """What the network is told of an example; key for what is drawn, such as noise on a low-resolution image."""
        ...

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        """What it is told when nothing is said: the null label, the empty text, zeros; other names are left."""
        ...


class Both(NamedTuple):
    """Two conditions at once: their mappings merged.

    Raises:
      ValueError: both tell the network something of one name. Raised while tracing.
    """

    first: Condition
    second: Condition

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first.reads, *self.second.reads)))

    def given(self, record: Record, key: jax.Array) -> Conditioning:
        key_first, key_second = jax.random.split(key)
        first, second = self.first.given(record, key_first), self.second.given(record, key_second)
        if shared := sorted(first.keys() & second.keys()):
            raise ValueError(f"two conditions tell the network the same: {', '.join(shared)}")
        return {**first, **second}

    def nothing(self, conditioning: Conditioning) -> Conditioning:
        return self.second.nothing(self.first.nothing(conditioning))


def parts(condition: Condition | None) -> tuple[Condition, ...]:
    """The conditions that one is made of: none, itself, or both of Both and theirs."""
    if isinstance(condition, Both):
        return (*parts(condition.first), *parts(condition.second))
    return () if condition is None else (condition,)


def conditioning(
    condition: Condition, batch: Mapping[str, jax.Array], keys: jax.Array, drop: float
) -> dict[str, jax.Array]:
    """where(u_b < drop, nothing, given) of every example b of a batch, u_b ~ U(0, 1) from the example's own key.

    Source: Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1: c <- null with probability p_uncond.

    Args:
      condition: of one example.
      batch: arrays [B, ...], the features that it reads.
      keys: [B], one for each example.
      drop: probability of nothing, in [0, 1].

    Raises:
      ValueError: drop outside [0, 1]; nothing of other names, shapes or dtypes than given. Raised while tracing.
    """
    if not 0 <= drop <= 1:
        raise ValueError(f"drop must lie in [0, 1], got {drop}")

    def of_one(record: Record, key: jax.Array) -> dict[str, jax.Array]:
        key_coin, key_given = jax.random.split(key)
        given = dict(condition.given(record, key_given))
        if drop == 0:  # a network that is never told nothing need not know what that is
            return given
        nothing = dict(condition.nothing(given))
        described = lambda tree: {name: f"{value.dtype}{list(value.shape)}" for name, value in sorted(tree.items())}
        if described(given) != described(nothing):
            raise ValueError(f"nothing must be told as given is, {described(given)}, got {described(nothing)}")
        dropped = jax.random.uniform(key_coin, dtype=jnp.float32) < drop
        return {name: jnp.where(dropped, nothing[name], given[name]) for name in given}

    return jax.vmap(of_one)({name: batch[name] for name in condition.reads}, keys)
