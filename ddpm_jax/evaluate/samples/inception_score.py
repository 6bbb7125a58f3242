"""Inception score: exp of the mean over images of KL(p(y | x_i) || p(y)), p(y) the mean of p(y | x_i).

It is computed on parts of the images and averaged: p(y) of fewer images is less even, and the score of more parts is
lower.

Source: Salimans et al. 2016 (arXiv:1606.03498), section 4; what it does not say, Barratt and Sharma 2018
(arXiv:1801.01973).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from ddpm_jax.evaluate.samples.points import Float, Points, blocks, check


class InceptionScore(NamedTuple):
    """The mean over parts; spread, their population standard deviation, is what is published; the error of the mean is
    spread / sqrt(parts - 1), NaN of one part."""

    value: float
    spread: float
    standard_error: float


def by_splits(logits: Points, *, splits: int = 10, shuffle: bool = True, seed: int = 2020) -> InceptionScore:
    """Of `splits` parts of nearly equal size, as torch-fidelity does.

    Args:
      logits: [N, classes]. The TF-2015 network's are taken without their bias by convention ("logits_unbiased").
      splits: parts i N // splits to (i + 1) N // splits.
      shuffle: the images by NumPy's RandomState(seed), first; an order by class makes the parts poor in classes.
      seed: of that order.

    Raises:
      ValueError: fewer than 2 images, fewer images than splits, logits that are not finite.
    """
    check(logits, "logits")
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must be from 1 to {n}, the images there are, got {splits}")
    order = np.random.RandomState(seed).permutation(n) if shuffle else np.arange(n)
    return _of_parts([logits[order[i * n // splits : (i + 1) * n // splits]] for i in range(splits)])


def by_size(logits: Points, *, size: int = 5000) -> InceptionScore:
    """Of parts of `size` images in order, the last one smaller, as ADM's evaluator does.

    Raises:
      ValueError: fewer than 2 images, a size below 1, logits that are not finite.
    """
    check(logits, "logits")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return _of_parts([logits[first : first + size] for first in range(0, len(logits), size)])


def _of_parts(parts: list[Points]) -> InceptionScore:
    scores = np.array([_score(part) for part in parts])
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.nan
    return InceptionScore(float(scores.mean()), float(scores.std()), float(error))


def _score(logits: Points) -> float:
    """exp(H(y) - mean H(y | x)): the entropies are sums over the images."""
    total, negative_entropy = np.zeros(logits.shape[1]), 0.0
    for _, rows in blocks(logits):
        log_p = _log_softmax(rows)
        p = np.exp(log_p)
        total += p.sum(axis=0)
        negative_entropy += float(np.sum(p * log_p))
    mean = total / len(logits)
    seen = mean > 0
    return float(np.exp(negative_entropy / len(logits) - np.sum(mean[seen] * np.log(mean[seen]))))


def _log_softmax(logits: Float) -> Float:
    return logits - np.asarray(logsumexp(logits, axis=1, keepdims=True))
