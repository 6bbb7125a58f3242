"""Files of weights: the same arrays from every format, and one error for whatever is damaged or carries code."""

import argparse
import os
import pickle
import sys
import types
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from safetensors import TensorSpec, serialize
from safetensors.numpy import save

from ddpm_jax.interop import files

FORMATS = ("safetensors", "npz", "torch", "old_torch")


@pytest.fixture
def arrays():
    random = np.random.RandomState(0)
    floats = {f"layer.{i}.weight": random.randn(3, 2 + i).astype(np.float32) for i in range(3)}
    return floats | {"count": np.array(7), "codes": np.arange(4)}


def written(kind: str, arrays) -> bytes:
    """The content of a file with these arrays."""
    if kind == "safetensors":
        return save(arrays)
    stream = BytesIO()
    if kind == "npz":
        np.savez(stream, **arrays)
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, stream, _use_new_zipfile_serialization=kind == "torch")
    return stream.getvalue()


def refused(path: Path, *parts: str) -> str:
    """The one line of the ValueError that reading the file ends in."""
    with pytest.raises(ValueError) as error:
        files.read(path)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_arrays(kind, arrays, tmp_path):
    """Told apart by content: the name is that of none of them."""
    (tmp_path / "weights.txt").write_bytes(written(kind, arrays))
    found = files.read_state_dict(tmp_path / "weights.txt")
    assert list(found) == list(arrays) or kind == "safetensors"  # which sorts them
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_float16_and_bfloat16_is_read_exactly(tmp_path):
    """All 65536 of each, and of both formats: they are float32 numbers, subnormal ones, infinities and NaN included."""
    bits = np.arange(2**16, dtype=np.uint16)
    expected = {"half": bits.view(np.float16).astype(np.float32), "brain": np.zeros(2**16, np.float32)}
    expected["brain"].view(np.uint16)[1::2] = bits  # little-endian: the upper half
    specs = {
        name: TensorSpec(dtype=dtype, shape=(2**16,), data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, dtype in (("half", "float16"), ("brain", "bfloat16"))
    }
    (tmp_path / "a").write_bytes(bytes(serialize(specs)))
    np.savez(tmp_path / "b.npz", half=bits.view(np.float16))
    for path in (tmp_path / "a", tmp_path / "b.npz"):
        for name, array in files.read(path).items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("kind", ("torch", "old_torch"))
def test_half_precision_of_pytorch_is_read_exactly(kind, tmp_path):
    torch = pytest.importorskip("torch")
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    tensors = {"half": bits.view(torch.float16), "brain": bits.clone().view(torch.bfloat16)}
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=kind == "torch")
    found = files.read(tmp_path / "a.ckpt")["state_dict"]
    for name, tensor in tensors.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


def test_containers_of_pytorch(tmp_path):
    """Lists and mappings stay, with arrays for tensors: what training saves beside weights."""
    torch = pytest.importorskip("torch")
    torch.save([{"a": torch.ones(2)}, {"lr": 0.1, "steps": (1, 2)}, 3, None], tmp_path / "a.pt")
    found = files.read(tmp_path / "a.pt")
    np.testing.assert_array_equal(found[0]["a"], np.ones(2, np.float32))
    assert found[1:] == [{"lr": 0.1, "steps": [1, 2]}, 3, None]
    with pytest.raises(ValueError, match=r"a\.pt does not hold arrays by name"):
        files.read_state_dict(tmp_path / "a.pt")


def test_names_of_harmless_classes_are_read(tmp_path, monkeypatch):
    """Lightning writes the class of its callback as a key, DiT's training the arguments of its script."""
    torch = pytest.importorskip("torch")
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for depth in (1, 2, 3):
            patch.setitem(sys.modules, ".".join(name.split(".")[:depth]), module)
        content = {"callbacks": {module.ModelCheckpoint: {"monitor": "loss"}}, "state_dict": {"a": torch.ones(1)}}
        torch.save(content | {"args": argparse.Namespace(model="DiT-XL/2")}, tmp_path / "a.ckpt")
    assert name not in sys.modules
    found = files.read(tmp_path / "a.ckpt")
    assert found["callbacks"] == {files.ModelCheckpoint: {"monitor": "loss"}}
    assert found["args"].model == "DiT-XL/2"
    np.testing.assert_array_equal(found["state_dict"]["a"], [1])


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def carrying(kind: str, code: Code) -> bytes:
    stream = BytesIO()
    if kind == "pickle":
        return pickle.dumps({"weight": np.zeros(2), "code": code})
    if kind == "npz":
        np.savez(stream, weight=np.zeros(2), code=np.array([code], object))
    else:
        torch = pytest.importorskip("torch")
        content = {"weight": torch.zeros(2), "code": code}
        torch.save(content, stream, _use_new_zipfile_serialization=kind == "torch")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ("pickle", "npz", "torch", "old_torch"))
def test_code_in_a_file_is_not_run(kind, tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "a.pt").write_bytes(carrying(kind, Code(trace)))
    said = {"pickle": "is a pickle", "npz": "more than arrays"}.get(kind, "refused: a file of PyTorch that names")
    refused(tmp_path / "a.pt", said)
    assert not trace.exists()


def test_what_a_careless_reader_would_run(tmp_path):
    """The trace of the test above is one that shows."""
    pickle.loads(carrying("pickle", Code(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_anywhere(kind, arrays, tmp_path):
    content, path = written(kind, arrays), tmp_path / "weights"
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_bits(kind, arrays, tmp_path):
    """One bit of the header: an error, or another file that is as valid, with other names for example."""
    content, path = written(kind, arrays), tmp_path / "weights"
    random, num_refused = np.random.RandomState(1), 0
    header = 8 + int.from_bytes(content[:8], "little") if kind == "safetensors" else min(len(content), 1500)
    for _ in range(200):
        changed = bytearray(content)
        changed[random.randint(header)] ^= 1 << random.randint(8)
        path.write_bytes(changed)
        try:
            found = files.read(path)
        except ValueError as error:
            assert "\n" not in str(error)
            num_refused += 1
        else:
            assert isinstance(found, dict) or kind == "old_torch"
    assert num_refused > 50


@pytest.mark.parametrize("kind", ("npz", "torch"))
def test_changed_bits_in_the_arrays(kind, arrays, tmp_path):
    """Zip archives have checksums."""
    content, path = bytearray(written(kind, arrays)), tmp_path / "weights"
    start = bytes(content).index(arrays["layer.1.weight"].tobytes())
    content[start + 5] ^= 16
    path.write_bytes(content)
    refused(path, "damaged")


@pytest.mark.parametrize("start", (b"", b"PK\x03\x04", files.LEGACY_TORCH, b"\x30\0\0\0\0\0\0\0{", b"\x80\x04"))
def test_random_bytes(start, tmp_path):
    random = np.random.RandomState(2)
    for _ in range(20):
        (tmp_path / "a").write_bytes(start + random.bytes(random.randint(1, 400)))
        if start == files.LEGACY_TORCH:
            pytest.importorskip("torch")
        refused(tmp_path / "a")


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "the file is empty")
    (tmp_path / "page.html").write_text("<!DOCTYPE html>")  # what a download often is
    refused(tmp_path / "page.html", "neither safetensors nor .npz", "<!DOCTYP")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    refused(tmp_path / "a.zip", "neither .npz nor", "readme.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.read(tmp_path / "nowhere")


POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
OID = b"oid sha256:" + b"4d7a2146" * 8 + b"\nsize 3438167540\n"


@pytest.mark.parametrize("start", POINTERS)
@pytest.mark.parametrize("name", ("a.pt", "a.safetensors", "a.ckpt", "a.npz", "a.bin"))
def test_a_pointer_of_git_lfs(start, name, tmp_path):
    """What a clone has in the place of weights; of a file alone and of those of a folder."""
    (tmp_path / name).write_bytes(start + b"v1\n" + OID)
    refused(tmp_path / name, f"{name} is a pointer of git-lfs, not the file itself", "run `git lfs pull`")
    with pytest.raises(ValueError, match="pointer of git-lfs"):
        files.read_state_dict(tmp_path / name)
    (tmp_path / name).write_bytes(start)
    refused(tmp_path / name, "pointer of git-lfs")


def test_a_dtype_that_is_not_known(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    refused(tmp_path / "a", "a is F8_E4M3", "BF16")


def test_sparse_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "sparse")


def test_tensors_that_are_no_arrays(tmp_path):
    """Of a precision that NumPy has not."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "tensors of torch.float8_e4m3fn")


@pytest.mark.parametrize("kind", ("torch", "old_torch"))
def test_arrays_are_read_without_torch(kind, tmp_path, monkeypatch):
    """Also those which share a storage, transposed, from its middle, and the one of half precision."""
    torch = pytest.importorskip("torch")
    a = torch.arange(24.0).reshape(4, 6)
    content = {"a": a, "rows": a[1:3], "columns": a.T[2:], "empty": a[:0], "one": torch.tensor(3), "b": a.bfloat16()}
    content = {"state_dict": content, "weight": torch.nn.Parameter(a), "steps": [1, (2.0, None, "x")]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=kind == "torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    found = files.read(tmp_path / "a.pt")
    assert found["steps"] == [1, [2.0, None, "x"]]
    np.testing.assert_array_equal(found["weight"], a.numpy())
    for name, tensor in content["state_dict"].items():
        expected = tensor.float().numpy() if name == "b" else tensor.numpy()
        np.testing.assert_array_equal(found["state_dict"][name], expected, strict=True)


@pytest.mark.parametrize("kind", ("torch", "old_torch"))
def test_without_torch_it_is_named(kind, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt", _use_new_zipfile_serialization=kind == "torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"with torch\._utils\._rebuild_sparse_tensor.*pip install torch"):
        files.read(tmp_path / "a.pt")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """In a file of torch.save, the number of rows that its pickle says is changed."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(5, 7)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    assert content.count(b"K\x05K\x07") == 1
    (tmp_path / "a.pt").write_bytes(content.replace(b"K\x05K\x07", b"K\x06K\x07"))
    refused(tmp_path / "a.pt", "[6, 7] in a storage of 35")
