"""Metrics of what a network draws while it trains, against the data of its training."""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cached_property

import jax
import numpy as np

from ddpm_jax import build, opening, pictures
from ddpm_jax.config.evaluate import EvaluateConfig
from ddpm_jax.config.run import Config
from ddpm_jax.data import Source
from ddpm_jax.evaluate import features as feature_networks
from ddpm_jax.evaluate import metrics, picture_sets, quality
from ddpm_jax.evaluate.features import Features
from ddpm_jax.evaluate.kept import Held, Kept
from ddpm_jax.evaluate.metrics import Metric
from ddpm_jax.host import processes
from ddpm_jax.host.storage import Say
from ddpm_jax.train.state import Params
from ddpm_jax.trained import FirstStage


class Quiet:
    """A quality.Report without a bar."""

    def __init__(self, say: Say):
        self._say = say

    def say(self, message: str) -> None:
        self._say(message)

    def start(self, what: str, first_image: int, num_images: int) -> None:
        self.say(f"features of {num_images - first_image} images of {what}")

    def images(self, num_images: int) -> None:
        pass


class Evaluated:
    """The metrics of config.evaluate, of the pictures of one network with any parameters.

    Every process draws whole batches on its devices, the batches of one process side by side; the numbers are those
    of one process with one device.

    Args:
      config: of the run, resolved.
      features: the network of its metrics.
      chosen: its metrics.
      source: the data.
      shape: of what the network denoises.
      stage: the autoencoder, where that are latents.
      say: is told of pictures that are not finite, and of what is computed for the reference.

    Raises:
      ValueError: a network that needs more than a label; numbers that do not fit.
    """

    def __init__(
        self,
        config: Config,
        features: Features,
        chosen: Mapping[str, Metric],
        source: Source,
        shape: tuple[int, int, int],
        stage: FirstStage | None,
        say: Say,
    ):
        self._config, self._features, self._chosen = config.evaluate, features, chosen
        self._source, self._say, seed = source, say, config.train.seed
        n, size = self._config.num_images, min(self._config.batch_size, self._config.num_images)
        if source.autoencoder is not None:
            raise ValueError(
                f"--evaluate.every compares with images, and {source.name} holds latents: give the images and "
                "--data.encode-with, or use ddpm-jax evaluate"
            )
        built = build.build(config, shape, source.classes)
        trained = opening.as_trained(built, built.params, 0, source.classes, stage)
        trained.check_conditions("--evaluate.every", labels=True)
        pictures.check_numbers(trained, n, size, seed)
        self._reference_of = picture_sets.of_source(source, self._config.against_images, "evaluate.against_images")
        labels = pictures.labels(trained)
        drawn_with = pictures.preset(trained, None, None, None, None, say=lambda message: None)
        self._program = pictures.Program(trained, drawn_with, labels, size, seed, jax.local_devices())
        self._weights = lambda params: pictures.weights_of(trained, labels, params)
        self._outputs = list(dict.fromkeys(metrics.output_of(metric, features) for metric in chosen.values()))
        self._share = shares(n, math.lcm(size, features.batch), jax.process_count())

    def __call__(self, params: Params) -> dict[str, float]:
        """The metrics' values by name; nothing where a picture is not finite. The same in every process."""
        first, stop = self._share[jax.process_index()]
        wrong: list[int] = []

        def drawn():
            for found in self._program.batches(self._weights(params), first, stop):
                wrong.extend(found.not_finite)
                yield found.pictures

        parts = list(feature_networks.extract(self._features, drawn(), self._outputs))
        most = max(stop - first for first, stop in self._share)
        arrays = {}
        for output in self._outputs:
            empty = np.zeros((0, self._features.sizes[output]), np.float32)
            arrays[output] = processes.gathered(np.concatenate([empty, *(part[output] for part in parts)]), most)
        count = int(processes.gathered(np.array([[len(wrong)]], np.float32), 1).sum())
        if count:
            self._say(f"{count} of the {self._config.num_images} images drawn have NaN or infinity: no metrics of them")
            return {}
        return processes.from_first(lambda: self._numbers(Held(arrays)))

    def _numbers(self, samples: Held) -> dict[str, float]:
        found = {}
        for metric in self._chosen.values():
            output = metrics.output_of(metric, self._features)
            reference = metrics.FeatureSet(None if metric.needs == "nothing" else self._reference, output)
            numbers = metric.of(metrics.FeatureSet(samples, output), reference, 0).numbers
            found |= {name: number.value for name, number in numbers.items()}
        return found

    @cached_property
    def _reference(self) -> Kept:
        """In the first process only."""
        of_reference = [metric for metric in self._chosen.values() if metric.needs != "nothing"]
        outputs = list(dict.fromkeys(metrics.output_of(metric, self._features) for metric in of_reference))
        name, home = self._features.name, quality.cache()
        return quality.features_of(self._reference_of, self._features, outputs, home, name, Quiet(self._say))


def make(config: EvaluateConfig) -> Callable[..., Evaluated] | None:
    """What evaluates, before there is data, given all of Evaluated's but features and chosen; None for nothing.

    Raises:
      ValueError, FileNotFoundError: as features.of_name and metrics.chosen.
    """
    if config.every is None:
        return None
    features = feature_networks.of_name(config.features, inputs=config.inputs)
    chosen = metrics.chosen(config.metrics, features, "--evaluate.")
    return lambda config, *of_data: Evaluated(config, features, chosen, *of_data)


def shares(num_images: int, unit: int, count: int) -> list[tuple[int, int]]:
    """(first, stop) of each process: whole units, as even as they can be."""
    units = -(-num_images // unit)
    ends = [min(num_images, unit * (units * i // count)) for i in range(count + 1)]
    return list(itertools.pairwise(ends))
