"""Weights of openai/glide-text2im: `Text2ImUNet`, `SuperResText2ImUNet` and their in-painting siblings.

`config` holds the arguments of Text2ImUNet, with `n_vocab` in place of the tokenizer. in_channels are those of the
first convolution, by which the classes differ:

    in_channels   class                        channels there                          channels here
    3             Text2ImUNet                  x_t                                     x_t
    6             SuperResText2ImUNet          x_t, low_res                            x_t, low_res
    7             InpaintText2ImUNet           x_t, known pixels, their mask           x_t, concat
    10            SuperResInpaintText2ImUnet   x_t, known pixels, their mask, low_res  x_t, low_res, concat
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers, openai
from ddpm_jax.models.glide import Glide, JointUNet, TextEncoder

# Our layer: their layer. {i} counts the blocks. [q], [k], [v]: a third each of the outputs.
TEXT = {
    "text/token_embedding": "token_embedding",
    "text/positions/embedding": "positional_embedding",
    "text/padding/embedding": "padding_embedding",
    "text/block_{i}/norm_1": "transformer.resblocks.{i}.ln_1",
    "text/block_{i}/attention/query": "transformer.resblocks.{i}.attn.c_qkv[q]",
    "text/block_{i}/attention/key": "transformer.resblocks.{i}.attn.c_qkv[k]",
    "text/block_{i}/attention/value": "transformer.resblocks.{i}.attn.c_qkv[v]",
    "text/block_{i}/attention/out": "transformer.resblocks.{i}.attn.c_proj",
    "text/block_{i}/norm_2": "transformer.resblocks.{i}.ln_2",
    "text/block_{i}/mlp/in": "transformer.resblocks.{i}.mlp.c_fc",
    "text/block_{i}/mlp/out": "transformer.resblocks.{i}.mlp.c_proj",
    "text/norm_out": "final_ln",
    "text/project": "transformer_proj",
}
# Inside an attention block of the U-Net, the rest of which is guided-diffusion's.
ATTENTION = {
    "norm": "norm",
    "image_query": "qkv[q]",
    "image_key": "qkv[k]",
    "image_value": "qkv[v]",
    "context_key": "encoder_kv[k]",
    "context_value": "encoder_kv[v]",
    "image_out": "proj_out",
}
CONV1D = frozenset(ATTENTION) - {"norm"}
# What their fused layers hold of each head, one head after the other.
FUSED = {"qkv": ("q", "k", "v"), "encoder_kv": ("k", "v"), "c_qkv": ("q", "k", "v")}

REQUIRED = ("n_vocab", "text_ctx", "xf_width", "xf_layers", "xf_heads")
# Settings beside guided-diffusion's: (what theirs takes if absent, the values known here).
SETTINGS = {
    "num_classes": (None, (None,)),
    "use_new_attention_order": (False, (False,)),
    "xf_ar": (0.0, (0.0,)),
    "xf_final_ln": (None, (True, False, None)),
    "xf_padding": (False, (True,)),
}
NO_EFFECT = ("cache_text_emb", "share_unemb")

_BASE = {"model_channels": 192, "out_channels": 6, "dropout": 0.1, "num_head_channels": 64, "n_vocab": 50257}
_BASE |= {"text_ctx": 128, "xf_width": 512, "xf_layers": 16, "xf_heads": 8, "xf_final_ln": True, "xf_padding": True}
_BASE |= {"use_scale_shift_norm": True, "resblock_updown": True}
_64 = _BASE | {"num_res_blocks": 3, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (2, 4, 8)}
_256 = _BASE | {"num_res_blocks": 2, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32)}
# The published networks, by their names there.
PUBLISHED: dict[str, dict[str, Any]] = {
    "base": {**_64, "in_channels": 3},
    "upsample": {**_256, "in_channels": 6},
    "base-inpaint": {**_64, "in_channels": 7},
    "upsample-inpaint": {**_256, "in_channels": 10},
}


def glide_from_config(config: Mapping[str, Any]) -> Glide:
    """The Glide that computes what their class does.

    Raises:
      ValueError: settings that are missing, unknown, or none of ours.
    """
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise ValueError(f"config misses {', '.join(missing)}")
    found = {name: config.get(name, default) for name, (default, _) in SETTINGS.items()}
    problems = [f"{name}={found[name]!r}" for name, (_, known) in SETTINGS.items() if found[name] not in known]
    if problems:
        raise ValueError("not a network of GLIDE that is known here: " + ", ".join(problems))
    own = (*REQUIRED, *SETTINGS, *NO_EFFECT)
    unet = openai.unet_settings({name: value for name, value in config.items() if name not in own})
    text = TextEncoder(
        out_features=4 * unet["channels"],
        width=config["xf_width"],
        depth=config["xf_layers"],
        num_heads=config["xf_heads"],
        vocabulary=config["n_vocab"],
        num_positions=config["text_ctx"],
        final_norm=bool(found["xf_final_ln"]),
    )
    return Glide(text, JointUNet(**unet, class_embed_type="identity"))


def glide_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of glide_from_config(config) from the weights of their class.

    Raises:
      ValueError: as glide_from_config, or lists every array missing, left over, or of another shape.
    """
    model = glide_from_config(config)
    weights = {name: _by_part(name, array, model) for name, array in state_dict.items()}
    weights = _with_inputs(weights, _input_order(config["in_channels"]))
    for layer, parts in FUSED.items():
        weights = layers.split_rows(weights, layer, parts)
    return layers.to_params(weights, *_layout(model, config))


def params_to_glide(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of their class from our parameters.

    Raises:
      ValueError: as glide_to_params.
    """
    model = glide_from_config(config)
    weights = layers.to_state_dict(params, *_layout(model, config))
    for layer, parts in FUSED.items():
        weights = layers.join_rows(weights, layer, parts)
    weights = _with_inputs(weights, np.argsort(_input_order(config["in_channels"])))
    return {name: _by_part(name, array, model, back=True) for name, array in weights.items()}


def _by_part(name: str, array: np.ndarray, model: Glide, *, back: bool = False) -> np.ndarray:
    """A fused layer's rows [heads, parts, channels] in the order [parts, heads, channels]; anything else as it is."""
    layer = name.rpartition(".")[0].rpartition(".")[2]
    if layer not in FUSED:
        return array
    parts = len(FUSED[layer])
    heads = model.text.num_heads if layer == "c_qkv" else openai.num_heads(name, len(array), parts, model.unet)
    return openai.swap_rows(array, parts, heads) if back else openai.swap_rows(array, heads, parts)


def _input_order(in_channels: int) -> np.ndarray:
    """The place there of each channel here."""
    if in_channels != 10:
        return np.arange(in_channels)
    x_t, known, mask, low_res = np.split(np.arange(10), (3, 6, 7))
    return np.concatenate([x_t, low_res, known, mask])


def _with_inputs(weights: Mapping[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    """The weights with the input channels of the first convolution in this order."""
    name = f"{openai.BLOCKS['conv_in']}.weight"
    array = weights.get(name)
    # One of another shape is left to to_params, which reports it.
    if array is None or array.ndim != 4 or array.shape[1] != len(order):
        return dict(weights)
    return {**weights, name: array[:, order]}


def _layout(
    model: Glide, config: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], frozenset[str], frozenset[str]]:
    unet = openai.layer_names(model.unet, openai.BLOCKS, ATTENTION)
    names = {f"unet/{ours}": theirs for ours, theirs in unet.items()}
    names |= {ours.format(i=i): theirs.format(i=i) for ours, theirs in TEXT.items() for i in range(model.text.depth)}
    size = 2 ** model.unet.levels[-1]
    text = {
        "tokens": jax.ShapeDtypeStruct((1, model.text.num_positions), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, model.text.num_positions), jnp.bool_),
    }
    return names, layers.shapes(model, (size, size, config["in_channels"]), **text), openai.CONV1X1, CONV1D
