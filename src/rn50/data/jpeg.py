"""What an image file must be to enter a packed data set: a JPEG that decodes, gray or colour."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from rn50.data.sources.base import BadImageError

MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded: 300 MB of pixels from a few kilobytes."""

_QUALITY = 95
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
    """What it was made from, such as ``"PNG"``; None if ``data`` is the original."""


def to_jpeg(data: bytes | memoryview) -> Jpeg:
    """Decode an image in full and return it as a JPEG, untouched if it is one, gray or colour.

    Other formats and CMYK JPEGs are converted to RGB, quality 95, without chroma subsampling;
    transparency is dropped, and of an animation the first frame is kept. The format is told from
    the content, never from a name.

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
            image.load()
            if kind == "JPEG" and image.mode in ("L", "RGB"):
                return Jpeg(data, image.width, image.height, None)
            made = io.BytesIO()
            _rgb(image).save(made, "JPEG", quality=_QUALITY, subsampling=0)
            origin = kind if kind != "JPEG" else f"{image.mode} JPEG"
            return Jpeg(made.getvalue(), image.width, image.height, origin)
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
