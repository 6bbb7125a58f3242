"""What a zip archive says of its contents, before anything of it is inflated."""

import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

DEFLATED = 1040
"""Times as many bytes as there are, at most, come out of deflate (RFC 1951: 258 of 2 bits); bzip2 is not NumPy's."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check(path: Path, members: Collection[str] | None = None) -> None:
    """Whether the sizes that an archive declares can be true, and fit into the memory of this machine.

    Args:
      path: of the archive; a .npy file in it says its size twice.
      members: those that will be read; None for all.

    Raises:
      ValueError: they cannot, or do not.
      OSError, zipfile.BadZipFile, ...: it is none, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        read = [info for info in archive.infolist() if members is None or info.filename in members]
        for info in read:
            if info.file_size > DEFLATED * (info.compress_size + 1):
                raise ValueError(f"{info.filename} says that its {info.compress_size} bytes are {info.file_size}")
        check_memory(sum(info.file_size for info in read))
        for info in read:
            if info.filename.endswith(".npy"):
                with archive.open(info) as file:
                    size = _size(file)
                if size is not None and size != info.file_size:
                    raise ValueError(f"{info.filename} has {info.file_size} bytes, and its array would have {size}")


def check_memory(size: int) -> None:
    """Whether so many bytes fit into the memory of this machine.

    Raises:
      ValueError: they do not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(f"{size} bytes when it is read, and this machine has {memory}")


class Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def npy_header(file: IO[bytes]) -> Header | None:
    """Read from the beginning of a .npy file; None where no reader takes it: another version, no header."""
    try:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except (KeyError, ValueError):
        return None
    return Header(shape, dtype)


def _size(file: IO[bytes]) -> int | None:
    """Bytes of a .npy file as its header says; None of what no reader takes, objects too."""
    header = npy_header(file)
    if header is None or header.dtype.hasobject:
        return None
    return file.tell() + math.prod(header.shape) * header.dtype.itemsize
