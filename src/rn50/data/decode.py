"""From JPEG bytes to a square uint8 image in its place in a batch.

Two decoders give the same pixels: TurboJPEG where its library is found, which decodes only the
region that is asked for, and Pillow everywhere else and for whatever TurboJPEG complains about.
Resizing is torch's antialiased uint8 kernel, the one behind torchvision's ``resize``. What
``native`` does to many images in C, with the same result, is written out here for one.
"""

import io

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rn50.data import native, turbojpeg
from rn50.data.index import Expected
from rn50.data.shards import image_digest


class ImageDecodeError(Exception):
    """An image's bytes are not a whole JPEG, or not the one that was packed."""


def decoder_name() -> str:
    """Return which decoder this process uses: ``"native"``, ``"turbojpeg"`` or ``"pillow"``."""
    if native.library() is not None:
        return "native"
    return "pillow" if turbojpeg.library() is None else "turbojpeg"


def advice() -> str | None:
    """Return why the fastest decoder is not in use and what would bring it, or None if it is.

    The gains are those of docs/results.md, from the loader at 224 px and at 64 px.
    """
    name, reason = decoder_name(), native.why_not()
    if name == "native":
        return None
    if name == "turbojpeg":
        return (
            f"{reason}; a C compiler (gcc or clang) makes loading 1.2 times (224 px) to 5.5 times "
            "(64 px) as fast"
        )
    return (
        f"{reason}; TurboJPEG 3 (pip install turbojpeg, or conda install libjpeg-turbo) and a C "
        "compiler make loading 2 times (224 px) to 12 times (64 px) as fast"
    )


class Decoder:
    """Decodes, crops and resizes; one for each thread."""

    def __init__(self) -> None:
        lib = turbojpeg.library()
        self._turbo = None if lib is None else turbojpeg.TurboJpeg(lib)

    def pixels(
        self,
        jpeg: bytes | memoryview,
        box: Int64[np.ndarray, " 4"] | None = None,
        expected: Expected | None = None,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the crop ``box`` (top, left, height, width) of an image, or all of it, as RGB.

        The result is only valid until the next call. The EXIF orientation is ignored, as
        torchvision and timm do. What TurboJPEG decodes without complaint is taken; all else must
        have the digest that is ``expected``, where one is, before Pillow may try.

        Raises:
            ImageDecodeError: The image is damaged, cut off, or not the one expected.
        """
        if self._turbo is not None:
            try:
                return self._turbo.decode(jpeg, box, expected and (expected.width, expected.height))
            except turbojpeg.TurboJpegError:
                pass  # Pillow decides: it accepts harmless oddities and refuses cut-off files.
        return _pillow(jpeg, box, expected)

    def crop_resized(
        self,
        jpeg: bytes | memoryview,
        box: Int64[np.ndarray, " 4"],
        out: UInt8[Tensor, "px px 3"],
        expected: Expected | None = None,
    ) -> None:
        """Write the crop ``box``, resized to the square ``out``, antialiased bilinear."""
        px = out.shape[0]
        out.copy_(_resize(self.pixels(jpeg, box, expected), px, px)[0].permute(1, 2, 0))

    def center_resized(
        self,
        jpeg: bytes | memoryview,
        resize_px: int,
        out: UInt8[Tensor, "px px 3"],
        expected: Expected | None = None,
    ) -> None:
        """Write the centre of the image whose shorter side was resized to ``resize_px``.

        Equal to torchvision's ``Resize(resize_px)`` and ``CenterCrop(px)`` on a PIL image, within
        the rounding of the two resizers (2/255 at most).
        """
        pixels = self.pixels(jpeg, None, expected)
        out.copy_(centre(pixels, resize_px, out.shape[0])[0].permute(1, 2, 0))


def centre(
    pixels: UInt8[np.ndarray, "height width 3"], resize_px: int, px: int
) -> UInt8[Tensor, "1 3 {px} {px}"]:
    """Return the central square of an image whose shorter side was resized to ``resize_px``."""
    height, width = pixels.shape[:2]
    if height <= width:
        new_h, new_w = resize_px, int(resize_px * width / height)
    else:
        new_h, new_w = int(resize_px * height / width), resize_px
    top, left = round((new_h - px) / 2), round((new_w - px) / 2)
    return _resize(pixels, new_h, new_w)[:, :, top : top + px, left : left + px]


def _resize(
    pixels: UInt8[np.ndarray, "height width 3"], height: int, width: int
) -> UInt8[Tensor, "1 3 new_height new_width"]:
    source = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if source.shape[2:] == (height, width):
        return source
    return F.interpolate(
        source, (height, width), mode="bilinear", antialias=True, align_corners=False
    )


def check_digest(jpeg: bytes | memoryview, expected: Expected) -> None:
    """Raise ``ImageDecodeError`` unless these are the bytes that were packed."""
    if image_digest(jpeg) != expected.digest:
        raise ImageDecodeError("its bytes are not those that were packed")


def _pillow(
    jpeg: bytes | memoryview, box: Int64[np.ndarray, " 4"] | None, expected: Expected | None
) -> UInt8[np.ndarray, "height width 3"]:
    if expected is not None:
        check_digest(jpeg, expected)
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if expected is not None and image.size != (expected.width, expected.height):
                raise ImageDecodeError(f"it has {image.width}×{image.height} pixels")
            pixels = np.array(image.convert("RGB"))
    # Pillow's decoders raise any of these for a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageDecodeError(str(error)) from error
    if box is None:
        return pixels
    top, left, height, width = box.tolist()
    return pixels[top : top + height, left : left + width]
