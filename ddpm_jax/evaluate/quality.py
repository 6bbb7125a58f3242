"""Metrics of a set of pictures against a reference: features in files, numbers from these, and the protocol.

The result is a function of (pictures, reference, features, metrics, seed). A call that is stopped goes on; another
metric of the same features draws nothing again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.features import Features, extract
from ddpm_jax.evaluate.kept import Kept
from ddpm_jax.evaluate.metrics import SPATIAL, FeatureSet, Metric, Number, output_of
from ddpm_jax.evaluate.picture_sets import PictureSet
from ddpm_jax.evaluate.samples import statistics
from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.host import lock
from ddpm_jax.host.storage import Say, make_directory

DIGITS = 12  # of a hash in the name of a folder


class Report(Protocol):
    """Who watches: a progress bar, a test."""

    def start(self, what: str, first_image: int, num_images: int) -> None: ...
    def images(self, num_images: int) -> None: ...
    def say(self, message: str) -> None: ...


class Statistics(NamedTuple):
    """A reference of which only mean and covariance are known.

    Attributes:
      where: the file.
      about: what it says of itself, by the names of samples.statistics.
      gaussians: by the name of the output.
    """

    where: str
    about: Mapping[str, Any]
    gaussians: Mapping[str, Gaussian]


def read_statistics(path: Path, features: Features) -> Statistics:
    """pytorch-fid's or ADM's file, or one of `write_statistics`.

    Raises:
      ValueError: no statistics; of another network, of other weights, or of pictures that were resized otherwise.
    """
    found = statistics.read(path)
    try:
        found.require(features.name, features.sha256)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (resize := found.about.get("resize", features.resize)) != features.resize:
        raise ValueError(f"{path} is of pictures resized by {resize}, and --features resizes by {features.resize}")
    gaussians = {features.default: found.features}
    if found.spatial is not None:
        gaussians[SPATIAL] = found.spatial
    return Statistics(str(path), found.about, gaussians)


def write_statistics(path: Path, reference: PictureSet, features: Features, cache: Path, report: Report) -> None:
    """Mean and covariance of a reference's features: mu and sigma, with mu_s and sigma_s where there are such features.

    Raises:
      ValueError, OSError: as features_of.
    """
    outputs = [features.default, *([SPATIAL] if SPATIAL in features.sizes else [])]
    kept = features_of(reference, features, outputs, cache, features.name, report)
    gaussians = [_with_moments(kept, output, report.say).gaussian for output in outputs]
    about = {"network": features.name, "sha256": features.sha256, "resize": features.resize, "data": reference.where}
    statistics.write(path, statistics.Statistics(*gaussians, about=about))


class Result(NamedTuple):
    """Numbers by name, what of each is best, what must be said beside them, and where the files are."""

    numbers: dict[str, Number]
    best: dict[str, str]
    notes: list[str]
    path: Path


def evaluate(
    pictures: PictureSet,
    reference: PictureSet | Statistics | None,
    features: Features,
    metrics: Mapping[str, Metric],
    home: Path,
    cache: Path,
    report: Report,
    *,
    seed: int = 0,
) -> Result:
    """The metrics of pictures against a reference.

    Args:
      pictures: read or drawn.
      reference: or None, where no metric needs one.
      features: the network.
      metrics: from `metrics.chosen`.
      home: the results are in a folder in this one, named after the features of the pictures.
      cache: of the features of references.
      report: is told how far it is.
      seed: of metrics that draw.

    Raises:
      ValueError: a reference of another size of pictures, or one that does not give what a metric needs; files of
        other settings.
      FloatingPointError: pictures or features that are not finite.
      OSError: a place that cannot be written, or where another call works.
    """
    check(pictures, reference, metrics, features)
    outputs = list(dict.fromkeys(output_of(metric, features) for metric in metrics.values()))
    of_reference = [output_of(metric, features) for metric in metrics.values() if metric.needs != "nothing"]
    kept = features_of(pictures, features, outputs, home, f"n{pictures.count}_{features.name}", report)
    against = None
    if isinstance(reference, PictureSet):
        against = features_of(reference, features, list(dict.fromkeys(of_reference)), cache, features.name, report)
    card = {
        "pictures": {"from": pictures.where, **_of_pictures(pictures)},
        "reference": _of_reference(reference),
        "features": protocol.of_features(features, outputs),
        "metrics": {"names": ", ".join(metrics), "seed of subsets": seed},
        "versions": protocol.versions(),
    }
    numbers, best, notes = {}, {}, []
    if isinstance(reference, Statistics) and "sha256" not in reference.about:
        notes.append(f"{reference.where} does not say of which network its statistics are")
    sets = {output: (FeatureSet(kept, output), _set(against, reference, output, report.say)) for output in outputs}
    for metric in metrics.values():
        found = metric.of(*sets[output_of(metric, features)], seed)
        numbers |= found.numbers
        best |= dict.fromkeys(found.numbers, metric.best)
        notes += [note for note in found.notes if note not in notes]
    called = "" if reference is None else f"{Path(reference.where).name}_"
    name = f"{'-'.join(metrics)}_{called}{_digest([card['reference'], seed])}"  # numbers of another are kept beside
    path = kept.folder / re.sub(r"[^\w.-]+", "_", name)
    protocol.save(path, numbers, notes, card, best)
    return Result(numbers, best, notes, path)


def check(
    pictures: PictureSet,
    reference: PictureSet | Statistics | None,
    metrics: Mapping[str, Metric],
    features: Features,
) -> None:
    """Whether the reference gives what the metrics need; before anything is computed.

    Raises:
      ValueError: it does not.
    """
    if isinstance(reference, PictureSet) and reference.shape != pictures.shape:
        raise ValueError(
            f"the pictures of {pictures.where} are {protocol.size(pictures.shape)}, those of the reference "
            f"{reference.where} {protocol.size(reference.shape)}; --data.image-size makes them alike"
        )
    for name, metric in metrics.items():
        if metric.needs == "nothing":
            continue
        if reference is None:
            raise ValueError(f"{name} compares with a reference: give --against DATA, STATS.npz or FOLDER")
        if not isinstance(reference, Statistics):
            continue
        output = output_of(metric, features)
        if metric.needs == "features":
            raise ValueError(
                f"{name} needs the features of the reference, and {reference.where} has their mean and covariance "
                "only: give the pictures themselves as --against"
            )
        if output not in reference.gaussians:
            raise ValueError(f"{name} needs statistics of the output {output}, which {reference.where} has not")
        if (found := len(reference.gaussians[output].mean)) != features.sizes[output]:
            raise ValueError(
                f"{reference.where} has statistics of {found} features, and --features {features.name} gives "
                f"{features.sizes[output]} ({output}): it is of another network"
            )


def cache() -> Path:
    """Where features of references are by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "features"


def features_of(
    pictures: PictureSet, features: Features, outputs: Sequence[str], home: Path, name: str, report: Report
) -> Kept:
    """The features of pictures in a folder in `home`, those that are there already and the others.

    Raises:
      FloatingPointError: pictures or features that are not finite.
      ValueError, OSError: as Kept; another call works there.
    """
    settings = {
        **pictures.known,
        "size of the pictures": list(pictures.shape),
        "feature network": features.name,
        "weights of the feature network": features.sha256,
        "resize": features.resize,
        "num_images": pictures.count,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    folder = home / f"{name}_{_digest(settings)}"
    make_directory(folder)
    with lock.held(folder, report.say):
        kept = Kept(
            folder, settings, pictures.count, {output: features.sizes[output] for output in outputs}, report.say
        )
        if kept.first:
            report.say(
                f"{kept.first} of {kept.num_images} pictures of {pictures.where}: their features are in {folder}"
            )
        if kept.first < kept.num_images:
            report.start(pictures.where, kept.first, kept.num_images)
            for found in extract(features, pictures.batches(kept.first), list(kept.sizes)):
                kept.add(found)
                report.images(kept.made)
    return kept


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _set(kept: Kept | None, reference: PictureSet | Statistics | None, output: str, say: Say) -> FeatureSet:
    """Of the reference; without anything where no metric needs it."""
    if isinstance(reference, Statistics):
        return FeatureSet(None, output, reference.gaussians.get(output))
    return FeatureSet(None, output) if kept is None or output not in kept.sizes else _with_moments(kept, output, say)


def _with_moments(kept: Kept, output: str, say: Say) -> FeatureSet:
    """Those of a reference are kept beside its features: a file is as good as the CRC-32 of its archive."""
    path = kept.folder / f"moments_{output}.npz"
    if path.exists():
        try:
            return FeatureSet(kept, output, statistics.read(path).features)
        except ValueError as error:
            say(f"{error}: it is made again")
    found = FeatureSet(kept, output)
    statistics.write(path, statistics.Statistics(found.gaussian))
    return found


def _of_pictures(pictures: PictureSet) -> dict[str, Any]:
    return {"number": pictures.count, "size": protocol.size(pictures.shape), **pictures.known}


def _of_reference(reference: PictureSet | Statistics | None) -> dict[str, Any]:
    if reference is None:
        return {"from": "none"}
    if isinstance(reference, Statistics):
        count = next(iter(reference.gaussians.values())).count
        return {"from": reference.where, "number": "unknown" if count is None else count, **reference.about}
    return {"from": reference.where, **_of_pictures(reference)}
