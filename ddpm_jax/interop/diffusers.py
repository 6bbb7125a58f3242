"""Weights of diffusers' `UNet2DModel` in its DDPM configuration, the one of the google/ddpm-* checkpoints.

`config` is the model's config.json as a mapping, `state_dict` its weights as NumPy arrays, for example from
`safetensors.numpy.load_file`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.unet import UNet
from . import layers

# Setting: (what diffusers takes if it is absent, what DDPM's network has).
REQUIRED = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attention_head_dim": (8, None),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1, 1),
    "norm_eps": (1e-5, 1e-6),
    "num_class_embeds": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}

# Our layer: their layer. Levels count from the finest here; `from_deepest` counts from the other end, as their
# up blocks do.
BLOCKS = {
    "conv_in": "conv_in",
    "time_1": "time_embedding.linear_1",
    "time_2": "time_embedding.linear_2",
    "down_{level}_res_{i}": "down_blocks.{level}.resnets.{i}",
    "down_{level}_attention_{i}": "down_blocks.{level}.attentions.{i}",
    "down_{level}_downsample": "down_blocks.{level}.downsamplers.0.conv",
    "mid_res_0": "mid_block.resnets.0",
    "mid_attention": "mid_block.attentions.0",
    "mid_res_1": "mid_block.resnets.1",
    "up_{level}_res_{i}": "up_blocks.{from_deepest}.resnets.{i}",
    "up_{level}_attention_{i}": "up_blocks.{from_deepest}.attentions.{i}",
    "up_{level}_upsample": "up_blocks.{from_deepest}.upsamplers.0.conv",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
RES = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "time_projection": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
CONV1X1 = frozenset({"shortcut"})

# The google/ddpm-* files were written before diffusers renamed its attention layers.
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def unet_from_config(config: Mapping[str, Any]) -> UNet:
    """The UNet that computes what diffusers' UNet2DModel(**config) does.

    Raises:
      ValueError: the configuration is not DDPM's; lists the settings that differ.
    """
    found = {name: config.get(name, default) for name, (default, _) in REQUIRED.items()}
    problems = [f"{name}={found[name]!r}" for name, (_, needed) in REQUIRED.items() if found[name] != needed]
    widths, down = config["block_out_channels"], config["down_block_types"]
    if any(width % widths[0] for width in widths):
        problems.append(f"block_out_channels={widths!r}")
    if not set(down) <= {"DownBlock2D", "AttnDownBlock2D"}:
        problems.append(f"down_block_types={down!r}")
    if list(config["up_block_types"]) != [name.replace("Down", "Up") for name in reversed(down)]:
        problems.append(f"up_block_types={config['up_block_types']!r}")
    if problems:
        raise ValueError("not the DDPM configuration of UNet2DModel: " + ", ".join(problems))
    return UNet(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=tuple(
            config["sample_size"] >> level for level, name in enumerate(down) if name == "AttnDownBlock2D"
        ),
        dropout=config.get("dropout", 0.0),
        out_channels=config["out_channels"],
        num_groups=config["norm_num_groups"],
    )


def unet2d_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of UNet2DModel(**config).

    Raises:
      ValueError: not DDPM's configuration, or lists every array missing, left over, or of another shape.
    """
    names, wanted = _names_and_shapes(config)
    return layers.to_params({_new_name(k): v for k, v in state_dict.items()}, names, wanted, CONV1X1)


def params_to_unet2d(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UNet2DModel(**config) from our parameters, under the current diffusers names.

    Raises:
      ValueError: as unet2d_to_params.
    """
    names, wanted = _names_and_shapes(config)
    return layers.to_state_dict(params, names, wanted, CONV1X1)


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = unet_from_config(config)
    size = config["sample_size"]
    names = layers.unet_names(model, BLOCKS, RES, ATTENTION)
    return names, layers.shapes(model, (size, size, config["in_channels"]))


def _new_name(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name
