"""The weights in the folder of one model: safetensors or .bin, in one file or several, plain or a variant."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm_jax.interop import files
from ddpm_jax.samplers.configs.reading import read_json

T = TypeVar("T")
DIFFUSERS = {"safetensors": "diffusion_pytorch_model", "bin": "diffusion_pytorch_model"}
TRANSFORMERS = {"safetensors": "model", "bin": "pytorch_model"}
"""What the files are called, by their kind."""


def files_of(folder: Path, stems: Mapping[str, str]) -> list[Path]:
    """All that one form of the weights is in; none where there are none.

    Safetensors before .bin, the plain ones before a variant; or the only variant there is.

    Raises:
      FileNotFoundError: a file that an index names.
      ValueError: several variants and no plain form; a damaged index.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        for kind, stem in stems.items():
            match = re.fullmatch(rf"{stem}(\.(?P<variant>\w+))?\.{kind}", path.name)
            match = match or re.fullmatch(rf"{stem}\.{kind}\.index(\.(?P<variant>\w+))?\.json", path.name)
            if match:
                found.setdefault(match["variant"] or "", {})[kind] = path
    if not found:
        return []
    if "" not in found and len(found) > 1:
        raise ValueError(f"{folder.name} has several variants of the weights, {', '.join(found)}, and no plain one")
    kinds = found.get("", next(iter(found.values())))
    path = next(kinds[kind] for kind in stems if kind in kinds)
    return _shards(path) if path.suffix == ".json" else [path]


def arrays_of(paths: list[Path]) -> dict[str, np.ndarray]:
    """The arrays by name of files that hold nothing else."""
    found: dict[str, np.ndarray] = {}
    for path in paths:
        found |= read(files.read_state_dict, path)
    return found


def read(reader: Callable[[Path], T], path: Path) -> T:
    """reader(path), whose errors say where."""
    try:
        return reader(path)
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from error


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, all of them in its own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index.name} has no weight_map")
    shards = sorted({str(name) for name in names.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{index.name} names a file outside its folder: {shard}")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"no {shard} in {index.parent}, which {index.name} names")
    return [index.parent / shard for shard in shards]
