"""The configurations with which classes of diffusers compute what our networks do: the inverse of the `*_from_config`.

Every function writes what it can and reads it back: settings that do not come back the same are those that the class of
diffusers has not, and are listed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.interop import autoencoder, diffusers, dit
from ddpm_jax.interop.diffusers import conditional
from ddpm_jax.models.autoencoder import Autoencoder, AutoencoderKL
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.encoder import each
from ddpm_jax.models.skip_unet import SkipUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.vq import VQModel

ImageShape = tuple[int, int, int]
M = TypeVar("M", bound=nn.Module)


def unet_to_config(model: UNet, image_shape: ImageShape) -> dict[str, Any]:
    """The arguments of a UNet2DModel that computes what model does to images [H, W, C].

    Raises:
      ValueError: lists the settings that UNet2DModel has not.
    """
    model = _normal(model, image_shape[0])
    extra_norm = model.scale_shift_norm and model.mid_attention and model.mid_attention_norm
    config = _unet(model, image_shape) | {
        "act_fn": model.activation,
        "add_attention": model.mid_attention,
        "attention_head_dim": model.num_head_channels,
        "attn_norm_num_groups": model.mid_attention_groups or (model.num_groups if extra_norm else None),
        "time_embedding_type": model.time_embedding,
    }
    config |= _skip_blocks(model) if isinstance(model, SkipUNet) else _blocks(model)
    _require_same(model, _normal(diffusers.unet_from_config(config), image_shape[0]), "UNet2DModel")
    return config


def conditional_unet_to_config(
    model: UNet, image_shape: ImageShape, context_dim: int, *, linear: bool = False
) -> dict[str, Any]:
    """The arguments of a UNet2DConditionModel that computes what model does to images [H, W, C] and a context.

    Args:
      context_dim: D of the context [B, M, D].
      linear: whether the projections of spatial transformers are written as dense layers, as in Stable Diffusion 2,
        or as 1x1 convolutions.

    Raises:
      ValueError: lists the settings that UNet2DConditionModel has not.
    """
    model = _normal(model, image_shape[0], own_heads=True)
    size, widths = model.num_head_channels, [model.width(level) for level in model.levels]
    down = ["CrossAttnDownBlock2D" if 2**level in _factors(model) else "DownBlock2D" for level in model.levels]
    config = _unet(model, image_shape) | {
        "act_fn": "silu",
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        # Their attention_head_dim is a number of heads.
        "attention_head_dim": model.num_heads if size is None else [width // size for width in widths],
        "cross_attention_dim": context_dim,
        "transformer_layers_per_block": model.transformer_depth,
        "use_linear_projection": linear,
    }
    again = _normal(conditional.unet_from_config(config), image_shape[0], own_heads=True)
    _require_same(model, again, "UNet2DConditionModel")
    return config


def dit_to_config(model: DiT, image_shape: ImageShape) -> dict[str, Any]:
    """The arguments of a DiTTransformer2DModel that computes what model does to images [H, W, C], H = W.

    Raises:
      ValueError: the images are not square, or lists the settings that DiTTransformer2DModel has not. Those published
        by facebookresearch are among these: their slowest frequency of time is another.
    """
    height, width, channels = image_shape
    if height != width:
        raise ValueError(f"DiTTransformer2DModel of diffusers takes square images, got {height} x {width}")
    config = {
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": model.width // model.num_heads,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": model.mlp_norm_epsilon,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": model.num_heads,
        "num_embeds_ada_norm": model.num_classes,
        "num_layers": model.depth,
        "out_channels": model.out_channels,
        "patch_size": model.patch_size,
        "sample_size": height,
    }
    again = dit.transformer2d_from_config(config)
    if model.base_size is None:  # at this size no other than theirs
        model = dataclasses.replace(model, base_size=again.base_size)
    _require_same(_computing(model), _computing(again), "DiTTransformer2DModel")
    return config


def kl_to_config(model: AutoencoderKL, image_shape: ImageShape, scale: float) -> dict[str, Any]:
    """The arguments of an AutoencoderKL that computes what model does to images [H, W, C].

    Args:
      scale: what multiplies the latents that a diffusion runs on.

    Raises:
      ValueError: lists the settings that AutoencoderKL of diffusers has not.
    """
    config = _autoencoder(model, image_shape, scale) | {"latent_channels": model.latent_channels}
    _require_same(_computing(model), _computing(autoencoder.kl_from_config(config)), "AutoencoderKL")
    return config


def vq_to_config(model: VQModel, image_shape: ImageShape, scale: float) -> dict[str, Any]:
    """The arguments of a VQModel that computes what model does to images [H, W, C]; scale as in kl_to_config.

    Raises:
      ValueError: lists the settings that VQModel of diffusers has not.
    """
    config = _autoencoder(model, image_shape, scale) | {
        "latent_channels": model.z_channels,
        "num_vq_embeddings": model.num_codes,
        "vq_embed_dim": model.latent_channels,
    }
    _require_same(_computing(model), _computing(autoencoder.vq_from_config(config)), "VQModel")
    return config


# ------------------------------------------------------------------------------------------------------------ U-Nets


def _unet(model: UNet, image_shape: ImageShape) -> dict[str, Any]:
    """What UNet2DModel and UNet2DConditionModel say in the same words."""
    height, width, channels = image_shape
    return {
        "block_out_channels": [model.width(level) for level in model.levels],
        "center_input_sample": model.center_input_sample,
        "class_embed_type": model.class_embed_type,
        "downsample_padding": model.downsample_padding,
        "dropout": model.dropout,
        "flip_sin_to_cos": model.time_cosine_first,
        "freq_shift": int(model.time_endpoint),
        "in_channels": channels,
        "layers_per_block": model.num_res_blocks,
        "mid_block_scale_factor": model.mid_scale,
        "norm_eps": model.norm_eps,
        "norm_num_groups": model.num_groups,
        "num_class_embeds": model.num_classes,
        "out_channels": model.out_channels,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift_norm else "default",
        "sample_size": height if height == width else [height, width],
    }


def _blocks(model: UNet) -> dict[str, Any]:
    """The names of UNet2DModel's blocks, and how those with attention resample."""
    steps = len(model.levels) - 1
    attends, attends_up = _factors(model), _factors_up(model)
    down = [_block(diffusers.DOWN_BLOCKS, attends, level, model.downsample, level) for level in range(steps)]
    up = [_block(diffusers.UP_BLOCKS, attends_up, level, model.upsample, level - 1) for level in range(1, steps + 1)]
    # The coarsest level is not halved, the finest not doubled: any kind of block will do.
    down.append(_block(diffusers.DOWN_BLOCKS, attends, steps, "conv", 0))
    up.insert(0, _block(diffusers.UP_BLOCKS, attends_up, 0, "conv", 0))
    return {
        "down_block_types": down,
        "up_block_types": up[::-1],
        "downsample_type": _type_with_attention(attends, model.downsample, 0),
        "upsample_type": _type_with_attention(attends_up, model.upsample, 1),
    }


def _skip_blocks(model: SkipUNet) -> dict[str, Any]:
    """The names of its blocks where an image accompanies them."""
    down, up = (
        [next(name for name, attends in blocks.items() if attends == (2**level in factors)) for level in model.levels]
        for blocks, factors in (
            (diffusers.SKIP_DOWN_BLOCKS, _factors(model)),
            (diffusers.SKIP_UP_BLOCKS, _factors_up(model)),
        )
    )
    return {"down_block_types": down, "up_block_types": up[::-1]}


def _normal(model: UNet, height: int, *, own_heads: bool = False) -> UNet:
    """The same network in one of the several ways to say it.

    Args:
      height: of its images.
      own_heads: whether heads stay as they are said; otherwise channels of a head are, where those are all alike.
    """
    steps = range(len(model.levels) - 1)
    attending = [level for level in model.levels if model.attends(height >> level, level)]
    attending_up = [level for level in model.levels if model.attends_up(height >> level, level)]
    middle = [model.levels[-1]] if model.mid_attention else []
    widths = {model.width(level) for level in [*attending, *attending_up, *middle]}
    up = model.num_heads if model.num_heads_upsample is None else model.num_heads_upsample
    heads: dict[str, Any] = {"num_heads_upsample": None} if up == model.num_heads else {}
    if not widths:  # no attention, no heads
        heads |= {"num_heads": 1}
    elif not own_heads and heads and model.num_heads > 1 and len(widths) == 1:
        heads |= {"num_heads": 1, "num_head_channels": widths.pop() // model.num_heads}
    return dataclasses.replace(
        _computing(model),
        attention_resolutions=None,
        attention_factors=tuple(2**level for level in attending),
        attention_factors_up=None if attending_up == attending else tuple(2**level for level in attending_up),
        mid_attention_norm=model.mid_attention_norm or not model.mid_attention,
        mid_attention_groups=None if model.mid_attention_groups == model.num_groups else model.mid_attention_groups,
        downsample=tuple(each(model.downsample, step) for step in steps),
        upsample=tuple(each(model.upsample, step) for step in steps),
        **heads,
    )


def _factors(model: UNet) -> Sequence[int]:
    assert model.attention_factors is not None
    return model.attention_factors


def _factors_up(model: UNet) -> Sequence[int]:
    return _factors(model) if model.attention_factors_up is None else model.attention_factors_up


def _type_with_attention(factors: Sequence[int], kinds: str | Sequence[str], finest: int) -> str:
    """How blocks with attention resample: one kind for all of them. `finest` is the first level that resamples."""
    steps = [factor.bit_length() - 1 - finest for factor in factors]
    found = [each(kinds, step) for step in steps if 0 <= step < len(kinds)]
    return _theirs(found[0]) if found else "conv"


def _block(
    blocks: Mapping[str, tuple[bool, str | None]], factors: Sequence[int], level: int, kinds: Any, step: int
) -> str:
    """The name of a block of this level that resamples as kinds says of this step."""
    if 2**level in factors:
        return next(name for name, (attention, _) in blocks.items() if attention)
    return next(name for name, (_, kind) in blocks.items() if kind == _theirs(each(kinds, step)))


def _theirs(kind: str) -> str:
    """Resampling in diffusers' words; what it has not becomes "conv", so that reading it back shows the difference."""
    return {ours: theirs for theirs, ours in diffusers.RESAMPLING.items()}.get(kind, "conv")


# ------------------------------------------------------------------------------------------------------- everything


def _autoencoder(model: Autoencoder, image_shape: ImageShape, scale: float) -> dict[str, Any]:
    """What AutoencoderKL and VQModel of diffusers say in the same words."""
    levels = range(len(model.channel_multipliers))
    kinds = ["AttnDownEncoderBlock2D" if level in model.attention_levels else "DownEncoderBlock2D" for level in levels]
    return {
        "act_fn": "silu",
        "block_out_channels": [model.channels * multiplier for multiplier in model.channel_multipliers],
        "down_block_types": kinds,
        "in_channels": image_shape[-1],
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.num_groups,
        "out_channels": model.out_channels,
        "sample_size": image_shape[0],
        "scaling_factor": scale,
        "up_block_types": [kind.replace("DownEncoder", "UpDecoder") for kind in reversed(kinds)],
    }


def _computing(model: M) -> M:
    """The network with its sequences as tuples, in float32, without rematerialization: the same computation."""
    settings = {field.name: getattr(model, field.name) for field in _settings(model)}
    changes = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    computed_with = {"dtype": jnp.float32, "remat": False, "remat_policy": "nothing"}
    changes |= {name: value for name, value in computed_with.items() if name in settings}
    return dataclasses.replace(model, **changes)  # pyright: ignore[reportArgumentType]


def _settings(model: nn.Module) -> list[Any]:
    return [field for field in dataclasses.fields(model) if field.name not in ("parent", "name")]


def _require_same(model: nn.Module, again: nn.Module, name: str) -> None:
    """Raises ValueError listing the settings in which the network read back is another one."""
    changed = [
        f"{field.name}={getattr(model, field.name)!r}"
        for field in _settings(model)
        if getattr(model, field.name) != getattr(again, field.name)
    ]
    if changed:
        raise ValueError(f"{name} of diffusers cannot compute what this network does: " + ", ".join(changed))
