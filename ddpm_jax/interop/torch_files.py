"""Arrays in PyTorch's files, read without PyTorch: the zip archive of torch.save, and the older stream of pickles.

Nothing in a file is executed: its pickle may name ordered dictionaries, the kinds of storages and the function that
puts a tensor together, each of which is one of this module, and nothing else. What else a file may hold (sparse
tensors, classes of other packages) is `Unknown`, and left to torch.load(weights_only=True).
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ddpm_jax.host import archives

STORAGES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1"},
    "BoolStorage": "?",
}
"""Class of torch to the numbers in it."""
ZIP = b"PK\x03\x04"


class Unknown(Exception):
    """The file holds more than is read here; the message is the name of it."""


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Functions made anew for each file: a pickle may set attributes of what it names.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise Unknown(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or dtype not in STORAGES.values() or view not in ([], [None]):
            raise Unknown(f"{kind} of {dtype}")
        self.dtypes[str(key)] = dtype
        return _Storage(dtype, str(key))


def read(path: Path) -> Any:
    """What a file of PyTorch holds: containers, numbers, and NumPy arrays for tensors; half precision as float32.

    Raises:
      Unknown: more than that.
      ValueError, pickle.UnpicklingError, zipfile.BadZipFile, ...: damaged.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
        file.seek(0)
        found, storages = _read_zip(path) if zipped else _read_stream(file)
    return _resolve(found, storages, {})


def _read_zip(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise Unknown("numbers with the highest byte first")
        with archive.open(pickled) as file:
            found = _Unpickler(file).load()
        data = f"{folder}data/"
        raw = {name.removeprefix(data): archive.read(name) for name in names if name.startswith(data)}
    return found, {key: np.frombuffer(content, np.uint8) for key, content in raw.items()}


def _read_stream(file: IO[bytes]) -> tuple[Any, dict[str, np.ndarray]]:
    for _ in range(2):  # a magic number, the version
        _Unpickler(file).load()
    system = _Unpickler(file).load()
    if system["little_endian"] is not True:
        raise Unknown("numbers with the highest byte first")
    unpickler = _Unpickler(file)
    found = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        size = int.from_bytes(file.read(8), "little") * _itemsize(unpickler.dtypes[str(key)])
        content = file.read(size)
        if len(content) != size:
            raise EOFError(f"the file ends within storage {key}")
        storages[str(key)] = np.frombuffer(content, np.uint8)
    return found, storages


def _resolve(value: Any, storages: Mapping[str, np.ndarray], made: dict[int, Any]) -> Any:
    """The same containers with arrays for tensors; what is in the file once is made once."""
    if not isinstance(value, _Tensor | dict | list | tuple):
        return value
    if id(value) not in made:
        if isinstance(value, _Tensor):
            made[id(value)] = _array(value, storages[value.storage.key])
        elif isinstance(value, dict):  # of the class: an ordered dictionary of a file may have attributes of any name
            made[id(value)] = {key: _resolve(item, storages, made) for key, item in dict.items(value)}
        else:
            made[id(value)] = [_resolve(item, storages, made) for item in value]
    return made[id(value)]


def _array(tensor: _Tensor, content: np.ndarray) -> np.ndarray:
    storage, offset, shape, strides = tensor
    numbers = content.view("<u2" if storage.dtype == "bfloat16" else storage.dtype)
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise ValueError(f"a tensor of {list(shape)} with strides {list(strides)}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(numbers):
        raise ValueError(f"a tensor of {list(shape)} in a storage of {len(numbers)} numbers")
    archives.check_memory(math.prod(shape) * _itemsize(storage.dtype))
    steps = [stride * numbers.itemsize for stride in strides]
    start = numbers[offset:] if 0 not in shape else np.empty(1, numbers.dtype)
    array = np.lib.stride_tricks.as_strided(start, shape, steps).copy()
    if storage.dtype == "bfloat16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
