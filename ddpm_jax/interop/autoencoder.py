"""Weights of AutoencoderKL and VQModel, in the layouts of diffusers and of CompVis/latent-diffusion.

For diffusers, `config` is the model's config.json. For latent-diffusion it holds `ddconfig` of the YAML file and beside
its entries `embed_dim`, and for VQModel `n_embed`; names in the checkpoint are those without "first_stage_model.".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.interop.diffusers import OLD_ATTENTION
from ddpm_jax.models.autoencoder import Autoencoder, AutoencoderKL
from ddpm_jax.models.vq import VQModel


class Layout(NamedTuple):
    """Our layer to their layer: of the whole, inside a res block, inside an attention; and our 1x1 convolutions."""

    blocks: Mapping[str, str]
    res: Mapping[str, str]
    attention: Mapping[str, str]
    conv1x1: frozenset[str]


# Levels count from the finest; `from_deepest` from the other end.
DIFFUSERS = Layout(
    blocks={
        "encoder/conv_in": "encoder.conv_in",
        "encoder/down_{level}_res_{i}": "encoder.down_blocks.{level}.resnets.{i}",
        "encoder/down_{level}_attention_{i}": "encoder.down_blocks.{level}.attentions.{i}",
        "encoder/down_{level}_downsample": "encoder.down_blocks.{level}.downsamplers.0.conv",
        "encoder/mid_res_0": "encoder.mid_block.resnets.0",
        "encoder/mid_attention": "encoder.mid_block.attentions.0",
        "encoder/mid_res_1": "encoder.mid_block.resnets.1",
        "encoder/norm_out": "encoder.conv_norm_out",
        "encoder/conv_out": "encoder.conv_out",
        "quant_conv": "quant_conv",
        "codebook": "quantize.embedding",
        "post_quant_conv": "post_quant_conv",
        "decoder/conv_in": "decoder.conv_in",
        "decoder/mid_res_0": "decoder.mid_block.resnets.0",
        "decoder/mid_attention": "decoder.mid_block.attentions.0",
        "decoder/mid_res_1": "decoder.mid_block.resnets.1",
        "decoder/up_{level}_res_{i}": "decoder.up_blocks.{from_deepest}.resnets.{i}",
        "decoder/up_{level}_attention_{i}": "decoder.up_blocks.{from_deepest}.attentions.{i}",
        "decoder/up_{level}_upsample": "decoder.up_blocks.{from_deepest}.upsamplers.0.conv",
        "decoder/norm_out": "decoder.conv_norm_out",
        "decoder/conv_out": "decoder.conv_out",
    },
    res={"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2", "shortcut": "conv_shortcut"},
    attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    conv1x1=frozenset({"shortcut", "quant_conv", "post_quant_conv"}),
)
LDM = Layout(
    blocks={
        "encoder/conv_in": "encoder.conv_in",
        "encoder/down_{level}_res_{i}": "encoder.down.{level}.block.{i}",
        "encoder/down_{level}_attention_{i}": "encoder.down.{level}.attn.{i}",
        "encoder/down_{level}_downsample": "encoder.down.{level}.downsample.conv",
        "encoder/mid_res_0": "encoder.mid.block_1",
        "encoder/mid_attention": "encoder.mid.attn_1",
        "encoder/mid_res_1": "encoder.mid.block_2",
        "encoder/norm_out": "encoder.norm_out",
        "encoder/conv_out": "encoder.conv_out",
        "quant_conv": "quant_conv",
        "codebook": "quantize.embedding",
        "post_quant_conv": "post_quant_conv",
        "decoder/conv_in": "decoder.conv_in",
        "decoder/mid_res_0": "decoder.mid.block_1",
        "decoder/mid_attention": "decoder.mid.attn_1",
        "decoder/mid_res_1": "decoder.mid.block_2",
        "decoder/up_{level}_res_{i}": "decoder.up.{level}.block.{i}",
        "decoder/up_{level}_attention_{i}": "decoder.up.{level}.attn.{i}",
        "decoder/up_{level}_upsample": "decoder.up.{level}.upsample.conv",
        "decoder/norm_out": "decoder.norm_out",
        "decoder/conv_out": "decoder.conv_out",
    },
    res={"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2", "shortcut": "nin_shortcut"},
    attention={"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"},
    conv1x1=frozenset({"shortcut", "query", "key", "value", "out", "quant_conv", "post_quant_conv"}),
)

# Setting: (what they take if it is absent, what our networks have).
REQUIRED = {
    "act_fn": ("silu", "silu"),
    "lookup_from_codebook": (False, False),
    "mid_block_add_attention": (True, True),
    "norm_type": ("group", "group"),
    "use_post_quant_conv": (True, True),
    "use_quant_conv": (True, True),
}
LDM_REQUIRED = {
    "attn_type": ("vanilla", "vanilla"),
    "dropout": (0.0, 0.0),
    "give_pre_end": (False, False),
    "resamp_with_conv": (True, True),
    "tanh_out": (False, False),
    "use_linear_attn": (False, False),
}


def kl_from_config(config: Mapping[str, Any]) -> AutoencoderKL:
    """The AutoencoderKL that computes what diffusers' AutoencoderKL(**config) does.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    return AutoencoderKL(**kl_settings(config))


def kl_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our AutoencoderKL that make it diffusers' AutoencoderKL(**config).

    Raises:
      ValueError: as kl_from_config.
    """
    latents = config.get("latent_channels", 4)
    return {**_settings(config), "z_channels": latents, "latent_channels": latents}


def vq_from_config(config: Mapping[str, Any]) -> VQModel:
    """The VQModel that computes what diffusers' VQModel(**config) does.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    z_channels, codebook_channels = config.get("latent_channels", 3), config.get("vq_embed_dim")
    return VQModel(
        **_settings(config),
        z_channels=z_channels,
        latent_channels=z_channels if codebook_channels is None else codebook_channels,
        num_codes=config.get("num_vq_embeddings", 256),
    )


def ldm_from_config(config: Mapping[str, Any]) -> AutoencoderKL | VQModel:
    """The autoencoder of latent-diffusion: a VQModel where the config has n_embed.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    problems = _differences(config, LDM_REQUIRED)
    if config["double_z"] == ("n_embed" in config):
        problems.append(f"double_z={config['double_z']} {'with' if 'n_embed' in config else 'without'} n_embed")
    if problems:
        raise ValueError("not an autoencoder of latent-diffusion that is known here: " + ", ".join(problems))
    settings = {
        "channels": config["ch"],
        "channel_multipliers": tuple(config["ch_mult"]),
        "num_res_blocks": config["num_res_blocks"],
        "attention_levels": tuple(
            level
            for level in range(len(config["ch_mult"]))
            if config["resolution"] >> level in config["attn_resolutions"]
        ),
        "latent_channels": config["embed_dim"],
        "z_channels": config["z_channels"],
        "out_channels": config["out_ch"],
    }
    return VQModel(**settings, num_codes=config["n_embed"]) if "n_embed" in config else AutoencoderKL(**settings)


def kl_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of kl_from_config(config) from the weights of diffusers' AutoencoderKL(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    return _to_params(_renamed(state_dict), kl_from_config(config), config, DIFFUSERS)


def params_to_kl(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of diffusers' AutoencoderKL(**config) from our parameters.

    Raises:
      ValueError: as kl_to_params.
    """
    return _to_state_dict(params, kl_from_config(config), config, DIFFUSERS)


def vq_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of vq_from_config(config) from the weights of diffusers' VQModel(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    return _to_params(_renamed(state_dict), vq_from_config(config), config, DIFFUSERS)


def params_to_vq(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of diffusers' VQModel(**config) from our parameters.

    Raises:
      ValueError: as vq_to_params.
    """
    return _to_state_dict(params, vq_from_config(config), config, DIFFUSERS)


def ldm_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of ldm_from_config(config) from the weights of latent-diffusion's first stage.

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    return _to_params(state_dict, ldm_from_config(config), config, LDM)


def params_to_ldm(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of latent-diffusion's first stage from our parameters.

    Raises:
      ValueError: as ldm_to_params.
    """
    return _to_state_dict(params, ldm_from_config(config), config, LDM)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What AutoencoderKL and VQModel of diffusers share."""
    problems = _differences(config, REQUIRED)
    widths = config.get("block_out_channels", (64,))
    down = config.get("down_block_types", ("DownEncoderBlock2D",))
    up = config.get("up_block_types", ("UpDecoderBlock2D",))
    if any(width % widths[0] for width in widths):
        problems.append(f"block_out_channels={widths!r}")
    if not set(down) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"} or len(down) != len(widths):
        problems.append(f"down_block_types={down!r}")
    if list(up) != [name.replace("DownEncoder", "UpDecoder") for name in reversed(down)]:
        problems.append(f"up_block_types={up!r}")
    if problems:
        raise ValueError("not an autoencoder of diffusers that is known here: " + ", ".join(problems))
    return {
        "channels": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "num_res_blocks": config.get("layers_per_block", 1),
        "attention_levels": tuple(level for level, name in enumerate(down) if name.startswith("Attn")),
        "out_channels": config.get("out_channels", 3),
        "num_groups": config.get("norm_num_groups", 32),
    }


def _differences(config: Mapping[str, Any], required: Mapping[str, tuple[Any, Any]]) -> list[str]:
    found = {name: config.get(name, default) for name, (default, _) in required.items()}
    return [f"{name}={found[name]!r}" for name, (_, needed) in required.items() if found[name] != needed]


def _renamed(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the current names of diffusers' attention layers."""
    result = {}
    for name, array in state_dict.items():
        for old, new in OLD_ATTENTION.items():
            name = name.replace(old, new)
        result[name] = array
    return result


def _names_and_shapes(
    model: Autoencoder, config: Mapping[str, Any], layout: Layout
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    size = 2 ** (len(model.channel_multipliers) - 1)
    images = jax.ShapeDtypeStruct((1, size, size, config.get("in_channels", 3)), jnp.float32)
    names = layers.unet_names(model, layout.blocks, layout.res, layout.attention)
    return names, layers.param_shapes(model, images)


def _to_params(
    state_dict: Mapping[str, np.ndarray], model: Autoencoder, config: Mapping[str, Any], layout: Layout
) -> dict[str, Any]:
    return layers.to_params(state_dict, *_names_and_shapes(model, config, layout), layout.conv1x1)


def _to_state_dict(
    params: Mapping[str, Any], model: Autoencoder, config: Mapping[str, Any], layout: Layout
) -> dict[str, np.ndarray]:
    return layers.to_state_dict(params, *_names_and_shapes(model, config, layout), layout.conv1x1)
