"""The text encoder of a pipeline's folder: text_encoder/ in the form of transformers, and tokenizer/ beside it.

Facts about transformers 4.57 and 5.24, which read each other's folders in part: 4.57 takes the weights that 5.24
writes, whose names lack "text_model.", for absent and draws random ones, and it wants vocab.json and merges.txt where
5.24 writes tokenizer.json alone. Both read what is written here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_jax.interop import clip, files, tokenizers
from ddpm_jax.interop.diffusers import weights
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import TextEncoder

INDEX = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
"""In model_index.json."""
CLASSES = ("CLIPTextModel", "FlaxCLIPTextModel")
FLAX = "flax_model.msgpack"


def read(folder: Path, index: Mapping[str, Any]) -> tuple[TextEncoder | None, str]:
    """(CLIP's encoder of a pipeline, with the tokenizer beside it, or None; why None, where the pipeline has some text
    encoder): the network is as good without, for those who make its contexts themselves.

    Raises:
      ValueError: damaged files.
    """
    kind, place = (index.get("text_encoder") or [None, None])[1], folder / "text_encoder"
    if kind is None:
        return None, ""
    if kind not in CLASSES:
        return None, f"its text encoder is a {kind}, known here are {', '.join(CLASSES)}"
    if not (place / "config.json").is_file():
        return None, f"no config.json in {place}"
    config = read_json(place / "config.json")
    try:
        model = clip.clip_from_config(config)
        tokenizer = tokenizers.ClipTokenizer(folder / "tokenizer", model.num_positions)
        tokenizer.check_there()
    except (ValueError, FileNotFoundError) as error:
        return None, f"{place.name}: {error}"
    paths = weights.files_of(place, weights.TRANSFORMERS)
    try:
        if paths:
            params = clip.clip_to_params(weights.arrays_of(paths), config)
        elif (place / FLAX).is_file():
            params = clip.flax_clip_to_params(files.read(place / FLAX), config)
        else:
            return None, f"no weights in {place} (model.safetensors, pytorch_model.bin or {FLAX})"
    except ValueError as error:
        raise ValueError(f"{place.name}: {error}") from error
    return TextEncoder(model, params, tokenizer), ""


def write(folder: Path, text: TextEncoder) -> None:
    """text_encoder/ and tokenizer/ in a pipeline's folder.

    Raises:
      ValueError: a tokenizer of no folder.
    """
    if not isinstance(text.tokens, tokenizers.ClipTokenizer):
        raise ValueError("diffusers reads CLIP's tokenizer from a folder, and this text encoder has another")
    place = folder / "tokenizer"
    place.mkdir()
    text.tokens.copy(place)
    from safetensors.numpy import save_file  # here, so that name maps work where it is not installed

    place = folder / "text_encoder"
    place.mkdir()
    config = clip.clip_to_config(text.model)
    arrays = {clip.PREFIX + name: array for name, array in clip.params_to_clip(text.params, config).items()}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(arrays, place / "model.safetensors", metadata={"format": "pt"})
