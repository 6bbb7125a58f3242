"""A run of ours as what `interop` writes: the network, its averaged parameters, and how it was trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from ddpm_jax import build, interop, samplers
from ddpm_jax.config.run import to_dict
from ddpm_jax.interop import FirstStage, Loaded
from ddpm_jax.models import DiT, UNet, UViT, bind
from ddpm_jax.process import ModelFn
from ddpm_jax.runs import checkpoint, posthoc
from ddpm_jax.runs.checkpoint import Say
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.schedules import Schedule


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


@dataclass(frozen=True)
class Source:
    """What pictures are drawn from.

    Attributes:
      model: the network.
      params: its parameters.
      image_shape: (H, W, C) of what it denoises.
      schedule: of its training.
      variance: of the reverse step.
      model_fn: (params, **conditioning) -> what samplers call network.
      denoiser: from that to what samplers call.
      sampler: name of the default sampler; None for the own one, which is
      own: (number of steps) -> table and denoiser.
      num_steps: of the default sampler.
      first_stage: the autoencoder, if latents are drawn.
      step: of a run's training that the parameters are from.
    """

    model: nn.Module
    params: Any
    image_shape: tuple[int, int, int]
    schedule: Schedule
    variance: str
    model_fn: Callable[..., ModelFn]
    denoiser: Callable[[ModelFn], samplers.Denoise]
    sampler: str | None
    own: Callable[[int], Preset] | None = None
    num_steps: int = 50
    first_stage: FirstStage | None = None
    step: int | None = None


def of_run(workdir: Path, say: Say, average: posthoc.Average = posthoc.OWN) -> Source:
    """The averaged parameters of a run's newest intact checkpoint, or another average of them, see `posthoc.averaged`.

    Raises:
      FileNotFoundError: no run in this directory, or no checkpoint.
      ValueError: a damaged run, or an average it cannot give.
    """
    info = checkpoint.load_run(workdir)
    config, shape = info.config, info.image_shape
    schedule, model = build.make_schedule(config.schedule), build.make_model(config, shape)
    params, step = posthoc.averaged(workdir, build.params_template(model, shape), say, average)
    return Source(
        model,
        params,
        shape,
        schedule,
        config.objective.variance,
        lambda params, **conditioning: bind(model, params, **conditioning),
        build.make_denoiser(config.objective, schedule, config.sample.clip),
        sampler=config.sample.sampler,
        num_steps=config.sample.num_steps,
        step=step,
    )


def of_loaded(loaded: Loaded) -> Source:
    """A network that interop.load has read.

    Raises:
      ValueError: one that needs more than an image, a time and a label, such as a text.
    """
    _refuse_other_inputs(loaded)
    own = loaded.scheduler_config is not None
    return Source(
        loaded.model,
        loaded.params,
        loaded.image_shape,
        loaded.schedule,
        loaded.variance,
        loaded.model_fn,
        loaded.denoiser,
        sampler=None if own else loaded.sampler,
        own=loaded.default_sampler if own else None,
        first_stage=loaded.first_stage,
    )


def _refuse_other_inputs(loaded: Loaded) -> None:
    model, channels = loaded.model, loaded.image_shape[-1]
    if not isinstance(model, UNet | DiT | UViT):
        raise ValueError(f"no picture can be drawn from a {type(model).__name__}")
    if not isinstance(model, UNet):
        return
    needs = []
    if model.transformer_depth:
        needs.append("a context, such as the embedding of a text (context=)")
    if model.class_embed_type is not None:
        needs.append("an embedding or a number as its class (y=)")
    if loaded.params["conv_in"]["kernel"].shape[2] != channels:
        needs.append("images beside the noisy one (low_res= or concat=)")
    if needs:
        raise ValueError(
            f"this network needs {' and '.join(needs)}, which the command line does not give: in Python, "
            "ddpm_jax.interop.load(...).model_fn takes it"
        )
