"""The text encoder of a pipeline's folder, in the form of transformers, and tokenizer/ beside it.

    text_encoder/    CLIP's, of Stable Diffusion's pipelines
    bert/            LDMBertModel, of LDMTextToImagePipeline, which makes 77 tokens of every text whatever its tokenizer
                     says

Facts about transformers 4.57 and 5.24, which read each other's folders in part: 4.57 takes the weights of CLIP that
5.24 writes, whose names lack "text_model.", for absent and draws random ones, and it wants vocab.json and merges.txt
where 5.24 writes tokenizer.json alone. Both read what is written here. LDMBertModel has a layer to_logits that no
picture depends on; it is not written, and diffusers says so and draws one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interop import clip, files, ldm_bert, tokenizers
from ddpm_jax.interop.diffusers import weights
from ddpm_jax.models.clip import CLIPText
from ddpm_jax.models.ldm_bert import LDMBert
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import TextEncoder

FORMS, FLAX = ("model.safetensors", "pytorch_model.bin"), "flax_model.msgpack"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """How a text encoder is read and written.

    Attributes:
      model: the class of ours.
      written: the package and class that model_index.json says.
      classes: those that are read.
      from_config, to_params: of config.json and the weights.
      to_config, to_arrays: back.
      tokenizer: the class of the tokenizer where model_index.json names none.
      from_flax: to_params of Flax's weights, where there are some.
      num_tokens: of every text, where the pipeline says it; None where the tokenizer does.
    """

    model: type
    written: tuple[str, str]
    classes: tuple[str, ...]
    from_config: Callable[[Mapping[str, Any]], Any]
    to_params: Callable[[Arrays, Mapping[str, Any]], Any]
    to_config: Callable[[Any], dict[str, Any]]
    to_arrays: Callable[[Any, Mapping[str, Any]], dict[str, np.ndarray]]
    tokenizer: str
    from_flax: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None
    num_tokens: int | None = None


def _clip_arrays(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {clip.PREFIX + name: array for name, array in clip.params_to_clip(params, config).items()}


KINDS = {
    "text_encoder": Kind(
        CLIPText,
        ("transformers", "CLIPTextModel"),
        ("CLIPTextModel", "FlaxCLIPTextModel"),
        clip.clip_from_config,
        clip.clip_to_params,
        clip.clip_to_config,
        _clip_arrays,
        tokenizer="CLIPTokenizer",
        from_flax=clip.flax_clip_to_params,
    ),
    "bert": Kind(
        LDMBert,
        ("latent_diffusion", "LDMBertModel"),
        ("LDMBertModel",),
        ldm_bert.bert_from_config,
        ldm_bert.bert_to_params,
        ldm_bert.bert_to_config,
        ldm_bert.params_to_bert,
        tokenizer="BertTokenizer",
        num_tokens=77,
    ),
}
"""By the name of the part."""
TOKENIZERS: Mapping[str, type[tokenizers.FolderTokenizer]] = {
    **dict.fromkeys(("CLIPTokenizer", "CLIPTokenizerFast"), tokenizers.ClipTokenizer),
    **dict.fromkeys(("BertTokenizer", "BertTokenizerFast"), tokenizers.BertTokenizer),
}


def part_of(index: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name, class) of the text encoder that model_index.json names; None where it names none."""
    parts = ((part, _class(index, part)) for part in KINDS)
    return next(((part, name) for part, name in parts if name is not None), None)


def read(folder: Path, index: Mapping[str, Any]) -> tuple[TextEncoder | None, str]:
    """(the encoder of a pipeline, with the tokenizer beside it, or None; why None, where the pipeline has some text
    encoder): the network is as good without, for those who make its contexts themselves.

    Raises:
      ValueError: damaged files.
    """
    found = part_of(index)
    if found is None:
        return None, ""
    (part, name), place = found, folder / found[0]
    kind = KINDS[part]
    if name not in kind.classes:
        return None, f"its text encoder is a {name}, known here are {', '.join(kind.classes)}"
    if not (place / "config.json").is_file():
        return None, f"no config.json in {place}"
    config = read_json(place / "config.json")
    try:
        model = kind.from_config(config)
        tokenizer = _tokenizer(folder / "tokenizer", _class(index, "tokenizer") or kind.tokenizer, kind, model)
    except (ValueError, FileNotFoundError) as error:
        return None, f"{place.name}: {error}"
    paths = weights.files_of(place, weights.TRANSFORMERS)
    try:
        if paths:
            params = kind.to_params(weights.arrays_of(paths), config)
        elif kind.from_flax is not None and (place / FLAX).is_file():
            params = kind.from_flax(files.read(place / FLAX), config)
        else:
            *forms, last = FORMS if kind.from_flax is None else (*FORMS, FLAX)
            return None, f"no weights in {place} ({', '.join(forms)} or {last})"
    except ValueError as error:
        raise ValueError(f"{place.name}: {error}") from error
    return TextEncoder(model, params, tokenizer), ""


def _class(index: Mapping[str, Any], part: str) -> str | None:
    """What model_index.json says after the package: the same class has been in several."""
    said = index.get(part)
    return said[1] if isinstance(said, list) and len(said) == 2 else None


def _tokenizer(folder: Path, name: str, kind: Kind, model: Any) -> tokenizers.FolderTokenizer:
    if name not in TOKENIZERS:
        raise ValueError(f"its tokenizer is a {name}, known here are {', '.join(TOKENIZERS)}")
    if kind.num_tokens is not None and model.num_positions < kind.num_tokens:
        raise ValueError(
            f"max_position_embeddings must be at least {kind.num_tokens}, to which its pipeline fills every text, "
            f"got {model.num_positions}"
        )
    tokenizer = TOKENIZERS[name](folder, model.num_positions, kind.num_tokens)
    tokenizer.check_there()
    return tokenizer


def index_of(text: TextEncoder) -> dict[str, list[str]]:
    """What model_index.json says of the parts that `write` writes."""
    part, kind = written_as(text)
    tokenizer = next((name for name, known in TOKENIZERS.items() if isinstance(text.tokens, known)), kind.tokenizer)
    return {part: [*kind.written], "tokenizer": ["transformers", tokenizer]}


def written_as(text: TextEncoder) -> tuple[str, Kind]:
    """The name of the part that a text encoder is, and how it is written."""
    return next((part, kind) for part, kind in KINDS.items() if isinstance(text.model, kind.model))


def write(folder: Path, text: TextEncoder) -> None:
    """text_encoder/ or bert/, and tokenizer/, in a pipeline's folder.

    Raises:
      ValueError: a tokenizer of no folder.
    """
    if not isinstance(text.tokens, tokenizers.FolderTokenizer):
        raise ValueError("diffusers reads a tokenizer from a folder, and this text encoder has another")
    place = folder / "tokenizer"
    place.mkdir()
    text.tokens.copy(place)
    from safetensors.numpy import save_file  # here, so that name maps work where it is not installed

    part, kind = written_as(text)
    place = folder / part
    place.mkdir()
    config = kind.to_config(text.model)
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(kind.to_arrays(text.params, config), place / "model.safetensors", metadata={"format": "pt"})
