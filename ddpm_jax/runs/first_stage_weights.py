"""first_stage.safetensors: a first stage whole, weights and in the header all else, beside what lies in its latents.

What was encoded, or trained on latents, needs nothing but its own folder: the autoencoder's run may go away.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.data.latents import AUTOENCODER
from ddpm_jax.host.storage import replacing
from ddpm_jax.models import AutoencoderKL, VQModel
from ddpm_jax.models.quantizers import FSQModel
from ddpm_jax.names import choose
from ddpm_jax.trained import FirstStage

KINDS = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel, "FSQModel": FSQModel}
HEADER = "first_stage"


def write(folder: Path, stage: FirstStage) -> str:
    """The file; its checksum, as of FirstStage.weights."""
    from safetensors.numpy import save  # here, so that training on pixels works where it is not installed

    tensors = {name: np.array(leaf) for name, leaf in traverse_util.flatten_dict(stage.params, sep="/").items()}
    settings = {
        item.name: getattr(stage.model, item.name)
        for item in dataclasses.fields(stage.model)
        if item.name not in ("parent", "name")
    }
    header = {
        "kind": type(stage.model).__name__,
        "settings": settings | {"dtype": jnp.dtype(settings["dtype"]).name},
        "scale": stage.scale,
        "shift": stage.shift,
    }
    with replacing(folder / AUTOENCODER) as file:
        file.write(save(tensors, metadata={HEADER: json.dumps(header)}))
    return stage.weights


def read(folder: Path, weights: str) -> FirstStage:
    """What `write` wrote.

    Args:
      folder: of the file.
      weights: the checksum that it must have.

    Raises:
      FileNotFoundError: no file.
      ValueError: a damaged one, or one of other weights.
    """
    import safetensors

    path = folder / AUTOENCODER
    if not path.is_file():
        raise FileNotFoundError(f"no {path}, the autoencoder in whose latents {folder} is")
    try:
        with safetensors.safe_open(path, "np") as file:
            header = json.loads(file.metadata()[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        kind, settings = choose("first stage", header["kind"], KINDS), _of_tuples(header["settings"])
        model = kind(**settings | {"dtype": jnp.dtype(settings["dtype"])})
        scale, shift = _of_tuples(header["scale"]), _of_tuples(header["shift"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what was written ({type(error).__name__}: {error})") from None
    stage = FirstStage(model, traverse_util.unflatten_dict(tensors, sep="/"), scale, shift)
    if stage.weights != weights:
        raise ValueError(
            f"{path} holds another autoencoder: its weights and scale are {stage.weights}, and {weights} is what is "
            "used here"
        )
    return stage


def _of_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_of_tuples, value))
    return {name: _of_tuples(each) for name, each in value.items()} if isinstance(value, dict) else value
