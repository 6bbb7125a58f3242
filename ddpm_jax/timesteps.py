"""How training draws t, and how much each draw counts.

A sampler of t is three pure functions, as an optimizer of optax is two:

    state = sampler.init()
    t, weight = sampler.draw(state, key_of, indices, batch_size)    for any part of a batch
    state = sampler.update(state, t, losses)                        for the whole batch, in its order

indices are those of the examples in the global batch of size batch_size, and key_of(i) is the key of example i. So a
draw depends neither on the device it is made on nor on what else is drawn there. mean(weight * loss) estimates the
mean of the loss over t = 0 .. T-1 without bias; `lognormal` alone is a density of its own, with weight 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from ddpm_jax.names import apply
from ddpm_jax.schedules import Schedule

KeyOf = Callable[[jax.Array], jax.Array]


class Draw(NamedTuple):
    """t [b] int32 in [0, T), and what the loss of each is multiplied by, [b] float32."""

    t: jax.Array
    weight: jax.Array


class TimestepSampler(NamedTuple):
    """Pure functions over a state that holds arrays, or none."""

    init: Callable[[], Any]
    draw: Callable[[Any, KeyOf, jax.Array, int], Draw]
    update: Callable[[Any, jax.Array, jax.Array], Any]


def _stateless(t_of: Callable[[KeyOf, jax.Array, int], jax.Array]) -> TimestepSampler:
    """The sampler whose t are t_of(key_of, i, batch_size), all of weight 1."""

    def draw(state: tuple[()], key_of: KeyOf, indices: jax.Array, batch_size: int) -> Draw:
        t = jax.vmap(lambda i: t_of(key_of, i, batch_size))(indices)
        return Draw(t, jnp.ones(t.shape, jnp.float32))

    return TimestepSampler(init=lambda: (), draw=draw, update=lambda state, t, losses: state)


def uniform(schedule: Schedule) -> TimestepSampler:
    """t ~ Uniform{0, .., T-1}, each example for itself.

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 1.
    """
    length = schedule.num_timesteps
    return _stateless(lambda key_of, i, batch_size: jax.random.randint(key_of(i), (), 0, length, jnp.int32))


def antithetic(schedule: Schedule) -> TimestepSampler:
    """t ~ Uniform{0, .., T-1} for every even example, T-1-t for the one after it.

    Source: the code of Song et al. 2021 (arXiv:2010.02502), which pairs the two halves of a batch.
    """
    length = schedule.num_timesteps

    def t_of(key_of: KeyOf, i: jax.Array, batch_size: int) -> jax.Array:
        odd = i % 2
        t = jax.random.randint(key_of(i - odd), (), 0, length, jnp.int32)
        return jnp.where(odd == 1, length - 1 - t, t)

    return _stateless(t_of)


def stratified(schedule: Schedule) -> TimestepSampler:
    """t_i = floor(T ((u + i/B) mod 1)) with one u ~ Uniform[0, 1) for a batch of B: B evenly spread draws.

    Source: Kingma et al. 2021 (arXiv:2107.00630), "low-discrepancy sampler" of the appendix.
    """
    length = schedule.num_timesteps

    def t_of(key_of: KeyOf, i: jax.Array, batch_size: int) -> jax.Array:
        u = jax.random.uniform(key_of(jnp.zeros_like(i)), dtype=jnp.float32)
        return jnp.floor(length * ((u + i.astype(jnp.float32) / batch_size) % 1)).astype(jnp.int32)

    return _stateless(t_of)


def lognormal(schedule: Schedule, *, mean: float = -1.2, std: float = 1.2) -> TimestepSampler:
    """ln sigma ~ N(mean, std^2), then the t whose ln(sigma_t / alpha_t) is nearest.

    The density belongs to the objective, so that every weight is 1. Noise beyond both ends of the schedule goes to
    its ends; a last level with alpha = 0 is never drawn.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 (P_mean, P_std), on a discrete schedule.

    Args:
      schedule: of length T.
      mean: of ln sigma.
      std: of ln sigma; positive.

    Raises:
      ValueError: std not positive.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    with np.errstate(divide="ignore"):  # alpha = 0 is ln sigma = inf
        log_sigma = 0.5 * np.log(schedule.one_minus_alphas_cumprod_float64 / schedule.alphas_cumprod_float64)
    between = (log_sigma[1:] + log_sigma[:-1]) / 2
    mass = np.diff(ndtr((between - mean) / std), prepend=0.0, append=1.0)
    tickets = jnp.asarray(np.floor(mass * TICKETS), jnp.int32)
    return _stateless(lambda key_of, i, batch_size: _raffle(key_of(i), tickets))


# ------------------------------------------------------------------------------------------------------- importance


MOST_HISTORY = 2**16


class History(NamedTuple):
    """The last K losses of every t, oldest first: losses [T, K] float32, counts [T] int32 in [0, K]."""

    losses: jax.Array
    counts: jax.Array


def importance(schedule: Schedule, *, history: int = 10, uniform_share: float = 0.001) -> TimestepSampler:
    """p_t = (1 - u) sqrt(E[L_t^2]) / sum_s sqrt(E[L_s^2]) + u / T, weight 1 / (T p_t): the least variance of L_vlb.

    E is the mean over the last `history` losses of t. Until every t has that many, t is uniform with weight 1.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.3, eq. 18; u is from their code.

    Args:
      schedule: of length T.
      history: K, losses remembered for each t.
      uniform_share: u in (0, 1].

    Raises:
      ValueError: history not a whole number in [1, MOST_HISTORY]; uniform_share outside (0, 1].
    """
    if not 1 <= history <= MOST_HISTORY or history != int(history):
        raise ValueError(f"history must be a whole number in [1, {MOST_HISTORY}], got {history}")
    if not 0 < uniform_share <= 1:
        raise ValueError(f"uniform_share must lie in (0, 1], got {uniform_share}")
    length = schedule.num_timesteps

    def init() -> History:
        return History(jnp.zeros((length, int(history)), jnp.float32), jnp.zeros(length, jnp.int32))

    def draw(state: History, key_of: KeyOf, indices: jax.Array, batch_size: int) -> Draw:
        # Every t keeps a ticket, so that whole numbers leave none out; the weight is that of the tickets: no bias.
        tickets = jnp.maximum(jnp.floor(probabilities(state, uniform_share) * TICKETS).astype(jnp.int32), 1)
        t = jax.vmap(lambda i: _raffle(key_of(i), tickets))(indices)
        weight = jnp.sum(tickets).astype(jnp.float32) / (length * tickets[t].astype(jnp.float32))
        return Draw(t, jnp.where(warmed_up(state), weight, 1))

    return TimestepSampler(init, draw, remember)


def warmed_up(state: History) -> jax.Array:
    """Whether every t has all its losses."""
    return jnp.all(state.counts == state.losses.shape[1])


def probabilities(state: History, uniform_share: float) -> jax.Array:
    """p [T] of `importance`; uniform until it is warmed up."""
    length = len(state.counts)
    root = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
    p = (1 - uniform_share) * root / jnp.sum(root) + uniform_share / length
    return jnp.where(warmed_up(state), p, jnp.full(length, 1 / length, jnp.float32))


def remember(state: History, t: jax.Array, losses: jax.Array) -> History:
    """The history after losses [B] at t [B], as if they came one after the other.

    With n new losses for a t that has c, the newest K of the c + n stay.
    """
    old, counts = state
    size = old.shape[1]
    same = t[:, None] == t[None, :]
    earlier = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)  # losses of the same t before this one
    total = counts + jnp.zeros_like(counts).at[t].add(1)
    dropped = jnp.maximum(total - size, 0)
    source = jnp.arange(size, dtype=jnp.int32)[None, :] + dropped[:, None]
    kept = jnp.where(
        source < counts[:, None], jnp.take_along_axis(old, jnp.minimum(source, size - 1), axis=1), jnp.zeros_like(old)
    )
    position = counts[t] + earlier - dropped[t]
    position = jnp.where(position < 0, size, position)  # pushed out by the same batch; written nowhere
    return History(kept.at[t, position].set(losses.astype(kept.dtype), mode="drop"), jnp.minimum(total, size))


# Probabilities are cut into whole tickets: their sums are exact, while a float32 sum of p would round away a t that is
# a thousand times rarer than the others.
TICKETS = 2**30


def _raffle(key: jax.Array, tickets: jax.Array) -> jax.Array:
    """t with probability tickets[t] / sum(tickets), int32."""
    ends = jnp.cumsum(tickets, dtype=jnp.int32)
    winner = jax.random.randint(key, (), 0, ends[-1], jnp.int32)
    return jnp.searchsorted(ends, winner, side="right").astype(jnp.int32)


BY_NAME: dict[str, Callable[..., TimestepSampler]] = {
    function.__name__: function for function in (uniform, antithetic, stratified, importance, lognormal)
}


def make(name: str, schedule: Schedule, **arguments: float) -> TimestepSampler:
    """The sampler called `name` in this module, for this schedule: for configurations.

    Raises:
      ValueError: no such sampler, an argument it does not take, or a number out of range.
    """
    return apply("timestep sampler", name, BY_NAME, schedule, **arguments)
