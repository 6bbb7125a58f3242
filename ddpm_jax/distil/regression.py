"""Where a fit begins: every step regressed onto the teacher's own path.

    c_k = argmin |c_k0 X_k + c_k1 x_0^(0) + ... + c_k,k+1 x_0^(k) - X_teacher at t_{k+1}|^2,     k = 0, 1, ..., N - 1

X_k are the states that the table itself reaches, so that every step mends what those before it left over, as far as it
can; the last target is the teacher's image. For given times this is N calls of the network and N linear systems with
k + 2 unknowns, without a derivative, so the times can be searched: Nelder's and Mead's simplex on the logarithms of
their gaps. An evaluation costs a small part of an update of the fit, which has far less to go then.

Between two levels of the teacher its X / alpha is taken as linear in sigma / alpha, as one step of DDIM is.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize

from ddpm_jax import samplers
from ddpm_jax.distil.family import Numbers, Times, gaps_of, levels_of, numbers_from
from ddpm_jax.distil.fit import Network, Report, finite, in_batches, loss_of, mean_squares_between, predict
from ddpm_jax.samplers import Table

RIDGE = 1e-7  # of the mean square of what is regressed on, as x_0's of neighbouring calls are nearly the same
# The times that the search begins with, in units of those it is given. Hand-made grids spend their first call near
# T - 1, where it says little.
SHARES = (1.0, 0.9, 0.8, 0.65, 0.5)
SIMPLEX = 0.4  # its edge at the start, in logarithms of gaps
BEGINS, EVALUATIONS = 3, 10  # searches, from the best; evaluations of each for each call of the network


class TeacherPath(NamedTuple):
    """What the teacher makes of x_T on its way: X / alpha at levels sigma / alpha that decrease to 0."""

    x_T: np.ndarray  # [P, ...]
    ratios: np.ndarray  # [M + 1]
    states: np.ndarray  # [M + 1, P, ...]

    def at(self, ratio: float) -> np.ndarray:
        """X / alpha [P, ...]; above the first level that of the first."""
        after = int(np.clip(np.searchsorted(-self.ratios, -ratio), 1, len(self.ratios) - 1))
        share = np.interp(ratio, self.ratios[[after, after - 1]], [1, 0])
        return (1 - share) * self.states[after - 1] + share * self.states[after]


def path_of(
    network: Network,
    teacher: Table,
    key: jax.Array,
    first_index: int,
    count: int,
    batch_size: int,
    each: Callable[[int], None] = lambda size: None,
) -> TeacherPath:
    """Of count images, as `fit.in_batches`; the host holds as many of each as the teacher has calls.

    Raises:
      FloatingPointError: images that are not finite.
    """
    run = lambda denoise, key, shape, first: samplers.trajectory(denoise, teacher, key, shape, first_index=first)
    found = in_batches(run, network, key, first_index, count, batch_size, each)
    x_0 = finite(np.concatenate([x_0 for x_0, _ in found]))
    states = np.concatenate([states for _, states in found], axis=1)
    alpha = teacher.rows.alpha.reshape(-1, *[1] * x_0.ndim).astype(np.float32)
    ratios = np.append(teacher.rows.sigma / teacher.rows.alpha, 0)
    return TeacherPath(states[0] / np.float32(teacher.init), ratios, np.concatenate([states / alpha, x_0[None]]))


class Regression:
    """Numbers from gaps, on one path; the network sees batch_size images at once."""

    def __init__(self, network: Network, schedule: Times, path: TeacherPath, batch_size: int) -> None:
        self.path, self.schedule, self._data, self._batch_size = path, schedule, network.data, batch_size
        self._predict = jax.jit(lambda x, time, data: predict(network, schedule, x, time, time, data))

    def __call__(self, gaps: np.ndarray) -> tuple[Numbers, np.ndarray]:
        """The numbers, and the images [P, ...] that their table makes."""
        levels = [row.astype(np.float32) for row in np.stack(levels_of(gaps, self.schedule), axis=1)]
        first = np.hypot(levels[0][1], levels[0][2])
        basis, steps = [first * self.path.x_T], []
        for k, level in enumerate(levels):
            batches = np.split(basis[0], len(basis[0]) // self._batch_size)
            basis.append(np.concatenate([self._predict(x, level[0], self._data) for x in batches]))
            _, alpha, sigma = levels[k + 1] if k + 1 < len(levels) else (0, 1, 0)
            steps.append(_regressed(basis, alpha * self.path.at(sigma / alpha)))
            basis[0] = np.tensordot(steps[-1].astype(np.float32), np.stack(basis), 1)
        return numbers_from(gaps, steps, self.schedule), basis[0]


def _regressed(basis: list[np.ndarray], target: np.ndarray) -> np.ndarray:
    """The combination of the basis that is nearest to the target."""
    columns = np.stack([image.ravel() for image in basis], axis=1).astype(np.float64)
    squares = columns.T @ columns
    squares += RIDGE * np.trace(squares) / len(squares) * np.eye(len(squares))
    return np.linalg.solve(squares, columns.T @ target.ravel().astype(np.float64))


def searched(regression: Regression, grids: Iterable[np.ndarray], report: Report) -> Numbers:
    """The numbers of the times whose regression comes nearest to the teacher, from the best shares of the grids.

    Args:
      regression: on the path.
      grids: times [N] to begin with, N the same for all.
      report: told every evaluation.
    """
    first = regression.schedule.times[0]
    begins = [gaps_of(first + share * (times - first), regression.schedule) for times in grids for share in SHARES]
    num_calls = len(begins[0]) - 1
    report.start("searching times", len(begins) + BEGINS * EVALUATIONS * num_calls, "evaluation")
    least = np.inf

    def loss(gaps: np.ndarray) -> float:
        nonlocal least
        found = loss_of(mean_squares_between(regression(gaps)[1].astype(np.float64), regression.path.states[-1]))
        found = found if np.isfinite(found) else np.inf
        least = min(least, found)
        report.advance(1, f"error {np.exp(least / 2):.4f}")
        return found

    def nearest(begin: np.ndarray) -> tuple[float, np.ndarray]:
        edges = SIMPLEX * np.eye(num_calls, num_calls + 1)  # a constant added to all gaps changes nothing
        corners = np.vstack([begin, begin + edges])[:, :-1]
        options = {"maxfev": EVALUATIONS * num_calls, "initial_simplex": corners, "adaptive": True, "xatol": 1e-2}
        full = lambda free: np.append(free, begin[-1])
        found = minimize(lambda free: loss(full(free)), corners[0], method="Nelder-Mead", options=options)
        return found.fun, full(found.x)

    ends = [nearest(begin) for begin in sorted(begins, key=loss)[:BEGINS]]
    return regression(min(ends, key=lambda end: end[0])[1])[0]
