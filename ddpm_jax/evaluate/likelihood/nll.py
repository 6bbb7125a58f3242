"""The bound of a trained network on a data set, batch by batch: killed and started again, it goes on where it was.

The result is a function of (checkpoint, data, settings): noise comes from (seed, image, timestep), and sums are added
in the order of the images. What was summed is written after every batch with the settings it is of.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import jax
import numpy as np

from ddpm_jax import data, images, keys, schedules
from ddpm_jax.config.fields import at_least
from ddpm_jax.config.run import MOST_SEED, DataConfig
from ddpm_jax.data.labels import NONE
from ddpm_jax.data.records import IMAGE, LABEL
from ddpm_jax.evaluate.likelihood import files
from ddpm_jax.evaluate.likelihood.optimal_grid import CostVariance, optimal_timesteps, step_costs
from ddpm_jax.evaluate.likelihood.table import Sums, Table, add, parts, table
from ddpm_jax.evaluate.likelihood.vlb import vlb_terms
from ddpm_jax.process import LEARNED, ModelFn, PredictionType, VarianceType
from ddpm_jax.samplers.grids import section_timesteps
from ddpm_jax.schedules import Schedule
from ddpm_jax.trained import Trained, checksum

OPTIMAL_STEPS = (10, 20, 50)


class Report(Protocol):
    """Who watches: a progress bar, a test."""

    def start(self, first_image: int, num_images: int) -> None: ...
    def images(self, num_images: int, bits_per_dim: float) -> None: ...
    def say(self, message: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """All that the result depends on; written with it."""

    checkpoint_step: int | None  # of a run
    parameters_crc32: int
    data: str
    split: str
    image_shape: tuple[int, ...]
    num_images: int
    fingerprint: str  # of these images
    num_steps: int
    batch_size: int  # the last digits of a network's output depend on it
    seed: int
    prediction: PredictionType
    variance: VarianceType
    clip: float | None


class Result(NamedTuple):
    """Where the files are, and what summary.json says."""

    folder: Path
    summary: dict[str, Any]


def evaluate(
    trained: Trained,
    images_of: DataConfig,
    home: Path,
    report: Report,
    *,
    split: str | None,
    num_images: int | None,
    batch_size: int,
    seed: int,
    num_steps: int | None,
    optimal_steps: tuple[int, ...] | None,
) -> Result:
    """The variational bound with these parameters.

    Args:
      trained: the network of images; one of classes is told each image's own, and the bound is that of p(x | y).
      images_of: which images.
      home: the results are in a folder in this one, named after the settings.
      report: is told how far it is.
      split: of the data; None takes "test" if there is one, else the split of the training, and says so.
      num_images: the first so many of the split; None takes all.
      batch_size: images at once.
      seed: of the noise.
      num_steps: of the strided process (evenly spread timesteps); None is every timestep of the training.
      optimal_steps: lengths of the optimal grids to find; None takes those of OPTIMAL_STEPS that num_steps allows.

    Raises:
      FileExistsError: a folder of that name with other files.
      ValueError: no such split; more images than it has; numbers out of range; sums of other settings; a network that
        knows only the steps of its training, and fewer steps asked for; one of latents, or one that is told more than
        a class; of classes, and data without labels or with other classes.
      FloatingPointError: a term of the bound that is not finite.
    """
    if trained.first_stage is not None:
        raise ValueError("bits per dimension are those of images, and this network denoises latents")
    trained.check_conditions("nll", labels=True)
    at_least("batch_size", batch_size)
    at_least("seed", seed, 0, most=MOST_SEED)
    schedule = strided(trained, num_steps)
    optimal = checked_optimal_steps(optimal_steps, schedule.num_timesteps)
    split = chosen_split(images_of, split, report)
    source, count = _images(images_of, split, num_images, trained, report)
    features = (IMAGE,) if source.classes is None else (IMAGE, LABEL)
    read = ", ".join(data.fingerprint(source, features, count).values())
    in_process_terms = lambda params, told: trained.reading.in_process_terms(trained.model_fn(params, **told), schedule)
    said = in_process_terms(trained.params, {})
    settings = Settings(
        trained.step, int(checksum(trained.params), 16), _called(images_of, trained), split, trained.image_shape, count,
        read, schedule.num_timesteps, min(batch_size, count), seed, said.prediction, said.variance,
        trained.reading.clip,
    )  # fmt: skip
    folder = home / _folder_name(settings)
    files.make(folder)
    model_fn_of = lambda params, told: in_process_terms(params, told).model_fn
    sums = _sum_over(source, schedule, settings, model_fn_of, jax.device_put(trained.params), folder, report)
    by_t = table(schedule, sums)
    summary = {
        "settings": _plain(settings),
        "bits_per_dim": {name: estimate._asdict() for name, estimate in parts(sums).items()},
        "optimal": _optimal(schedule, by_t, settings.variance, optimal),
    }
    files.save_results(folder, by_t, summary)
    return Result(folder, summary)


def _images(
    images_of: DataConfig, split: str, num_images: int | None, trained: Trained, report: Report
) -> tuple[data.Source, int]:
    """The images of a split, with labels where the network is told these, and how many of them are taken."""
    num_classes = trained.conditions.num_classes
    unlabelled = {"labels": NONE} if num_classes is None else {}
    source = data.load(images_of.name, **{**images_of.arguments(), "split": split, **unlabelled}, say=report.say)
    if source.image_shape != trained.image_shape:
        raise ValueError(f"the images of {split} have shape {source.image_shape}, the network's {trained.image_shape}")
    if num_classes is not None:
        _check_classes(source, num_classes, trained.classes)
    count = len(source) if num_images is None else num_images
    if not 1 <= count <= len(source):
        raise ValueError(f"num_images must lie in [1, {len(source)}], the images of {split!r}, got {count}")
    return source, count


def _check_classes(source: data.Source, num_classes: int, names: tuple[str, ...] | None) -> None:
    """Whether the labels of the data are the network's."""
    if source.classes is None:
        raise ValueError(f"the network is told one of {num_classes} classes, and {source.name} is read without labels")
    if len(source.classes) != num_classes or names not in (None, source.classes):
        theirs, ours = ", ".join(source.classes[:3]), "" if names is None else f" ({', '.join(names[:3])}, ...)"
        raise ValueError(
            f"the network is told one of {num_classes} classes{ours}, and {source.name} has {len(source.classes)} "
            f"({theirs}, ...)"
        )


def _called(images_of: DataConfig, trained: Trained) -> str:
    """The data of a run by its name; of all else also with what changes its images."""
    said = [f"{name} {value}" for name in ("image_size", "key", "transparency") if (value := getattr(images_of, name))]
    return ", ".join([images_of.name, *([] if trained.run is not None else said)])


def strided(trained: Trained, num_steps: int | None) -> Schedule:
    """The schedule of the training, seen at num_steps evenly spread timesteps.

    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), section 4.

    Raises:
      ValueError: num_steps outside [2, T]; a network that says something of the steps of its training only.
    """
    schedule = trained.schedule
    if num_steps is None or num_steps == schedule.num_timesteps:
        return schedule
    if not 2 <= num_steps <= schedule.num_timesteps:
        raise ValueError(f"num_steps must lie in [2, {schedule.num_timesteps}], got {num_steps}")
    for name, value, bound in (("prediction", trained.prediction, "x_prev"), ("variance", trained.variance, "learned")):
        if value == bound:
            raise ValueError(
                f"a network with {name} {value!r} knows only the steps of its training: num_steps must be "
                f"{schedule.num_timesteps}, got {num_steps}"
            )
    return schedules.respace(schedule, section_timesteps(schedule.num_timesteps, num_steps))


def checked_optimal_steps(asked: tuple[int, ...] | None, num_timesteps: int) -> tuple[int, ...]:
    """The lengths of optimal grids to find.

    Raises:
      ValueError: one outside [2, num_timesteps].
    """
    if asked is None:
        return tuple(n for n in OPTIMAL_STEPS if n <= num_timesteps)
    for n in asked:
        if not 2 <= n <= num_timesteps:
            raise ValueError(f"optimal_steps must lie in [2, {num_timesteps}], got {n}")
    return asked


def chosen_split(config: DataConfig, asked: str | None, report: Report) -> str:
    """The split asked for; by default "test", or that of the training where there is no other."""
    if asked is not None:
        return asked
    if "test" in data.splits(config.name, data_dir=config.dir):
        return "test"
    report.say(f"{config.name} has no split 'test': these are bits/dim of {config.split!r}, the images of the training")
    return config.split


def _sum_over(
    source: data.Source,
    schedule: Schedule,
    settings: Settings,
    model_fn_of: Callable[[Any, Any], ModelFn],
    params: Any,
    folder: Path,
    report: Report,
) -> Sums:
    """The sums of all images, from those that are written on."""
    known, size = _plain(settings), settings.batch_size
    key = keys.make(settings.seed)

    @jax.jit
    def terms(params: Any, x_0: jax.Array, told: Any, key: jax.Array, first_index: jax.Array) -> Any:
        return vlb_terms(
            model_fn_of(params, told), schedule, images.to_float(x_0), key, prediction=settings.prediction,
            variance=settings.variance, clip=settings.clip, first_index=first_index,
        )  # fmt: skip

    def batch(first: int) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        # The last batch repeats its last image: one shape, one compilation.
        indices = np.minimum(np.arange(first, first + size), settings.num_images - 1)
        if source.classes is None:
            return first, source.images(indices), {}
        record = source.read(indices, (IMAGE, LABEL))
        return first, record[IMAGE], {"y": record[LABEL]}

    sums = files.load_sums(folder, known, schedule.num_timesteps, report.say)
    files.save_sums(folder, known, sums)
    report.start(sums.num_images, settings.num_images)
    for first, x_0, told in data.prefetch(batch, range(sums.num_images, settings.num_images, size)):
        found = terms(params, x_0, told, key, np.uint32(first))
        sums = add(sums, found, min(size, settings.num_images - first))
        files.save_sums(folder, known, sums)
        report.images(sums.num_images, parts(sums)["total"].mean)
    return sums


def _optimal(schedule: Schedule, by_t: Table, variance: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The best timesteps of each length, the transitions' bits on them, and on evenly spread ones."""
    # What a network learned for long steps nobody knows before it is run on them; the best it can is known.
    variance = "analytic" if variance in LEARNED else variance
    costs = step_costs(schedule, by_t.x_0_mse, variance=cast(CostVariance, variance))
    bits = lambda steps: float(sum(costs[t, s] for t, s in itertools.pairwise(steps)))
    found = {}
    for n in lengths:
        best, even = optimal_timesteps(costs, n), section_timesteps(schedule.num_timesteps, n)[::-1]
        told = np.asarray(schedule.timesteps)[best].tolist()
        found[str(n)] = {"timesteps": told, "transitions": bits(best), "transitions_even": bits(even)}
    return {"variance": variance, "steps": found}


def _folder_name(settings: Settings) -> str:
    step, split, n, num_steps, seed = (
        getattr(settings, name) for name in ("checkpoint_step", "split", "num_images", "num_steps", "seed")
    )
    of_run = "" if step is None else f"step{step}_"
    return re.sub(r"[^\w.-]+", "_", f"{of_run}{split}_n{n}_steps{num_steps}_seed{seed}")


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON has it, so that it equals what was read back."""
    return asdict(settings) | {"image_shape": list(settings.image_shape)}
