"""Weights of transformers' `CLIPTextModel`, the text encoder of Stable Diffusion 1 and 2.

`config` is the model's config.json as a mapping. Names are those of transformers 5; the prefix "text_model." and the
buffer "embeddings.position_ids" of older checkpoints are understood.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import flax_weights, layers
from ddpm_jax.models.clip import ACTIVATIONS, CLIPText
from ddpm_jax.names import choose

# Our layer: their layer. {i} counts the blocks.
CLIP_TEXT = {
    "token_embedding": "embeddings.token_embedding",
    "positions": "embeddings.position_embedding",
    "block_{i}/norm_1": "encoder.layers.{i}.layer_norm1",
    "block_{i}/attention/query": "encoder.layers.{i}.self_attn.q_proj",
    "block_{i}/attention/key": "encoder.layers.{i}.self_attn.k_proj",
    "block_{i}/attention/value": "encoder.layers.{i}.self_attn.v_proj",
    "block_{i}/attention/out": "encoder.layers.{i}.self_attn.out_proj",
    "block_{i}/norm_2": "encoder.layers.{i}.layer_norm2",
    "block_{i}/mlp/in": "encoder.layers.{i}.mlp.fc1",
    "block_{i}/mlp/out": "encoder.layers.{i}.mlp.fc2",
    "norm_out": "final_layer_norm",
}
PREFIX, BUFFER = "text_model.", "embeddings.position_ids"

# What transformers takes for a setting that is absent.
DEFAULTS = {
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
# About the file, the tokenizer, the first weights, training, and a projection which CLIPTextModel has not.
NO_EFFECT = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "dtype",
    "initializer_factor",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "projection_dim",
    "torch_dtype",
    "transformers_version",
)
# Configurations older than the end token's entry say this; pooling is then at the largest token.
OLD_EOS_TOKEN = 2


def clip_from_config(config: Mapping[str, Any]) -> CLIPText:
    """The CLIPText that computes what transformers' CLIPTextModel(CLIPTextConfig(**config)) does.

    Raises:
      ValueError: it has settings that ours has not; lists them.
    """
    found = DEFAULTS | {name: value for name, value in config.items() if not name.startswith("_")}
    problems = [f"{name}={found[name]!r}" for name in found if name not in DEFAULTS and name not in NO_EFFECT]
    if problems:
        raise ValueError("not a CLIPTextModel that is known here: " + ", ".join(problems))
    choose("hidden_act", found["hidden_act"], ACTIVATIONS)
    return CLIPText(
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        num_heads=found["num_attention_heads"],
        hidden=found["intermediate_size"],
        vocabulary=found["vocab_size"],
        num_positions=found["max_position_embeddings"],
        activation=found["hidden_act"],
        norm_epsilon=found["layer_norm_eps"],
        eos_token=None if found["eos_token_id"] == OLD_EOS_TOKEN else found["eos_token_id"],
    )


def clip_to_config(model: CLIPText) -> dict[str, Any]:
    """The config.json of the CLIPTextModel that computes what this model does."""
    return {
        "architectures": ["CLIPTextModel"],
        "eos_token_id": OLD_EOS_TOKEN if model.eos_token is None else model.eos_token,
        "hidden_act": model.activation,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "layer_norm_eps": model.norm_epsilon,
        "max_position_embeddings": model.num_positions,
        "model_type": "clip_text_model",
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.depth,
        "torch_dtype": "float32",
        "vocab_size": model.vocabulary,
    }


def clip_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of clip_from_config(config) from the weights of CLIPTextModel.

    Raises:
      ValueError: as clip_from_config, or lists every array missing, left over, or of another shape.
    """
    # Where both names are there, the older one is left over, and reported.
    short = {name: name.removeprefix(PREFIX) for name in state_dict}
    weights = {name if short[name] in state_dict else short[name]: array for name, array in state_dict.items()}
    weights.pop(BUFFER, None)
    return layers.to_params(weights, *_names_and_shapes(config), frozenset())


def flax_clip_to_params(weights: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of clip_from_config(config) from those of transformers' FlaxCLIPTextModel.

    Args:
      weights: its parameters, nested, or by path as files.read("flax_model.msgpack") gives them.
      config: the model's config.json.

    Raises:
      ValueError: as clip_to_params, with PyTorch's names of the arrays.
    """
    return clip_to_params(flax_weights.to_state_dict(weights), config)


def params_to_clip(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of CLIPTextModel from our parameters.

    Raises:
      ValueError: as clip_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(config), frozenset())


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = clip_from_config(config)
    names = {ours.format(i=i): theirs.format(i=i) for ours, theirs in CLIP_TEXT.items() for i in range(model.depth)}
    return names, layers.param_shapes(model, jax.ShapeDtypeStruct((1, model.num_positions), jnp.int32))
