"""Weights of diffusers' `UNet2DModel`: the google/ddpm-* checkpoints and their relatives.

`config` is the model's config.json as a mapping, `state_dict` its weights as NumPy arrays, for example from
`safetensors.numpy.load_file`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.skip_unet import SkipUNet
from ddpm_jax.models.unet import UNet

# What diffusers takes for a setting that is absent.
DEFAULTS = {
    "act_fn": "silu",
    "add_attention": True,
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": None,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
# Settings of which our network has one value, and those of which it has several. num_train_timesteps is only read
# where the time embedding is learned.
CHOICES = {
    "add_attention": (True, False),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional", "fourier"),
    "upsample_type": ("conv", "resnet"),
}
# Their down block: (attention, how it downsamples); None is what downsample_type says. "Up" for "Down" on the way up.
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP_BLOCKS = {"UpBlock2D": (False, "conv"), "ResnetUpsampleBlock2D": (False, "resnet"), "AttnUpBlock2D": (True, None)}
# Blocks that an image accompanies, with attention or without; those of one network are all of this kind.
SKIP_DOWN_BLOCKS = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}
SKIP_UP_BLOCKS = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
RESAMPLING = {"conv": "conv", "resnet": "resblock"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "mish": "mish", "relu": "relu"}  # in any case

# Our layer: their layer. Levels count from the finest here; `from_deepest` counts from the other end, as their
# up blocks do.
BLOCKS = {
    "conv_in": "conv_in",
    "time_frequencies": "time_proj.weight",
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
    "class_1": "class_embedding.linear_1",
    "class_2": "class_embedding.linear_2",
    "class_embedding": "class_embedding",
}
# With downsample_type or upsample_type "resnet".
RESAMPLING_BLOCKS = {
    "down_{level}_downsample": "down_blocks.{level}.downsamplers.0",
    "up_{level}_upsample": "up_blocks.{from_deepest}.upsamplers.0",
}
# With blocks that an image accompanies.
SKIP_BLOCKS = {
    "down_{level}_skip": "down_blocks.{level}.skip_conv",
    "up_{level}_skip_norm": "up_blocks.{from_deepest}.skip_norm",
    "up_{level}_skip": "up_blocks.{from_deepest}.skip_conv",
}
SKIP_RESAMPLING_BLOCKS = {
    "down_{level}_downsample": "down_blocks.{level}.resnet_down",
    "up_{level}_upsample": "up_blocks.{from_deepest}.resnet_up",
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
      ValueError: the configuration has settings that ours has not; lists them.
    """
    found = _settings(config)
    widths = found["block_out_channels"]
    down, up = found["down_block_types"], found["up_block_types"][::-1]  # from the finest, as ours
    attends, attends_up = (tuple(2**i for i, name in enumerate(names) if "Attn" in name) for names in (down, up))
    model, resampling = (SkipUNet, {}) if _skips(found) else (UNet, _resampling(found))
    fourier = found["time_embedding_type"] == "fourier"
    return model(
        channels=widths[0],
        channel_multipliers=tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths),
        num_res_blocks=found["layers_per_block"],
        attention_resolutions=None,
        attention_factors=attends,
        attention_factors_up=None if attends_up == attends else attends_up,
        dropout=found["dropout"],
        out_channels=found["out_channels"],
        num_groups=found["norm_num_groups"],
        norm_eps=found["norm_eps"],
        num_head_channels=found["attention_head_dim"],
        scale_shift_norm=found["resnet_time_scale_shift"] == "scale_shift",
        # The order and the frequencies that are said are those of positional time alone.
        time_cosine_first=found["flip_sin_to_cos"] and not fourier,
        time_endpoint=found["freq_shift"] == 1 or fourier,
        time_embedding=found["time_embedding_type"],
        activation=ACTIVATIONS[found["act_fn"].lower()],
        num_classes=None if found["class_embed_type"] else found["num_class_embeds"],
        class_embed_type=found["class_embed_type"],
        center_input_sample=found["center_input_sample"],
        **_middle(found),
        **resampling,
    )


def _middle(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the middle."""
    groups = found["attn_norm_num_groups"]
    settings = {"mid_scale": found["mid_block_scale_factor"], "mid_attention": found["add_attention"]}
    if not found["add_attention"]:
        return settings
    # Their attention has no norm beside scale_shift, unless its groups are asked for.
    norm = found["resnet_time_scale_shift"] == "default" or groups is not None
    return settings | {
        "mid_attention_norm": norm,
        "mid_attention_groups": None if groups == found["norm_num_groups"] else groups,
    }


def _resampling(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the steps between levels: one name where all of them are alike."""
    down, up = found["down_block_types"], found["up_block_types"][::-1]
    kinds = {
        "downsample": [RESAMPLING[DOWN_BLOCKS[name][1] or found["downsample_type"]] for name in down[:-1]],
        "upsample": [RESAMPLING[UP_BLOCKS[name][1] or found["upsample_type"]] for name in up[1:]],
    }
    alike = {name: each[0] if len(set(each)) == 1 else tuple(each) for name, each in kinds.items()}
    return alike | {"downsample_padding": found["downsample_padding"]}


def _skips(found: Mapping[str, Any]) -> bool:
    return set(found["down_block_types"]) <= set(SKIP_DOWN_BLOCKS)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with their defaults filled in."""
    found = DEFAULTS | {name: value for name, value in config.items() if not name.startswith("_")}
    problems = [
        f"{name}={value!r}"
        for name, value in found.items()
        if (name in CHOICES and value not in CHOICES[name]) or (name not in CHOICES and name not in DEFAULTS)
    ]
    widths, down, up = found["block_out_channels"], found["down_block_types"], found["up_block_types"]
    skips = _skips(found)
    if not set(down) <= set(SKIP_DOWN_BLOCKS if skips else DOWN_BLOCKS) or len(down) != len(widths):
        problems.append(f"down_block_types={down!r}")
    elif not set(up) <= set(SKIP_UP_BLOCKS if skips else UP_BLOCKS) or len(up) != len(widths):
        problems.append(f"down_block_types={down!r} with up_block_types={up!r}" if skips else f"up_block_types={up!r}")
    problems += [f"{name}={found[name]!r}" for name in ("in_channels", "out_channels") if skips and found[name] != 3]
    if found["norm_num_groups"] is None and not skips:
        problems.append("norm_num_groups=None")
    if not isinstance(found["act_fn"], str) or found["act_fn"].lower() not in ACTIVATIONS:
        problems.append(f"act_fn={found['act_fn']!r}")
    if groups := found["attn_norm_num_groups"]:
        problems += [f"attn_norm_num_groups={groups!r}"] if widths[-1] % groups else []
    if found["mid_block_scale_factor"] == 0:
        problems.append(f"mid_block_scale_factor={found['mid_block_scale_factor']!r}")
    if problems:
        raise ValueError("not a UNet2DModel that is known here: " + ", ".join(problems))
    return found


def unet2d_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of UNet2DModel(**config).

    Raises:
      ValueError: settings that ours has not, or lists every array missing, left over, or of another shape.
    """
    return layers.to_params({_new_name(k): v for k, v in state_dict.items()}, *_layout(config))


def params_to_unet2d(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UNet2DModel(**config) from our parameters, under the current diffusers names.

    Raises:
      ValueError: as unet2d_to_params.
    """
    return layers.to_state_dict(params, *_layout(config))


def _layout(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]], frozenset[str]]:
    """Our layer to their layer, our shapes, and the names of dense layers that are 1x1 convolutions there."""
    model = unet_from_config(config)
    size, skips = 2 ** model.levels[-1], isinstance(model, SkipUNet)
    blocks, resampling = (BLOCKS | SKIP_BLOCKS, SKIP_RESAMPLING_BLOCKS) if skips else (BLOCKS, RESAMPLING_BLOCKS)
    names = layers.unet_names(model, blocks, RES, ATTENTION, resampling)
    shapes = layers.unet_shapes(model, (size, size, config.get("in_channels", DEFAULTS["in_channels"])))
    return names, shapes, CONV1X1 | {f"down_{level}_skip" for level in model.levels}


def _new_name(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name
