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
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import TextEncoder

INDEX = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
"""In model_index.json."""
CLASSES = ("CLIPTextModel", "FlaxCLIPTextModel")
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")


def read(folder: Path, index: Mapping[str, Any]) -> TextEncoder | None:
    """CLIP's of a pipeline, with the tokenizer beside it; None where there is none, or another.

    Raises:
      FileNotFoundError: no config.json or no weights in its folder.
      ValueError: damaged files; a setting that is not known here.
    """
    place = folder / "text_encoder"
    if (index.get("text_encoder") or [None, None])[1] not in CLASSES or not place.is_dir():
        return None
    config = read_json(place / "config.json")
    found = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights in {place} ({' or '.join(WEIGHTS)})")
    try:
        model = clip.clip_from_config(config)
        if found.suffix == ".msgpack":
            params = clip.flax_clip_to_params(files.read(found), config)
        else:
            params = clip.clip_to_params(files.read_state_dict(found), config)
    except ValueError as error:
        raise ValueError(f"{place.name}: {error}") from error
    return TextEncoder(model, params, tokenizers.ClipTokenizer(folder / "tokenizer", model.num_positions))


def write(folder: Path, text: TextEncoder) -> None:
    """text_encoder/ and tokenizer/ in a pipeline's folder.

    Raises:
      ValueError: a tokenizer of no folder, or without its files.
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
    weights = {clip.PREFIX + name: array for name, array in clip.params_to_clip(text.params, config).items()}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, place / WEIGHTS[0], metadata={"format": "pt"})
