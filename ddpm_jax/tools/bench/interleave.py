"""Times of several jobs, one run of each a round, and what can be said of them.

Machines are shared and change their speed, so a single time says little and times of two jobs measured one after the
other say nothing about their ratio. Here every job runs once a round, each round begins with another job, and a ratio
is the median of the rounds' ratios.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Job = Callable[[], Any]  # returns when its work is done
PAUSE = 0.05  # seconds before each run: threads of the job before may still spin
LEAST_SECONDS = 0.3  # of a run: a job of milliseconds is measured at work, not while its threads and memory wake up
LEAST_ROUNDS = 3  # however little time there is
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Of n values: their median, the interval [low, high] that holds the true median with probability `coverage`."""

    n: int
    median: float
    low: float
    high: float
    coverage: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """The median and order statistics around it, with no assumption about the distribution.

    [x_(k), x_(n + 1 - k)] holds the median with probability 1 - 2 P(Binomial(n, 1/2) < k); k is the largest that leaves
    at least CONFIDENCE, or 1, least to most, where n < 6 values do not suffice for that.

    Source: David and Nagaraja 2003, Order Statistics, section 7.1.

    Raises:
      ValueError: no values.
    """
    if not values:
        raise ValueError("spread needs at least one value, got none")
    ordered, n, k = sorted(values), len(values), 1
    while 2 * k < n and coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return Spread(
        n, statistics.median(ordered), ordered[k - 1], ordered[n - k], coverage(n, k), ordered[0], ordered[-1]
    )


def coverage(n: int, k: int) -> float:
    """1 - 2 P(Binomial(n, 1/2) < k): how probably the k-th smallest and the k-th largest of n enclose the median."""
    return max(0.0, 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n)


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def interleaved(
    jobs: Mapping[str, Job],
    rounds: int,
    *,
    seconds: float | None = None,
    pause: float = PAUSE,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every job: one run of each a round, beginning with another job every round.

    A run repeats its job until LEAST_SECONDS have passed, and counts as their mean.

    Args:
      jobs: already warm, see `warmed`.
      rounds: how many.
      seconds: no round begins later than this after the first, once there are LEAST_ROUNDS.
      pause: seconds before each run.
      clock: seconds that pass.

    Raises:
      ValueError: rounds below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names, found = list(jobs), {name: [] for name in jobs}
    begin = clock()
    for k in range(rounds if jobs else 0):
        if seconds is not None and k >= LEAST_ROUNDS and clock() - begin > seconds:
            break
        first = k % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            found[name].append(_run(jobs[name], clock))
    return found


def _run(job: Job, clock: Callable[[], float]) -> float:
    start, count, passed = clock(), 0, 0.0
    while passed < LEAST_SECONDS:
        job()
        count, passed = count + 1, clock() - start
    return passed / count


def warmed(jobs: Mapping[str, Job], runs: int = 2) -> tuple[dict[str, Job], dict[str, str]]:
    """(the jobs that run, why the others do not): each has run, so that nothing is compiled while it is timed.

    A job that cannot run here, for want of memory or of a C++ compiler, says so in a RuntimeError, in JAX and PyTorch.
    """
    running, missing = {}, {}
    for name, job in jobs.items():
        try:
            for _ in range(runs):
                job()
        except (RuntimeError, OSError) as error:
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            running[name] = job
    return running, missing
