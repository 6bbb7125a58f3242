"""Weights of CompVis/latent-diffusion's `UNetModel` with spatial transformers, the U-Net of Stable Diffusion 1 and 2.

`config` holds the arguments of the class, the YAML file's `unet_config.params`; names in the checkpoint are those
without "model.diffusion_model.". Without spatial transformers it is guided-diffusion's UNetModel: interop.openai.
Their first stage: interop.autoencoder.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers, openai
from ddpm_jax.interop.diffusers.conditional import transformer_names
from ddpm_jax.models.unet import UNet

# Settings that guided-diffusion's class has not: (what theirs takes if absent, the values known here; None for any).
# `legacy` is about heads that do not divide the width, which are refused.
SETTINGS = {
    "context_dim": (None, None),
    "legacy": (True, None),
    "n_embed": (None, (None,)),
    "transformer_depth": (1, None),
    "use_linear_in_transformer": (False, None),
    "use_spatial_transformer": (False, (True,)),
}


def unet_from_config(config: Mapping[str, Any]) -> UNet:
    """The UNet that computes what UNetModel(**config) does.

    Raises:
      ValueError: settings that are missing, unknown, or none of ours.
    """
    found = _settings(config)
    if not isinstance(found["context_dim"], int):
        raise ValueError(f"context_dim must be an integer, got {found['context_dim']!r}")
    model = openai.unet_from_config({name: value for name, value in config.items() if name not in SETTINGS})
    return replace(model, transformer_depth=found["transformer_depth"])


def unet_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of UNetModel(**config).

    Raises:
      ValueError: as unet_from_config, or lists every array missing, left over, or of another shape.
    """
    return layers.to_params(state_dict, *_layout(config))


def params_to_unet(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UNetModel(**config) from our parameters.

    Raises:
      ValueError: as unet_to_params.
    """
    return layers.to_state_dict(params, *_layout(config))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: config.get(name, default) for name, (default, _) in SETTINGS.items()}
    problems = [
        f"{name}={found[name]!r}" for name, (_, known) in SETTINGS.items() if known and found[name] not in known
    ]
    if problems:
        raise ValueError("not a U-Net with spatial transformers: " + ", ".join(problems))
    return found


def _layout(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]], frozenset[str]]:
    model, found = unet_from_config(config), _settings(config)
    names = openai.layer_names(model, openai.BLOCKS, transformer_names(model.transformer_depth))
    size = 2 ** model.levels[-1]
    context = jax.ShapeDtypeStruct((1, 1, found["context_dim"]), jnp.float32)
    linear = found["use_linear_in_transformer"]
    conv1x1 = frozenset({"shortcut"} if linear else {"shortcut", "project_in", "project_out"})
    return names, layers.unet_shapes(model, (size, size, config["in_channels"]), context=context), conv1x1
