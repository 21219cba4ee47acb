"""Decoding and resizing many images in one call, by the C code in ``native.c``.

A Python thread that decodes image after image takes the interpreter's lock a dozen times for each,
which at 64 px costs more than the image. Here a thread gives up the lock once for sixteen images.
The code is compiled on first use, in a second, by the C compiler of the machine, and kept in the
cache folder; where there is none, ``decode.Decoder`` gives the same pixels more slowly.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from torch import Tensor

from rn50.data import cache, turbojpeg
from rn50.data.plan import Request
from rn50.data.shards import PackedSplit

COMPILERS = ("cc", "gcc", "clang")
"""Tried in this order, after the environment variable CC."""

JOB = np.dtype(
    [
        *((name, "<u8") for name in ("offset", "size")),
        *((name, "<i4") for name in ("image_h", "image_w", "top", "left", "height", "width")),
        *((name, "<i4") for name in ("new_h", "new_w", "out_top", "out_left")),
        ("out", "<u8"),
        *((name, "<i4") for name in ("status", "file")),
    ],
)
"""``Job`` of native.c: one image, where it lies in which open file, what is cropped, and where the
result goes."""

Jobs = Shaped[np.ndarray, "_"]
"""A row of ``JOB``, of any length."""

_FUNCTIONS = ("Init", "Destroy", "Get", "DecompressHeader", "SetCroppingRegion", "Decompress8")
_COMPILE_S = 120


class CompileError(Exception):
    """The C code could not be compiled here; the text says why."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled code, or None where it cannot be had; ``why_not`` tells the reason."""
    return None if why_not() else _load()


@functools.cache
def why_not() -> str | None:
    """Return why this machine does without the compiled code, or None if it is there."""
    if (named := os.environ.get(turbojpeg.DECODER_VARIABLE, "native")) != "native":
        return f"{turbojpeg.DECODER_VARIABLE} is {named}"
    if os.name == "nt":
        return "it reads files as Unix does"
    if turbojpeg.library() is None:
        return "there is no TurboJPEG 3 library"
    try:
        _load()
    except (CompileError, OSError) as error:
        return str(error)
    return None


def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    """Return what a ``NativeDecoder`` needs: the compiled code and TurboJPEG, or None."""
    lib, turbo = library(), turbojpeg.library()
    return None if lib is None or turbo is None else (lib, turbo)


class NativeDecoder:
    """A decoder for one thread.

    Args:
        lib: The compiled code.
        turbo: The TurboJPEG library that it is to call.
    """

    def __init__(self, lib: ctypes.CDLL, turbo: ctypes.CDLL) -> None:
        self._lib = lib
        addresses = [
            ctypes.cast(getattr(turbo, f"tj3{name}"), ctypes.c_void_p).value for name in _FUNCTIONS
        ]
        functions = (ctypes.c_void_p * len(addresses))(*addresses)
        self._decoder = lib.rn50_decoder_new(functions)
        if not self._decoder:
            raise MemoryError("TurboJPEG could not create a decoder")

    def __del__(self) -> None:
        if getattr(self, "_decoder", None):
            self._lib.rn50_decoder_free(self._decoder)

    def decode(self, jobs: Jobs, px: int) -> list[int]:
        """Fill the squares of side ``px`` that the jobs point to, without the interpreter's lock.

        With ``px`` 0 the crops are decoded and nothing is written, the least that a loader can do.

        Returns:
            The numbers of the jobs that were refused: damaged images, those of four colours, and
            what could not be read.
        """
        assert jobs.flags.c_contiguous
        if not self._lib.rn50_decode(self._decoder, jobs.ctypes.data, len(jobs), px):
            return []
        return np.flatnonzero(jobs["status"]).tolist()


def make_jobs(split: PackedSplit, request: Request, out: UInt8[Tensor, "batch px px 3"]) -> Jobs:
    """Return what is to be decoded for a request; ``split`` and ``out`` must outlive the jobs."""
    jobs = np.zeros(len(request.ids), JOB)
    jobs["file"], jobs["offset"], jobs["size"] = split.locate(request.ids)
    width, height = split.widths[request.ids], split.heights[request.ids]
    jobs["image_w"], jobs["image_h"] = width, height
    jobs["out"] = out.data_ptr() + np.arange(len(jobs), dtype=np.uint64) * out.stride(0)
    if request.boxes is not None:
        for i, name in enumerate(("top", "left", "height", "width")):
            jobs[name] = request.boxes[:, i]
        jobs["new_h"] = jobs["new_w"] = request.px
        return jobs
    jobs["width"], jobs["height"] = width, height
    long_side = np.maximum(width, height)
    long_px = (request.resize_px * long_side / np.minimum(width, height)).astype(np.int64)
    jobs["new_w"] = np.where(width >= height, long_px, request.resize_px)
    jobs["new_h"] = np.where(height >= width, long_px, request.resize_px)
    jobs["out_top"] = np.rint((jobs["new_h"] - request.px) / 2)
    jobs["out_left"] = np.rint((jobs["new_w"] - request.px) / 2)
    return jobs


def read_ahead(jobs: Jobs) -> None:
    """Ask the system to read the jobs' images from disk, without waiting for them."""
    if (lib := library()) is not None:
        lib.rn50_read_ahead(jobs.ctypes.data, len(jobs))


@functools.cache
def _load() -> ctypes.CDLL:
    return declared(_compiled())


def declared(path: Path) -> ctypes.CDLL:
    """Return the compiled code at ``path``, its functions typed."""
    lib = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    lib.rn50_decoder_new.argtypes, lib.rn50_decoder_new.restype = [pointer], pointer
    lib.rn50_decoder_free.argtypes, lib.rn50_decoder_free.restype = [pointer], None
    lib.rn50_decode.argtypes = [pointer, pointer, number, number]
    lib.rn50_read_ahead.argtypes, lib.rn50_read_ahead.restype = [pointer, number], None
    return lib


def compile_code(source: Path, target: Path, flags: Sequence[str]) -> None:
    """Compile ``source`` to the shared library ``target``.

    Raises:
        CompileError: There is no compiler, or it does not take the flags or the code.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))), None)
    if compiler is None:
        raise CompileError(f"there is no C compiler ({', '.join(COMPILERS)})")
    words = [compiler, "-O3", *flags, "-shared", "-fPIC", "-o", str(target), str(source)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMPILE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{compiler} failed: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CompileError(f"{compiler} failed: {said[0]}")


def _compiled() -> Path:
    """Return the shared library, compiled unless the same code was for the same processor."""
    source = resources.files("rn50.data").joinpath("native.c").read_bytes()
    name = hashlib.blake2b(source + _processor().encode(), digest_size=8).hexdigest()
    path = cache.folder() / "native" / f"{name}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            (Path(aside) / "native.c").write_bytes(source)
            code, made = Path(aside) / "native.c", Path(aside) / "native.so"
            try:
                compile_code(code, made, ["-march=native"])
            except CompileError:  # not every compiler knows every processor
                compile_code(code, made, [])
            os.replace(made, path)
    return path


def _processor() -> str:
    """Return what the code is compiled for: a cache may be shared between machines."""
    words = [platform.system(), platform.machine(), platform.processor(), *platform.libc_ver()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    except OSError:
        pass
    return " ".join(words)
