"""Weights of openai/improved-diffusion and openai/guided-diffusion: `UNetModel`, `SuperResModel`, `EncoderUNetModel`.

`config` holds the arguments of their class, as UNetModel(**config); settings of improved-diffusion are a part of them.
A SuperResModel is a UNetModel whose first convolution sees twice the channels: in_channels is 6 for it, not 3.
Published checkpoints come without a config: `openai_published.CONFIGS` has theirs by file name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.encoder import Encoder
from ddpm_jax.models.unet import UNet
from ddpm_jax.names import choose, unknown

# Our layer: their layer. Their blocks are numbered through: `input` counts the convolution, res blocks and
# downsamplings on the way down, `output` the res blocks on the way up; `after` is the place behind a level's last
# res block and attention.
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_1": "time_embed.0",
    "time_2": "time_embed.2",
    "class_embedding": "label_emb",
    "down_{level}_res_{i}": "input_blocks.{input}.0",
    "down_{level}_attention_{i}": "input_blocks.{input}.1",
    "down_{level}_downsample": "input_blocks.{last_input}.0.op",
    "mid_res_0": "middle_block.0",
    "mid_attention": "middle_block.1",
    "mid_res_1": "middle_block.2",
    "up_{level}_res_{i}": "output_blocks.{output}.0",
    "up_{level}_attention_{i}": "output_blocks.{output}.1",
    "up_{level}_upsample": "output_blocks.{last_output}.{after}.conv",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
# With resblock_updown.
RESAMPLING = {
    "down_{level}_downsample": "input_blocks.{last_input}.0",
    "up_{level}_upsample": "output_blocks.{last_output}.{after}",
}
RES = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time_projection": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
}
# [q], [k], [v]: a third each of the outputs of their qkv.
ATTENTION = {"norm": "norm", "query": "qkv[q]", "key": "qkv[k]", "value": "qkv[v]", "out": "proj_out"}
# What follows the middle of the classifier, by pool.
POOLS = {
    "adaptive": {"norm_out": "out.0", "logits": "out.3"},
    "attention": {
        "norm_out": "out.0",
        "pool_positions": "out.2.positional_embedding",
        "pool_query": "out.2.qkv_proj[q]",
        "pool_key": "out.2.qkv_proj[k]",
        "pool_value": "out.2.qkv_proj[v]",
        "logits": "out.2.c_proj",
    },
    "spatial": {"hidden": "out.0", "logits": "out.2"},
    "spatial_v2": {"hidden": "out.0", "norm_hidden": "out.1", "logits": "out.3"},
}
# Dense layers that are 1x1 convolutions there, and those that are convolutions over one axis; by pool, what more.
CONV1X1, CONV1D = frozenset({"shortcut"}), frozenset({"query", "key", "value", "out"})
POOL_CONV1X1 = {"adaptive": frozenset({"logits"})}
POOL_CONV1D = {"attention": frozenset({"pool_query", "pool_key", "pool_value", "logits"})}
PARTS = ("q", "k", "v")

# What their classes take for a setting that is absent.
DEFAULTS = {
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
REQUIRED = ("in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
# These say how to compute, not what; image_size is only read by the attention pool.
NO_EFFECT = ("image_size", "use_checkpoint", "use_fp16")


def unet_from_config(config: Mapping[str, Any]) -> UNet:
    """The UNet that computes what UNetModel(**config) does; with twice the in_channels, what SuperResModel does.

    Raises:
      ValueError: settings that are missing, unknown, or not of images.
    """
    return UNet(**unet_settings(config))


def unet_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of unet_from_config(config).

    Raises:
      ValueError: as unet_from_config.
    """
    found = _settings(config, {"num_classes": None})
    own = found["num_head_channels"] != -1
    upsample = found["num_heads_upsample"]
    return {
        **_shared(found),
        "num_heads_upsample": None if own or upsample == -1 else upsample,
        "upsample": "resblock" if found["resblock_updown"] else "conv" if found["conv_resample"] else "nearest",
        "num_classes": found["num_classes"],
    }


def classifier_from_config(config: Mapping[str, Any]) -> Classifier:
    """The Classifier that computes what EncoderUNetModel(**config) does.

    Raises:
      ValueError: settings that are missing, unknown, or not of images.
    """
    found = _settings(config, {"pool": "adaptive"})
    choose("pool", found["pool"], POOLS)
    return Classifier(**_shared(found), pool=found["pool"])


def unet_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unet_from_config(config) from the weights of UNetModel(**config).

    Raises:
      ValueError: as unet_from_config, or lists every array missing, left over, or of another shape.
    """
    model = unet_from_config(config)
    names, wanted = _unet_names_and_shapes(model, config)
    weights = _split(state_dict, model, config)
    return layers.to_params(weights, names, wanted, CONV1X1, CONV1D)


def params_to_unet(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UNetModel(**config) from our parameters.

    Raises:
      ValueError: as unet_to_params.
    """
    model = unet_from_config(config)
    names, wanted = _unet_names_and_shapes(model, config)
    return _join(layers.to_state_dict(params, names, wanted, CONV1X1, CONV1D), model, config)


def classifier_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of classifier_from_config(config) from the weights of EncoderUNetModel(**config).

    Raises:
      ValueError: as classifier_from_config, or lists every array missing, left over, or of another shape.
    """
    model = classifier_from_config(config)
    return layers.to_params(_split(state_dict, model, config), *_classifier_layout(model, config))


def params_to_classifier(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of EncoderUNetModel(**config) from our parameters.

    Raises:
      ValueError: as classifier_to_params.
    """
    model = classifier_from_config(config)
    return _join(layers.to_state_dict(params, *_classifier_layout(model, config)), model, config)


def _settings(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The config with their defaults filled in."""
    known = {**DEFAULTS, **more}
    allowed = (*REQUIRED, *known, *NO_EFFECT)
    for name in config:
        if name not in allowed:
            raise unknown("setting", name, allowed)
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise ValueError(f"config misses {', '.join(missing)}")
    if config.get("dims", 2) != 2:
        raise ValueError(f"dims must be 2, got {config['dims']}")
    return known | dict(config)


def _shared(found: Mapping[str, Any]) -> dict[str, Any]:
    """What UNet and Classifier take alike."""
    own = found["num_head_channels"] != -1  # it wins over num_heads there
    return {
        "channels": found["model_channels"],
        "channel_multipliers": tuple(found["channel_mult"]),
        "num_res_blocks": found["num_res_blocks"],
        "attention_resolutions": None,
        "attention_factors": tuple(found["attention_resolutions"]),
        "dropout": found["dropout"],
        "out_channels": found["out_channels"],
        "norm_eps": 1e-5,
        "num_heads": 1 if own else found["num_heads"],
        "num_head_channels": found["num_head_channels"] if own else None,
        "scale_shift_norm": found["use_scale_shift_norm"],
        "downsample": "resblock" if found["resblock_updown"] else "conv" if found["conv_resample"] else "pool",
        "downsample_padding": 1,
        "time_cosine_first": True,
        "time_endpoint": False,
    }


def layer_names(model: Encoder, blocks: Mapping[str, str], attention: Mapping[str, str] = ATTENTION) -> dict[str, str]:
    """Our layer to their layer, their blocks numbered as this network has them."""
    stages, deepest = model.num_res_blocks + 1, model.levels[-1]

    def place(level: int, i: int) -> dict[str, int]:
        first_output = (deepest - level) * stages
        return {
            "input": 1 + level * stages + i,
            "last_input": (level + 1) * stages,
            "output": first_output + i,
            "last_output": first_output + stages - 1,
            "after": 2 if model.attends(0, level) else 1,
        }

    return layers.unet_names(model, blocks, RES, attention, RESAMPLING, place)


def _unet_names_and_shapes(model: UNet, config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    size = 2 ** model.levels[-1]
    return layer_names(model, BLOCKS), layers.unet_shapes(model, (size, size, config["in_channels"]))


def _classifier_layout(
    model: Classifier, config: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], frozenset[str], frozenset[str]]:
    blocks = {ours: theirs for ours, theirs in BLOCKS.items() if ours not in ("norm_out", "conv_out")}
    size = config["image_size"]
    return (
        layer_names(model, blocks) | POOLS[model.pool],
        layers.shapes(model, (size, size, config["in_channels"])),
        CONV1X1 | POOL_CONV1X1.get(model.pool, frozenset()),
        CONV1D | POOL_CONV1D.get(model.pool, frozenset()),
    )


def num_heads(name: str, rows: int, parts: int, model: Encoder) -> int:
    """Heads of the attention block with an array of this name, of that many rows for so many parts of each head."""
    if model.num_head_channels is not None:
        return rows // (parts * model.num_head_channels)
    if isinstance(model, UNet) and name.startswith("output_blocks") and model.num_heads_upsample is not None:
        return model.num_heads_upsample
    return model.num_heads


def swap_rows(array: np.ndarray, first: int, second: int) -> np.ndarray:
    """The array with its rows [first, second, channels] in the order [second, first, channels].

    As it is where the number of rows is a wrong one, which to_params reports.
    """
    if not first * second or len(array) % (first * second):
        return array
    return array.reshape(first, second, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _split(state_dict: Mapping[str, np.ndarray], model: Encoder, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """With every qkv cut into q, k and v."""
    ordered = dict(state_dict)
    for name in _by_head(state_dict, config):
        array = state_dict[name]
        ordered[name] = swap_rows(array, num_heads(name, len(array), 3, model), 3)
    return layers.split_rows(layers.split_rows(ordered, "qkv", PARTS), "qkv_proj", PARTS)


def _join(state_dict: Mapping[str, np.ndarray], model: Encoder, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of _split."""
    joined = layers.join_rows(layers.join_rows(state_dict, "qkv", PARTS), "qkv_proj", PARTS)
    for name in _by_head(joined, config):
        joined[name] = swap_rows(joined[name], 3, num_heads(name, len(joined[name]), 3, model))
    return joined


def _by_head(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> list[str]:
    """Names of the arrays with rows in the order [heads, 3, channels]: each qkv of the older attention.

    Others are [3, heads, channels] or no qkv.
    """
    new = config.get("use_new_attention_order", DEFAULTS["use_new_attention_order"])
    return [] if new else [name for name in state_dict if ".qkv." in name]
