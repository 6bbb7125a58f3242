"""Settings of a network that show in the names and shapes of its weights."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
OUTPUT = re.compile(r"output_blocks\.(\d+)\.0\.in_layers\.0\.weight")
INPUT_BLOCK = re.compile(r"input_blocks\.(\d+)\.")
CONTEXT = "middle_block.1.transformer_blocks.{}.attn2.to_k.weight"


def matches(seen: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], absent: Mapping[str, Any]) -> list[str]:
    """Names of the configurations that show these settings; absent has the values of settings that they leave out."""
    return [name for name, config in configs.items() if not contradictions(seen, {**absent, **config})]


def contradictions(seen: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Those of the settings that show which a configuration has otherwise."""
    return [name for name, value in seen.items() if _seen_as(name, config) != value]


def _seen_as(name: str, config: Mapping[str, Any]) -> Any:
    """How a setting shows: lists are tuples, factors are in order and only those of a level, and how a network
    resamples only where it has levels to go between."""
    value = config[name]
    if name == "resblock_updown":
        return value and len(config["channel_mult"]) > 1
    if name == "attention_resolutions":
        return tuple(2**level for level in range(len(config["channel_mult"])) if 2**level in value)
    return tuple(value) if isinstance(value, list) else value


def size(weights: Weights, name: str, axis: int = 0) -> int:
    """Of an array, along an axis.

    Raises:
      ValueError: no such array, or no such axis.
    """
    if name not in weights or weights[name].ndim <= axis or weights[name].shape[axis] < 1:
        raise ValueError(f"the network cannot be recognized: {name} is missing or of another shape")
    return weights[name].shape[axis]


def unet(weights: Weights) -> dict[str, Any]:
    """Settings of OpenAI's UNetModel.

    Raises:
      ValueError: an array is missing without which they do not show.
    """

    def has_any(block: int, *layers: str) -> bool:
        return any(f"output_blocks.{block}.{place}.{layer}.weight" in weights for place in (1, 2) for layer in layers)

    channels = size(weights, "time_embed.0.weight", axis=1)  # the first convolution is as wide as the first level
    count = sum(OUTPUT.fullmatch(name) is not None for name in weights)
    # The last output block of each level but the finest ends in an upsampling.
    ups = [block for block in range(count) if has_any(block, "conv", "in_layers.2")]
    stages = ups[0] + 1 if ups else count
    if not stages or count % stages:
        raise ValueError(f"the network cannot be recognized: {count} output blocks, upsampling after {ups}")
    firsts = range(count - stages, -1, -stages)  # of each level, from the finest
    widths = [size(weights, f"output_blocks.{block}.0.out_layers.3.weight") for block in firsts]
    scales = size(weights, "input_blocks.1.0.emb_layers.1.weight") != size(
        weights, "input_blocks.1.0.out_layers.3.weight"
    )
    return {
        "in_channels": size(weights, "input_blocks.0.0.weight", axis=1),
        "model_channels": channels,
        "out_channels": size(weights, "out.2.weight"),
        "num_res_blocks": stages - 1,
        "channel_mult": _multipliers(widths, channels),
        "attention_resolutions": tuple(
            2**level for level, block in enumerate(firsts) if f"output_blocks.{block}.1.norm.weight" in weights
        ),
        "use_scale_shift_norm": scales,
        "resblock_updown": any(has_any(block, "in_layers.2") for block in ups),
        "num_classes": size(weights, "label_emb.weight") if "label_emb.weight" in weights else None,
    }


def classifier(weights: Weights) -> dict[str, Any]:
    """Settings of OpenAI's EncoderUNetModel; its levels do not show where res blocks downsample.

    Raises:
      ValueError: an array is missing without which they do not show.
    """
    scales = size(weights, "input_blocks.1.0.emb_layers.1.weight") != size(
        weights, "input_blocks.1.0.out_layers.3.weight"
    )
    if "out.2.positional_embedding" in weights:
        pool, last = "attention", "out.2.c_proj.weight"
    elif "out.2.weight" in weights:
        pool, last = "spatial", "out.2.weight"
    else:
        last = "out.3.weight"
        pool = "adaptive" if size(weights, last) and weights[last].ndim > 2 else "spatial_v2"
    return {
        "in_channels": size(weights, "input_blocks.0.0.weight", axis=1),
        "model_channels": size(weights, "time_embed.0.weight", axis=1),
        "out_channels": size(weights, last),
        "use_scale_shift_norm": scales,
        "pool": pool,
    }


def input_blocks(weights: Weights) -> int:
    """How many blocks the way down of OpenAI's networks has."""
    found = [int(match[1]) for name in weights if (match := INPUT_BLOCK.match(name))]
    return max(found, default=-1) + 1


def conditional_unet(weights: Weights) -> dict[str, Any]:
    """Settings of latent-diffusion's UNetModel: those of OpenAI's and of spatial transformers.

    Raises:
      ValueError: an array is missing without which they do not show.
    """
    attends = CONTEXT.format(0) in weights
    return unet(weights) | {
        "use_spatial_transformer": attends,
        "transformer_depth": sum(CONTEXT.format(depth) in weights for depth in range(len(weights))) if attends else 1,
        "context_dim": size(weights, CONTEXT.format(0), axis=1) if attends else None,
        "use_linear_in_transformer": attends and weights["middle_block.1.proj_in.weight"].ndim == 2,
    }


def levels(weights: Weights, prefix: str = "") -> dict[str, Any]:
    """Of a network with the names of DDPM in PyTorch, down.0.block.0: width and its multiples, res blocks, attention.

    Raises:
      ValueError: an array is missing without which they do not show.
    """
    channels = size(weights, f"{prefix}conv_in.weight")
    block = prefix + "down.{}.block.{}.conv1.weight"
    widths = []
    while block.format(len(widths), 0) in weights:
        widths.append(size(weights, block.format(len(widths), 0)))
    num_res_blocks = sum(block.format(0, i) in weights for i in range(len(weights)))
    if not widths or not num_res_blocks:
        raise ValueError(f"the network cannot be recognized: {block.format(0, 0)} is missing")
    return {
        "ch": channels,
        "ch_mult": _multipliers(widths, channels),
        "num_res_blocks": num_res_blocks,
        "attention_levels": tuple(
            level for level in range(len(widths)) if f"{prefix}down.{level}.attn.0.q.weight" in weights
        ),
    }


def _multipliers(widths: list[int], channels: int) -> tuple[float, ...]:
    return tuple(width / channels if width % channels else width // channels for width in widths)
