"""What archives say of themselves, before anything is inflated."""

import re
import zipfile

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.host import archives
from ddpm_jax.interop import files


def npz(path, shape, content, dtype="|u1"):
    """An archive of images whose header says this shape."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content)
    return path


def test_what_numpy_writes_is_true(tmp_path):
    """Zeros too, of which deflate makes nearly nothing, and arrays of no numbers or of one."""
    arrays = {"images": np.zeros((1000, 64, 64, 3), np.uint8), "x": np.float32(1), "none": np.zeros((0, 3))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    archives.check(tmp_path / "a.npz")
    assert len(data.load(str(tmp_path / "a.npz"))) == 1000
    assert files.read(tmp_path / "a.npz").keys() == arrays.keys()


@pytest.mark.parametrize("shape", [(10**6, 64, 64, 3), (2**40, 8, 8), (1, 8, 8)])
def test_a_header_that_says_another_size(tmp_path, shape):
    """More, which NumPy makes room for before it reads, and less."""
    path = npz(tmp_path / "a.npz", shape, bytes(2 * 64))
    for read in (lambda: data.load(str(path)), lambda: files.read(path)):
        with pytest.raises(ValueError, match=r"images.npy has \d+ bytes, and its array would have \d+"):
            read()


def test_a_directory_that_says_another_size(tmp_path):
    """More than deflate can hold; more than this machine can."""
    path = npz(tmp_path / "a.npz", (2, 8, 8), bytes(2 * 64))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.infolist()[0].file_size
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"images.npy says that its \d+ bytes are 2147483648"):
        files.read(path)


def test_more_than_there_is_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8), other=np.zeros(2**20, np.uint8))
    pages = 2**18 // archives.os.sysconf("SC_PAGE_SIZE")
    real = archives.os.sysconf
    monkeypatch.setattr(archives.os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else real(name))
    with pytest.raises(ValueError, match=r"\d+ bytes when it is read, and this machine has 262144"):
        files.read(tmp_path / "a.npz")
    assert len(data.load(str(tmp_path / "a.npz"), key="images")) == 4  # what is not read need not fit


def test_a_picture_of_more_pixels_than_anybody_has(tmp_path):
    """A PNG that says 60,000 x 60,000, refused from its header."""
    import struct
    import zlib

    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "bomb.png")) + ".*3600000000 pixels"):
        data.load(str(tmp_path))
