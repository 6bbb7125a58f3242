"""One picture file: what its header says, and its pixels."""

import difflib
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.images import Images, pointer, with_channels

DROP = "drop"
GREY_MODES = ("1", "L")
MODES = {
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "RGB": "colour",
    "RGBA": "colour", "CMYK": "inks", "YCbCr": "luma and chroma",
}  # fmt: skip
"""Those that become RGB."""
TURNED = (5, 6, 7, 8)  # orientations whose sides change places
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258
DEEP = re.compile(r";(16|32)\w")  # "RGB;16B", but not "BGR;16", which is 16 bits a pixel
# What Pillow's readers end in on bytes that are none of theirs; SyntaxError is a broken PNG.
UNREADABLE = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError,
              RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error)  # fmt: skip

Colour = tuple[int, int, int]


class Header(NamedTuple):
    """Of one picture: Pillow's mode, (width, height) as stored, whether it may be transparent, and its frames."""

    mode: str
    size: tuple[int, int]
    transparent: bool
    several_frames: bool


def background(transparency: str | None) -> Colour | None:
    """The colour behind transparent pictures, white by default; None for "drop", which leaves their colours as stored.

    Raises:
      ValueError: no colour.
    """
    from PIL import ImageColor

    name = "white" if transparency is None else transparency
    if name == DROP:
        return None
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        near = difflib.get_close_matches(name, [DROP, *ImageColor.colormap], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"--data.transparency must be a colour by its name or as #rrggbb, or {DROP}, got {name!r}{hint}"
        ) from None
    return colour


def header(file: Path) -> Header:
    """What a file says before its pixels.

    Raises:
      ValueError: one that cannot be read, or with other pixels than 8 bits a channel.
    """
    found, bits = _opened(file, _header, file)
    if bits > 8 or found.mode not in MODES:
        mode = f"{found.mode};{bits}" if found.mode in MODES else found.mode
        raise ValueError(
            f"{file} has pixels of mode {mode!r}; allowed are pictures with 8 bits a channel and the modes "
            f"{', '.join(MODES)}"
        )
    return found


def upright_size(file: Path) -> tuple[int, int]:
    """(width, height) as it is to be shown."""
    return _opened(file, _upright_size)


def pixels(file: Path, mode: str, behind: Colour | None) -> Images:
    """uint8 [H, W, C] of a picture, upright, C = 1 for mode "L" and 3 for "RGB".

    Args:
      file: the picture.
      mode: "L" or "RGB".
      behind: a transparent picture is laid on this colour, alpha x + (1 - alpha) behind; None drops alpha.
    """
    return _opened(file, _pixels, mode, behind)


def _opened(file: Path, function: Any, *arguments: Any) -> Any:
    """function(the opened picture, ...); what goes wrong as one error that names the file."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.format == "TIFF":
                picture.filename = ""  # else Pillow 13 maps the file, with the sides of a turned one exchanged
            return function(picture, *arguments)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"cannot read the image {file}: {pointer(file) or said}") from error


def _header(picture: Any, file: Path) -> tuple[Header, int]:
    """The header, and the bits a channel."""
    several = picture.format != "PSD" and getattr(picture, "is_animated", False)  # a PSD's frames are its layers
    bits = _bits(picture, file)
    return Header(picture.mode, picture.size, picture.has_transparency_data, several), bits


def _bits(picture: Any, file: Path) -> int:
    """Bits a channel as stored, as far as they are more than 8: Pillow reads some of such pictures as 8 bits."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    if picture.format == "JPEG2000":
        return _bits_of_jpeg2000(file)
    if picture.format == "AVIF":
        return _bits_of_avif(file)
    for codec, _, _, arguments in picture.tile:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        if found := DEEP.search(str(arguments[0])):
            return int(found[1])
        if codec.startswith("ppm") and arguments[-1] > 255:
            return int(arguments[-1]).bit_length()
        if codec == "SGI16" or (codec == "sgi_rle" and arguments[-1] == 2):
            return 16
    return 8


def _bits_of_jpeg2000(file: Path) -> int:
    """The most bits of a channel, from the SIZ segment of its codestream (ISO 15444-1, A.5.1)."""
    content = file.read_bytes()
    start = content.index(b"\xff\x4f\xff\x51") + 4
    (channels,) = struct.unpack_from(">H", content, start + 36)
    return max((content[start + 38 + 3 * channel] & 0x7F) + 1 for channel in range(channels))


def _bits_of_avif(file: Path) -> int:
    """From the configuration of its codec (AV1-ISOBMFF, section 2.3.3)."""
    content = file.read_bytes()
    flags = content[content.index(b"av1C") + 6]
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _upright_size(picture: Any) -> tuple[int, int]:
    turned = picture.getexif().get(ORIENTATION) in TURNED
    if turned and picture.format == "TIFF":
        picture.load()  # Pillow turns these by itself, sooner or later as its version is
        return picture.size
    return picture.size[::-1] if turned else picture.size


def _pixels(picture: Any, mode: str, behind: Colour | None) -> Images:
    from PIL import ImageOps

    transparent, scale = picture.has_transparency_data, _grey_scale(picture)
    if picture.mode == "L" and "transparency" in picture.info:
        picture.info["transparency"] *= scale
    picture = ImageOps.exif_transpose(picture)
    if behind is None or not transparent:
        picture.info.pop("transparency", None)
        return with_channels(np.array(picture.convert(mode)))
    with_alpha = np.array(picture.convert("RGBA")).astype(np.int32)
    colours, alpha = with_alpha[..., :3], with_alpha[..., 3:]
    laid = (colours * alpha + np.asarray(behind) * (255 - alpha) + 127) // 255
    return laid.astype(np.uint8)[..., : 1 if mode == "L" else 3]


def _grey_scale(picture: Any) -> int:
    """What a PNG's levels of grey are multiplied with where they have 2 or 4 bits; Pillow's tRNS is not."""
    raw = picture.tile[0][3] if picture.tile else None
    return {"L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(raw, str) else 1
