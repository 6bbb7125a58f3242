"""Labels and captions of folders of pictures: classes as folders, prefixes, and metadata files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import labels, records
from tests.data.common import encoded, write
from tests.data.examples import CAPTIONS, CLASSES, IMAGES, NAMES, NUMBERS, N, agrees

FILES = ["b/0.png", "c/deep/er/1.png", "a/2.png", "c/3.png", "b/4.png", "a.d/5.png"]


def png(image):
    return encoded(Image.fromarray(image), "PNG")


def pictures(folder, files=FILES):
    """The images as files, and the numbers of the examples in the order of the source."""
    write(folder, {name: png(image) for name, image in zip(files, IMAGES, strict=True)})
    return np.argsort(np.array(files, object), kind="stable")


# --------------------------------------------------------------------------------------------------------- folders


@pytest.mark.usefixtures("bound")
def test_folders_of_classes(tmp_path):
    """The first folder below the root is the class; sorted names, not the order of files, number them."""
    files = [f"{name}/{'deep/er/' if i == 1 else ''}{i}.png" for i, name in enumerate(NAMES)]
    order = pictures(tmp_path, files)
    for way in (None, "folder"):
        agrees(data.load(str(tmp_path), labels=way), order, label=NUMBERS, classes=CLASSES)
    agrees(data.load(str(tmp_path), labels="none"), order)


def test_folders_that_are_no_classes(tmp_path):
    order = pictures(tmp_path / "one", [f"celebs/{i}.png" for i in range(N)])
    agrees(data.load(str(tmp_path / "one")), order)
    agrees(data.load(str(tmp_path / "one"), labels="folder"), order, label=[0] * N, classes=("celebs",))
    order = pictures(tmp_path / "mixed", ["0.png", *FILES[1:]])
    agrees(data.load(str(tmp_path / "mixed")), order)
    with pytest.raises(ValueError, match=r"--data.labels folder reads CLASS/picture.png, but .*mixed/0.png lies in no"):
        data.load(str(tmp_path / "mixed"), labels="folder")


@pytest.mark.usefixtures("bound")
def test_prefixes(tmp_path):
    files = [f"{'deep_er/' if i == 1 else ''}{name}_{i:04}_x.png" for i, name in enumerate(NAMES)]
    order = pictures(tmp_path, files)
    agrees(data.load(str(tmp_path), labels="prefix"), order, label=NUMBERS, classes=CLASSES)
    agrees(data.load(str(tmp_path)), order)
    for name in ("cat.png", "_1.png"):
        write(tmp_path / "wrong", {name: png(IMAGES[0])})
        with pytest.raises(ValueError, match=f"reads CLASS_0001.png, but .*{name} has no class before an underscore"):
            data.load(str(tmp_path / "wrong"), labels="prefix")
        (tmp_path / "wrong" / name).unlink()


def as_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")


def as_csv(path, lines):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


WRITERS = {"metadata.jsonl": as_jsonl, "metadata.csv": as_csv}


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("kind", WRITERS)
def test_metadata(kind, tmp_path):
    """Lines in any order, paths relative to the file, folders beside it no classes."""
    order = pictures(tmp_path)
    captions = [caption or "empty" for caption in CAPTIONS] if kind == "metadata.csv" else CAPTIONS
    lines = [
        {"file_name": file, "text": caption, "label": name, "other": 1}
        for file, caption, name in zip(FILES, captions, NAMES, strict=True)
    ][::-1]
    WRITERS[kind](tmp_path / kind, lines)
    agrees(data.load(str(tmp_path)), order, label=NUMBERS, classes=CLASSES, caption=captions)
    agrees(data.load(str(tmp_path), labels="none"), order)
    only = lambda *names: [{name: line[name] for name in ("file_name", *names)} for line in lines]
    WRITERS[kind](tmp_path / kind, only("text"))
    agrees(data.load(str(tmp_path)), order, caption=captions)
    found, classes = labels.of_names([file.split("/")[0] for file in FILES])
    agrees(data.load(str(tmp_path), labels="folder"), order, label=found, classes=classes, caption=captions)
    numbered = [{**line, "label": number} for line, number in zip(only(), NUMBERS[::-1], strict=True)]
    WRITERS[kind](tmp_path / kind, numbered)
    agrees(data.load(str(tmp_path)), order, label=NUMBERS, classes=("0", "1", "2", "3"))
    with pytest.raises(ValueError, match=rf"--data.labels folder: the labels of .* are those of .*{kind}"):
        data.load(str(tmp_path), labels="folder")


def test_several_metadata_files(tmp_path):
    """Each says something of the pictures from its own folder on; a link and .. lead to the same picture."""
    order = pictures(tmp_path)
    (tmp_path / "c" / "link.png").symlink_to(tmp_path / FILES[0])
    line = lambda i, name: {"file_name": name, "text": CAPTIONS[i]}
    as_jsonl(tmp_path / "c" / "metadata.jsonl", [line(1, "deep/er/1.png"), line(3, "./3.png"), line(0, "link.png")])
    as_jsonl(tmp_path / "metadata.jsonl", [line(2, "a/2.png"), line(5, "a/../a.d/5.png"), line(4, "b/4.png")])
    agrees(data.load(str(tmp_path)), order, caption=CAPTIONS)


HERE = {"file_name": "0.png", "text": "a"}
THERE = {"file_name": "1.png", "text": "b"}
BOTH = [{"file_name": "0.png", "label": 0}, {"file_name": "1.png"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HERE, THERE, {"file_name": "2.png", "text": "c"}], r"line 3 of .* names .*2.png, which is not there"),
        ([HERE, THERE, {"file_name": "x.txt", "text": "c"}], r"line 3 of .*x.txt, which is none of the pictures read"),
        ([HERE], r"1.png has no line in .*metadata.jsonl; every picture needs one"),
        ([HERE, THERE, HERE], r"line 3 of .* names .*0.png, as line 1 of .*metadata.jsonl does"),
        ([{"file_name": "0.png"}, {"file_name": "1.png", "t": 1}], r"neither text nor label; .* are file_name, t"),
        ([HERE, {"file_name": "1.png", "text": None}], r"line 2 of .* has no text, which other lines have"),
        ([HERE, {"file_name": "1.png", "text": 3}], r"line 2 of .* has the text 3 .* allowed is a string"),
        ([HERE, {"text": "b"}], r"line 2 of .* has no file_name"),
        ([HERE, {"file_name": ["1.png"], "text": "b"}], r"line 2 of .* has no file_name"),
        ([HERE, "1.png"], r"cannot read .*metadata.jsonl: line 2 does not have the columns"),
        ([BOTH[0], {**BOTH[1], "label": "one"}], r"has the label 'one' and line 1 .* 0; allowed is whole numbers"),
        ([BOTH[0], {**BOTH[1], "label": True}], r"has the label True and .*; allowed is whole numbers"),
        ([BOTH[0], {**BOTH[1], "label": [1]}], r"has the label \[1\] and .*; allowed is whole numbers"),
        ([BOTH[0], {**BOTH[1], "label": -1}], r"line 2 of .* has the label -1; allowed are 0 to 0"),
        ([BOTH[0], {**BOTH[1], "label": 2**16}], r"line 2 of .* has the label 65536; allowed are 0 to 65535"),
    ],
)  # fmt: skip
def test_wrong_metadata(lines, message, tmp_path):
    write(tmp_path, {"0.png": png(IMAGES[0]), "1.png": png(IMAGES[1]), "x.txt": b""})
    as_jsonl(tmp_path / "metadata.jsonl", lines)
    with pytest.raises(ValueError, match=message) as error:
        data.load(str(tmp_path), say=[].append)
    assert "\n" not in str(error.value) and str(error.value).endswith("--data.labels none reads the images alone")
    np.testing.assert_array_equal(data.load(str(tmp_path), labels="none", say=[].append).images([0]), IMAGES[:1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b'\n{"file_name": 1\n{}', r"cannot read .*metadata.jsonl: line 2, column 16: Expect"),
        ("metadata.jsonl", b'{"file_name": "\xff"}', r"cannot read .*metadata.jsonl: .*utf-8"),
        ("metadata.jsonl", b"version https://git-lfs.github.com/spec/v1", r"it is a pointer of git-lfs"),
        ("metadata.csv", b"file_name,text\n0.png,a,b\n", r"cannot read .*: line 2 does not have the columns"),
        ("metadata.csv", b"file_name,text\n0.png,\n", r"metadata.csv has neither text nor label"),
        ("metadata.csv", b"name,text\n0.png,a\n", r"line 2 of .*metadata.csv has no file_name"),
        ("metadata.csv", b"", r"0.png has no line in .*metadata.csv"),
    ],
)
def test_metadata_that_cannot_be_read(name, content, message, tmp_path):
    write(tmp_path, {"0.png": png(IMAGES[0]), name: content})
    with pytest.raises(ValueError, match=message) as error:
        data.load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_metadata_of_two_kinds(tmp_path):
    write(tmp_path, {"0.png": png(IMAGES[0])})
    for kind, writer in WRITERS.items():
        writer(tmp_path / kind, [HERE])
    with pytest.raises(ValueError, match=r"metadata.csv and .*metadata.jsonl: allowed are files of one of these kinds"):
        data.load(str(tmp_path))


def test_labels_are_read_without_pictures(tmp_path, monkeypatch):
    """Of a set above the bound: no picture is decoded, and mirroring needs none."""
    monkeypatch.setattr(records, "MEMORY_BOUND", 0)
    order = pictures(tmp_path, [f"{name}/{i}.png" for i, name in enumerate(NAMES)])
    source = data.load(str(tmp_path))
    monkeypatch.setattr("ddpm_jax.data.folder.pixels", None)
    found = data.batch(source, 0, 0, N, flip=True, features=("label",))
    assert found["label"].tolist() == [NUMBERS[order[i]] for i in data.batch_indices(0, 0, N, N)]
    with pytest.raises(TypeError):
        data.batch(source, 0, 0, N)
