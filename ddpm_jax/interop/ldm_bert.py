"""Weights of latent diffusion's text encoder: diffusers' `LDMBertModel`, and the original's `BERTEmbedder`.

    bert_*    config is the config.json of diffusers' part "bert"
    ldm_*     config is cond_stage_config.params of latent-diffusion's YAML; the names are those after
              "cond_stage_model." in a checkpoint. `TransformerEmbedder` has the same ones.

Both have a layer from the context to the vocabulary, "to_logits", that no picture depends on: it is left out.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.clip import ACTIVATIONS
from ddpm_jax.models.ldm_bert import LDMBert
from ddpm_jax.names import choose
from ddpm_jax.samplers.configs.reading import check_kinds

# Our layer: their layer. {i} counts the blocks; the original counts attention and MLP as layers of their own.
BERT = {
    "token_embedding": "model.embed_tokens",
    "positions": "model.embed_positions",
    "block_{i}/norm_1": "model.layers.{i}.self_attn_layer_norm",
    "block_{i}/attention/query": "model.layers.{i}.self_attn.q_proj",
    "block_{i}/attention/key": "model.layers.{i}.self_attn.k_proj",
    "block_{i}/attention/value": "model.layers.{i}.self_attn.v_proj",
    "block_{i}/attention/out": "model.layers.{i}.self_attn.out_proj",
    "block_{i}/norm_2": "model.layers.{i}.final_layer_norm",
    "block_{i}/mlp/in": "model.layers.{i}.fc1",
    "block_{i}/mlp/out": "model.layers.{i}.fc2",
    "norm_out": "model.layer_norm",
}
LDM = {
    "token_embedding": "transformer.token_emb",
    "positions": "transformer.pos_emb.emb",
    "block_{i}/norm_1": "transformer.attn_layers.layers.{even}.0",
    "block_{i}/attention/query": "transformer.attn_layers.layers.{even}.1.to_q",
    "block_{i}/attention/key": "transformer.attn_layers.layers.{even}.1.to_k",
    "block_{i}/attention/value": "transformer.attn_layers.layers.{even}.1.to_v",
    "block_{i}/attention/out": "transformer.attn_layers.layers.{even}.1.to_out",
    "block_{i}/norm_2": "transformer.attn_layers.layers.{odd}.0",
    "block_{i}/mlp/in": "transformer.attn_layers.layers.{odd}.1.net.0.0",
    "block_{i}/mlp/out": "transformer.attn_layers.layers.{odd}.1.net.2",
    "norm_out": "transformer.norm",
}
BERT_HEAD, LDM_HEAD = "to_logits", "transformer.to_logits"

# What diffusers takes for a setting that is absent.
DEFAULTS = {
    "activation_function": "gelu",
    "d_model": 1280,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "head_dim": 64,
    "max_position_embeddings": 77,
    "vocab_size": 30522,
}
# About the file, the tokenizer, the first weights and training.
NO_EFFECT = (
    *("activation_dropout", "architectures", "attention_dropout", "classifier_dropout", "dropout", "dtype"),
    *("encoder_layerdrop", "init_std", "model_type", "pad_token_id", "torch_dtype", "transformers_version"),
    "use_cache",
)
# Those of the original, and what it takes for those that are absent; BERTEmbedder has two more that change no context.
LDM_DEFAULTS = {"n_embed": None, "n_layer": None, "vocab_size": 30522, "max_seq_len": 77}
LDM_NO_EFFECT = ("device", "embedding_dropout", "use_tokenizer")


def bert_from_config(config: Mapping[str, Any]) -> LDMBert:
    """The LDMBert that computes what diffusers' LDMBertModel(LDMBertConfig(**config)) does.

    Raises:
      ValueError: it has settings that ours has not, lists them; or one that is not of its kind.
    """
    found = DEFAULTS | {name: value for name, value in config.items() if not name.startswith("_")}
    # The first is not read there whatever it says; the second is a copy of encoder_layers.
    idle = {"scale_embedding": False, "num_hidden_layers": found["encoder_layers"]}
    known = (*DEFAULTS, *NO_EFFECT, *(name for name, value in idle.items() if found.get(name, value) == value))
    problems = [f"{name}={value!r}" for name, value in found.items() if name not in known]
    if problems:
        raise ValueError("not an LDMBertModel that is known here: " + ", ".join(problems))
    check_kinds(found, DEFAULTS, {})
    choose("activation_function", found["activation_function"], ACTIVATIONS)
    return LDMBert(
        width=found["d_model"],
        depth=found["encoder_layers"],
        num_heads=found["encoder_attention_heads"],
        head_dim=found["head_dim"],
        hidden=found["encoder_ffn_dim"],
        vocabulary=found["vocab_size"],
        num_positions=found["max_position_embeddings"],
        activation=found["activation_function"],
    )


def bert_to_config(model: LDMBert) -> dict[str, Any]:
    """The config.json of the LDMBertModel that computes what this model does."""
    return {
        "activation_function": model.activation,
        "architectures": ["LDMBertModel"],
        "d_model": model.width,
        "encoder_attention_heads": model.num_heads,
        "encoder_ffn_dim": model.hidden,
        "encoder_layers": model.depth,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.num_positions,
        "model_type": "ldmbert",
        "num_hidden_layers": model.depth,
        "torch_dtype": "float32",
        "vocab_size": model.vocabulary,
    }


def bert_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of bert_from_config(config) from the weights of LDMBertModel.

    Raises:
      ValueError: as bert_from_config, or lists every array missing, left over, or of another shape.
    """
    layers.check_repeated(config, state_dict)
    return layers.to_params(_without(BERT_HEAD, state_dict), *_names_and_shapes(bert_from_config(config), BERT))


def params_to_bert(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of LDMBertModel from our parameters, without to_logits.

    Raises:
      ValueError: as bert_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(bert_from_config(config), BERT))


def ldm_from_config(config: Mapping[str, Any]) -> LDMBert:
    """The LDMBert that computes what latent-diffusion's BERTEmbedder(**config)(tokens) does.

    Heads are 8 of 64 channels whatever the width, hidden units four times the width.

    Raises:
      ValueError: it has settings that ours has not, or lacks some; lists them; or one that is not of its kind.
    """
    found = LDM_DEFAULTS | dict(config)
    problems = [f"{name}={found[name]!r}" for name in found if name not in LDM_DEFAULTS and name not in LDM_NO_EFFECT]
    if problems:
        raise ValueError("not a BERTEmbedder that is known here: " + ", ".join(problems))
    check_kinds(found, dict.fromkeys(LDM_DEFAULTS, 1), {})
    return LDMBert(
        width=found["n_embed"],
        depth=found["n_layer"],
        hidden=4 * found["n_embed"],
        vocabulary=found["vocab_size"],
        num_positions=found["max_seq_len"],
    )


def ldm_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of ldm_from_config(config) from the weights of latent-diffusion's BERTEmbedder.

    Raises:
      ValueError: as ldm_from_config, or lists every array missing, left over, or of another shape.
    """
    layers.check_repeated(config, state_dict)
    return layers.to_params(_without(LDM_HEAD, state_dict), *_names_and_shapes(ldm_from_config(config), LDM))


def params_to_ldm(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of latent-diffusion's BERTEmbedder from our parameters, without to_logits.

    Raises:
      ValueError: as ldm_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(ldm_from_config(config), LDM))


def _without(head: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state_dict.items() if name not in (f"{head}.weight", f"{head}.bias")}


def _names_and_shapes(
    model: LDMBert, table: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], frozenset[str]]:
    """What layers.to_params takes: our layer to theirs, our shapes, and that no layer is a convolution."""
    places = [{"i": i, "even": 2 * i, "odd": 2 * i + 1} for i in range(model.depth)]
    names = {ours.format(**here): theirs.format(**here) for ours, theirs in table.items() for here in places}
    shapes = layers.param_shapes(model, jax.ShapeDtypeStruct((1, model.num_positions), jnp.int32))
    return names, shapes, frozenset()
