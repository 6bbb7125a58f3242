"""A table fitted to a teacher: the same network, the same x_T, many more calls.

    minimize  mean_i log(m_i + FLOOR^2)  over the numbers of `family`,
    m_i = mean over the pixels of (sample(table(numbers), x_T^i) - sample(teacher, x_T^i))^2

The logarithm is what makes it work: where the flow has a watershed, a few x_T end in another image than the teacher's
with any table of few calls; they are most of the mean of m_i, and nothing can be learned from them. exp of half the
loss is the geometric mean of the pairs' root mean square errors (20 dB of peak signal-to-noise ratio are a factor 10).

Numbers are few and pixels many: Gauss-Newton, with Levenberg's and Marquardt's damping. Each number's derivative is
pushed forward through the scan with that of the others, so nothing is stored for a way back, and the network's
parameters have no gradient, which in a loop is slow on a CPU.

Randomness: pair i has the x_T of image i of pair_key(seed), as `samplers.sample` draws it; held-out pairs are those
from HELD_OUT on, so they are the same whatever number of pairs is learned from.

Source: Shaul et al. 2024 (arXiv:2403.01329), the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ddpm_jax import samplers
from ddpm_jax.learn.family import Numbers, Times, table_of
from ddpm_jax.samplers import Denoise, Table

HELD_OUT = 2**31
PAIR_KEY = np.uint32(2**32 - 2)  # so that pairs are not the images that `sample` draws with the same seed
FLOOR = 1e-3  # of a root mean square error: about the teacher's own
AT_ONCE = 16  # derivatives in one batch
MOST_DAMPING = 1e8
LEAST_GAIN = 1e-3  # of the loss: 0.05 % of the error


class Report(Protocol):
    """Who watches: a progress bar, a test."""

    def start(self, what: str, total: int, unit: str) -> None: ...
    def advance(self, by: int, said: str = "") -> None: ...
    def say(self, message: str) -> None: ...


@dataclass(frozen=True)
class Network:
    """A denoiser as a function of arrays, so that programs have them as data: make_denoise(*data)."""

    make_denoise: Callable[..., Denoise]
    data: tuple[Any, ...]
    image_shape: tuple[int, ...]


class Pairs(NamedTuple):
    """What the teacher makes of the x_T of images first_index, first_index + 1, ... of the key."""

    key: jax.Array
    first_index: int
    targets: np.ndarray  # [P, ...], P a multiple of the batch size


class Errors(NamedTuple):
    """Of pairs, each with its root mean square error over the pixels."""

    geometric_mean: float
    rms: float  # over all pixels of all pairs


class Fitted(NamedTuple):
    numbers: Numbers
    held_out: list[Errors]  # of the start and after every update


def pair_key(seed: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), PAIR_KEY)


def errors(mean_squares: np.ndarray) -> Errors:
    """From m [P]."""
    m = np.asarray(mean_squares, np.float64)
    return Errors(float(np.exp(loss_of(m) / 2)), float(np.sqrt(m.mean())))


def errors_between(images: np.ndarray, targets: np.ndarray) -> Errors:
    """Of images [P, ...] from the teacher's."""
    return errors(mean_squares_between(images, targets))


def mean_squares_between(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """m [P]."""
    return np.mean(np.square(images - targets, dtype=np.float64), axis=tuple(range(1, images.ndim)))


def loss_of(mean_squares: np.ndarray) -> float:
    """mean log(m_i + FLOOR^2), of m [P]."""
    return float(np.log(np.asarray(mean_squares, np.float64) + FLOOR**2).mean())


def in_batches(
    run: Callable[[Denoise, jax.Array, tuple[int, ...], jax.Array], Any],
    network: Network,
    key: jax.Array,
    first_index: int,
    count: int,
    batch_size: int,
    each: Callable[[int], None],
) -> list[Any]:
    """What run(denoise, key, shape, first index) makes of every batch, one program, on the host.

    Each batch says its size; count is a multiple of batch_size.
    """
    shape = (batch_size, *network.image_shape)
    program = jax.jit(lambda first, key, *data: run(network.make_denoise(*data), key, shape, first))
    found = []
    for first in range(first_index, first_index + count, batch_size):
        found.append(jax.tree.map(np.asarray, program(np.uint32(first), key, *network.data)))
        each(batch_size)
    return found


def finite(images: np.ndarray) -> np.ndarray:
    """The images; FloatingPointError where they are not finite."""
    if not np.isfinite(images).all():
        raise FloatingPointError("images that are not finite")
    return images


def draw(
    network: Network,
    table: Table,
    key: jax.Array,
    first_index: int,
    count: int,
    batch_size: int,
    each: Callable[[int], None] = lambda size: None,
) -> np.ndarray:
    """x_0 [count, ...] of the table, as `in_batches`.

    Raises:
      FloatingPointError: images that are not finite.
    """
    run = lambda denoise, key, shape, first: samplers.sample(denoise, table, key, shape, first_index=first)
    return finite(np.concatenate(in_batches(run, network, key, first_index, count, batch_size, each)))


def errors_of(network: Network, table: Table, pairs: Pairs, batch_size: int) -> Errors:
    """Of any table."""
    images = draw(network, table, pairs.key, pairs.first_index, len(pairs.targets), batch_size)
    return errors_between(images, pairs.targets)


def fit(
    program: "Program", start: Numbers, pairs: Pairs, held_out: Pairs, *, num_updates: int, report: Report
) -> Fitted:
    """The numbers after so many updates, or as many as lower the loss of the pairs by more than LEAST_GAIN.

    The held-out pairs are only watched: nothing is chosen by them.
    """
    flat, unravel = _flat(start)
    numbers, damping = np.asarray(flat), 1e-2
    loss = loss_of(program.mean_squares(numbers, pairs))
    known = [errors(program.mean_squares(numbers, held_out))]
    report.start("learning", num_updates, "update")
    for done in range(num_updates):
        curvature, slope = program.normal_equations(numbers, pairs)
        scale = np.diag(np.diag(curvature)) + 1e-9 * np.trace(curvature) * np.eye(len(slope))
        while damping < MOST_DAMPING:
            trial = (numbers - np.linalg.solve(curvature + damping * scale, slope)).astype(np.float32)
            found = loss_of(program.mean_squares(trial, pairs))
            if found < loss:  # not where it is NaN
                break
            damping *= 4
        else:
            report.say(f"no update lowers the loss any more after {done}")
            break
        gain = loss - found
        numbers, loss, damping = trial, found, damping / 8
        known.append(errors(program.mean_squares(numbers, held_out)))
        report.advance(1, f"held-out error {known[-1].geometric_mean:.4f}, at the start {known[0].geometric_mean:.4f}")
        if gain < LEAST_GAIN:
            report.say(f"learned: update {done + 1} made the error of the pairs {gain / 2:.2%} less")
            break
    return Fitted(jax.tree.map(np.asarray, unravel(jnp.asarray(numbers))), known)


def _flat(numbers: Numbers) -> tuple[jax.Array, Callable[[jax.Array], Numbers]]:
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers))


class Program:
    """What is compiled, for one number of calls and one batch size; `like` is any numbers for so many calls."""

    def __init__(self, network: Network, schedule: Times, like: Numbers, batch_size: int) -> None:
        self._data, self._batch_size = network.data, batch_size
        unravel = _flat(like)[1]
        shape = (batch_size, *network.image_shape)

        def difference(numbers: jax.Array, first: jax.Array, key: jax.Array, target: jax.Array, data: Any) -> jax.Array:
            denoise, table = network.make_denoise(*data), table_of(unravel(numbers), schedule)
            x_0 = samplers.sample(denoise, table, key, shape, first_index=first)
            return (x_0 - target).reshape(batch_size, -1)

        @jax.jit
        def normal(numbers: jax.Array, *batch: Any) -> tuple[jax.Array, jax.Array]:
            push = lambda direction: jax.jvp(lambda v: difference(v, *batch), (numbers,), (direction,))[1]
            jacobian = jax.lax.map(push, jnp.eye(len(numbers)), batch_size=min(AT_ONCE, len(numbers)))  # [n, B, D]
            found = difference(numbers, *batch)
            weights = jax.lax.rsqrt(jnp.mean(found**2, axis=1, keepdims=True) + FLOOR**2)
            jacobian = (weights[None] * jacobian).reshape(len(numbers), -1)
            found = (weights * found).ravel()
            product = lambda b: jnp.matmul(jacobian, b, precision=jax.lax.Precision.HIGHEST)
            return product(jacobian.T), product(found)

        self._normal = normal
        self._mean_squares = jax.jit(lambda *arguments: jnp.mean(difference(*arguments) ** 2, axis=1))

    def _batches(self, pairs: Pairs) -> list[tuple[Any, ...]]:
        size = self._batch_size
        return [(np.uint32(pairs.first_index + i), pairs.key, pairs.targets[i : i + size], self._data)
                for i in range(0, len(pairs.targets), size)]  # fmt: skip

    def normal_equations(self, numbers: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """(J^T W J, J^T W r) in float64, W = 1 / (m_i + FLOOR^2): half of the loss' Gauss-Newton curvature and slope,
        times pixels."""
        found = [self._normal(numbers, *batch) for batch in self._batches(pairs)]
        curvature, slope = (sum(np.asarray(part, np.float64) for part in parts) for parts in zip(*found, strict=True))
        return np.asarray(curvature), np.asarray(slope)

    def mean_squares(self, numbers: np.ndarray, pairs: Pairs) -> np.ndarray:
        """m [P]."""
        return np.concatenate([np.asarray(self._mean_squares(numbers, *batch)) for batch in self._batches(pairs)])
