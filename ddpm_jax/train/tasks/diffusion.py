"""Diffusion: a network that learns x_0 from x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps.

Every draw of step k for example b of the batch comes from fold_in(fold_in(key, k), b), split once into the keys of t,
eps and dropout; what a condition draws, from that key with CONDITION folded in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ddpm_jax.models import bind
from ddpm_jax.reading import MakeDenoise
from ddpm_jax.samplers.catalogue import make_table, other_variance
from ddpm_jax.timesteps import TimestepSampler
from ddpm_jax.train.state import Params, TrainState, make_optimizer, optimized
from ddpm_jax.train.task import Means, Start

Draw = Callable[..., jax.Array]
CONDITION = 3


class Said(NamedTuple):
    """Of each example, [B]: what a TimestepSampler learns from."""

    t: jax.Array
    losses: jax.Array


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
      image_shape: [H, W, C].
      draw: see `make_draw`; None for no pictures.
      settings: of the network and of its training, resolved, for `described`; None for no description.
      condition: what the network is told beside x_t and t; None for nothing.
      drop: the probability that an example's condition is dropped.
      example: a record of one example, arrays [1, ...], from which a conditional network is initialized.
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

    @property
    def reads(self) -> tuple[str, ...]:
        """The image, and what the condition reads."""
        return tuple(dict.fromkeys(("image", *(self.condition.reads if self.condition is not None else ()))))

    def init(self, key: jax.Array) -> Params:
        """The network's parameters."""
        told: dict[str, Any] = {} if self.example is None else self._told(self.example, key[None])
        return self.model.init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)), **told)["params"]

    def _told(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> dict[str, Any]:
        if self.condition is None:
            return {}
        keys = jax.vmap(lambda key: jax.random.fold_in(key, CONDITION))(keys)
        return conditions.conditioning(self.condition, batch, keys, self.drop)

    def start(self, params: Params) -> Start:
        """The optimizer's and the timestep sampler's first states."""
        return Start(self.optimizer.init(params), self.timestep_sampler.init())

    def gradient(
        self, state: TrainState, batch: Mapping[str, jax.Array], indices: jax.Array, batch_size: int
    ) -> tuple[Means, Said]:
        """The mean of the weighted losses, its parts and its gradient; t and the loss of every example."""
        x_0 = images.to_float(batch["image"])
        key_of = lambda b: jax.random.fold_in(jax.random.fold_in(self.key, state.step), b)
        keys_of = lambda b: jax.random.split(key_of(b), 3)
        _, keys_eps, dropout_keys = jax.vmap(keys_of, out_axes=1)(indices)
        eps = jax.vmap(lambda key_eps: jax.random.normal(key_eps, x_0.shape[1:]))(keys_eps)
        t, weight = self.timestep_sampler.draw(state.task_state, lambda b: keys_of(b)[0], indices, batch_size)
        told = self._told(batch, jax.vmap(key_of)(indices))

        def mean_loss(params: Params) -> tuple[jax.Array, Losses]:
            model_fn = bind(self.model, params, train=True, dropout_keys=dropout_keys, **told)
            losses = self.objective(model_fn, x_0, t, eps)
            return jnp.mean(weight * losses.total), losses

        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        parts = {name: jnp.mean(weight * part) for name, part in losses.parts.items()}
        return Means(loss, parts, grads), Said(t, losses.total)

    def update(self, state: TrainState, means: Means, said: Said) -> TrainState:
        """One update of the optimizer, and what the timestep sampler learns."""
        task_state = self.timestep_sampler.update(state.task_state, *said)
        return optimized(state, means.grads, self.optimizer, task_state)

    def pictures(self, params: Params, key: jax.Array) -> np.ndarray | None:
        """Drawn with the configuration's sampler."""
        return None if self.draw is None else images.to_uint8(self.draw(params, key))

    def described(self, num_parameters: int) -> str:
        """The network, as the options that give it."""
        assert self.settings is not None
        return defaults.described(self.settings, self.image_shape, num_parameters)


def make(config: Config, say: Say) -> Callable[[Config, Source, jax.Array], Diffusion]:
    """What a configuration names, built and checked before there is data; and a function that gives it its network.

    Args:
      config: of the run.
      say: is told if pictures have another variance than is trained for.

    Returns:
      (config resolved for the images, the images, key of the run) -> Diffusion.

    Raises:
      ValueError: names and numbers that do not go together; of the function, settings that do not fit the images.
    """
    schedule = build.make_schedule(config.schedule)
    objective = build.make_objective(config.objective, schedule)
    timestep_sampler = build.make_timestep_sampler(config.objective, schedule)
    table = make_table(config.sample.sampler, schedule, config.sample.num_steps, variance=config.objective.variance)
    if (other := other_variance(config.sample.sampler, config.objective.variance)) is not None:
        say(other)
    reading = build.make_reading(config.objective, config.sample.clip)
    reading.check_table(schedule, table)

    def of_data(config: Config, source: Source, key: jax.Array) -> Diffusion:
        model, shape = build.make_model(config, source.image_shape), source.image_shape
        optimizer = make_optimizer(config.optimizer)
        draw = make_draw(model, reading.denoiser(schedule), table, (config.sample.num_images, *shape))
        return Diffusion(model, objective, timestep_sampler, optimizer, key, shape, draw, config)

    return of_data


def make_draw(model: nn.Module, make_denoise: MakeDenoise, table: samplers.Table, shape: tuple[int, ...]) -> Draw:
    """draw(params, key, first_index=0) -> x_0 [N, H, W, C], compiled once."""

    def draw(params: Any, key: jax.Array, first_index: int | jax.Array = 0) -> jax.Array:
        return samplers.sample(make_denoise(bind(model, params)), table, key, shape, first_index=first_index)

    return jax.jit(draw)
