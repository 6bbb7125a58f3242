"""Weights of U-ViT, baofff/U-ViT (Bao et al. 2023, arXiv:2209.12152).

`config` is the section `nnet` of its configuration files.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.uvit import UViT

# Our layer: their layer. {i} counts the blocks before and after the middle.
BLOCK = {
    "norm_1": "norm1",
    "attention/query": "attn.qkv[q]",
    "attention/key": "attn.qkv[k]",
    "attention/value": "attn.qkv[v]",
    "attention/out": "attn.proj",
    "norm_2": "norm2",
    "mlp/in": "mlp.fc1",
    "mlp/out": "mlp.fc2",
    "skip": "skip_linear",
}
UVIT = {
    "in": "patch_embed.proj",
    "time_1": "time_embed.0",
    "time_2": "time_embed.2",
    "label": "label_emb",
    **{f"down_{{i}}/{ours}": f"in_blocks.{{i}}.{theirs}" for ours, theirs in BLOCK.items()},
    **{f"mid/{ours}": f"mid_block.{theirs}" for ours, theirs in BLOCK.items()},
    **{f"up_{{i}}/{ours}": f"out_blocks.{{i}}.{theirs}" for ours, theirs in BLOCK.items()},
    "norm_out": "norm",
    "out": "decoder_pred",
    "conv_out": "final_layer",
}
QKV = ("q", "k", "v")


def uvit_from_config(config: Mapping[str, Any]) -> UViT:
    """The UViT that computes what their UViT(**config) does. Absent settings are its defaults.

    Raises:
      ValueError: it has no long skip connections, or scales its logits in another way.
    """
    problems = [f"{name}={config[name]!r}" for name in ("skip", "qk_scale") if config.get(name) not in (None, True)]
    if problems:
        raise ValueError("not a U-ViT that is known here: " + ", ".join(problems))
    num_classes = config.get("num_classes", -1)
    return UViT(
        width=config.get("embed_dim", 768),
        depth=config.get("depth", 12) // 2 * 2 + 1,
        num_heads=config.get("num_heads", 12),
        patch_size=config.get("patch_size", 16),
        num_classes=num_classes if num_classes > 0 else None,
        out_channels=config.get("in_chans", 3),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        qkv_bias=config.get("qkv_bias", False),
        time_mlp=config.get("mlp_time_embed", False),
        final_conv=config.get("conv", True),
    )


def uvit_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of uvit_from_config(config) from the weights of UViT(**config).

    Raises:
      ValueError: lists every setting or array that does not fit.
    """
    weights = layers.split_rows(state_dict, "qkv", QKV)
    # The one parameter that belongs to no layer: [1, N, C] there.
    table = weights.pop("pos_embed", None)
    names, wanted = _names_and_shapes(config)
    shape = (1, *wanted.pop("positions"))
    if table is None or table.shape != shape:
        found = "missing" if table is None else f"{list(table.shape)}"
        raise ValueError(f"weights do not fit the model: pos_embed is {found}, expected {list(shape)}")
    return {**layers.to_params(weights, names, wanted, frozenset()), "positions": np.array(table[0])}


def params_to_uvit(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of UViT(**config) from our parameters.

    Raises:
      ValueError: as uvit_to_params.
    """
    names, wanted = _names_and_shapes(config)
    rest = dict(params)
    table, shape = np.asarray(rest.pop("positions", np.zeros(0))), wanted.pop("positions")
    if table.shape != shape:
        raise ValueError(f"weights do not fit the model: positions is {list(table.shape)}, expected {list(shape)}")
    weights = layers.to_state_dict(rest, names, wanted, frozenset())
    return {**layers.join_rows(weights, "qkv", QKV), "pos_embed": table[None]}


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = uvit_from_config(config)
    names = {ours.format(i=i): theirs.format(i=i) for ours, theirs in UVIT.items() for i in range(model.depth // 2)}
    size = config.get("img_size", 224)
    labels = {} if model.num_classes is None else {"y": jax.ShapeDtypeStruct((1,), jnp.int32)}
    return names, layers.shapes(model, (size, size, config.get("in_chans", 3)), **labels)
