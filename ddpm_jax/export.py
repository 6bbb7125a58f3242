"""A run of ours as what `interop` writes: the network, its averaged parameters, and how it was trained."""

import json
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import checkpoint, interop, posthoc
from ddpm_jax.checkpoint import Say
from ddpm_jax.interop import Loaded
from ddpm_jax.train import build
from ddpm_jax.train.config import to_dict


def is_run(path: Path) -> bool:
    """Whether this is the directory of a run: it has a config.json, and not that of a network of diffusers."""
    config = path / "config.json"
    if not config.is_file() or (path / "model_index.json").exists():
        return False
    try:
        found = json.loads(config.read_text())
    except (ValueError, RecursionError):
        return True  # and `checkpoint.load_run` says what is wrong with it
    return not (isinstance(found, dict) and "_class_name" in found)


def load(source: str, say: Say, average: posthoc.Average = posthoc.OWN, config: Path | None = None) -> Loaded:
    """Whatever there is: the directory of a run, or what `interop.load` reads.

    Args:
      source: a directory, a file or a name on the hub.
      say: takes a line of text.
      average: which, of a run.
      config: a JSON file with the config of `interop.load`; of no run.

    Raises:
      ValueError, OSError: as loaded_run, read_config and interop.load; options that the source has not.
    """
    check_options(Path(source), average, config)
    if is_run(Path(source)):
        return loaded_run(Path(source), say, average)
    return interop.load(source, None if config is None else read_config(config))


def check_options(source: Path, average: posthoc.Average, config: Path | None) -> None:
    """Whether there is a choice of averages, or of settings.

    Raises:
      ValueError: an average is chosen, and this is no run; settings are given, and this is one.
    """
    if average != posthoc.OWN and not is_run(source):
        raise ValueError(f"ema_decay and ema_sigma choose among the averages of a run, got {source}, which is no run")
    if config is not None and is_run(source):
        raise ValueError(f"--config {config} says what networks of other projects do not say, and {source} is a run")


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a file of JSON.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which --config names")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--config {path} must hold a mapping, {{...}}, got {type(found).__name__}")
    return found


def loaded_run(workdir: Path, say: Say, average: posthoc.Average = posthoc.OWN) -> Loaded:
    """The averaged parameters of a run, see `posthoc.averaged`, with its network and schedule.

    Raises:
      FileNotFoundError: no run in this directory, or no checkpoint.
      ValueError: a damaged run; an average it cannot give; one that predicts what no other project's networks do.
    """
    info = checkpoint.load_run(workdir)
    config, objective = info.config, info.config.objective
    if objective.loss == "edm" or objective.prediction == "x_prev":
        name = "loss 'edm'" if objective.loss == "edm" else "prediction 'x_prev'"
        raise ValueError(f"{workdir}: other projects have no networks of objective.{name}; sample it as a run")
    model = build.make_model(config, info.image_shape)
    template = build.params_template(model, info.image_shape)
    params, step = posthoc.averaged(workdir, template, say, average)
    return Loaded(
        origin=f"a run of ddpm-jax, {step} steps",
        config=to_dict(config.model),
        model=model,
        params=jax.device_get(params),
        schedule=build.make_schedule(config.schedule),
        prediction=objective.prediction,
        variance=objective.variance,
        image_shape=info.image_shape,
        sampler=config.sample.sampler,
        clip=config.sample.clip,
    )
