"""Picture files made by hand, bit by bit, and what a folder of them is read as."""

import io
import struct
import zlib

import numpy as np

from ddpm_jax import data


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size, depth, colour_type, row, *, trns=None, palette=None, after=b""):
    """A PNG whose rows are all `row`, as bytes; `after` are chunks between pixels and end."""
    width, height = size
    before = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    before += [(kind, content) for kind, content in ((b"PLTE", palette), (b"tRNS", trns)) if content is not None]
    pixels = (b"IDAT", zlib.compress((b"\0" + row) * height))
    chunks = b"".join(chunk(*one) for one in [*before, pixels])
    return b"\x89PNG\r\n\x1a\n" + chunks + after + chunk(b"IEND", b"")


def tiff(bits, channels, photometric, content, *, order="<", size=(2, 2)):
    """An uncompressed TIFF of one strip."""
    width, height = size
    entries = [(256, 3, width), (257, 3, height), (258, 3, None), (259, 3, 1), (262, 3, photometric), (273, 4, None),
               (277, 3, channels), (278, 3, height), (279, 4, len(content))]  # fmt: skip
    bits_at = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        count, value = {258: (channels, bits_at), 273: (1, bits_at + 2 * channels)}.get(tag, (1, value))
        packed = struct.pack(order + ("H" if kind == 3 and count == 1 else "I"), value)
        directory += struct.pack(order + "HHI", tag, kind, count) + packed.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return start + directory + bytes(4) + struct.pack(f"{order}{channels}H", *[bits] * channels) + content


def write(folder, files):
    """{"deep/a.png": content} as files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(place, **options):
    """All images, and what was said."""
    said = []
    source = data.load(str(place), say=said.append, **options)
    return source.images(np.arange(len(source))), said
