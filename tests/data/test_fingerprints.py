"""Data that have changed have another fingerprint; data that have moved do not."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import fingerprints, records

ALL = ("image", "label", "caption")
N = 6
RECORD = {
    "image": np.random.RandomState(0).randint(0, 256, (N, 4, 4, 1)).astype(np.uint8),
    "label": np.arange(N, dtype=np.int32) % 2,
    "caption": records.texts(["a", "b", "c", "d", "e", "f"]),
}


def source(classes=("cat", "dog"), **changed):
    return records.from_arrays("x", {**RECORD, **changed}, classes)


def changed(name, index, value):
    array = RECORD[name].copy()
    array[index] = value
    return {name: array}


def lazily(found):
    """The same records, none of them in memory."""
    return records.Source(found.name, len(found), found.spec, found.take)


@pytest.mark.parametrize("of", [lambda found: found, lazily], ids=["in memory", "decoded"])
@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (changed("image", (5, 0, 0, 0), RECORD["image"][5, 0, 0, 0] ^ 1), "image"),
        (changed("label", 3, 0), "label"),
        ({"classes": ("cat", "fox")}, "label"),
        (changed("caption", 5, "g"), "caption"),
        ({"caption": records.texts(["a", "bc", "", "d", "e", "f"])}, "caption"),
    ],
)
def test_every_byte_counts(other, differs, of):
    before, now = (data.fingerprint(of(each), ALL) for each in (source(), source(**other)))
    assert {name for name in ALL if before[name] != now[name]} == {differs}
    [line] = fingerprints.changes(before, now)
    assert line == f"{differs}s of the data: fingerprint {before[differs][:8]}, now {now[differs][:8]}"
    assert fingerprints.changes({}, {"image": "0" * 32}) == ["images of the data: fingerprint none, now 00000000"]


def test_however_they_are_read_they_are_the_same():
    expected = data.fingerprint(source(), ALL)
    for other in (
        source(image=np.asfortranarray(RECORD["image"])),
        records.in_memory(lazily(source())),
        lazily(source()),
    ):
        assert data.fingerprint(other, ALL) == expected
    assert data.fingerprint(source(), ("label",)) == {"label": expected["label"]}


def test_only_the_first_count_where_only_these_are_read():
    before, now = source(), source(**changed("image", 4, 0))
    assert data.fingerprint(before, ALL, 4) == data.fingerprint(now, ALL, 4) != data.fingerprint(now, ALL, 5)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    for i in range(N):
        (path / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RECORD["image"][i, :, :, 0]).save(path / "ab"[i % 2] / f"{i}.png")
    return path


def test_what_is_decoded_batch_by_batch_is_known_by_its_files_too(folder, monkeypatch):
    """Of 6 pictures 2 are looked at; another one is seen by its size or its name; the folder may move."""
    monkeypatch.setattr(records, "MEMORY_BOUND", 0)
    monkeypatch.setattr(fingerprints, "SAMPLE", 2)
    of = lambda path: data.fingerprint(data.load(str(path)), ("image", "label"))
    before = of(folder)
    assert before.keys() == {"image", "label", "file"}
    moved = folder.rename(folder.with_name("moved"))
    assert of(moved) == before
    picture = moved / "a" / "2.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture)
    assert fingerprints.changes(before, of(moved))[0].startswith("files of the data")
    Image.fromarray(RECORD["image"][2, :, :, 0]).save(picture)
    assert of(moved) == before
    picture.rename(picture.with_name("3.png"))
    assert [line.split()[0] for line in fingerprints.changes(before, of(moved))] == ["files"]


def test_captions_of_a_folder(folder):
    def told(text):
        lines = [{"file_name": f"{'ab'[i % 2]}/{i}.png", "text": text if i == 3 else "x"} for i in range(N)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return data.fingerprint(data.load(str(folder)), ("image", "caption"))

    before, now = told("y"), told("z")
    assert [line.split()[0] for line in fingerprints.changes(before, now)] == ["captions"]


def test_a_mapped_file_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEMORY_BOUND", 0)
    np.save(tmp_path / "x.npy", RECORD["image"])
    found = data.load(str(tmp_path / "x.npy"))
    assert not found.arrays
    assert data.fingerprint(found, ("image",)) == data.fingerprint(source(), ("image",))


def test_files_of_tfds(digits_dir, monkeypatch):
    monkeypatch.setattr(records, "MEMORY_BOUND", 0)
    found = data.load("digits", data_dir=digits_dir, split="train[:50%]")
    assert data.fingerprint(found, ALL).keys() == {*ALL, "file"}
    assert found.files is not None and all(size > 0 and "train" in name for name, size in found.files())
