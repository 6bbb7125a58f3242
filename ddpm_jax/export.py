"""A run of ours as what `interop` writes: the network, its averaged parameters, and how it was trained."""

import json
from pathlib import Path

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


def load(source: str, say: Say, average: posthoc.Average = posthoc.OWN) -> Loaded:
    """Whatever there is: the directory of a run, or what `interop.load` reads.

    Raises:
      ValueError, OSError: as loaded_run and interop.load; an average of what is no run.
    """
    check_average(Path(source), average)
    return loaded_run(Path(source), say, average) if is_run(Path(source)) else interop.load(source)


def check_average(source: Path, average: posthoc.Average) -> None:
    """Whether there is a choice of averages.

    Raises:
      ValueError: one is chosen, and this is no run.
    """
    if average != posthoc.OWN and not is_run(source):
        raise ValueError(f"ema_decay and ema_sigma choose among the averages of a run, got {source}, which is no run")


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
