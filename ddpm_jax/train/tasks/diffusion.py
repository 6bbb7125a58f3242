"""Diffusion: a network that learns x_0 from x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps.

Every draw of step k for example b of the batch comes from the example's own key, see `draws`; what a condition draws,
from that key with CONDITION folded in.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ddpm_jax import build, conditions, images, samplers
from ddpm_jax.build import Losses, Objective
from ddpm_jax.conditions import Condition
from ddpm_jax.config import defaults
from ddpm_jax.config.run import Config
from ddpm_jax.data import Source
from ddpm_jax.host.storage import Say
from ddpm_jax.keys import folded
from ddpm_jax.models import bind
from ddpm_jax.reading import MakeDenoise
from ddpm_jax.runs import checkpoint, first_stage_weights
from ddpm_jax.samplers.catalogue import make_table, other_variance
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train.state import Params, TrainState, make_optimizer, optimized
from ddpm_jax.train.task import Means, Start
from ddpm_jax.train.tasks import clean, evaluated
from ddpm_jax.train.tasks.clean import PIXELS, Clean
from ddpm_jax.train.tasks.draws import Said as Said
from ddpm_jax.train.tasks.draws import draw, example_keys
from ddpm_jax.train.tasks.evaluated import Evaluated
from ddpm_jax.train.tasks.shown import Shown, show
from ddpm_jax.trained import FirstStage

Draw = Callable[..., jax.Array]
CONDITION = 3
LEAST_DEPENDENCE = 1e-3
"""Of what a network says on its condition, less than which is said."""
MOST_LEFT = 0.1
"""Of x_0 in x_T, more than which is said; what trains well has 0.07 at most (latent-diffusion's)."""


@dataclass(frozen=True)
class Diffusion:
    """mean_b w_b L(x_0, t_b, eps_b), t and eps drawn anew for every example of every step; a `Task`.

    Its task_state is that of the timestep sampler.

    Attributes:
      model: model(x_t, t, train=True, dropout_keys=[B] keys) in linen.
      objective: L, what is minimized.
      timestep_sampler: how t is drawn, and its weight w.
      optimizer: from optax.
      key: of the whole run.
      image_shape: [H, W, C], of images or latents.
      draw: see `make_draw`; None for no pictures.
      settings: of the network and of its training, resolved, for `described`; None for no description.
      condition: what the network is told beside x_t and t; None for nothing.
      drop: the probability that an example's condition is dropped.
      example: a record of one example, arrays [1, ...], from which a conditional network is initialized.
      say: is told of pictures that are not finite, and of a network that does not listen to its condition.
      shown: what it is told for the pictures; None without a condition.
      evaluated: metrics of what it draws; None for none.
      clean: x_0 of a batch.
    """

    model: nn.Module
    objective: Objective
    timestep_sampler: TimestepSampler
    optimizer: optax.GradientTransformation
    key: jax.Array
    image_shape: tuple[int, int, int]
    draw: Draw | None = None
    settings: Config | None = None
    condition: Condition | None = None
    drop: float = 0.0
    example: Mapping[str, jax.Array] | None = None
    say: Say = warnings.warn
    shown: Shown | None = None
    evaluated: Evaluated | None = None
    clean: Clean = PIXELS

    @property
    def reads(self) -> tuple[str, ...]:
        """What x_0 is of, and what the condition reads."""
        return tuple(dict.fromkeys((*self.clean.reads, *(self.condition.reads if self.condition is not None else ()))))

    def init(self, key: jax.Array) -> Params:
        """The network's parameters."""
        told: dict[str, Any] = {} if self.example is None else self._told(self.example, key[None])
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)), **told)["params"]

    def _told(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> dict[str, Any]:
        if self.condition is None:
            return {}
        return conditions.conditioning(self.condition, batch, folded(keys, CONDITION), self.drop)

    def start(self, params: Params) -> Start:
        """The optimizer's and the timestep sampler's first states."""
        return Start(self.optimizer.init(params), self.timestep_sampler.init())

    def gradient(
        self, state: TrainState, batch: Mapping[str, jax.Array], indices: jax.Array, batch_size: int
    ) -> tuple[Means, Said]:
        """The mean of the weighted losses, its parts and its gradient; t and the loss of every example."""
        x_0 = self.clean.x_0(batch, example_keys(self.key, state.step, indices))
        drawn = draw(self.key, self.timestep_sampler, state.task_state, state.step, x_0, indices, batch_size)
        told = self._told(batch, drawn.example_keys)

        def mean_loss(params: Params) -> tuple[jax.Array, Losses]:
            model_fn = bind(self.model, params, train=True, dropout_keys=drawn.dropout_keys, **told)
            losses = self.objective(model_fn, x_0, drawn.t, drawn.eps)
            return jnp.mean(drawn.weight * losses.total), losses

        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        parts = {name: jnp.mean(drawn.weight * part) for name, part in losses.parts.items()}
        return Means(loss, parts, grads), Said(drawn.t, losses.total)

    def update(self, state: TrainState, means: Means, said: Said) -> TrainState:
        """One update of the optimizer, and what the timestep sampler learns."""
        task_state = self.timestep_sampler.update(state.task_state, *said)
        return optimized(state, means.grads, self.optimizer, task_state)

    def pictures(self, params: Params, key: jax.Array) -> np.ndarray | None:
        """Drawn with the configuration's sampler; `say` is told how many are not finite, since they look black."""
        if self.draw is None:
            return None
        x_0 = self.draw(params, key)
        if self.shown is not None and (changed := self.shown.dependence(params)) < LEAST_DEPENDENCE:
            self.say(f"the network does not listen to its condition: without it, {changed:.1e} of its answer changes")
        if len(wrong := images.not_finite(x_0)):
            self.say(f"{len(wrong)} of the {len(x_0)} images drawn have NaN or infinity: sample.sampler diverges")
        pictures = images.to_uint8(x_0)
        return pictures if self.shown is None else self.shown.beside(pictures)

    def evaluate(self, params: Params) -> dict[str, float]:
        """The metrics of the configuration, where it has some."""
        return {} if self.evaluated is None else self.evaluated(params)

    @property
    def networks(self) -> dict[str, str]:
        """The autoencoder in whose latents it is trained."""
        return {} if self.clean.stage is None else {checkpoint.FIRST_STAGE: self.clean.stage.weights}

    def keep(self, workdir: Path) -> None:
        """first_stage.safetensors: what decodes what it will draw."""
        if self.clean.stage is not None:
            first_stage_weights.write(workdir, self.clean.stage)

    def described(self, num_parameters: int) -> str:
        """The network, as the options that give it."""
        assert self.settings is not None
        latents = self.clean.stage is not None
        return defaults.described(self.settings, self.image_shape, num_parameters, latents=latents)


def make(config: Config, say: Say) -> Callable[[Config, Source, jax.Array], Diffusion]:
    """What a configuration names, built and checked before there is data; and a function that gives it its network.

    Args:
      config: of the run.
      say: is told if pictures have another variance than is trained for, if x_T is not nearly noise, and of pictures
        that are not finite.

    Returns:
      (config resolved for the images, the images, key of the run) -> Diffusion.

    Raises:
      ValueError: names and numbers that do not go together; of the function, settings that do not fit the images.
    """
    schedule = build.make_schedule(config.schedule)
    if (left := math.sqrt(schedule.alphas_cumprod_float64[-1])) > MOST_LEFT:
        say(
            f"schedule.name {config.schedule.name} with {schedule.num_timesteps} steps ends at {left:.2g} of the image"
            ", and samplers begin with noise: take linear_rescaled or cosine, or a greater schedule.num_timesteps"
        )
    objective = build.make_objective(config.objective, schedule)
    timestep_sampler = build.make_timestep_sampler(config.objective, schedule)
    table = make_table(config.sample.sampler, schedule, config.sample.num_steps, variance=config.objective.variance)
    if (other := other_variance(config.sample.sampler, config.objective.variance)) is not None:
        say(other)
    reading = build.make_reading(config.objective, config.sample.clip)
    reading.check_table(schedule, table)
    make_evaluated = evaluated.make(config.evaluate)

    def of_data(config: Config, source: Source, key: jax.Array) -> Diffusion:
        condition = build.make_condition(config.condition, source.classes)
        x_0 = clean.of_source(config, source, say)
        shape = clean.shape_in(x_0, source)
        model = build.make_model(config, shape, source.classes)
        optimizer, n = make_optimizer(config.optimizer), config.sample.num_images
        shown = (
            None
            if condition is None
            else show(condition, source, n, shape, key, model, schedule, config.condition.drop)
        )
        told = {} if shown is None else shown.told
        draw = make_draw(model, reading.denoiser(schedule), table, (n, *shape), told, x_0.stage)
        example = None if condition is None else build.stand_in_record(condition, shape)
        parts = (model, objective, timestep_sampler, optimizer, key, shape, draw, config)
        evaluate = make_evaluated and make_evaluated(config, source, shape, x_0.stage, say)
        return Diffusion(*parts, condition, config.condition.drop or 0.0, example, say, shown, evaluate, x_0)

    return of_data


def make_draw(
    model: nn.Module,
    make_denoise: MakeDenoise,
    table: samplers.Table,
    shape: tuple[int, ...],
    told: Mapping[str, Any],
    stage: FirstStage | None = None,
) -> Draw:
    """draw(params, key, first_index=0) -> images [N, H, W, C], of a network that is told this; compiled once."""

    def draw(params: Any, key: jax.Array, first_index: int | jax.Array = 0) -> jax.Array:
        denoise = make_denoise(bind(model, params, **told))
        x_0 = samplers.sample(denoise, table, key, shape, first_index=first_index)
        return x_0 if stage is None else stage.decode(x_0)

    return jax.jit(draw)
