"""Weights of openai/glide-text2im's `CLIPModel`, trained on noisy images: for guidance by a text.

A state dict has the text encoder's arrays under "text_encoder." and the image encoder's under "image_encoder.", which
are two files there. `config` is that of its config.yaml.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import layers
from ddpm_jax.models.noised_clip import ImageTower, NoisedCLIP, TextTower

# Our layer: their layer, of both encoders. {i} counts the blocks.
BLOCK = {
    "block_{i}/norm_1": "block_{i}.f_attn.ln",
    "block_{i}/attention/query": "block_{i}.f_attn.f_q",
    "block_{i}/attention/key": "block_{i}.f_attn.f_k",
    "block_{i}/attention/value": "block_{i}.f_attn.f_v",
    "block_{i}/attention/out": "block_{i}.f_attn.f_c",
    "block_{i}/norm_2": "block_{i}.f_mlp.ln",
    "block_{i}/mlp/in": "block_{i}.f_mlp.f_1",
    "block_{i}/mlp/out": "block_{i}.f_mlp.f_2",
}
ENDS = {"norm_in": "input.ln", "norm_out": "output.ln", "project": "output.f"}
LEAVES = {"kernel": "w", "bias": "b", "scale": "g"}
# Our parameter: theirs.
PARAMETERS = {
    "token_embedding/embedding": "input.w_voc",
    "positions/embedding": "input.w_pos",
    "times/embedding": "input.w_t",
    "patches/kernel": "input.patch_proj",
}

PUBLISHED: dict[str, Any] = {
    "image_size": 64,
    "logit_scale": 100.0,
    "max_text_len": 77,
    "n_embd": 512,
    "n_head_image": 12,
    "n_head_state_image": 64,
    "n_head_state_text": 64,
    "n_head_text": 8,
    "n_timesteps": 1000,
    "n_vocab": 65536,
    "n_xf_blocks_image": 12,
    "n_xf_blocks_text": 12,
    "patch_size": 4,
}
NO_EFFECT = ("beta_schedule",)  # of the diffusion that it was trained on


def glide_clip_from_config(config: Mapping[str, Any]) -> NoisedCLIP:
    """The NoisedCLIP that computes what their CLIPModel does.

    Raises:
      ValueError: settings that are missing or unknown.
    """
    problems = [f"misses {name}" for name in PUBLISHED if name not in config]
    problems += [f"has {name}={config[name]!r}" for name in config if name not in (*PUBLISHED, *NO_EFFECT)]
    if problems:
        raise ValueError("not a config of GLIDE's CLIP: it " + ", ".join(problems))
    text = TextTower(
        features=config["n_embd"],
        width=config["n_head_text"] * config["n_head_state_text"],
        depth=config["n_xf_blocks_text"],
        num_heads=config["n_head_text"],
        vocabulary=config["n_vocab"],
        num_positions=config["max_text_len"],
    )
    image = ImageTower(
        features=config["n_embd"],
        width=config["n_head_image"] * config["n_head_state_image"],
        depth=config["n_xf_blocks_image"],
        num_heads=config["n_head_image"],
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        num_timesteps=config["n_timesteps"],
    )
    return NoisedCLIP(text, image, config["logit_scale"])


def glide_clip_to_params(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of glide_clip_from_config(config) from the weights of both encoders.

    Raises:
      ValueError: as glide_clip_from_config, or lists every array missing, left over, or of another shape.
    """
    return layers.to_params(state_dict, *_names_and_shapes(config), frozenset())


def params_to_glide_clip(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of both encoders from our parameters.

    Raises:
      ValueError: as glide_clip_to_params.
    """
    return layers.to_state_dict(params, *_names_and_shapes(config), frozenset())


def _names_and_shapes(config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    model = glide_clip_from_config(config)
    size, n = model.image.image_size, model.text.num_positions
    x_t, t = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    text = {"tokens": jax.ShapeDtypeStruct((1, n), jnp.int32), "lengths": jax.ShapeDtypeStruct((1,), jnp.int32)}
    wanted = layers.param_shapes(model, x_t, t, **text)
    depth = max(model.text.depth, model.image.depth)
    their = {ours.format(i=i): theirs.format(i=i) for ours, theirs in BLOCK.items() for i in range(depth)} | ENDS

    def name(path: str) -> str:
        encoder, _, rest = path.partition("/")
        layer, _, leaf = rest.rpartition("/")
        inside = PARAMETERS[rest] if rest in PARAMETERS else f"{their[layer]}.{LEAVES[leaf]}"
        return f"{encoder}_encoder.blocks.{inside}"

    return {path: name(path) for path in wanted}, wanted
