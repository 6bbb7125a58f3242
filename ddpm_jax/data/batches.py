"""Which records make up the batch of step k: a pure function of (seed, step).

Nothing is remembered between steps, so a run resumes, skips or repeats a step by asking for its number, and several
processes agree on a batch without talking. Let n be the number of images and B the batch size. Position
p = step * B + j lies in epoch p // n and takes entry p % n of that epoch's permutation: every epoch shows every image
once, also where a batch crosses the border between two epochs.

Random numbers are the raw 64-bit words of Philox4x64-10, a counter-based generator: NumPy promises the words of a bit
generator to stay, but not the results of Generator.permutation. A permutation is the stable argsort of n words.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.data.records import IMAGE, Record, Source

PERMUTATION, FLIP = 0, 1
"""Separate streams of one seed: the most significant word of Philox's counter."""

ALL_ROWS = slice(None)

T = TypeVar("T")
S = TypeVar("S")


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> NDArray[np.int64]:
    """permutation(seed, p // n)[p % n] for p in [step * B, (step + 1) * B), n = num_examples, B = batch_size.

    Args:
      seed: in [0, 2^64).
      step: number of the batch, in [0, 2^32).
      batch_size: B, at least 1; it may exceed n, and then images repeat within the batch.
      num_examples: n, at least 1.

    Returns:
      [B] int64 in [0, n).
    """
    for name, value in (("seed", seed), ("step", step), ("batch_size", batch_size), ("num_examples", num_examples)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    _check(seed, step)
    if batch_size < 1 or num_examples < 1:
        raise ValueError(f"batch_size and num_examples must be at least 1, got {batch_size} and {num_examples}")
    start, stop = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
        first = epoch * num_examples
        slots = slice(max(start - first, 0), min(stop - first, num_examples))
        pieces.append(_permutation(seed, epoch, num_examples)[slots])
    return np.concatenate(pieces)


def batch(
    source: Source,
    seed: int,
    step: int,
    batch_size: int,
    *,
    flip: bool = False,
    rows: slice = ALL_ROWS,
    features: Sequence[str] = (IMAGE,),
) -> Record:
    """The records of batch `step`, each image mirrored left to right with probability 1/2 if `flip`.

    Args:
      source: where the records come from.
      seed: in [0, 2^64).
      step: number of the batch, from 0.
      batch_size: B, the size of the whole batch.
      flip: mirror at random; the coins are a function of (seed, step) too.
      rows: read only these rows; the result equals the whole batch[rows]. For the share of one process.
      features: read only these names.

    Returns:
      {name: [B, ...]}, or the rows asked for; `image` is uint8 [B, H, W, C].
    """
    record = source.read(batch_indices(seed, step, batch_size, len(source))[rows], features)
    if flip and IMAGE in record:
        heads = (_words(FLIP, seed, step, batch_size) >> np.uint64(63)).astype(bool)[rows]
        images = record[IMAGE]
        images[heads] = images[heads, :, ::-1]
    return record


def prefetch(function: Callable[[S], T], steps: Iterable[S], *, depth: int = 2) -> Generator[T]:
    """function(step) for each step, in order, with up to `depth` of them computed ahead in threads.

    An exception is raised where its result would have come. When the consumer stops early (closes or drops the
    iterator), calls that have not begun are cancelled and the threads end.

    Args:
      function: called from `depth` threads at once, so it must not depend on the order of its calls.
      steps: may be endless.
      depth: at least 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _prefetch(function, iter(steps), depth)


def _prefetch(function: Callable[[S], T], steps: Iterator[S], depth: int) -> Generator[T]:
    pool = ThreadPoolExecutor(depth, thread_name_prefix="prefetch")
    try:
        futures: collections.deque[Future[T]] = collections.deque(
            pool.submit(function, step) for step in itertools.islice(steps, depth)
        )
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(function, step) for step in itertools.islice(steps, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


# One epoch is read at a time, two where a batch crosses a border; prefetch threads run a little ahead.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    order = np.argsort(_words(PERMUTATION, seed, epoch, num_examples), kind="stable").astype(np.int64)
    order.flags.writeable = False  # it is shared by every caller
    return order


def _words(stream: int, seed: int, number: int, count: int) -> NDArray[np.uint64]:
    """`count` random words, uint64, of Philox with key (seed, number) and the counter's top word `stream`."""
    bits = np.random.Philox(key=np.array([seed, number], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    return np.asarray(bits.random_raw(count), np.uint64)


def _check(seed: int, step: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    if not 0 <= step < 2**32:
        raise ValueError(f"step must lie in [0, 2^32), got {step}")
