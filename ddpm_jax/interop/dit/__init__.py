"""Weights of DiT: facebookresearch/DiT (Peebles and Xie 2022, arXiv:2212.09748) and diffusers' DiTTransformer2DModel.

`config` holds the arguments of their class. facebookresearch/DiT stores none beside its weights: `dit_config` reads
them off the shapes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import kinds, layers, rounding
from ddpm_jax.models.dit import SIZES, DiT, sincos_positions

# Our layer: their layer.
DIT = {
    "in": "x_embedder.proj",
    "condition_0/time_1": "t_embedder.mlp.0",
    "condition_0/time_2": "t_embedder.mlp.2",
    "condition_0/label": "y_embedder.embedding_table",
    "block_{i}/modulation": "blocks.{i}.adaLN_modulation.1",
    "block_{i}/attention/query": "blocks.{i}.attn.qkv[q]",
    "block_{i}/attention/key": "blocks.{i}.attn.qkv[k]",
    "block_{i}/attention/value": "blocks.{i}.attn.qkv[v]",
    "block_{i}/attention/out": "blocks.{i}.attn.proj",
    "block_{i}/mlp/in": "blocks.{i}.mlp.fc1",
    "block_{i}/mlp/out": "blocks.{i}.mlp.fc2",
    "modulation": "final_layer.adaLN_modulation.1",
    "out": "final_layer.linear",
}
DIFFUSERS = {
    "in": "pos_embed.proj",
    "condition_{i}/time_1": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_1",
    "condition_{i}/time_2": "transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2",
    "condition_{i}/label": "transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table",
    "block_{i}/modulation": "transformer_blocks.{i}.norm1.linear",
    "block_{i}/attention/query": "transformer_blocks.{i}.attn1.to_q",
    "block_{i}/attention/key": "transformer_blocks.{i}.attn1.to_k",
    "block_{i}/attention/value": "transformer_blocks.{i}.attn1.to_v",
    "block_{i}/attention/out": "transformer_blocks.{i}.attn1.to_out.0",
    "block_{i}/mlp/in": "transformer_blocks.{i}.ff.net.0.proj",
    "block_{i}/mlp/out": "transformer_blocks.{i}.ff.net.2",
    "modulation": "proj_out_1",
    "out": "proj_out_2",
}

# What DiTTransformer2DModel takes for a setting that is absent.
DEFAULTS = {
    "attention_head_dim": 72,
    "in_channels": 4,
    "norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": None,
    "patch_size": 2,
    "sample_size": 32,
}
# Setting of which our DiT has one value: (what it takes if absent, what our DiT computes).
REQUIRED = {
    "activation_fn": ("gelu-approximate", "gelu-approximate"),
    "attention_bias": (True, True),
    "norm_elementwise_affine": (False, False),
    "norm_type": ("ada_norm_zero", "ada_norm_zero"),
    "upcast_attention": (False, False),
}


def dit_config(state_dict: Mapping[str, np.ndarray], num_heads: int | None = None) -> dict[str, Any]:
    """The arguments of facebookresearch/DiT's DiT from the shapes of its weights.

    Heads leave no trace in the weights: if not given, they are those of the published model of this width. The last
    label is taken for the null label, which it is in the published models; the numbers computed do not depend on that.

    Raises:
      ValueError: an array needed for it is missing, or no published model has this width.
    """
    needed = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    missing = [name for name in (*needed, "blocks.0.mlp.fc1.weight") if name not in state_dict]
    if missing:
        raise ValueError(f"not the weights of facebookresearch/DiT: missing {', '.join(missing)}")
    width, in_channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    heads = {size["width"]: size["num_heads"] for size in SIZES.values()}
    if num_heads is None and width not in heads:
        raise ValueError(
            f"no published DiT has width {width}, only {sorted(heads)}; give num_heads in a config; {kinds.COMMAND}"
        )
    return {
        "input_size": round(state_dict["pos_embed"].shape[1] ** 0.5) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": width,
        "depth": sum(name.endswith(".mlp.fc1.weight") for name in state_dict),
        "num_heads": heads[width] if num_heads is None else num_heads,
        "mlp_ratio": state_dict["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "num_classes": len(state_dict["y_embedder.embedding_table.weight"]) - 1,
        "learn_sigma": len(state_dict["final_layer.linear.weight"]) == 2 * in_channels * patch_size**2,
    }


def dit_from_config(config: Mapping[str, Any]) -> DiT:
    """The DiT that computes what facebookresearch/DiT's DiT(**config) does. Absent settings are its defaults.

    Theirs has no base_size; descendants that were trained on at another resolution have: see sincos_positions.
    """
    channels = config.get("in_channels", 4)
    return DiT(
        width=config.get("hidden_size", 1152),
        depth=config.get("depth", 28),
        num_heads=config.get("num_heads", 16),
        patch_size=config.get("patch_size", 2),
        num_classes=config.get("num_classes", 1000),
        null_label=config.get("class_dropout_prob", 0.1) > 0,
        out_channels=2 * channels if config.get("learn_sigma", True) else channels,
        mlp_ratio=config.get("mlp_ratio", 4.0),
        base_size=config.get("base_size"),
    )


def dit_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of dit_from_config(config) from the weights of facebookresearch/DiT.

    Raises:
      ValueError: lists every array missing, left over, or of another shape; or pos_embed is not the table of sines
        and cosines, which here is computed and no parameter.
    """
    weights = dict(state_dict)
    positions, size = weights.pop("pos_embed", None), _places(config)
    shape = (1, size * size, config.get("hidden_size", 1152))
    if positions is None or positions.shape != shape:
        found = "missing" if positions is None else f"of shape {list(positions.shape)}"
        raise ValueError(f"weights do not fit the model: pos_embed is {found}, expected {list(shape)}")
    difference = rounding.misfit(positions, _positions(config), slack=1e-6)
    if difference != 0:
        raise ValueError(f"pos_embed is not the table of sines and cosines: it differs by {difference:.2g}")
    names, wanted = _names_and_shapes(dit_from_config(config), config, DIT)
    return layers.to_params(layers.split_rows(weights, "qkv", ("q", "k", "v")), names, wanted, frozenset())


def params_to_dit(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of facebookresearch/DiT's DiT(**config) from our parameters, pos_embed included.

    Raises:
      ValueError: lists every array missing, left over, or of another shape.
    """
    names, wanted = _names_and_shapes(dit_from_config(config), config, DIT)
    weights = layers.join_rows(layers.to_state_dict(params, names, wanted, frozenset()), "qkv", ("q", "k", "v"))
    return weights | {"pos_embed": _positions(config)}


def transformer2d_from_config(config: Mapping[str, Any]) -> DiT:
    """The DiT that computes what diffusers' DiTTransformer2DModel(**config) does.

    Raises:
      ValueError: settings that DiT has not; lists them.
    """
    found = {name: config.get(name, default) for name, (default, _) in REQUIRED.items()}
    problems = [f"{name}={found[name]!r}" for name, (_, needed) in REQUIRED.items() if found[name] != needed]
    if problems:
        raise ValueError("not a DiT: " + ", ".join(problems))
    found = DEFAULTS | dict(config)
    num_heads, out_channels = found["num_attention_heads"], found["out_channels"]
    return DiT(
        width=num_heads * found["attention_head_dim"],
        depth=found["num_layers"],
        num_heads=num_heads,
        patch_size=found["patch_size"],
        num_classes=found["num_embeds_ada_norm"],
        out_channels=found["in_channels"] if out_channels is None else out_channels,
        base_size=found["sample_size"] // found["patch_size"],
        time_endpoint=True,
        condition_per_block=True,
        mlp_norm_epsilon=found["norm_eps"],
    )


def transformer2d_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of transformer2d_from_config(config) from the weights of DiTTransformer2DModel(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    names, wanted = _names_and_shapes(transformer2d_from_config(config), config, DIFFUSERS)
    return layers.to_params(state_dict, names, wanted, frozenset())


def params_to_transformer2d(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of DiTTransformer2DModel(**config) from our parameters.

    Raises:
      ValueError: as transformer2d_to_params.
    """
    names, wanted = _names_and_shapes(transformer2d_from_config(config), config, DIFFUSERS)
    return layers.to_state_dict(params, names, wanted, frozenset())


def _places(config: Mapping[str, Any]) -> int:
    """Patches in height and in width."""
    return config.get("input_size", 32) // config.get("patch_size", 2)


def _positions(config: Mapping[str, Any]) -> np.ndarray:
    """[1, N, width], as facebookresearch/DiT stores it."""
    size = _places(config)
    return sincos_positions(size, size, config.get("hidden_size", 1152), config.get("base_size"))[None]


def _names_and_shapes(
    model: DiT, config: Mapping[str, Any], table: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    names = {ours.format(i=i): theirs.format(i=i) for ours, theirs in table.items() for i in range(model.depth)}
    image = (model.patch_size, model.patch_size, config.get("in_channels", 4))
    return names, layers.shapes(model, image, y=jax.ShapeDtypeStruct((1,), jnp.int32))
