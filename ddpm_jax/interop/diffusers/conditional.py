"""Weights of diffusers' `UNet2DConditionModel`, the U-Net of Stable Diffusion 1 and 2, and of `Transformer2DModel`.

`config` is the model's config.json as a mapping. One of `FlaxUNet2DConditionModel` means the same network, that of
PyTorch, from which nearly all of its weights came. The Flax class itself approximates gelu by tanh, has 1e-5 for
PyTorch's 1e-6 in the norm before a transformer, which moves its output by 1e-4, and does not read norm_num_groups (it
has 32), norm_eps and downsample_padding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.interop.diffusers import BLOCKS, RES
from ddpm_jax.models.transformer import SpatialTransformer
from ddpm_jax.models.unet import UNet

# Inside a spatial transformer, {j} counting its blocks. The same in latent-diffusion.
TRANSFORMER = {
    "norm": "norm",
    "project_in": "proj_in",
    "block_{j}/norm_1": "transformer_blocks.{j}.norm1",
    "block_{j}/self_attention/query": "transformer_blocks.{j}.attn1.to_q",
    "block_{j}/self_attention/key": "transformer_blocks.{j}.attn1.to_k",
    "block_{j}/self_attention/value": "transformer_blocks.{j}.attn1.to_v",
    "block_{j}/self_attention/out": "transformer_blocks.{j}.attn1.to_out.0",
    "block_{j}/norm_2": "transformer_blocks.{j}.norm2",
    "block_{j}/cross_attention/query": "transformer_blocks.{j}.attn2.to_q",
    "block_{j}/cross_attention/key": "transformer_blocks.{j}.attn2.to_k",
    "block_{j}/cross_attention/value": "transformer_blocks.{j}.attn2.to_v",
    "block_{j}/cross_attention/out": "transformer_blocks.{j}.attn2.to_out.0",
    "block_{j}/norm_3": "transformer_blocks.{j}.norm3",
    "block_{j}/mlp/in": "transformer_blocks.{j}.ff.net.0.proj",
    "block_{j}/mlp/out": "transformer_blocks.{j}.ff.net.2",
    "project_out": "proj_out",
}

# What diffusers takes for a setting that is absent.
DEFAULTS = {
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1.0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "use_linear_projection": False,
}
# Settings of which our network has one value, and those of which it has several.
CHOICES = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None, "timestep", "identity"),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (0, 1),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "freq_shift": (0, 1),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Sizes of what is not there, the image size, which the weights do not depend on, the precision of the softmax, which is
# float32 here, and two ways of the Flax class to compute the same attention.
NO_EFFECT = (
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "sample_size",
    "split_head_dim",
    "upcast_attention",
    "use_memory_efficient_attention",
)


def unet_from_config(config: Mapping[str, Any]) -> UNet:
    """The UNet with spatial transformers that computes what diffusers' UNet2DConditionModel(**config) does.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    found = _settings(config)
    widths, heads = found["block_out_channels"], found["attention_head_dim"]
    return UNet(
        channels=widths[0],
        channel_multipliers=tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths),
        num_res_blocks=found["layers_per_block"],
        attention_resolutions=None,
        attention_factors=tuple(2**level for level, name in enumerate(found["down_block_types"]) if "Attn" in name),
        dropout=found["dropout"],
        out_channels=found["out_channels"],
        num_groups=found["norm_num_groups"],
        norm_eps=found["norm_eps"],
        # Their attention_head_dim is a number of heads: one for all levels, or one per level for heads of one size.
        num_heads=heads if isinstance(heads, int) else 1,
        num_head_channels=None if isinstance(heads, int) else widths[0] // heads[0],
        scale_shift_norm=found["resnet_time_scale_shift"] == "scale_shift",
        downsample_padding=found["downsample_padding"],
        time_cosine_first=found["flip_sin_to_cos"],
        time_endpoint=found["freq_shift"] == 1,
        mid_scale=found["mid_block_scale_factor"],
        num_classes=None if found["class_embed_type"] else found["num_class_embeds"],
        class_embed_type=found["class_embed_type"],
        transformer_depth=found["transformer_layers_per_block"],
        center_input_sample=found["center_input_sample"],
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with their defaults filled in."""
    found = DEFAULTS | {name: value for name, value in config.items() if not name.startswith("_")}
    problems = [
        f"{name}={value!r}"
        for name, value in found.items()
        if (name in CHOICES and value not in CHOICES[name])
        or (name not in CHOICES and name not in DEFAULTS and name not in NO_EFFECT)
    ]
    single = ("cross_attention_dim", "layers_per_block", "transformer_layers_per_block")
    problems += [f"{name}={found[name]!r}" for name in single if not isinstance(found[name], int)]
    problems += ["mid_block_scale_factor=0"] if found["mid_block_scale_factor"] == 0 else []
    widths, down, heads = found["block_out_channels"], found["down_block_types"], found["attention_head_dim"]
    if not set(down) <= {"DownBlock2D", "CrossAttnDownBlock2D"} or len(down) != len(widths):
        problems.append(f"down_block_types={down!r}")
    if list(found["up_block_types"]) != [name.replace("Down", "Up") for name in reversed(down)]:
        problems.append(f"up_block_types={found['up_block_types']!r}")
    if not isinstance(heads, int) and [width * heads[0] for width in widths] != [widths[0] * head for head in heads]:
        problems.append(f"attention_head_dim={heads!r}")
    if problems:
        raise ValueError("not a UNet2DConditionModel that is known here: " + ", ".join(problems))
    return found


def unet2dcond_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of UNet2DConditionModel(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    return layers.to_params(state_dict, *_names_and_shapes(config), _conv1x1(config))


def params_to_unet2dcond(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UNet2DConditionModel(**config) from our parameters.

    Raises:
      ValueError: as unet2dcond_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(config), _conv1x1(config))


def transformer_names(depth: int) -> dict[str, str]:
    """TRANSFORMER written out for a spatial transformer of this depth."""
    return {ours.format(j=j): theirs.format(j=j) for ours, theirs in TRANSFORMER.items() for j in range(depth)}


def transformer2d_from_config(config: Mapping[str, Any]) -> SpatialTransformer:
    """The SpatialTransformer that computes what diffusers' Transformer2DModel(**config) does to images.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    needed = {"activation_fn": "geglu", "attention_bias": False, "norm_type": "layer_norm", "in_channels": width}
    found = {
        "activation_fn": config.get("activation_fn", "geglu"),
        "attention_bias": config.get("attention_bias", False),
    }
    found |= {"norm_type": config.get("norm_type", "layer_norm"), "in_channels": config.get("in_channels")}
    problems = [f"{name}={found[name]!r}" for name in needed if found[name] != needed[name]]
    if problems:
        raise ValueError("not a Transformer2DModel that is known here: " + ", ".join(problems))
    groups = config.get("norm_num_groups", 32)
    return SpatialTransformer(config["num_attention_heads"], config.get("num_layers", 1), groups, jnp.dtype("float32"))


def transformer2d_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of transformer2d_from_config(config) from the weights of Transformer2DModel(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    return layers.to_params(state_dict, *_transformer2d(config), _conv1x1(config))


def params_to_transformer2d(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of Transformer2DModel(**config) from our parameters.

    Raises:
      ValueError: as transformer2d_to_params.
    """
    return layers.to_state_dict(params, *_transformer2d(config), _conv1x1(config))


def _transformer2d(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = transformer2d_from_config(config)
    x = jax.ShapeDtypeStruct((1, 1, 1, config["in_channels"]), jnp.float32)
    context = jax.ShapeDtypeStruct((1, 1, config["cross_attention_dim"]), jnp.float32)
    return transformer_names(model.depth), layers.param_shapes(model, x, context)


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model, found = unet_from_config(config), _settings(config)
    size = 2 ** model.levels[-1]
    context = jax.ShapeDtypeStruct((1, 1, found["cross_attention_dim"]), jnp.float32)
    names = layers.unet_names(model, BLOCKS, RES, transformer_names(model.transformer_depth))
    return names, layers.unet_shapes(model, (size, size, found["in_channels"]), context=context)


def _conv1x1(config: Mapping[str, Any]) -> frozenset[str]:
    linear = config.get("use_linear_projection", DEFAULTS["use_linear_projection"])
    return frozenset({"shortcut"} if linear else {"shortcut", "project_in", "project_out"})
