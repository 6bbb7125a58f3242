"""The tables that are learned: every call's x_0 is kept, and each step weighs all of them.

Step k goes from level s, of call k, to level t, of call k + 1, or to the clean level after the last call:

    X <- (sigma_t / sigma_s + keep_k) X + (alpha_t - sigma_t alpha_s / sigma_s) (w_k0 x_0^(0) + ... + w_kk x_0^(k))

DDIM is keep = 0, w_kk = 1 and all others 0; a multistep solver has few other weights; and every table without noise is
one of these, since its registers are sums of x_T and of what the network said so far. There is no other freedom: eps is
not independent of x_0 and X. With all numbers free this is the "non-stationary solver" of Shaul et al.

Levels are given by their times, which decrease whatever the numbers are: the gaps between T - 1, the N times and 0 are
a softmax, each with a least size. sigma / alpha is interpolated between timesteps linearly in its logarithm, as in
`sigma_grids.discrete`.

Source: Shaul et al. 2024 (arXiv:2403.01329), the family; Karras et al.'s k-diffusion, the interpolation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import Row, Table
from ddpm_jax.samplers.grids.sigma_grids import of_schedule
from ddpm_jax.schedules import Schedule

LEAST_GAP = 1e-5  # of the whole time: times stay different in float32, whatever is learned
BEGIN_GAP = 1e-4  # what a gap of 0, which has no logarithm, begins with


Leaf = jax.Array | np.ndarray


class Numbers(NamedTuple):
    """What is learned, for N calls; a pytree."""

    gaps: Leaf  # [N + 1] logarithms of the gaps between T - 1, the times and 0, up to a constant
    keep: Leaf  # [N]
    weights: Leaf  # [N (N + 1) / 2] w_00; w_10, w_11; w_20, ...

    @classmethod
    def from_flat(cls, flat: Leaf, num_calls: int) -> "Numbers":
        """Of all in one vector, in this order."""
        return cls(flat[: num_calls + 1], flat[num_calls + 1 : 2 * num_calls + 1], flat[2 * num_calls + 1 :])


class Times(NamedTuple):
    """The levels of a schedule between its timesteps."""

    times: np.ndarray  # [T] increasing
    log_ratios: np.ndarray  # [T] log(sigma / alpha), increasing

    def at(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma, alpha^2 + sigma^2 = 1."""
        dtype = time.dtype
        log_ratio = jnp.interp(time, jnp.asarray(self.times, dtype), jnp.asarray(self.log_ratios, dtype))
        return jax.nn.sigmoid(-2 * log_ratio) ** 0.5, jax.nn.sigmoid(2 * log_ratio) ** 0.5


def times_of(schedule: Schedule) -> Times:
    return Times(np.asarray(schedule.timesteps, np.float64), np.log(of_schedule(schedule)))


def _steps(gaps: Leaf, schedule: Times) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """time, alpha, sigma of each call [N]; sigma_t / sigma_s and alpha_t - sigma_t alpha_s / sigma_s of each step."""
    first, last = float(schedule.times[0]), float(schedule.times[-1])
    sizes = LEAST_GAP + (1 - len(gaps) * LEAST_GAP) * jax.nn.softmax(gaps)
    time = last - (last - first) * jnp.cumsum(sizes)[:-1]
    alpha, sigma = schedule.at(time)
    next_alpha = jnp.append(alpha[1:], jnp.ones_like(alpha[:1]))
    ratio = jnp.append(sigma[1:], jnp.zeros_like(sigma[:1])) / sigma
    return time, alpha, sigma, ratio, next_alpha - ratio * alpha


def assignments_of(numbers: Numbers, schedule: Times) -> jax.Array:
    """[N, N + 2], row k is time_k and c_k of X <- c_k0 X + c_k1 x_0^(0) + ... + c_k,k+1 x_0^(k), then zeros.

    Differentiable in the numbers; `in_use` says which entries are not such zeros.
    """
    time, _, _, ratio, size = _steps(numbers.gaps, schedule)
    weights = jnp.zeros((len(time), len(time)), time.dtype).at[np.tril_indices(len(time))].set(numbers.weights)
    return jnp.column_stack([time, ratio + numbers.keep, size[:, None] * weights])


def in_use(num_calls: int) -> np.ndarray:
    """Of `assignments_of`, [N, N + 2]: all but the zeros."""
    return np.tri(num_calls, num_calls + 2, 2, dtype=bool)


def table_of(numbers: Numbers, schedule: Times) -> Table:
    """The table in normal form, differentiable in the numbers: N rows, registers X and x_0 of the first N - 1 calls."""
    rows = assignments_of(numbers, schedule)
    time, kept, weights = rows[:, 0], rows[:, 1], rows[:, 2:]
    alpha, sigma = schedule.at(time)
    n, dtype = len(time), time.dtype
    own = jnp.diagonal(weights) + kept * alpha
    rows = jnp.concatenate([jnp.zeros((n, 1), dtype), jnp.tril(weights, -1)[:, : n - 1]], axis=1)
    rows = jnp.concatenate([rows, jnp.stack([own, kept * sigma, jnp.zeros_like(own)], axis=1)], axis=1)
    # Register k + 1 takes the x_0 of call k and keeps it.
    holds = np.tile(np.eye(n, n + 3), (n, 1, 1))
    for k in range(n - 1):
        holds[k, k + 1] = np.eye(1, n + 3, n)[0]
    update = jnp.asarray(holds, dtype).at[:, 0].set(rows)
    zeros = jnp.zeros_like(time)
    return Table(Row(time, alpha, sigma, zeros, zeros, update), jnp.hypot(alpha[0], sigma[0]))


def numbers_of(table: Table, schedule: Schedule) -> Numbers:
    """The numbers that make this table, in float64.

    At levels that the table has by another interpolation, x_0 is that of the level interpolated here.

    Raises:
      ValueError: a table that draws noise, calls the network where sigma = 0, or at times that do not decrease.
    """
    rows, n = table.rows, table.num_calls
    if rows.update[:, :, -1].any():
        raise ValueError("a table that draws noise cannot be learned from: it has no one image for x_T")
    if not (np.diff(rows.time) < 0).all() or not (rows.sigma > 0).all():
        raise ValueError(f"the times of a table that is learned from must decrease to above sigma = 0, got {rows.time}")
    known = times_of(schedule)
    gaps = gaps_of(rows.time, known)
    states = _unrolled(table)  # [N + 1, 1 + N] over x_T and the x_0 of each call
    kept = states[1:, 0] / states[:-1, 0]
    steps = [np.append(kept[k], (states[k + 1, 1:] - kept[k] * states[k, 1:])[: k + 1]) for k in range(n)]
    return numbers_from(gaps, steps, known)


def gaps_of(times: np.ndarray, schedule: Times) -> np.ndarray:
    """Of times [N] that decrease.

    Raises:
      ValueError: times outside of the schedule's.
    """
    ends = np.concatenate([schedule.times[-1:], times, schedule.times[:1]])
    if ends.max() > schedule.times[-1] or ends.min() < schedule.times[0]:
        raise ValueError(f"times must lie in [{schedule.times[0]:g}, {schedule.times[-1]:g}], got {times}")
    return np.log(np.maximum(-np.diff(ends) / (schedule.times[-1] - schedule.times[0]) - LEAST_GAP, BEGIN_GAP))


def numbers_from(gaps: np.ndarray, steps: Sequence[np.ndarray], schedule: Times) -> Numbers:
    """Of X <- steps[k] @ [X, x_0^(0), ..., x_0^(k)], steps[k] of shape [k + 2]."""
    with jax.enable_x64(True):
        ratio, size = map(np.asarray, _steps(jnp.asarray(gaps), schedule)[-2:])
    keep = np.array([step[0] for step in steps]) - ratio
    return Numbers(gaps, keep, np.concatenate([step[1:] / each for step, each in zip(steps, size, strict=True)]))


def levels_of(gaps: np.ndarray, schedule: Times) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """time, alpha, sigma of each call [N] in float64."""
    with jax.enable_x64(True):
        time, alpha, sigma = map(np.asarray, _steps(jnp.asarray(gaps), schedule)[:3])
    return time, alpha, sigma


def _unrolled(table: Table) -> np.ndarray:
    """X before every call and at the end, [N + 1, 1 + N]: what multiplies x_T and the x_0 of each call."""
    rows, n = table.rows, table.num_calls
    registers = np.zeros((rows.update.shape[1], 1 + n))
    registers[0, 0] = float(table.init)
    states = [registers[0]]
    for k in range(n):
        x_0 = np.eye(1, 1 + n, 1 + k)
        eps = (registers[:1] - rows.alpha[k] * x_0) / rows.sigma[k]
        registers = rows.update[k, :, :-1] @ np.concatenate([registers, x_0, eps])
        states.append(registers[0])
    return np.array(states)
