"""What a checkpoint of another project, or one of ours, holds: a network and all that sampling from it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.models import bind
from ddpm_jax.process import LEARNED, ModelFn, PredictionType
from ddpm_jax.reading import Reading
from ddpm_jax.samplers import Denoise, from_diffusers_config
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.schedules import Schedule


@dataclass(frozen=True)
class FirstStage:
    """The autoencoder whose latents, times scale, a latent diffusion model diffuses: image = decode(z / scale).

    Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G.
    """

    model: nn.Module
    params: Any
    scale: float

    def decode(self, z: jax.Array) -> jax.Array:
        """[B, H, W, 3] images in [-1, 1] from latents z [B, h, w, C]."""
        images = self.model.apply({"params": self.params}, z / self.scale, method="decode")
        assert isinstance(images, jax.Array)
        return images


@dataclass(frozen=True)
class Loaded:
    """A network, its parameters, and how it was trained.

    Attributes:
      origin: what it is, in words: "a diffusers folder (DDPMPipeline)".
      config: the settings of the network in the words of its origin, as the interop module of that family takes them.
      model: the network.
      params: its parameters: float32, on the host.
      schedule: of its training.
      prediction: what it predicts.
      variance: of the reverse step: fixed_small, fixed_large, learned or learned_range. With a learned one the model
        has twice the channels; "learned" is its logarithm, and where there is a scheduler_config the variance itself.
      image_shape: (H, W, C) of what it denoises: images, or latents.
      sampler: the catalogue's name of its default sampler, where there is no scheduler_config.
      clip: x_0 is clipped to [-clip, clip] at each step; None for no clipping.
      thresholding: (ratio, max_value) of `samplers.thresholded`, which then takes the place of clip; None for none.
      time_scale: the network is told time_scale times the index of the timestep in its schedule.
      scheduler_config: diffusers' scheduler_config.json: its default sampler.
      first_stage: the autoencoder, if it denoises latents.
    """

    origin: str
    config: Mapping[str, Any]
    model: nn.Module
    params: Any
    schedule: Schedule
    prediction: PredictionType
    variance: str
    image_shape: tuple[int, int, int]
    sampler: str = "ddpm"
    clip: float | None = 1.0
    time_scale: float = 1.0
    scheduler_config: Mapping[str, Any] | None = None
    first_stage: FirstStage | None = None
    thresholding: tuple[float, float] | None = None

    @property
    def reading(self) -> Reading:
        """What its output means."""
        variance: Any = self.variance
        if variance == "learned" and self.scheduler_config is not None:
            variance = "learned_variance"
        clip = None if self.thresholding is not None else self.clip
        return Reading(self.prediction, variance, clip, self.thresholding, time_scale=self.time_scale)

    def model_fn(self, params: Any = None, **conditioning: Any) -> ModelFn:
        """model(x_t, time_scale t, **conditioning) with these parameters, by default the loaded ones."""
        return self.reading.model_fn(bind(self.model, self.params if params is None else params, **conditioning))

    def denoiser(self, model_fn: ModelFn) -> Denoise:
        """What samplers call: any of them then clips or thresholds as the own one does."""
        return self.reading.denoiser(self.schedule)(model_fn)

    def default_sampler(self, num_steps: int) -> Preset:
        """(table, denoiser) of the sampler it came with: samplers.sample(denoiser(model_fn), table, key, shape).

        Raises:
          ValueError: a number of steps that the sampler does not have.
        """
        if self.scheduler_config is not None:
            if self.variance not in LEARNED or self._reads_variance():
                return from_diffusers_config(self.scheduler_config, num_steps)
            # Schedulers that do not read a learned variance are given the prediction alone.
            config = {name: value for name, value in self.scheduler_config.items() if name != "variance_type"}
            preset = from_diffusers_config(config, num_steps)
            return preset._replace(denoiser=lambda model_fn: preset.denoiser(_prediction_of(model_fn)))
        table = make_table(self.sampler, self.schedule, num_steps, variance=self.variance)
        return Preset(table, self.denoiser)

    def _reads_variance(self) -> bool:
        """Whether its scheduler steps with a variance that the network learned, as those of DDPM do."""
        config = self.scheduler_config or {}
        of_ddpm = CLASSES[config["_class_name"]][1].get("variance_type") is not None
        return of_ddpm and config.get("variance_type") in LEARNED


def _prediction_of(model_fn: ModelFn) -> ModelFn:
    """The first half of the channels: of a network with a learned variance, what it predicts."""
    return lambda x_t, t: jnp.split(model_fn(x_t, t), 2, axis=-1)[0]
