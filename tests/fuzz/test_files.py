"""Files that are truncated, flipped, stuffed, of other kinds, or hold other values than they should."""

import io
import json
import shutil
import zipfile
import zlib

import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from ddpm_jax import build, cli, data, interop, opening
from ddpm_jax.config.run import TrainConfig, flatten, from_dict, to_dict
from ddpm_jax.evaluate.likelihood import files as sums_files
from ddpm_jax.evaluate.likelihood.table import empty
from ddpm_jax.interop import files
from ddpm_jax.runs import checkpoint, sealing
from ddpm_jax.train.metrics import MetricsLog, read_metrics
from tests.fuzz.common import JSON, NUMBERS, TEXTS, WRONG, fuzz, make_run, refused, sizes


def damaged(content: bytes):
    """The content after a few cuts, flips and insertions; or bytes of no kind."""
    at = st.integers(0, max(len(content) - 1, 0))
    change = st.one_of(
        st.tuples(st.just("cut"), at, st.just(b"")),
        st.tuples(st.just("drop"), at, st.just(b"")),
        st.tuples(
            st.just("flip"),
            st.one_of(at, st.integers(0, min(len(content) - 1, 150))),
            st.binary(min_size=1, max_size=1),
        ),
        st.tuples(st.just("put"), at, st.one_of(st.binary(max_size=9), st.just(b"[" * 100_000), st.just(b"9" * 5000))),
    )

    def apply(changes):
        found = content
        for kind, i, new in changes:
            rest = {"cut": b"", "drop": found[i + 1 :], "flip": new + found[i + 1 :], "put": new + found[i:]}
            found = found[:i] + rest[kind]
        return found

    return st.one_of(st.lists(change, min_size=1, max_size=3).map(apply), st.binary(max_size=40))


def with_values(content, values=JSON):
    """JSON text of a mapping with one to three of its values changed, dropped or added, at any depth."""
    paths = [()]
    for path in paths:
        at = follow(content, path)
        paths += [(*path, key) for key in at] if isinstance(at, dict) else []

    def change(changes):
        found = json.loads(json.dumps(content))
        for path, value in changes:
            parent = follow(found, path[:-1]) if path else None
            if not path:
                found = value if value != "drop" else found
            elif isinstance(parent, dict):
                parent[path[-1]] = value
                if value == "drop":
                    del parent[path[-1]]
        return json.dumps(found)

    return st.lists(
        st.tuples(st.sampled_from(paths * 4 + [("",)]), st.one_of(values, st.just("drop"))), min_size=1, max_size=3
    ).map(change)


def follow(content, path):
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@sizes("config.json")
def test_config_json(examples, run, tmp_path):
    """Of a run: read, or refused by the file's name; what is read makes a network, or says why not."""
    path, good = tmp_path / "config.json", (run / "config.json").read_bytes()

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        info = refused(lambda: checkpoint.load_run(tmp_path), [str(path)])
        if info is not None and info != read:
            refused(
                lambda: build.make_model(info.config, info.image_shape), flatten(info.config.model) | {"H and W": 0}
            )

    read = checkpoint.load_run(run)
    values = st.one_of(JSON, NUMBERS, st.sampled_from(LARGE), st.lists(NUMBERS, min_size=3, max_size=3))
    fuzz(examples, st.one_of(with_values(json.loads(good), values), damaged(good)), check)


EXPERIMENT = """from ddpm_jax.config.run import *
config = Config(train=TrainConfig(num_steps=7, seed=1), schedule=ScheduleConfig("cosine"))
"""


@sizes("experiments")
def test_experiments(examples, tmp_path):
    path = tmp_path / "experiment.py"

    def check(source):
        path.write_bytes(source)
        refused(lambda: cli.load_experiment(path), [str(path)])

    noise = st.text("()[]{}=,.:'\"#\\ \n\t\r01éx\0-*", max_size=6).map(str.encode)
    at = st.integers(0, len(EXPERIMENT))
    mutated = st.lists(st.tuples(at, at, noise), min_size=1, max_size=2).map(
        lambda cuts: b"".join([EXPERIMENT.encode()[: cuts[0][0]], cuts[0][2], EXPERIMENT.encode()[max(cuts[0][:2]) :]])
    )
    field = st.sampled_from(
        ["train.num_steps", "train.seed", "model.channels", "data.name", "optimizer.beta1", "train.x"]
    )
    value = st.one_of(
        WRONG, st.sampled_from(["missing", "1/0", "[][0]", "{}['a']", "None.x", "len()", "int('x')", "import"])
    )

    def configured(pair):
        (section, name), value = pair[0].split("."), pair[1] if isinstance(pair[1], str) else repr(pair[1])
        made = f"{section.title()}Config({name}={value})"
        return f"from ddpm_jax.config.run import *\nconfig = Config({section}={made})\n".encode()

    fuzz(examples, st.one_of(mutated, st.tuples(field, value).map(configured)), check)


@sizes("metrics")
def test_metrics(examples, tmp_path):
    """Lines of a run's log: a resumed run reads them, or says which is none."""
    good = b"".join(json.dumps({"step": k, "loss": 1 / k, "grad_norm": 1.0}).encode() + b"\n" for k in (1, 2, 3))

    def check(content):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(content)
        lines = refused(lambda: read_metrics(path), [str(path)])
        assert lines is None or all(line["step"] + line.get("loss", 0) is not None for line in lines)
        log = refused(lambda: MetricsLog(tmp_path, 2), [str(path)])
        if log is None:
            assert path.read_bytes() == content  # what was not understood is still there
        else:
            log.close()

    line = st.one_of(JSON, with_values({"step": 1, "loss": 0.5}).map(json.loads)).map(
        lambda value: json.dumps(value).encode() + b"\n"
    )
    fuzz(examples, st.one_of(damaged(good), st.lists(line, max_size=3).map(b"".join)), check)


def content_of(write, *args, **kwargs) -> bytes:
    stream = io.BytesIO()
    write(stream, *args, **kwargs)
    return stream.getvalue()


def npy_header(shape, dtype, order) -> bytes:
    header = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def npz_of(npy: bytes) -> bytes:
    """An archive with one array, whatever its header says."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy)
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A picture of a few bytes that says it has so many pixels."""
    content = bytearray(content_of(Image.new("L", (6, 5)).save, "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


LARGE = [2000, 10**6, 10**9]
"""What takes minutes, or ends a process, where it is believed."""
IMAGES = np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6)


@sizes("arrays")
def test_arrays(examples, tmp_path):
    """.npy and .npz files of images, and the sums of nll."""
    shapes = st.lists(st.sampled_from([0, 1, 2, 6, -1, 2**31, 2**63, 10**30]), max_size=5).map(tuple)
    dtypes = st.sampled_from(["|u1", "<f4", "|O", "<U4", "|b1", "x", "", "<i8", "<M8[s]", [("a", "|u1")]])
    header = st.builds(npy_header, st.one_of(shapes, WRONG), dtypes, st.one_of(st.booleans(), WRONG))
    npy, npz = content_of(np.save, IMAGES), content_of(np.savez_compressed, images=IMAGES, labels=np.arange(4))
    two = content_of(np.savez, a=IMAGES, b=IMAGES)
    settings, sums = {"seed": 0}, empty(8)
    of_nll = content_of(np.savez, settings=json.dumps(settings), **sums._asdict())
    size = st.sampled_from([None, None, 0, 1, 3, 6, 9, -1, 2**31, 10**30, 2.5, "x"])

    def check(example):
        content, ending, image_size = example
        path = tmp_path / f"images{ending}"
        path.write_bytes(content)
        if ending == ".npz" and content[:60] == of_nll[:60]:
            path = path.rename(tmp_path / sums_files.SUMS)
            refused(lambda: sums_files.load_sums(tmp_path, settings, 8, print), [str(path)])
            return
        source = refused(lambda: data.load(str(path), image_size=image_size), [str(path), "image_size"])
        if source is not None:
            assert source.images([0]).shape == (1, *source.image_shape)

    no_images = [content_of(np.save, np.uint8(3)), content_of(np.save, np.zeros((2, 0, 3), np.uint8)), two]
    contents = st.one_of(
        damaged(npy), header, header.map(lambda start: start + bytes(36)),
        header.map(lambda start: npz_of(start + bytes(36))), damaged(npz), damaged(two), damaged(of_nll),
        st.sampled_from([*no_images, npz]),
    )  # fmt: skip
    fuzz(examples, st.tuples(contents, st.sampled_from([".npy", ".npz"]), size), check)


def pictures() -> list[bytes]:
    """One of each format and mode."""
    kinds = (
        "PNG L, PNG RGBA, PNG P, PNG I;16, PNG 1, JPEG RGB, JPEG CMYK, GIF P, BMP RGB, WEBP RGB, TIFF F, TIFF RGB, "
        "TIFF LAB, JPEG2000 RGB, TGA RGBA, PPM RGB, SGI L, ICO RGBA, PCX P, DDS RGB, QOI RGB"
    )
    return [content_of(lambda stream, kind, mode: Image.new(mode, (6, 5)).save(stream, kind), *kind.split())
            for kind in kinds.split(", ")]  # fmt: skip


@sizes("folders")
def test_folders(examples, tmp_path):
    ready = pictures()

    def check(example):
        files, image_size = example
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for i, (content, ending) in enumerate(files):
            if content is None:
                (folder / f"{i}{ending}").mkdir()
            else:
                (folder / f"{i}{ending}").write_bytes(content)
        source = refused(lambda: data.load(str(folder), image_size=image_size), [str(folder), "image_size"])
        if source is not None:
            assert source.images([0]).shape == (1, *source.image_shape)

    said = st.builds(png_of, *[st.sampled_from([0, 1, 5, 6, 20_000, 60_000, 2**31 - 1])] * 2)
    content = st.one_of(st.sampled_from(ready).flatmap(damaged), st.sampled_from([*ready, None]), said)
    ending = st.sampled_from([".png", ".jpg", ".gif", ".webp", ".bmp", ".PNG", ".tif", ".txt", ""])
    sizes = st.sampled_from([None, None, 0, 1, 4, 2**31, 2.5])
    fuzz(examples, st.tuples(st.lists(st.tuples(content, ending), max_size=3), sizes), check)


@sizes("names")
def test_names_of_data(examples, tmp_path, monkeypatch):
    """Of data sets, their directories and splits; nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tfds").mkdir()

    def check(example):
        name, options = example
        refused(
            lambda: data.load(name, **options), [name, repr(name)[1:-1], "data_dir", "split", "image_size", "data set"]
        )
        assert [path.name for path in tmp_path.iterdir()] == ["tfds"]

    names = st.one_of(
        TEXTS, st.sampled_from(["mnist", "mnits", "x/y", "~", "/", "a" * 300, "x.npy", "..", "mnist:9.9.9"])
    )
    directory = st.fixed_dictionaries({"data_dir": st.one_of(st.just(str(tmp_path / "tfds")), TEXTS)})
    others = st.fixed_dictionaries({}, optional={"split": TEXTS, "image_size": NUMBERS})
    fuzz(examples, st.tuples(names, st.builds(dict.__or__, directory, others)), check)


@sizes("seals")
def test_seals(examples, run, tmp_path):
    """Of checkpoints: whatever a seal says, the checkpoint is intact or it is said what is not."""
    step = max((run / "checkpoints").iterdir())
    target = tmp_path / "step"
    shutil.copytree(step, target)
    good = (step / sealing.SEAL).read_bytes()

    def check(content):
        (target / sealing.SEAL).write_bytes(content if isinstance(content, bytes) else content.encode())
        found = sealing.damage(target)
        assert isinstance(found, str) or json.loads((target / sealing.SEAL).read_bytes()) == json.loads(good)

    fuzz(examples, st.one_of(with_values(json.loads(good)), damaged(good)), check)


ARRAYS = {"conv_in.weight": np.zeros((4, 1, 3, 3), np.float32), "conv_in.bias": np.zeros(4, np.float16)}


@sizes("weights")
def test_weights(examples, tmp_path):
    path = tmp_path / "weights"
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

    def with_length(text: str) -> bytes:
        return len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(8)

    def check(content):
        path.write_bytes(content)
        try:
            refused(lambda: interop.load(path), [str(path)])
            refused(lambda: files.read(path), [""])  # the name is added by load
        except ImportError as error:
            assert "torch" in str(error)

    shapes = st.one_of(
        JSON,
        st.lists(st.sampled_from([0, 1, 2, -1, 2**63, 2.5]), max_size=3),
        st.sampled_from(["F16", "BF16", "I64", "F8"]),
    )
    torch, archive = b"\x80\x02\x8a\nl\xfc\x9cF\xf9" + bytes(20), b"PK\x03\x04" + bytes(40)
    contents = [save(ARRAYS), content_of(np.savez, **ARRAYS), torch, archive]
    fuzz(examples, st.one_of(*map(damaged, contents), with_values(header, shapes).map(with_length)), check)


@sizes("diffusers")
def test_folders_of_diffusers(examples, run, tmp_path):
    """Any setting of a pipeline, a network or a scheduler with another value."""
    with jax.numpy_dtype_promotion("standard"):
        interop.save_diffusers(tmp_path / "good", opening.open(run, print))
    names = [str(path.relative_to(tmp_path / "good")) for path in (tmp_path / "good").rglob("*.json")]
    good = {name: (tmp_path / "good" / name).read_bytes() for name in names}
    assert len(good) >= 3

    def check(example):
        name, content = example
        path = tmp_path / "good" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            loaded = refused(lambda: interop.load(tmp_path / "good"), [str(tmp_path / "good")])
            if loaded is not None:
                refused(
                    lambda: loaded.default_sampler(2),
                    ["num_steps", "timestep", "sigma", "levels", "beta", "prediction"],
                )
        finally:
            path.write_bytes(good[name])

    values = st.one_of(
        JSON, NUMBERS, st.lists(NUMBERS, max_size=3), st.sampled_from(["linear", "v_prediction", "sample", *LARGE])
    )
    changes = {
        name: st.one_of(*[with_values(json.loads(text), values)] * 4, damaged(text)) for name, text in good.items()
    }
    fuzz(examples, st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), changes[name])), check)


def test_a_good_run_is_read(run):
    """The material of this file is intact before it is damaged."""
    info = checkpoint.load_run(run)
    assert info.config.train == TrainConfig(num_steps=1, batch_size=8) and from_dict(to_dict(info), type(info)) == info
    assert sealing.damage(max((run / "checkpoints").iterdir())) is None
