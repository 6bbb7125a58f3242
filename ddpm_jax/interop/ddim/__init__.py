"""Weights of ermongroup/ddim's `Model`, the DDPM U-Net in PyTorch (Song et al. 2020, arXiv:2010.02502).

`config` holds the `model` and `data` sections of its YAML file merged into one mapping.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.unet import UNet

# Our layer: their layer. Both count levels from the finest.
BLOCKS = {
    "conv_in": "conv_in",
    "time_1": "temb.dense.0",
    "time_2": "temb.dense.1",
    "down_{level}_res_{i}": "down.{level}.block.{i}",
    "down_{level}_attention_{i}": "down.{level}.attn.{i}",
    "down_{level}_downsample": "down.{level}.downsample.conv",
    "mid_res_0": "mid.block_1",
    "mid_attention": "mid.attn_1",
    "mid_res_1": "mid.block_2",
    "up_{level}_res_{i}": "up.{level}.block.{i}",
    "up_{level}_attention_{i}": "up.{level}.attn.{i}",
    "up_{level}_upsample": "up.{level}.upsample.conv",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
RES = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "time_projection": "temb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
}
ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"}
CONV1X1 = frozenset({"shortcut", "query", "key", "value", "out"})


def unet_from_config(config: Mapping[str, Any]) -> UNet:
    """The UNet that computes what ermongroup/ddim's Model does.

    Raises:
      ValueError: its first level is not as wide as its first convolution.
    """
    if config["ch_mult"][0] != 1:
        raise ValueError(f"ch_mult must start with 1, got {config['ch_mult']}")
    return UNet(
        channels=config["ch"],
        channel_multipliers=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=tuple(config["attn_resolutions"]),
        dropout=config["dropout"],
        out_channels=config["out_ch"],
        downsample="conv" if config["resamp_with_conv"] else "pool",
        upsample="conv" if config["resamp_with_conv"] else "nearest",
    )


def ddim_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of Model.

    Raises:
      ValueError: lists every array missing, left over, or of another shape.
    """
    return layers.to_params(state_dict, *_names_and_shapes(config), CONV1X1)


def params_to_ddim(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of Model from our parameters.

    Raises:
      ValueError: as ddim_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(config), CONV1X1)


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = unet_from_config(config)
    size = config["image_size"]
    names = layers.unet_names(model, BLOCKS, RES, ATTENTION)
    return names, layers.shapes(model, (size, size, config["in_channels"]))
