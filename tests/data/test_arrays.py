"""Array files as people have them: the order of axes, and which array of several is the images."""

import io
import zipfile

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import images
from tests.data.common import read

IMAGES = np.random.RandomState(3).randint(0, 256, (6, 10, 8, 3), np.uint8)
LABELS = np.arange(6)


@pytest.mark.parametrize(
    ("shape", "looks"),
    [
        ((4, 3, 32, 32), r"\[N, C, H, W\], channels first"),
        ((4, 1, 28, 28), r"\[N, C, H, W\], channels first"),
        ((4, 3, 32, 48), r"\[N, C, H, W\], channels first"),
        ((4, 4, 9, 7), r"\[N, C, H, W\], channels first"),
        ((4, 3, 4, 4), r"\[N, C, H, W\], channels first"),
        ((4, 1, 3, 3), r"\[N, C, H, W\], channels first"),
        ((32, 32, 3, 50), r"\[H, W, C, N\], images last"),
        ((4, 8, 8, 5), "would be 5 channels"),
    ],
)
@pytest.mark.parametrize("image_size", [None, 32])
def test_other_orders_are_refused(shape, looks, image_size, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8), labels=LABELS)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=rf"{name} has shape .* expected is \[N, H, W, C\], .* {looks}"):
            read(tmp_path / name, image_size=image_size)


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (5, 2, 2, 3), (5, 3, 3, 3), (5, 32, 3, 1), (5, 8, 8, 4), (5, 3, 9, 3)])
def test_what_can_be_images_is_taken(shape, tmp_path):
    array = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read(tmp_path / "a.npy")[0], array)


def test_one_picture_is_no_set(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[0])
    with pytest.raises(ValueError, match=r"a\.npy has shape \(10, 8, 3\), one picture \[H, W, C\]; expected is \[N, H"):
        read(tmp_path / "a.npy")


def test_the_order_of_a_prepared_set():
    images.check_order("x", (32, 32, 3))
    with pytest.raises(ValueError, match=r"x has shape \(3, 32, 32\); expected is \[H, W, C\], .* \[C, H, W\]"):
        images.check_order("x", (3, 32, 32))


# ------------------------------------------------------------------------------------------------------------ .npz


def objects():
    return np.array([{"a": 1}, None], dtype=object)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images_u8": IMAGES, "labels": LABELS},
        {"labels": LABELS, "x": IMAGES, "names": np.array(["a", "b"]), "meta": objects()},
        {"data": IMAGES, "one_hot": np.eye(6, dtype=np.uint8), "mean": IMAGES.mean(0), "step": np.uint8(3)},
        {"arr_0": IMAGES, "arr_1": LABELS},
        {"arr_0": IMAGES, "arr_1": LABELS.astype(np.uint8)},
        {"floats": IMAGES[:2] / 255, "images": IMAGES},
        {"x": IMAGES, "transposed": np.zeros((5, 3, 10, 10), np.uint8), "empty": IMAGES[:0]},
        {"x": IMAGES, "record": np.zeros(3, [(f"field_{i}", "<f4") for i in range(900)])},
        {"x": IMAGES, "é": np.zeros(3, [("é", "<f4")])},
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_only_array_that_can_be_images(arrays, save, tmp_path):
    """Whatever lies beside it: labels, texts, objects, records."""
    save(tmp_path / "a.npz", **arrays)
    found, said = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, IMAGES)
    assert said == []


def test_other_files_in_the_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        stream = io.BytesIO()
        np.save(stream, IMAGES)
        archive.writestr("x.npy", stream.getvalue())
        archive.writestr("README", "text")
        archive.writestr("broken.npy", b"\x93NUMPY\x01\x00\xff")
    np.testing.assert_array_equal(read(tmp_path / "a.npz")[0], IMAGES)


def test_several_need_a_key(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=255 - IMAGES, y_test=LABELS)
    with pytest.raises(ValueError, match=r"a\.npz .*holds x_train, x_test; one is needed, .*--data\.key NAME"):
        read(path)
    np.testing.assert_array_equal(read(path, key="x_test")[0], 255 - IMAGES)
    np.testing.assert_array_equal(read(path, key="x_train", image_size=4)[0][0], images.fit(IMAGES[0], 4))
    with pytest.raises(ValueError, match=r"unknown --data\.key of .*a\.npz 'x_tset'; did you mean 'x_test'"):
        read(path, key="x_tset")
    with pytest.raises(ValueError, match=r"'y_test' of .*a\.npz holds int64; allowed is uint8"):
        read(path, key="y_test")
    np.savez(path, IMAGES, 255 - IMAGES)  # arr_0 and arr_1: ADM's second would be labels
    with pytest.raises(ValueError, match=r"holds arr_0, arr_1; one is needed"):
        read(path)


@pytest.mark.parametrize("chosen", ["images", "arr_0", "data"])
def test_what_is_passed_over_is_said(chosen, tmp_path):
    """Usual names win over others, an array of images over one of floats with as many."""
    path = tmp_path / "a.npz"
    others = {"masks": 255 - IMAGES} if chosen != "data" else {"masks": (255 - IMAGES) / 255}
    np.savez(path, **others, **{chosen: IMAGES})
    found, said = read(path)
    np.testing.assert_array_equal(found, IMAGES)
    kind = "float64" if chosen == "data" else "uint8"
    assert said == [
        f"{path}: the images are {chosen!r}, not masks ({kind} [6, 10, 8, 3]); --data.key NAME would take another"
    ]


def test_our_own_samples_are_read_without_a_word(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, arr_0=IMAGES, arr_1=LABELS)
    found, said = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, IMAGES)
    assert said == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": IMAGES.reshape(6, -1), "labels": LABELS},
         r"holds data \(uint8 \[6, 240\]\), labels \(int64 \[6\]\); images are uint8 \[N, H, W, C\]"),
        ({"images": IMAGES / 255, "masks": IMAGES},
         r"'images' of .*holds float64; allowed is uint8.*; --data\.key NAME takes another, such as masks$"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "masks": IMAGES[..., 0]}, r"'images' of .*\[N, C, H, W\], channels"),
        ({"x": IMAGES.transpose(0, 3, 1, 2), "y": LABELS}, r"'x' of .*\[N, C, H, W\], channels first"),
        ({"x": IMAGES / 255, "y": LABELS}, r"'x' of .*holds float64; allowed is uint8"),
        ({"x": IMAGES / 255, "y": -IMAGES / 255}, r"holds x \(float64 .*, y \(float64 .*; images are uint8"),
        ({}, "holds no array"),
    ],
)  # fmt: skip
def test_none_that_can_be_images(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.npz")


def test_a_file_that_is_none_of_numpys(tmp_path):
    """np.load's own words are that it may be a pickle, and how to load it unsafely."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    for name in ("a.npy", "a.npz"):
        for content, reason in ((pointer, "it is a pointer of git-lfs: `git lfs pull`.*"), (b"<html>", "it is none"),
                                (b"", "No data left in file")):  # fmt: skip
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"cannot read .*{name} as a NumPy file: {reason}$"):
                read(tmp_path / name)


def test_images_that_are_not_arr_0(tmp_path):
    """The same array under two names is one; another one called so is passed over, and that is said."""
    path = tmp_path / "a.npz"
    np.savez(path, data=IMAGES, images=IMAGES, arr_0=255 - IMAGES)
    found, said = read(path)
    np.testing.assert_array_equal(found, IMAGES)
    assert said == [
        f"{path}: the images are 'images', not arr_0 (uint8 [6, 10, 8, 3]); --data.key NAME would take another"
    ]


def test_a_key_is_for_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    for name in ("digits", str(tmp_path / "a.npy"), str(tmp_path)):
        with pytest.raises(ValueError, match=r"--data\.key 'x' is for \.npz files, which .* is not"):
            data.load(name, key="x")
