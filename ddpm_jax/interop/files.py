"""Weights on disk: safetensors, .npz, PyTorch's and Flax's files, told apart by their first bytes, never by names.

Nothing in a file is executed. PyTorch's files are pickles: arrays, numbers and containers are read without PyTorch
(torch_files); what else a file holds goes through torch.load(weights_only=True), which knows a few harmless kinds more
and refuses anything else. Half precision, float16 and bfloat16, becomes float32,
which holds every such number exactly; other arrays stay as they are.
"""

import argparse
import importlib
import json
import mmap
import pickle
import re
import struct
import types
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.host import archives
from ddpm_jax.host.storage import require_file
from ddpm_jax.interop import flax_weights, torch_files
from ddpm_jax.samplers.configs.reading import refuse_pointer

# The first bytes of a zip archive, and of what torch.save wrote before it wrote zip archives.
ZIP = b"PK\x03\x04"
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"
# What these readers raise about bytes that are none of theirs: they check some of what they read, not all of it.
DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
SAFETENSORS_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}


class ModelCheckpoint:
    """Stands for the class of PyTorch Lightning, which latent-diffusion's files name as a key; it does nothing."""


# Classes that files of weights name beside arrays. Only the second would be known anyway, and neither runs code.
HARMLESS = [
    (ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (argparse.Namespace, "argparse.Namespace"),
]


def read(path: Path) -> Any:
    """What a file holds: a mapping from names to NumPy arrays, or, from PyTorch, also lists and mappings of such.

    Raises:
      FileNotFoundError: no such file.
      ValueError: empty, damaged, of no known format, a pointer of git-lfs, or with more in it than arrays, numbers and
        containers.
      ImportError: it is PyTorch's, more than arrays, numbers and containers, and torch is not installed.
    """
    require_file(path)
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(16)
    archives.check_memory(path.stat().st_size)
    if not start:
        raise ValueError("the file is empty")
    if start.startswith(ZIP):
        return _read_zip(path)
    if start.startswith(LEGACY_TORCH):
        return _read_torch(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if flax_weights.is_msgpack(start):
        return flax_weights.read(path)
    if is_pickle(path):
        raise ValueError("the file is a pickle, which can run any code when it is read: refused")
    raise ValueError(f"neither safetensors nor .npz nor a file of PyTorch or Flax: it starts with {start[:8]!r}")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle that is no file of PyTorch.

    Raises:
      FileNotFoundError: no such file.
    """
    require_file(path)
    with path.open("rb") as file:
        start = file.read(len(LEGACY_TORCH))
    return start[:1] == b"\x80" and start[1:2] <= b"\x05" and start != LEGACY_TORCH


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name of a file that holds nothing else.

    Raises:
      FileNotFoundError, ImportError: as read.
      ValueError: as read; or more than arrays by name.
    """
    found = read(path)
    if not is_state_dict(found):
        raise ValueError(f"{path.name} does not hold arrays by name")
    return found


def is_state_dict(value: Any) -> bool:
    """Whether this is a mapping from names to arrays, and not an empty one."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items())
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Its arrays; those of float32 lie in the file, mapped, and are read when they are needed: see let_go."""
    import safetensors  # here, so that name maps work where it is not installed

    try:
        with safetensors.safe_open(path, "numpy") as checked:  # where each array lies, within the file and apart
            names = sorted(checked.keys())
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (safetensors.SafetensorError, *DAMAGED) as error:
        raise ValueError(f"a damaged safetensors file: {_line(error)}") from error
    arrays = {}
    for name in names:
        kind, shape, (begin, _) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        dtype = SAFETENSORS_DTYPES.get(kind)
        if dtype is None:
            raise ValueError(f"{name} is {kind}, which is none of {', '.join(SAFETENSORS_DTYPES)}")
        array = np.ndarray(shape, dtype, content, start + begin)
        if kind == "BF16":  # the upper half of a float32
            array = np.asarray(array.astype(np.uint32) << 16).view(np.float32)  # a shifted single number is no array
        arrays[name] = _widened(array)
    return arrays


def let_go(array: np.ndarray) -> None:
    """Give the memory back that a mapped file's array takes since it was read; no array changes."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _read_zip(path: Path) -> Any:
    """An .npz or a file of PyTorch."""
    try:
        archives.check(path)
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()  # torch.load ignores the checksums
    except DAMAGED as error:
        raise ValueError(f"a truncated or damaged zip archive: {_line(error)}") from error
    if damaged is not None:
        raise ValueError(f"a damaged zip archive: {damaged} in it has another checksum")
    if any(name.endswith("data.pkl") for name in names):
        return _read_torch(path)
    if not names or not all(name.endswith(".npy") for name in names):
        raise ValueError(f"a zip archive that is neither .npz nor a file of PyTorch: it holds {names[:3]}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _widened(file[name]) for name in file.files}
    except DAMAGED as error:
        raise ValueError(f"an .npz file that is damaged or holds more than arrays: {_line(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch_files.read(path)
    except torch_files.Unknown as error:
        return _read_with_torch(path, str(error))
    except RecursionError as error:
        raise ValueError("a file of PyTorch with containers in each other without end") from error
    except DAMAGED as error:
        raise ValueError(f"a damaged file of PyTorch: {_line(error)}") from error


def _read_with_torch(path: Path, unknown: str) -> Any:
    torch = _torch(unknown)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(
                f"refused: a file of PyTorch that names {refused[1]}, and so may run code when it is read; only "
                "arrays, numbers and containers are read (weights_only=True)"
            ) from error
        # Around this error PyTorch puts one that explains how to run the file.
        raise ValueError(f"a damaged file of PyTorch: {_line(error.__context__ or error)}") from error
    try:
        return _as_arrays(found, torch, {})
    except RecursionError as error:
        raise ValueError("a file of PyTorch with containers in each other without end") from error


def _torch(unknown: str) -> types.ModuleType:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ImportError(f"a file of PyTorch with {unknown}, which only torch reads: pip install torch") from error


def _as_arrays(value: Any, torch: types.ModuleType, made: dict[int, Any]) -> Any:
    """The same containers with arrays for tensors; what is in the file once is made once."""
    if not isinstance(value, torch.Tensor | Mapping | list | tuple):
        return value
    if id(value) not in made:
        if isinstance(value, torch.Tensor):
            made[id(value)] = _array(value, torch)
        elif isinstance(value, Mapping):
            made[id(value)] = {key: _as_arrays(item, torch, made) for key, item in value.items()}
        else:
            made[id(value)] = [_as_arrays(item, torch, made) for item in value]
    return made[id(value)]


def _array(tensor: Any, torch: types.ModuleType) -> np.ndarray:
    if tensor.is_sparse or tensor.is_quantized:
        raise ValueError("a file of PyTorch with sparse or quantized tensors, of which none are known here")
    tensor = tensor.detach()
    try:
        return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()
    except DAMAGED as error:
        raise ValueError(f"a file of PyTorch with tensors of {tensor.dtype}: {_line(error)}") from error


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
