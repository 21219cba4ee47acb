"""Region decoding of JPEGs with libjpeg-turbo's TurboJPEG 3 interface.

Three quarters of the cost of a JPEG is entropy decoding, which grows with the bytes read: rows
below a crop are never read, and columns beside it skip the inverse transform. TurboJPEG 3 offers
that as ``tj3SetCroppingRegion``; no wrapper on PyPI passes it on, so this module calls the library
by ctypes, which also releases the interpreter's lock while it decodes.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

_INIT_DECOMPRESS = 1
_FORMAT_RGB = 0
_PARAM_SUBSAMPLING, _PARAM_WIDTH, _PARAM_HEIGHT, _PARAM_COLORSPACE = 4, 5, 6, 8
_CMYK_COLORSPACES = (3, 4)  # TJCS_CMYK, TJCS_YCCK
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}
"""Width in pixels of the blocks a region must start at, for each TJSAMP value."""

LIBRARY_VARIABLE = "RN50_TURBOJPEG"
"""Environment variable with the path of a libturbojpeg to use instead of the one found."""

DECODER_VARIABLE = "RN50_DECODER"
"""Environment variable that holds the decoder back: ``native`` (as usual), ``turbojpeg`` (without
the compiled code) or ``pillow`` (without both)."""


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class TurboJpegError(Exception):
    """The library could not decode an image without complaint."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return a TurboJPEG library that can decode regions, or None where there is none.

    Looked for in ``RN50_TURBOJPEG``, then the ``turbojpeg`` wheel, then the system's libraries
    (version 3 and above; Debian 12 and Ubuntu 24.04 ship 2.1, which lacks the functions).
    """
    if os.environ.get(DECODER_VARIABLE) == "pillow":
        return None
    for candidate in _candidates():
        try:
            found = ctypes.CDLL(candidate)
            _declare(found)
        except (OSError, AttributeError):
            continue
        return found
    return None


def _candidates() -> Iterator[str]:
    if named := os.environ.get(LIBRARY_VARIABLE):
        yield named
    spec = importlib.util.find_spec("turbojpeg")
    if spec is not None and spec.origin is not None:
        wheel = Path(spec.origin).parent
        patterns = ("turbojpeg.libs/*turbojpeg*", ".dylibs/*turbojpeg*", "**/.dylibs/*turbojpeg*")
        for pattern in patterns:
            yield from map(str, sorted(wheel.glob(pattern)))
    if system := ctypes.util.find_library("turbojpeg"):
        yield system
    yield from ("/opt/homebrew/lib/libturbojpeg.dylib", "/opt/libjpeg-turbo/lib64/libturbojpeg.so")


def _declare(lib: ctypes.CDLL) -> None:
    handle, data, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    lib.tj3Init.argtypes, lib.tj3Init.restype = [ctypes.c_int], handle
    lib.tj3Destroy.argtypes, lib.tj3Destroy.restype = [handle], None
    lib.tj3GetErrorStr.argtypes, lib.tj3GetErrorStr.restype = [handle], ctypes.c_char_p
    lib.tj3Get.argtypes = [handle, ctypes.c_int]
    lib.tj3DecompressHeader.argtypes = [handle, data, size]
    lib.tj3SetCroppingRegion.argtypes = [handle, _Region]
    lib.tj3Decompress8.argtypes = [handle, data, size, data, ctypes.c_int, ctypes.c_int]


class TurboJpeg:
    """A decoder for one thread, with a buffer that is reused for every image."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib
        self._handle: int | None = None
        self._open()
        self._buffer = np.empty(1 << 20, dtype=np.uint8)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.tj3Destroy(self._handle)

    def _open(self) -> None:
        if self._handle:
            self._lib.tj3Destroy(self._handle)
        self._handle = self._lib.tj3Init(_INIT_DECOMPRESS)
        if not self._handle:
            raise MemoryError("TurboJPEG could not create a decoder")

    def decode(
        self,
        jpeg: bytes | memoryview,
        box: Int64[np.ndarray, " 4"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Decode the crop ``box`` (top, left, height, width) of a JPEG, or all of it, to RGB.

        The pixels equal those of a full decode. Returns a view of the decoder's own buffer, valid
        until the next call. Where a ``size`` (width, height) is given, no other is decoded.

        Raises:
            TurboJpegError: The data is damaged, cut off, of another size, or not of one or three
                colours.
        """
        address = np.frombuffer(jpeg, dtype=np.uint8).__array_interface__["data"][0]
        lib, handle, num_bytes = self._lib, self._handle, len(jpeg)
        if lib.tj3DecompressHeader(handle, address, num_bytes):
            raise self._error()
        if lib.tj3Get(handle, _PARAM_COLORSPACE) in _CMYK_COLORSPACES:
            raise TurboJpegError("CMYK colours")
        full_w = lib.tj3Get(handle, _PARAM_WIDTH)
        full_h = lib.tj3Get(handle, _PARAM_HEIGHT)
        if size is not None and size != (full_w, full_h):
            raise TurboJpegError("another size")
        if box is None:
            top, left, height, width = 0, 0, full_h, full_w
        else:
            top, left, height, width = box.tolist()
        x, w = self._columns(left, width, full_w)
        if lib.tj3SetCroppingRegion(handle, _Region(x, top, w, height)):
            raise self._error()
        needed = height * w * 3
        if needed > len(self._buffer):
            self._buffer = np.empty(needed, dtype=np.uint8)
        target = self._buffer.__array_interface__["data"][0]
        if lib.tj3Decompress8(handle, address, num_bytes, target, w * 3, _FORMAT_RGB):
            raise self._error()
        pixels = self._buffer[:needed].reshape(height, w, 3)
        return pixels[:, left - x : left - x + width]

    def _columns(self, left: int, width: int, full_w: int) -> tuple[int, int]:
        """Return start and width of the region to decode, on block borders.

        One block more on either side keeps chroma upsampling, which reads its neighbours, equal to
        that of a full decode.
        """
        block = _MCU_WIDTH.get(self._lib.tj3Get(self._handle, _PARAM_SUBSAMPLING))
        if block is None:
            return 0, full_w
        start = max(0, left // block - 1) * block
        end = min(full_w, (-(-(left + width) // block) + 1) * block)
        return start, end - start

    def _error(self) -> TurboJpegError:
        text = self._lib.tj3GetErrorStr(self._handle).decode(errors="replace")
        self._open()  # version 2.1.92 stays in the middle of a header that was damaged
        return TurboJpegError(text)
