"""From a configuration to the objects it names."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax import schedules
from ddpm_jax.models.unet import UNet
from ddpm_jax.schedules import Schedule
from ddpm_jax.train.config import ModelConfig, ScheduleConfig


def make_schedule(config: ScheduleConfig) -> Schedule:
    return schedules.make(config.name, config.num_timesteps, **config.arguments)


def make_model(config: ModelConfig, image_shape: tuple[int, int, int]) -> UNet:
    """The U-Net for images [H, W, C]; its settings are checked against them.

    Raises:
      ValueError: settings that do not fit each other or the images.
    """
    model = UNet(
        channels=config.channels,
        channel_multipliers=config.channel_multipliers,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        dropout=config.dropout,
        out_channels=image_shape[-1],
        num_groups=config.num_groups,
        dtype=jnp.dtype(config.dtype),
    )
    params_template(model, image_shape)
    return model


def params_template(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Shapes and dtypes of the parameters, without memory; traces the model, so its checks run."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
    return jax.eval_shape(lambda key: model.init(key, x, t)["params"], jax.random.key(0))
