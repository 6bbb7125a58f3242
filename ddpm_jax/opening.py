"""Open what was trained: the directory of a run of ours, or what `interop.load` reads."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import build, interop
from ddpm_jax.config.run import Config, DataConfig, to_dict
from ddpm_jax.host.storage import Say
from ddpm_jax.models import Classifier
from ddpm_jax.noisy_classifier import NoisyClassifier
from ddpm_jax.runs import checkpoint, first_stage_file, first_stage_weights, posthoc
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import FirstStage, Trained, check_finite, checksum


def open(place: str | Path, say: Say, average: posthoc.Average = posthoc.OWN, config: Path | None = None) -> Trained:
    """Whatever there is, ready to be used.

    Args:
      place: the directory of a run; or a folder, a file or a name on the hub, hf:owner/name, as of `interop.load`.
      say: takes a line of text.
      average: which, of a run.
      config: a JSON file with the config of `interop.load`; of no run.

    Raises:
      FileNotFoundError: nothing there, or a part of it is missing, such as a checkpoint.
      ValueError: files that are damaged or none of these; weights that are not finite; an average it cannot give; an
        average is chosen, and this is no run; a config is given, and this is one.
      ImportError: as interop.load.
    """
    run = checkpoint.find_run(Path(place))
    if run is None:
        if average != posthoc.OWN:
            which = "ema_decay and ema_sigma choose among the averages of a run"
            raise ValueError(f"{which}, got {place}, which is no run")
        return interop.load(place, None if config is None else _settings(config))
    if config is not None:
        raise ValueError(f"--config {config} says what networks of other projects do not say, and {place} is a run")
    return of_run(Path(place), run, say, average)


def open_to_read(place: str | Path, say: Say) -> Trained:
    """As `open`, also of RUN/checkpoints/STEP: for uses that leave nothing at the place.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `open`.
    """
    path = Path(place)
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        workdir = path.parent.parent
        if (run := checkpoint.find_run(workdir)) is not None:
            return of_run(workdir, run, say, step=int(path.name))
    return open(place, say)


def of_run(
    workdir: Path,
    info: checkpoint.RunInfo,
    say: Say,
    average: posthoc.Average = posthoc.OWN,
    step: int | None = None,
) -> Trained:
    """The averaged parameters of a run's newest intact checkpoint, or another average of them, see `posthoc.averaged`.

    Args:
      workdir: of the run.
      info: what its config.json says.
      say: is told of damaged files.
      average: which.
      step: of which checkpoint; the newest by default. Only with the run's own average.

    Raises:
      FileNotFoundError: no checkpoint.
      ValueError: a damaged run, an average it cannot give, or one that is not finite; a run of a classifier.
    """
    if info.config.task == "classifier":
        raise ValueError(
            f"{workdir} is a run of --task classifier, which draws nothing: it guides a diffusion model, see "
            "ddpm_jax.opening.classifier"
        )
    if info.config.task == "autoencoder":
        raise ValueError(
            f"{workdir} is a run of --task autoencoder, which draws nothing: it makes latents of images and images of "
            "latents, see ddpm_jax.opening.first_stage"
        )
    built = build.build(info.config, info.image_shape, info.classes)
    if step is None:
        params, step = posthoc.averaged(workdir, info, built.params, say, average)
    elif average != posthoc.OWN:
        raise ValueError(f"ema_decay and ema_sigma choose among the averages of a run's end, got checkpoint {step}")
    else:
        params = posthoc.of_checkpoint(workdir, step, built.params)
    weights = info.networks.get(checkpoint.FIRST_STAGE)
    stage = None if weights is None else first_stage_weights.read(workdir, weights)
    trained = as_trained(built, jax.device_get(params), step, info.classes, stage)
    try:
        trained.check_finite()
    except ValueError as error:
        raise ValueError(f"{workdir}, step {step}: {error}") from None
    return trained


def as_trained(
    built: build.Built,
    params: Any,
    step: int,
    classes: tuple[str, ...] | None,
    stage: FirstStage | None = None,
) -> Trained:
    """The network of a run with some of its parameters, or with their shapes only, for what is given others.

    Args:
      built: of the run's configuration.
      params: of its network.
      step: after which these are.
      classes: the names of the classes of its data, where they have some.
      stage: the autoencoder in whose latents it diffuses, if it does.
    """
    return Trained(
        origin=f"a run of ddpm-jax, {step} steps",
        config=to_dict(built.config.model),
        model=built.model,
        params=params,
        schedule=built.schedule,
        reading=built.reading,
        image_shape=built.image_shape,
        sampler=built.config.sample.sampler,
        num_steps=built.config.sample.num_steps,
        run=built.config,
        step=step,
        condition=built.condition,
        classes=classes,
        first_stage=stage,
    )


def classifier(
    place: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    average: posthoc.Average = posthoc.OWN,
    say: Say = warnings.warn,
) -> NoisyClassifier:
    """A classifier of noisy images, ready to guide.

    Args:
      place: the directory of a run of --task classifier, or a file of OpenAI's as of `interop.load_classifier`.
      config: what a file does not say, as of `interop.load_classifier`; of no run.
      average: which, of a run.
      say: is told of damaged files of a run.

    Raises:
      FileNotFoundError: nothing there, or no checkpoint.
      ValueError: a run of another task; a damaged one; weights that are not finite; otherwise as `open`.
      ImportError: as interop.load.
    """
    run = checkpoint.find_run(Path(place))
    if run is None:
        if average != posthoc.OWN:
            raise ValueError(f"average chooses among the averages of a run, got {place}, which is no run")
        return interop.load_classifier(place, config)
    if config is not None:
        raise ValueError(f"config says what files of other projects do not say, and {place} is a run")
    if run.config.task != "classifier":
        raise ValueError(f"{place} is a run of --task {run.config.task}, which classifies nothing")
    model = build.make_model(run.config, run.image_shape, run.classes)
    assert isinstance(model, Classifier)
    params, step = posthoc.averaged(Path(place), run, build.params_template(model, run.image_shape), say, average)
    found = NoisyClassifier(
        origin=f"a run of ddpm-jax, {step} steps",
        config=to_dict(run.config.model),
        model=model,
        params=jax.device_get(params),
        schedule=build.make_schedule(run.config.schedule),
        image_shape=run.image_shape,
        run=run.config,
        step=step,
        classes=run.classes,
    )
    try:
        found.check_finite()
    except ValueError as error:
        raise ValueError(f"{place}, step {step}: {error}") from None
    return found


def first_stage(place: str | Path, *, average: posthoc.Average = posthoc.OWN, say: Say = warnings.warn) -> FirstStage:
    """A trained autoencoder, ready to encode and decode; its scale is 1 / standard deviation of its latents.

    Args:
      place: the directory of a run of --task autoencoder that is trained to its end.
      average: which; the scale is measured with the run's own.
      say: is told of damaged files.

    Raises:
      FileNotFoundError: no run, no checkpoint, or one that is not trained to its end.
      ValueError: a run of another task; a damaged one; weights that are not finite, or not those of the scale.
    """
    run = checkpoint.find_run(Path(place))
    if run is None:
        raise FileNotFoundError(f"no run at {place}")
    if run.config.task != "autoencoder":
        raise ValueError(f"{place} is a run of --task {run.config.task}, which encodes nothing")
    facts = first_stage_file.read(Path(place))
    model, _, _ = build.make_autoencoder(run.config, run.image_shape)
    template = build.first_stage_template(run.config, run.image_shape)
    found, step = posthoc.averaged(Path(place), run, template, say, average)
    params = jax.device_get(found)["autoencoder"]
    try:
        check_finite({"params": params})
    except ValueError as error:
        raise ValueError(f"{place}, step {step}: {error}") from None
    if average == posthoc.OWN and (weights := checksum(params)) != facts.weights:
        raise ValueError(
            f"{place} holds the scale of other weights ({facts.weights}, step {step} has {weights}): train it to its "
            "end again"
        )
    return FirstStage(model, params, facts.scale)


def first_stage_of(place: str | Path, say: Say) -> tuple[FirstStage, Config | None]:
    """As `first_stage`, also that of a folder of diffusers: a pipeline's, or the folder is of one itself.

    Returns:
      The autoencoder, and the configuration of its run; None of all else.

    Raises:
      FileNotFoundError, ValueError: as first_stage and interop.load_first_stage.
    """
    run = checkpoint.find_run(Path(place))
    if run is None:
        return interop.load_first_stage(place), None
    return first_stage(place, say=say), run.config


def data_of(place: str | Path, trained: Trained, **told: Any) -> DataConfig:
    """The data of a run, or what is told of all else.

    Args:
      place: where it was opened.
      trained: what is there.
      told: fields of DataConfig; None is not told.

    Raises:
      ValueError: told of a run, or no name told of all else.
    """
    given = {name: value for name, value in told.items() if value is not None}
    if trained.run is None:
        if "name" not in given:
            raise ValueError(f"{place} does not say which images it was trained on: give --data.name, as in train")
        return DataConfig(**given)
    for name, value in given.items():
        option = f"--data.{name.replace('_', '-')}"
        raise ValueError(f"{option} {value} is for what is no run: {place} is one, of {trained.run.data.name!r}")
    return trained.run.data


def name_of(place: str | Path) -> str:
    """What files about it are named by: the last part of its path, or of its name on the hub, without an ending."""
    return Path(place).absolute().stem


def results(place: str | Path, trained: Trained, kind: str) -> Path:
    """The folder in which a command leaves its results: in a run's directory KIND; of all else NAME_KIND, here.

    What others made stays as it is.
    """
    return Path(place) / kind if trained.run is not None else Path(f"{name_of(place)}_{kind}")


def _settings(path: Path) -> dict[str, Any]:
    """The mapping in the file of --config.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which --config names")
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error
