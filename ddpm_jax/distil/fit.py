"""A table fitted to a teacher: the same network, the same x_T, many more calls.

    minimize  mean_i log(m_i + FLOOR^2)  over the numbers of `family`,
    m_i = mean over the pixels of (sample(table(numbers), x_T^i) - sample(teacher, x_T^i))^2

The logarithm is what makes it work: where the flow has a watershed, a few x_T end in another image than the teacher's
with any table of few calls; they are most of the mean of m_i, and nothing can be learned from them. exp of half the
loss is the geometric mean of the pairs' root mean square errors (20 dB of peak signal-to-noise ratio are a factor 10).

Numbers are few and pixels many: Gauss-Newton, with Levenberg's and Marquardt's damping. Derivatives are pushed forward
through the calls, those by a late step's numbers through the last calls only: nothing is stored for a way back through
all of them, and the network's parameters have no gradient, which in a loop is slow on a CPU.

By the time that the network is told, the derivative is a secant, see RIPPLE. Networks learn what to say at integer
times, and between them their answer ripples with the fastest wave of the time's embedding: a little, but as steeply as
it rises or falls in all, and a fit with exact derivatives stays in the ripple that it begins in. The loss ripples too,
so on its way down it may rise a little. experiments/time_ripples.py measures them.

Randomness: pair i has the x_T of image i of pair_key(seed), as `samplers.sample` draws it; held-out pairs are those
from HELD_OUT on, so they are the same whatever number of pairs is learned from.

Source: Shaul et al. 2024 (arXiv:2403.01329), the loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys, samplers
from ddpm_jax.distil.family import Numbers, Times, assignments_of, in_use, table_of
from ddpm_jax.samplers import Denoise, Row, Table

HELD_OUT = 2**31
PAIR_KEY = np.uint32(2**32 - 2)  # so that pairs are not the images that `sample` draws with the same seed
FLOOR = 1e-3  # of a root mean square error: about the teacher's own
# Timesteps to each side of a secant: whole periods of the embedding's fastest wave, which is 1 radian a timestep.
RIPPLE = 4 * np.pi
RISE = 0.1  # of the loss above its least so far: 5 % of the error, to get over ripples
LEAST_DAMPING, MOST_DAMPING = 1e-8, 1e8
LEAST_GAIN, PATIENCE = 1e-3, 6  # of the loss, 0.05 % of the error, in so many updates: where a fit ends


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


def predict(
    network: Network, schedule: Times, x: jax.Array, time: jax.Array, told: jax.Array, data: tuple[Any, ...]
) -> jax.Array:
    """x_0 [B, ...] of one call at the level of any time of the schedule; the network is told this time or another."""
    alpha, sigma = schedule.at(time)
    return network.make_denoise(*data)(x, Row(told, alpha, sigma, 0.0, 0.0, np.zeros((1, 4)))).x_0


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
    held_out: list[Errors]  # of the start, and after every update of the best numbers until then


def pair_key(seed: int) -> jax.Array:
    return jax.random.fold_in(keys.make(seed), PAIR_KEY)


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
    """The numbers of the least loss of the pairs in so many updates, or as many as gain something.

    The held-out pairs are only watched: nothing is chosen by them. Begin near the teacher, as the regression does: far
    from it RISE lets the numbers stray.
    """
    numbers, damping = np.concatenate(start).astype(np.float32), 1e-2
    losses = [loss_of(program.mean_squares(numbers, pairs))]
    best, known = numbers, [errors(program.mean_squares(numbers, held_out))]
    report.start("learning", num_updates, "update")
    for done in range(num_updates):
        curvature, slope = program.normal_equations(numbers, pairs)
        scale = np.diag(np.diag(curvature)) + 1e-9 * np.trace(curvature) * np.eye(len(slope))
        while damping < MOST_DAMPING:
            trial = (numbers - np.linalg.solve(curvature + damping * scale, slope)).astype(np.float32)
            found = loss_of(program.mean_squares(trial, pairs))
            if found < min(losses) + RISE:  # not where it is NaN
                break
            damping *= 10
        else:
            report.say(f"no update lowers the loss any more after {done}")
            break
        if found < min(losses):
            best = trial
        known.append(errors(program.mean_squares(best, held_out)) if best is trial else known[-1])
        numbers, damping = trial, max(damping / 10, LEAST_DAMPING)
        losses.append(found)
        report.advance(1, f"held-out error {known[-1].geometric_mean:.4f}, at the start {known[0].geometric_mean:.4f}")
        gain = min(losses[:-PATIENCE], default=np.inf) - min(losses)
        if gain < LEAST_GAIN:
            report.say(
                f"learned: of {done + 1} updates the last {PATIENCE} made the error of the pairs {gain / 2:.2%} less"
            )
            break
    return Fitted(Numbers.from_flat(best, len(start.keep)), known)


class Program:
    """What is compiled, for one number of calls and one batch size."""

    def __init__(self, network: Network, schedule: Times, num_calls: int, batch_size: int) -> None:
        self._data, self._batch_size = network.data, batch_size
        shape = (batch_size, *network.image_shape)
        self._in_use = in_use(num_calls)
        assignments = lambda numbers: assignments_of(Numbers.from_flat(numbers, num_calls), schedule)
        self._assignments, self._chain = jax.jit(assignments), jax.jit(jax.jacfwd(assignments))

        def run(numbers: jax.Array, first: jax.Array, key: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
            denoise, table = network.make_denoise(*data), table_of(Numbers.from_flat(numbers, num_calls), schedule)
            return samplers.trajectory(denoise, table, key, shape, first_index=first)

        def linear(x: jax.Array, time: jax.Array, data: Any) -> tuple[jax.Array, Callable[..., jax.Array]]:
            low, high = (jnp.clip(time + side, *schedule.times[[0, -1]]) for side in (-RIPPLE, RIPPLE))
            rise = predict(network, schedule, x, time, high, data) - predict(network, schedule, x, time, low, data)
            secant = rise / (high - low)

            def at(x: jax.Array, moved: jax.Array) -> jax.Array:
                return predict(network, schedule, x, moved, time, data) + secant * (moved - time)

            # What it returns is a pytree, so that it can leave this program and enter the next.
            return jax.linearize(at, x, time)

        self._run, self._linear = jax.jit(run), jax.jit(linear)
        self._push = jax.jit(lambda linear, dx, dtime: linear(dx, dtime))

    def _batches(self, pairs: Pairs) -> Iterator[tuple[np.uint32, np.ndarray]]:
        """Index of the first image, and the targets."""
        for i in range(0, len(pairs.targets), self._batch_size):
            yield np.uint32(pairs.first_index + i), pairs.targets[i : i + self._batch_size]

    def mean_squares(self, numbers: np.ndarray, pairs: Pairs) -> np.ndarray:
        """m [P]."""
        runs = [self._run(numbers, first, pairs.key, self._data)[0] for first, _ in self._batches(pairs)]
        return mean_squares_between(np.concatenate(runs), pairs.targets)

    def normal_equations(self, numbers: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """(J^T W J, J^T W r) in float64, W = 1 / (m_i + FLOOR^2): half of the loss' Gauss-Newton curvature and slope,
        times pixels."""
        with jax.enable_x64(True):
            # Of the assignments, which are what a step is linear in, by the numbers.
            chain = np.asarray(self._chain(numbers.astype(np.float64)))[self._in_use]
        rows = np.asarray(self._assignments(numbers))
        curvature, slope = np.zeros((len(chain), len(chain))), np.zeros(len(chain))
        for first, targets in self._batches(pairs):
            x_0, states = self._run(numbers, first, pairs.key, self._data)
            found = (np.asarray(x_0, np.float64) - targets).reshape(len(targets), -1)
            weights = 1 / np.sqrt(np.mean(found**2, axis=1, keepdims=True) + FLOOR**2)
            jacobian = self._jacobian(rows, np.asarray(states)).astype(np.float64).reshape(len(chain), *found.shape)
            jacobian = (weights * jacobian).reshape(len(chain), -1)
            curvature += jacobian @ jacobian.T
            slope += jacobian @ (weights * found).ravel()
        return chain.T @ curvature @ chain, chain.T @ slope

    def _jacobian(self, rows: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Derivatives of x_0 [B, ...] by every entry of the rows in use, [F, B, ...], from X [N, B, ...] at every call.

        What row k assigns is seen by the calls after k only, its time by call k too: each call is linearized once, and
        as many directions go through it as there are numbers before it.
        """
        counts = self._in_use.sum(axis=1)
        ends = np.cumsum(counts)
        dx = np.zeros((ends[-1], *states.shape[1:]), np.float32)
        dx_0, predicted = np.zeros((len(rows), *dx.shape), np.float32), []
        for k, ((time, kept, *weights), own, end) in enumerate(zip(rows, ends - counts, ends, strict=True)):
            x_0, linear = self._linear(states[k], time, self._data)
            predicted.append(x_0)
            for j in range(own):
                dx_0[k, j] = self._push(linear, dx[j], np.float32(0))
            dx_0[k, own] = self._push(linear, dx[own], np.float32(1))  # by the time, a row's first entry
            dx = kept * dx + np.tensordot(np.array(weights), dx_0, 1)
            dx[own + 1 : end] = np.stack([states[k], *predicted])
        return dx
