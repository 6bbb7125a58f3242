"""A folder of latents: images that an autoencoder has encoded once, sealed, as a `Source`.

    latents.json               what is in the others, and size and CRC-32 of each of them
    latent.npy                 float32 [N, h, w, D]: the means of posteriors, or what a codebook has not yet quantized
    log_variance.npy           float32 [N, h, w, D], of posteriors
    label.npy, caption.json    of the images, where they have some
    first_stage.safetensors    the autoencoder: what decodes

The folder appears under its name when it is whole. Everything is checked before it is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.records import (
    CAPTION,
    LABEL,
    LATENT,
    LOG_VARIANCE,
    MEMORY_BOUND,
    Feature,
    Indices,
    Record,
    Source,
    texts,
)
from ddpm_jax.host.storage import crc32, naming, write_atomically

NAME, AUTOENCODER, CAPTIONS = "latents.json", "first_stage.safetensors", "caption.json"
ARRAYS = {LATENT: np.float32, LOG_VARIANCE: np.float32, LABEL: np.int32}


@dataclass(frozen=True)
class Description:
    """latents.json.

    Attributes:
      data: which images these were, in words.
      fingerprint: of the images.
      weights: the checksum of the autoencoder with its scale and shift.
      scale, shift: of latents as a model diffuses them, (z - shift) scale.
      deviation, mean: of each channel over all draws of all posteriors.
      classes: names of the labels.
      seal: {file: [bytes, CRC-32]}.
    """

    data: str
    fingerprint: dict[str, str]
    weights: str
    scale: Any
    shift: Any
    deviation: list[float]
    mean: list[float]
    classes: list[str] | None
    seal: dict[str, list[int]]


def is_latents(folder: Path) -> bool:
    """Whether a folder says that it holds latents."""
    return (folder / NAME).is_file()


def write_others(folder: Path, others: Mapping[str, np.ndarray]) -> None:
    """The labels and captions of the images."""
    if LABEL in others:
        np.save(folder / f"{LABEL}.npy", others[LABEL])
    if CAPTION in others:
        write_atomically(folder / CAPTIONS, json.dumps(others[CAPTION].tolist()) + "\n")


def sealed(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but latents.json."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    return {path.name: [path.stat().st_size, crc32(path)] for path in files}


def write_description(folder: Path, description: Description) -> None:
    """latents.json, last of all."""
    write_atomically(folder / NAME, json.dumps(asdict(description), indent=1) + "\n")


def read_description(folder: Path) -> Description:
    """What was written.

    Raises:
      ValueError: it is not that.
    """
    path = folder / NAME
    try:
        with naming(path):
            values = json.loads(path.read_text())
        return Description(**{item.name: values[item.name] for item in fields(Description)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what encode has written ({type(error).__name__}: {error})") from None


def open_latents(folder: Path) -> Source:
    """The latents in a folder, their labels and captions; in memory where they take at most records.MEMORY_BOUND bytes.

    Raises:
      ValueError: files that are missing or not as they were written.
    """
    said = read_description(folder)
    _check(folder, said.seal)
    found: dict[str, np.ndarray] = {}
    for name, dtype in ARRAYS.items():
        if (path := folder / f"{name}.npy").name in said.seal:
            found[name] = np.load(path, mmap_mode="r")
            if found[name].dtype != dtype:
                raise ValueError(f"{path} holds {found[name].dtype}, and {np.dtype(dtype)} is what encode writes")
    if CAPTIONS in said.seal:
        found[CAPTION] = texts(json.loads((folder / CAPTIONS).read_text()))
    if sum(array.nbytes for array in found.values()) <= MEMORY_BOUND:
        found = {name: np.array(array) for name, array in found.items()}
    classes = None if said.classes is None else tuple(said.classes)
    spec = {
        name: Feature(array.shape[1:], array.dtype, classes if name == LABEL else None) for name, array in found.items()
    }

    def take(indices: Indices, names: Sequence[str]) -> Record:
        return {name: np.asarray(found[name][indices]) for name in names}

    in_memory = {name: array for name, array in found.items() if not isinstance(array, np.memmap)}
    return Source(str(folder), len(found[LATENT]), spec, take, in_memory, autoencoder=folder)


def _check(folder: Path, seal: Mapping[str, Sequence[int]]) -> None:
    for name in (f"{LATENT}.npy", AUTOENCODER):
        if name not in seal:
            raise ValueError(f"{folder / NAME} does not name {name}")
    for name, (size, checksum) in seal.items():
        path = folder / name
        if not path.is_file():
            what = ", which decodes the latents" if name == AUTOENCODER else ""
            raise ValueError(f"{folder} lacks {name}{what}: it is not whole")
        if path.stat().st_size != size or crc32(path) != checksum:
            raise ValueError(f"{path} is not what encode has written")
