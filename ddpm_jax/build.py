"""From a configuration to the objects it names."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax import objectives, schedules, timesteps, weightings
from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.run import Config, ObjectiveConfig, ScheduleConfig
from ddpm_jax.names import choose
from ddpm_jax.process import LEARNED, ModelFn
from ddpm_jax.reading import PIXEL, MakeDenoise, Reading
from ddpm_jax.schedules import Schedule


def make_schedule(config: ScheduleConfig) -> Schedule:
    return schedules.make(config.name, config.num_timesteps, **config.arguments)


def make_model(config: Config, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network for images [H, W, C]; its settings are checked against them.

    Raises:
      ValueError: settings that do not fit each other or the images.
    """
    model = _network(config, image_shape)
    params_template(model, image_shape)
    return model


def _network(config: Config, image_shape: tuple[int, int, int]) -> nn.Module:
    out_channels = make_reading(config.objective).channels(image_shape[-1])
    return config.model.resolved(image_shape).network(out_channels)


def params_template(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Shapes and dtypes of the parameters, without memory; traces the model, so its checks run."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
    return jax.eval_shape(lambda key: model.init(key, x, t)["params"], jax.random.key(0))


@dataclass(frozen=True)
class Built:
    """What a configuration names for images of one shape: a network, and what its output means.

    Attributes:
      config: resolved for these images.
      image_shape: [H, W, C].
      schedule: of the training.
      reading: of the output; samplers clip as the configuration says.
      model: the network.
      params: the shapes and dtypes of its parameters.
    """

    config: Config
    image_shape: tuple[int, int, int]
    schedule: Schedule
    reading: Reading
    model: nn.Module
    params: Any


def build(config: Config, image_shape: tuple[int, int, int]) -> Built:
    """The network of a configuration for images [H, W, C], without parameters.

    Raises:
      ValueError: unknown names; settings that do not fit each other or the images.
    """
    config = resolved(config, image_shape)
    model = _network(config, image_shape)
    return Built(
        config,
        image_shape,
        make_schedule(config.schedule),
        make_reading(config.objective, config.sample.clip),
        model,
        params_template(model, image_shape),
    )


# -------------------------------------------------------------------------------------------------------- objective


class Losses(NamedTuple):
    """What a step minimizes, [B], and what else its log shows, by name, [B] each."""

    total: jax.Array
    parts: dict[str, jax.Array]


Objective = Callable[[ModelFn, jax.Array, jax.Array, jax.Array], Losses]


def make_objective(config: ObjectiveConfig, schedule: Schedule) -> Objective:
    """objective(model_fn, x_0 [B, ...], t [B], eps) -> Losses; traced once here, so that its checks run.

    "vlb" is T times the single term: over t it averages to the whole bound but for the prior ("RESCALED_KL" in
    OpenAI's code).

    Raises:
      ValueError: unknown names; a prediction, a variance and a schedule that do not go together.
    """
    objective = choose("loss", config.loss, LOSSES)(config, schedule)
    stand_in, t = make_reading(config).stand_in, jax.ShapeDtypeStruct((1,), jnp.int32)
    jax.eval_shape(lambda x_0, t: objective(stand_in, x_0, t, x_0), PIXEL, t)
    return objective


def _simple(config: ObjectiveConfig, schedule: Schedule) -> Objective:
    loss = functools.partial(objectives.simple, prediction=config.prediction, variance=config.variance)
    weight = weightings.make(config.weighting, **config.weighting_arguments)

    def objective(model_fn: ModelFn, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> Losses:
        return Losses(weight(schedule, t, config.prediction) * loss(model_fn, schedule, x_0, t, eps), {})

    return objective


def _vlb(config: ObjectiveConfig, schedule: Schedule) -> Objective:
    if config.prediction == "v" and config.variance not in LEARNED and schedule.betas_float64[-1] == 1:
        raise ValueError(
            "objective.loss 'vlb' with objective.prediction 'v' at zero terminal signal-to-noise ratio (betas[-1] = 1) "
            f"needs a learned objective.variance ({' or '.join(LEARNED)}), got {config.variance!r}"
        )
    loss = functools.partial(objectives.vlb, prediction=config.prediction, variance=config.variance)

    def objective(model_fn: ModelFn, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> Losses:
        return Losses(schedule.num_timesteps * loss(model_fn, schedule, x_0, t, eps), {})

    return objective


def _hybrid(config: ObjectiveConfig, schedule: Schedule) -> Objective:
    terms = functools.partial(
        objectives.hybrid_terms,
        prediction=config.prediction,
        variance=config.variance,
        vlb_weight=config.vlb_weight,
    )

    def objective(model_fn: ModelFn, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> Losses:
        total, simple, vlb = terms(model_fn, schedule, x_0, t, eps)
        return Losses(total, {"simple": simple, "vlb": schedule.num_timesteps * vlb})

    return objective


def _edm(config: ObjectiveConfig, schedule: Schedule) -> Objective:
    loss = functools.partial(objectives.edm, sigma_data=_sigma_data(config))
    return lambda model_fn, x_0, t, eps: Losses(loss(model_fn, schedule, x_0, t, eps), {})


LOSSES = {"simple": _simple, "vlb": _vlb, "hybrid": _hybrid, "edm": _edm}


def _sigma_data(config: ObjectiveConfig) -> float:
    return objectives.SIGMA_DATA if config.sigma_data is None else config.sigma_data


def make_timestep_sampler(config: ObjectiveConfig, schedule: Schedule) -> timesteps.TimestepSampler:
    return timesteps.make(config.timesteps, schedule, **config.timesteps_arguments)


# --------------------------------------------------------------------------------------------------------- sampling


def make_reading(config: ObjectiveConfig, clip: float | None = None) -> Reading:
    """What the output of a run's network means; samplers clip to [-clip, clip], None for no clipping."""
    if config.loss == "edm":
        return Reading("edm", config.variance, clip, sigma_data=_sigma_data(config))
    return Reading(config.prediction, config.variance, clip)


def make_denoiser(config: ObjectiveConfig, schedule: Schedule, clip: float | None) -> MakeDenoise:
    """From the network of a run, trained on this schedule, to what samplers call."""
    return make_reading(config, clip).denoiser(schedule)
