"""Metrics by name: which features each is of, and what it says of two sets of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.evaluate.features import Features
from ddpm_jax.evaluate.kept import Held, Kept
from ddpm_jax.evaluate.samples import (
    cmmd,
    density_coverage,
    frechet,
    inception_score,
    infinity,
    kid,
    moments,
    precision_recall,
    two_sample,
)
from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.names import choose

DEFAULT, LOGITS, SPATIAL, UNBIASED = "default", "logits", "spatial", "logits_unbiased"
Output = Literal["default", "logits", "spatial"]


class Number(NamedTuple):
    """A value of a metric; its standard error, None where it is not known."""

    value: float
    standard_error: float | None


class Found(NamedTuple):
    """What a metric says: its numbers by name, and what must be said beside them."""

    numbers: Mapping[str, Number]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureSet:
    """One output of the features of a set of pictures.

    Attributes:
      kept: the features; None where only their mean and covariance are known.
      output: which.
      known: mean and covariance, where they are known already.
    """

    kept: Kept | Held | None
    output: str
    known: Gaussian | None = None

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, float64."""
        if self.known is not None:
            return self.known
        assert self.kept is not None
        stream = moments.Stream(self.kept.sizes[self.output])
        for block in self.kept.blocks(self.output):
            stream.add(block)
        return stream.moments.gaussian

    @cached_property
    def all(self) -> np.ndarray:
        """float32 [N, D]."""
        assert self.kept is not None
        return self.kept.all(self.output)


class Metric(NamedTuple):
    """Attributes:
    output: which features it is of.
    needs: of the reference: nothing, the moments, or the features themselves.
    best: in words.
    of: (samples, reference, seed) -> what it says.
    """

    output: Output
    needs: Literal["nothing", "moments", "features"]
    best: str
    of: Callable[[FeatureSet, FeatureSet, int], Found]


LOWER, HIGHER = "lower is better", "higher is better"


def _number(name: str, found: tuple[float, float]) -> Found:
    value, error = found
    return Found({name: Number(value, None if np.isnan(error) else error)})


def _frechet(name: str) -> Callable[[FeatureSet, FeatureSet, int], Found]:
    def of(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
        a, b = samples.gaussian, reference.gaussian
        error = frechet.standard_error(samples.all, a, b)
        if reference.kept is not None:
            error = float(np.hypot(error, frechet.standard_error(reference.all, b, a)))
        note = frechet.note(a, b)
        return Found({name: Number(frechet.distance(a, b), error)}, () if note is None else (note,))

    return of


def _infinity(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    n, dimension = samples.all.shape
    if n <= dimension + 1:
        raise ValueError(f"fid-infinity needs more images than the {dimension} features and one, got {n}")
    smallest = max(dimension + 1, n // 10)
    found = infinity.frechet_distance(samples.all, reference.gaussian, smallest=smallest, seed=seed)
    return _number("fid_infinity", found)


def _kid(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    return _number("kid", kid.distance(samples.all, reference.all))


def _cmmd(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    return _number("cmmd", cmmd.distance(samples.all, reference.all))


def _inception_score(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    found = inception_score.by_splits(samples.all, seed=seed)
    return _number("inception_score", (found.value, found.standard_error))


def _precision_recall(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    found = precision_recall.of(samples.all, reference.all)
    return Found({"precision": Number(*found.precision), "recall": Number(*found.recall)})


def _density_coverage(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    found = density_coverage.of(samples.all, reference.all)
    return Found({"density": Number(*found.density), "coverage": Number(*found.coverage)})


def _two_sample(samples: FeatureSet, reference: FeatureSet, seed: int) -> Found:
    a, b = samples.all, reference.all
    n = min(len(a), len(b))
    found = _number("two_sample", two_sample.accuracy(a[:n], b[:n]))
    return found if len(a) == len(b) else found._replace(notes=(f"two-sample: of the first {n} images of each set",))


METRICS: dict[str, Metric] = {
    "fid": Metric(DEFAULT, "moments", LOWER, _frechet("fid")),
    "sfid": Metric(SPATIAL, "moments", LOWER, _frechet("sfid")),
    "fid-infinity": Metric(DEFAULT, "moments", LOWER, _infinity),
    "kid": Metric(DEFAULT, "features", LOWER, _kid),
    "cmmd": Metric(DEFAULT, "features", LOWER, _cmmd),
    "is": Metric(LOGITS, "nothing", HIGHER, _inception_score),
    "precision-recall": Metric(DEFAULT, "features", HIGHER, _precision_recall),
    "density-coverage": Metric(DEFAULT, "features", HIGHER, _density_coverage),
    "two-sample": Metric(DEFAULT, "features", "0.5 is perfect", _two_sample),
}


def chosen(names: tuple[str, ...], features: Features, options: str = "--") -> dict[str, Metric]:
    """The metrics of these names, in their order.

    Args:
      names: of METRICS.
      features: the network.
      options: what the options "metrics" and "features" begin with, for messages.

    Raises:
      ValueError: none; an unknown name, or one twice; one of an output that the features have not.
    """
    if not names:
        raise ValueError(f"{options}metrics must name at least one (known: {', '.join(METRICS)})")
    found = {}
    for name in names:
        if name in found:
            raise ValueError(f"{options}metrics names {name} twice")
        metric = found[name] = choose(f"{options}metrics", name, METRICS)
        if output_of(metric, features) not in features.sizes:
            raise ValueError(
                f"{name} needs the {metric.output} of a network, and {options}features {features.name} has "
                f"{', '.join(features.sizes)}"
            )
    return found


def output_of(metric: Metric, features: Features) -> str:
    """The name that the features have for what a metric is of; the score's logits are without bias where there are
    such, as it is published."""
    if metric.output == LOGITS and UNBIASED in features.sizes:
        return UNBIASED
    return features.default if metric.output == DEFAULT else metric.output
