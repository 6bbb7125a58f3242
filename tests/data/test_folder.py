"""Folders as people have them: which pictures are read, what is done to them, and what is said about it."""

import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ddpm_jax import data
from ddpm_jax.config.run import Config, DataConfig, from_dict, to_dict
from ddpm_jax.data import finding
from ddpm_jax.train import loop
from tests.data.common import chunk, encoded, png, read, tiff, write

GREY, RGB = Image.new("L", (4, 4), 9), Image.new("RGB", (4, 4), (3, 5, 7))
PNG = encoded(RGB, "PNG")

# ------------------------------------------------------------------------------------------------- which are read


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "TGA", "PPM", "ICO", "PCX", "SGI", "DDS", "IM", "QOI"])
def test_every_ending_that_pillow_reads(kind, tmp_path):
    """A picture of another kind beside a PNG is one of the set, and nothing is said."""
    ending = next(ending for ending, name in Image.registered_extensions().items() if name == kind)
    options = {"sizes": [RGB.size]} if kind == "ICO" else {}  # older Pillows write none below 16 x 16
    images, said = read(write(tmp_path, {f"a{ending}": encoded(RGB, kind, **options), "b.png": PNG}))
    assert said == []
    np.testing.assert_array_equal(images, np.broadcast_to([3, 5, 7], (2, 4, 4, 3)))


def test_endings_are_those_that_can_be_decoded():
    known = finding.endings()
    assert {".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".mpo", ".tga"} <= known
    assert not {".pdf", ".h5", ".mpg", ".wmf", ".palm", ".txt", ".npy"} & known  # written only, or without a decoder


def test_what_is_left_out_is_counted(tmp_path):
    files = {"a.png": PNG, "x/b.PNG": PNG, "labels.csv": b"", "x/notes.txt": b"", "x/more.TXT": b"", "README": b"",
             ".hidden.png": PNG, ".ipynb_checkpoints/a-checkpoint.png": PNG, "x/.git/deep/c.png": PNG,
             "x/film.mpg": b""}  # fmt: skip
    images, said = read(write(tmp_path, files))
    assert len(images) == 2
    assert said == [
        f"{tmp_path}: 2 pictures; left out: 2 .txt, 1 .csv, 1 .mpg, 1 without an ending (not read by Pillow), "
        "2 hidden folders, 1 hidden file"
    ]


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"no image below the folder .*; left out: 1 \.heic .*, 1 hidden folder"):
        read(write(tmp_path, {"a.heic": b"", ".x/b.png": PNG}))


def number(n):
    return encoded(Image.new("L", (2, 2), n), "PNG")


def test_links_are_followed_once(tmp_path):
    """A class folder that is a link; links in circles, to what is there, and to each other."""
    folder = write(tmp_path / "set", {"a/1.png": number(1), "b/2.png": number(2)})
    outside = write(tmp_path / "outside", {"3.png": number(3), "deep/4.png": number(4)})
    for name, target in {
        "c": outside, "b/up": folder, "b/parent": tmp_path, "a/self": folder / "a", "again": folder / "a",
        "0.png": folder / "b" / "2.png", "twice.png": folder / "b" / "2.png", "third.png": outside / "3.png",
    }.items():  # fmt: skip
        os.symlink(target, folder / name)
    os.symlink(folder / "c", outside / "circle")
    images, said = read(folder)
    assert images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]  # a/1, b/2, c/3, c/deep/4
    assert said == [
        f"{folder}: 4 pictures; left out: 4 links to a folder that it lies in, 4 links to what is there already"
    ]


def test_a_link_to_nothing_is_named(tmp_path):
    folder = write(tmp_path, {"a.png": PNG})
    os.symlink(tmp_path / "gone.png", folder / "b.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png: .*No such file"):
        read(folder)


def test_a_link_to_no_folder_is_said_to_be_one(tmp_path):
    folder = write(tmp_path / "set", {"a.png": PNG, "LICENSE": b""})
    os.symlink(tmp_path / "gone", folder / "cats")
    os.symlink(folder / "circle", folder / "circle")
    assert read(folder)[1] == [
        f"{folder}: 1 pictures; left out: 1 without an ending (not read by Pillow), 2 links to nothing"
    ]


def test_a_picture_is_no_folder_of_them(tmp_path):
    path = write(tmp_path, {"a.png": PNG}) / "a.png"
    with pytest.raises(ValueError, match=r"a\.png is a file: allowed are a folder of pictures, a \.npy file and"):
        read(path)


def test_a_folder_called_like_a_picture_and_a_pipe(tmp_path):
    folder = write(tmp_path, {"a.png/b.png": PNG})
    os.mkfifo(folder / "c.png")
    images, said = read(folder)
    assert len(images) == 1 and said == [f"{folder}: 1 pictures; left out: 1 device or pipe"]


# ------------------------------------------------------------------------------------------------------- turned ones


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def half_and_half(size):
    """The upper half black, the lower white."""
    array = np.zeros((size[1], size[0]), np.uint8)
    array[size[1] // 2 :] = 255
    return Image.fromarray(array)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "late PNG", "XMP"])
def test_sizes_are_those_of_upright_pictures(kind, tmp_path):
    """Stored 12 x 8 and to be turned clockwise, beside an upright one of 8 x 12: one size. Beside 12 x 8: two."""
    lying = half_and_half((12, 8))
    if kind == "late PNG":
        content = png((12, 8), 8, 0, bytes(12), after=chunk(b"eXIf", turned().tobytes()[6:]))
    elif kind == "XMP":
        content = encoded(lying, "WEBP", lossless=True, xmp=b'<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>')
    else:
        content = encoded(lying, kind, exif=turned(), **({"lossless": True} if kind == "WEBP" else {}))
    upright, stored = (encoded(Image.new("L", size), "PNG") for size in ((8, 12), (12, 8)))
    images, _ = read(write(tmp_path / "one", {"a.jpg": content, "b.png": upright}))
    assert images.shape[:3] == (2, 12, 8)
    if kind != "late PNG":  # which is black all over: clockwise, what was below is left
        assert (images[0, :, :4] > 200).all() and (images[0, :, 4:] < 50).all()
    with pytest.raises(ValueError, match=r"b\.png is 12x8 .*a\.jpg is 8x12; pass image_size \(--data\.image-size\)"):
        read(write(tmp_path / "two", {"a.jpg": content, "b.png": stored}))
    assert len(read(tmp_path / "two", image_size=4)[0]) == 2


# ------------------------------------------------------------------------------------------------------ depth and mode

WORDS = np.arange(16, dtype=">u2") * 100
J2K = encoded(RGB, "JPEG2000", no_jp2=True)


def deep_avif():
    content = bytearray(encoded(RGB, "AVIF"))
    content[content.index(b"av1C") + 6] |= 0x40  # high_bitdepth
    depths = content.index(b"pixi") + 9
    content[depths : depths + 3] = 3 * b"\x0a"
    return bytes(content)


DEEP = {
    "rgb.png": (png((2, 2), 16, 2, WORDS[:6].tobytes()), "RGB;16"),
    "rgba.png": (png((2, 2), 16, 6, WORDS[:8].tobytes()), "RGBA;16"),
    "la.png": (png((2, 2), 16, 4, WORDS[:4].tobytes()), "RGBA;16"),
    "l.png": (png((2, 2), 16, 0, WORDS[:2].tobytes()), "I;16"),
    "rgb.tif": (tiff(16, 3, 2, bytes(24)), "RGB;16"),
    "big.tif": (tiff(16, 3, 2, bytes(24), order=">"), "RGB;16"),
    "cmyk.tif": (tiff(16, 4, 5, bytes(32)), "CMYK;16"),
    "rgb.ppm": (b"P6\n1 1\n65535\n" + bytes(6), "RGB;16"),
    "ten.ppm": (b"P6\n1 1\n1023\n" + bytes(6), "RGB;10"),
    "plain.ppm": (b"P3\n1 1\n65535\n1 2 3\n", "RGB;16"),
    "rgb.sgi": (struct.pack(">hBBHHHHii4x80si404x", 474, 0, 2, 3, 2, 2, 3, 0, 65535, b"", 0) + bytes(24), "RGB;16"),
    "float.pfm": (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "F"),
    "rgb.j2k": (J2K[:42] + b"\x0f\x01\x01" * 3 + J2K[51:], "RGB;16"),
    "ten.avif": (deep_avif(), "RGB;10"),
    "int.tif": (encoded(Image.new("I", (2, 2)), "TIFF"), "I"),
    "lab.tif": (encoded(Image.new("LAB", (2, 2)), "TIFF"), "LAB"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_a_channel_are_refused(name, tmp_path):
    content, mode = DEEP[name]
    with pytest.raises(ValueError, match=rf"{name} has pixels of mode '{mode}'; allowed are pictures with 8 bits"):
        read(write(tmp_path, {name: content}))


def test_8_bits_beside_those(tmp_path):
    """The same files by hand with 8 bits are read as they are; and a BMP of 16 bits a pixel has 5 a channel."""
    pixels = bytes(range(12))
    np.testing.assert_array_equal(
        read(write(tmp_path / "a", {"a.tif": tiff(8, 3, 2, pixels)}))[0].ravel(), list(pixels)
    )
    np.testing.assert_array_equal(
        read(write(tmp_path / "b", {"a.png": png((2, 2), 8, 2, pixels[:6])}))[0].ravel(), 2 * list(pixels[:6])
    )
    header = struct.pack("<IHHI", 62, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
    images, _ = read(write(tmp_path / "c", {"a.bmp": b"BM" + header + b"\xff\x7f" * 4}))
    np.testing.assert_array_equal(images, np.full((1, 2, 2, 3), 255))
    assert len(read(write(tmp_path / "d", {"a.j2k": J2K}))[0]) == 1


def test_conversions_are_said(tmp_path):
    files = {"a.png": PNG, "b.png": encoded(GREY, "PNG"), "c.gif": encoded(RGB.convert("P"), "GIF"),
             "d.jpg": encoded(RGB.convert("CMYK"), "JPEG"), "e.png": encoded(GREY, "PNG")}  # fmt: skip
    images, said = read(write(tmp_path / "mixed", files))
    assert images.shape == (5, 4, 4, 3) and (images[1] == 9).all()
    assert said == [
        f"{tmp_path}/mixed: of 5 pictures 2 of mode L (grey), 1 of mode P (palette), 1 of mode CMYK (inks) become RGB"
    ]
    images, said = read(write(tmp_path / "grey", {"a.png": files["b.png"], "b.png": encoded(GREY.convert("1"), "PNG")}))
    assert images.shape == (2, 4, 4, 1)
    assert said == [f"{tmp_path}/grey: of 2 pictures 1 of mode 1 (black and white) become L (grey)"]


def test_frames_that_are_left_out_are_counted(tmp_path):
    several = {"save_all": True, "append_images": [RGB.rotate(90)]}
    files = {"a.tif": encoded(RGB, "TIFF", **several), "b.png": PNG, "c.tif": encoded(RGB, "TIFF")}
    images, said = read(write(tmp_path, files))
    assert len(images) == 3 and said == [f"{tmp_path}: of 3 pictures 1 have several frames: the first of each is taken"]


# ------------------------------------------------------------------------------------------------------- transparency


def icon():
    """A black square on transparent black, its rim half transparent."""
    picture = Image.new("RGBA", (8, 8))
    ImageDraw.Draw(picture).rectangle((1, 1, 6, 6), fill=(0, 0, 0, 128))
    ImageDraw.Draw(picture).rectangle((2, 2, 5, 5), fill=(0, 0, 0, 255))
    return picture


@pytest.mark.parametrize(
    ("transparency", "outside", "rim"),
    [(None, (255, 255, 255), (127, 127, 127)), ("white", (255, 255, 255), (127, 127, 127)),
     ("#ff0080", (255, 0, 128), (127, 0, 64)), ("black", (0, 0, 0), (0, 0, 0)), ("drop", (0, 0, 0), (0, 0, 0))],
)  # fmt: skip
def test_transparent_pictures_are_laid_on_a_colour(transparency, outside, rim, tmp_path):
    """alpha x + (1 - alpha) b, by hand: 127 = 255 (1 - 128 / 255)."""
    files = {"a.png": encoded(icon(), "PNG"), "b.webp": encoded(icon(), "WEBP", lossless=True, exact=True),
             "c.tif": encoded(icon(), "TIFF"), "d.png": encoded(icon().convert("LA"), "PNG")}  # fmt: skip
    images, said = read(write(tmp_path, files), transparency=transparency)
    for image in images:
        assert image[0, 0].tolist() == list(outside)
        assert image[1, 3].tolist() == list(rim)
        assert image[3, 3].tolist() == [0, 0, 0]
    done = "their alpha is dropped" if transparency == "drop" else f"they are laid on {transparency or 'white'}"
    assert [line for line in said if f"of 4 pictures 4 may be transparent: {done}; --data.transparency" in line]


def test_opaque_pictures_are_what_they_were(tmp_path):
    """Also with an alpha channel that is 255 throughout."""
    pixels = np.random.RandomState(0).randint(0, 256, (9, 9, 3), np.uint8)
    opaque = Image.fromarray(pixels).convert("RGBA")
    for transparency in (None, "black", "drop"):
        images, _ = read(write(tmp_path, {"a.png": encoded(opaque, "PNG")}), transparency=transparency)
        np.testing.assert_array_equal(images[0], pixels)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png((4, 1), 8, 0, bytes([3, 4, 0, 255]), trns=b"\0\3"), [255, 4, 0, 255]),
        (png((4, 1), 4, 0, b"\x0f\x37", trns=b"\0\3"), [0, 255, 255, 119]),  # 3 of 15 is 51 of 255
        (png((4, 1), 2, 0, b"\x1b", trns=b"\0\1"), [0, 255, 170, 255]),
        (png((4, 1), 1, 0, b"\x50", trns=b"\0\0"), [255, 255, 255, 255]),
        (png((2, 1), 8, 2, bytes([3, 4, 5, 3, 4, 6]), trns=b"\0\3\0\4\0\5"), [255, 255, 255, 3, 4, 6]),
        (png((2, 1), 1, 3, b"\x40", palette=bytes([9, 9, 9, 7, 7, 7]), trns=b"\0"), [255, 255, 255, 7, 7, 7]),
        (png((2, 1), 1, 3, b"\x40", palette=bytes([0, 0, 0, 7, 7, 7]), trns=b"\x80\xff"), [127, 127, 127, 7, 7, 7]),
    ],
)  # fmt: skip
def test_one_transparent_value(content, expected, tmp_path):
    """tRNS of grey, colour and palette PNGs, in their own bits; without it the pixels are as stored."""
    images, _ = read(write(tmp_path, {"a.png": content}))
    assert images.ravel().tolist() == expected
    stored, _ = read(tmp_path, transparency="drop")
    opaque = np.asarray(expected) == stored.ravel()
    assert not opaque.all() and images.shape == stored.shape


def test_grey_pictures_on_a_colour_become_colours(tmp_path):
    write(tmp_path, {"a.png": png((2, 1), 8, 0, b"\3\4", trns=b"\0\3"), "b.png": png((2, 1), 8, 0, b"\3\4")})
    assert read(tmp_path)[0].shape == (2, 1, 2, 1)
    assert read(tmp_path, transparency="red")[0].ravel().tolist() == [255, 0, 0, 4, 4, 4, 3, 3, 3, 4, 4, 4]


def test_resizing_comes_after(tmp_path):
    """A transparent white outside stays without the shade of what was stored there."""
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((0, 0, 7, 3), fill=(255, 255, 255, 255))
    images, _ = read(write(tmp_path, {"a.png": encoded(picture, "PNG")}), image_size=4)
    assert (images == 255).all()


@pytest.mark.parametrize("wrong", ["blakc", "#ff008011", "", "rgba(0, 0, 0, 0)"])
def test_what_is_no_colour(wrong, tmp_path):
    write(tmp_path, {"a.png": PNG})
    hint = "; did you mean 'black'" if wrong == "blakc" else ""
    with pytest.raises(ValueError, match=r"--data\.transparency must be a colour .* or drop, got .*" + hint):
        read(tmp_path, transparency=wrong)
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 4), np.uint8))
    for name in ("digits", str(tmp_path / "a.npy")):
        with pytest.raises(
            ValueError, match=r"--data\.transparency 'white' is for folders of pictures, which .* is not"
        ):
            data.load(name, transparency="white")


# --------------------------------------------------------------------------------------------------------- broken ones


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png((60000, 60000), 8, 2, b""), "decompression bomb"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:400], "truncated"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "truncated"),
        (encoded(RGB, "TIFF")[:40], ""),
        (encoded(GREY, "JPEG2000")[:60], ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    ],
)  # fmt: skip
def test_broken_pictures_are_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"cannot read the image .*b\.png: (?s:.*)(?i:{message})"):
        read(write(tmp_path, {"a.png": PNG, "b.png": content}))


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_training_says_it(tmp_path, monkeypatch):
    """What data.load says reaches who watches the training; the fields of the configuration reach data.load."""
    write(tmp_path / "set", {"a.png": encoded(icon(), "PNG"), "b.txt": b""})

    class Stopped(Exception):
        pass

    class Notes:
        def __init__(self):
            self.said = []

        def say(self, message):
            self.said.append(message)

    def enter(run, workdir, report):
        report.first = run.source.images([0])[0, 0, 0]
        raise Stopped

    monkeypatch.setattr(loop, "entered", enter)
    notes = Notes()
    config = Config(data=DataConfig(name=str(tmp_path / "set"), transparency="#010203"))
    with pytest.raises(Stopped):
        loop.fit(config, tmp_path / "run", notes)
    assert notes.first.tolist() == [1, 2, 3]
    assert [line.split(": ", 1)[1][:22] for line in notes.said] == ["1 pictures; left out: ", "of 1 pictures 1 may be"]


def test_configurations_of_before_are_read():
    values = to_dict(Config())
    for name in ("key", "transparency"):
        del values["data"][name]
    assert from_dict(values, Config) == Config()
