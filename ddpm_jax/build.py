"""From a configuration to the objects it names."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax import first_stage, keys, objectives, schedules, timesteps, weightings
from ddpm_jax.conditions import Both, ClassLabel, Condition, LowRes, Mask
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.networks import AutoencoderConfig, ClassifierConfig, KLConfig, VQConfig
from ddpm_jax.config.run import Config, ObjectiveConfig, ScheduleConfig
from ddpm_jax.models import AutoencoderKL, VQModel
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.discriminator import PatchDiscriminator
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.names import choose
from ddpm_jax.process import LEARNED, ModelFn
from ddpm_jax.reading import PIXEL, MakeDenoise, Reading
from ddpm_jax.schedules import Schedule

Classes = tuple[str, ...] | None
"""The names of the classes of the data; None without labels."""
TOLD_AS = {"class": "y", "low-res": "low_res", "mask": "concat"}
"""The arguments of a network, by the names of conditions."""


def make_schedule(config: ScheduleConfig) -> Schedule:
    return schedules.make(config.name, config.num_timesteps, **config.arguments)


def make_model(config: Config, image_shape: tuple[int, int, int], classes: Classes = None) -> nn.Module:
    """The network for images [H, W, C]; its settings are checked against them.

    Raises:
      ValueError: settings that do not fit each other or the images.
    """
    return _made(config, image_shape, classes)[0]


def _made(
    config: Config, image_shape: tuple[int, int, int], classes: Classes
) -> tuple[nn.Module, Condition | None, Any]:
    """(the network, what it is told, the shapes and dtypes of its parameters)."""
    model, condition = _network(config, image_shape, classes), make_condition(config.condition, classes)
    return model, condition, params_template(model, image_shape, stand_in(condition, image_shape))


def _network(config: Config, image_shape: tuple[int, int, int], classes: Classes) -> nn.Module:
    out_channels, condition = make_reading(config.objective).channels(image_shape[-1]), config.condition.resolved()
    model = config.model.resolved(image_shape)
    if isinstance(model, ClassifierConfig):
        if classes is None:
            raise ValueError("--task classifier learns labels, and these data have none (see --data.labels)")
        return model.network(len(classes))
    if refused := [name for name in condition.names if TOLD_AS[name] not in model.takes]:
        taken = [name for name, argument in TOLD_AS.items() if argument in model.takes]
        raise ValueError(f"--model {model.name} does not take --condition {refused[0]} (it takes {', '.join(taken)})")
    if "class" not in condition.names or classes is None:
        return model.network(out_channels)
    return model.network(out_channels, len(classes), condition.drop != 0)


Forward = Callable[[Any, jax.Array, jax.Array], tuple[tuple[jax.Array, jax.Array], first_stage.Passed]]
"""forward(params, x [B, H, W, C], keys [B]) -> ((x^, penalty), what passed)."""


def make_autoencoder(config: Config, image_shape: tuple[int, int, int]) -> tuple[Autoencoder, Forward, float]:
    """The network of a resolved configuration of --task autoencoder, its pass in training, the weight of its penalty.

    Raises:
      ValueError: settings that do not fit each other or the images.
    """
    settings = config.model
    assert isinstance(settings, AutoencoderConfig)
    settings.check_fits(image_shape)
    model = settings.network(image_shape[-1])
    x = jnp.zeros((1, *image_shape))
    latents = jax.eval_shape(lambda key: model.init_with_output(key, x, method="encode")[0], keys.make(0))
    if isinstance(model, AutoencoderKL):
        assert isinstance(settings, KLConfig)
        shape = latents.mean.shape[1:]

        def forward(params: Any, x: jax.Array, of_examples: jax.Array) -> Any:
            return first_stage.of_kl(model, params, x, keys.normals(of_examples, shape))

        return model, forward, settings.kl_weight
    if isinstance(model, VQModel):
        assert isinstance(settings, VQConfig)
        learned = settings.codebook == "gradient"
        options = {"commitment": settings.commitment, "beta_on": settings.beta_on, "learned": learned}
        of_codebook = functools.partial(first_stage.of_codebook, model, **options)
        return model, lambda params, x, keys: of_codebook(params, x), settings.codebook_weight
    assert isinstance(model, FSQModel)
    return model, lambda params, x, keys: first_stage.of_levels(model, params, x), 0.0


def make_discriminator(config: Config, image_shape: tuple[int, int, int]) -> PatchDiscriminator | None:
    """That of a resolved configuration; None without adversary.

    Raises:
      ValueError: more layers than the images allow.
    """
    own = config.adversary
    if own.loss is None:
        return None
    own.check_fits(image_shape)
    assert own.channels is not None and own.num_layers is not None
    return PatchDiscriminator(own.channels, own.num_layers)


def first_stage_template(config: Config, image_shape: tuple[int, int, int]) -> Any:
    """Shapes and dtypes of the parameters of a run of --task autoencoder, its discriminator's with them."""
    key, x = keys.make(0), jnp.zeros((1, *image_shape))
    parts: dict[str, nn.Module] = {"autoencoder": make_autoencoder(config, image_shape)[0]}
    if (discriminator := make_discriminator(config, image_shape)) is not None:
        parts["discriminator"] = discriminator
    return {name: jax.eval_shape(lambda key, m=m: m.init(key, x)["params"], key) for name, m in parts.items()}


def params_template(model: nn.Module, image_shape: tuple[int, int, int], told: Mapping[str, Any] | None = None) -> Any:
    """Shapes and dtypes of the parameters, without memory; traces the model, so its checks run.

    Args:
      model: the network.
      image_shape: [H, W, C].
      told: what it is told beside x_t and t, arrays [1, ...] or their shapes.
    """
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
    return jax.eval_shape(lambda key, told: model.init(key, x, t, **told)["params"], keys.make(0), dict(told or {}))


# -------------------------------------------------------------------------------------------------------- conditions


def make_condition(config: ConditionConfig, classes: Classes) -> Condition | None:
    """What the network is told; None for nothing.

    Raises:
      ValueError: a class of data without labels.
    """
    config = config.resolved()
    if "class" in config.names and classes is None:
        raise ValueError("--condition class needs labels, and these data have none (see --data.labels)")
    makers = {
        "class": lambda: ClassLabel(len(classes or ()), null_label=config.drop != 0),
        "low-res": lambda: LowRes(config.low_res_factor or 1, config.low_res_noise or 0.0),
        "mask": Mask,
    }
    parts: list[Condition] = [makers[name]() for name in config.names]
    return functools.reduce(Both, parts) if parts else None


def stand_in(condition: Condition | None, image_shape: tuple[int, int, int]) -> dict[str, jax.Array]:
    """What a network is told of one example, in shapes and dtypes: arrays [1, ...]."""
    if condition is None:
        return {}
    return dict(jax.vmap(condition.given)(stand_in_record(condition, image_shape), keys.make(0)[None]))


def stand_in_record(condition: Condition, image_shape: tuple[int, int, int]) -> dict[str, jax.Array]:
    """A record of one example, arrays [1, ...] of zeros, with what a condition reads."""
    record = {"image": jnp.zeros((1, *image_shape), jnp.uint8), "label": jnp.zeros((1,), jnp.int32)}
    return {name: record[name] for name in condition.reads}


def template(config: Config, image_shape: tuple[int, int, int], classes: Classes = None) -> Any:
    """Shapes and dtypes of the parameters of a configuration's network for images [H, W, C], without memory."""
    return _made(config, image_shape, classes)[2]


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
      condition: what it is told beside x_t and t; None for nothing.
    """

    config: Config
    image_shape: tuple[int, int, int]
    schedule: Schedule
    reading: Reading
    model: nn.Module
    params: Any
    condition: Condition | None


def build(config: Config, image_shape: tuple[int, int, int], classes: Classes = None) -> Built:
    """The network of a configuration for images [H, W, C], without parameters.

    Raises:
      ValueError: unknown names; settings that do not fit each other or the images.
    """
    config = resolved(config, image_shape)
    model, condition, params = _made(config, image_shape, classes)
    return Built(
        config,
        image_shape,
        make_schedule(config.schedule),
        make_reading(config.objective, config.sample.clip),
        model,
        params,
        condition,
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
