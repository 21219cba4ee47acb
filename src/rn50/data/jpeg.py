"""What an image file must be to enter a packed data set: a JPEG that decodes, gray or colour."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rn50.data.encoding import Encoding
from rn50.data.sources.base import BadImageError

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded: 300 MB of pixels from a few kilobytes."""

_CONVERTED = {"quality": 95, "subsampling": "4:4:4"}
"""How what is no JPEG is stored where it is not made smaller."""
_SUBSAMPLING = {"420": "4:2:0", "444": "4:4:4"}
_FORMATS = {
    re.compile(rb"\xff\xd8\xff"): "JPEG",
    re.compile(rb"\x89PNG\r\n\x1a\n"): "PNG",
    re.compile(rb"RIFF.{4}WEBP", re.DOTALL): "WEBP",
    re.compile(rb"BM.{4}\0{4}", re.DOTALL): "BMP",
    re.compile(rb"GIF8[79]a"): "GIF",
}


class NotAnImageError(BadImageError):
    """A file whose content is no image of a known format."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG that was decoded in full without an error."""

    data: bytes | memoryview
    width: int
    """In pixels, before any EXIF rotation, which training ignores as torchvision does."""
    height: int
    converted: str | None
    """What it was made from, such as ``"PNG"``; None if it was such a JPEG already."""
    resized: bool = False
    """Whether it was encoded to fewer bytes. If it was neither that nor converted, ``data`` is the
    original."""


def to_jpeg(data: bytes | memoryview, encoding: Encoding | None = None) -> Jpeg:
    """Decode an image in full and return it as a JPEG, untouched if it is one, gray or colour.

    Other formats and CMYK JPEGs are converted to RGB, quality 95, without chroma subsampling;
    transparency is dropped, and of an animation the first frame is kept. The format is told from
    the content, never from a name.

    Args:
        data: The file.
        encoding: How the image is encoded anew, above a size with fewer pixels (Lanczos), unless
            it would have no fewer bytes; colour profile, EXIF and comments are dropped then, and
            the EXIF orientation is not applied.

    Raises:
        BadImageError: The content is not an image, is damaged, or has over ``MAX_PIXELS``.
    """
    kind = _format(data)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(
                    f"it has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,} in all"
                )
            size = image.size
            usable = kind == "JPEG" and image.mode in ("L", "RGB")
            if usable and encoding is None:
                # All of the file is read and checked, at an eighth of the pixels.
                image.draft(None, (1, 1))
                image.load()
                return Jpeg(data, *size, None)
            image.load()
            origin = None if usable else (kind if kind != "JPEG" else f"{image.mode} JPEG")
            made = _made(image if usable else _rgb(image), origin, encoding)
            if usable and made.width == size[0] and len(made.data) >= len(data):
                return Jpeg(data, *size, None)
            return made
    except UnidentifiedImageError as error:
        raise BadImageError(f"its {kind} header is damaged") from error
    # Pillow's decoders raise any of these for a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error)) from error


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Silence what Pillow says of EXIF blocks and sizes; call it outside of all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _made(pixels: Image.Image, origin: str | None, encoding: Encoding | None) -> Jpeg:
    """Return pixels as they are stored, smaller if they are larger than ``encoding`` wants."""
    if encoding is None:
        return Jpeg(_encoded(pixels, **_CONVERTED), *pixels.size, origin)
    if min(pixels.size) > encoding.resize_short:
        pixels = pixels.resize(_smaller(pixels.size, encoding), Image.Resampling.LANCZOS)
    chroma = _SUBSAMPLING[encoding.subsampling]
    data = _encoded(pixels, quality=encoding.quality, subsampling=chroma)
    return Jpeg(data, *pixels.size, origin, resized=True)


def _smaller(size: tuple[int, int], encoding: Encoding) -> tuple[int, int]:
    """Return the size with the shorter side that is asked for, in the same proportion."""
    short = min(size)
    width, height = ((side * encoding.resize_short + short // 2) // short for side in size)
    return width, height


def _encoded(pixels: Image.Image, **options: Any) -> bytes:
    """Return a bare JPEG with Huffman tables of its own: smaller, hence faster to decode."""
    pixels.info.clear()  # Pillow would copy the comment and more from the original
    file = io.BytesIO()
    try:
        pixels.save(file, "JPEG", optimize=True, **options)
    except OSError:  # Pillow reserves a byte or two for each pixel, and noise may take more
        file = io.BytesIO()
        pixels.save(file, "JPEG", **options)
    return file.getvalue()


def _format(data: bytes | memoryview) -> str:
    start = bytes(data[:16])
    for pattern, name in _FORMATS.items():
        if pattern.match(start):
            return name
    if not start:
        raise NotAnImageError("it is empty")
    raise NotAnImageError(
        f"its content is no {', '.join(sorted(_FORMATS.values()))} (it begins with {start!r})"
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
