"""Processes that decode and encode: Pillow holds the interpreter's lock while it writes a JPEG.

Two threads encode no faster than one, so each thread that packs resized images has a process of its
own, which is handed a file and returns the JPEG. The process is a fresh interpreter: it shares no
state with the one that starts it, imports neither torch nor the main script, and ends with it, even
with ``kill -9``, when its input ends. A file that crashes the decoder counts as a bad image.
"""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from rn50.data.encoding import Encoding
from rn50.data.jpeg import Jpeg, NotAnImageError, to_jpeg, warnings_ignored
from rn50.data.sources.base import BadImageError
from rn50.errors import UsageError

ToJpeg = Callable[[bytes], Jpeg]
"""``jpeg.to_jpeg`` with its encoding, in this process or in another."""

_HEAD = struct.Struct(">II")
"""Bytes of the JSON that describes, and of the image that follows."""
_PROGRAM = "from rn50.data.encoder import serve; serve()"
_CRASHES = tuple(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")
    if hasattr(signal, name)
)


class EncoderProcess:
    """A process that does ``to_jpeg``; for one thread at a time.

    Args:
        encoding: How large images are made smaller.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._process: subprocess.Popen[bytes] | None = None

    def to_jpeg(self, data: bytes) -> Jpeg:
        """Do ``jpeg.to_jpeg`` there.

        Raises:
            BadImageError: As ``jpeg.to_jpeg``, or it crashed the decoder.
            UsageError: The process was killed from outside.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, {}, data)
            about, made = _receive(process.stdout)
        except (BrokenPipeError, EOFError):
            raise self._died(process) from None
        if "error" in about:
            raise (NotAnImageError if about["not_an_image"] else BadImageError)(about["error"])
        same = about.pop("same")
        return Jpeg(data if same else made, **about)

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                _send(self._process.stdin, asdict(self._encoding), b"")
                _receive(self._process.stdout)  # so that what fails later is the image's fault
            except (BrokenPipeError, EOFError):
                raise RuntimeError("an encoder process did not start; see above") from None
        return self._process

    def _died(self, process: "subprocess.Popen[bytes]") -> Exception:
        code = process.wait()
        self.close()
        if -code in _CRASHES:
            return BadImageError(f"it crashed the decoder ({signal.Signals(-code).name})")
        return UsageError(
            f"an encoder process was ended from outside (exit code {code}), as systems do that "
            "run out of memory; each worker needs about 100 MB; use fewer with --workers"
        )


def serve() -> None:
    """Answer the requests of an ``EncoderProcess`` until they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    settings, _ = _receive(requests)
    encoding = Encoding(**settings)
    with warnings_ignored(), suppress(EOFError, BrokenPipeError):
        _send(answers, {}, b"")
        while True:
            _, data = _receive(requests)
            try:
                made = to_jpeg(data, encoding)
            except BadImageError as error:
                refused = isinstance(error, NotAnImageError)
                _send(answers, {"error": str(error), "not_an_image": refused}, b"")
                continue
            about = {name: getattr(made, name) for name in ("width", "height", "converted")}
            same = made.data is data
            _send(
                answers,
                {**about, "resized": made.resized, "same": same},
                b"" if same else bytes(made.data),
            )


def _send(pipe: IO[bytes], about: dict[str, Any], data: bytes) -> None:
    text = json.dumps(about).encode()
    pipe.write(_HEAD.pack(len(text), len(data)) + text)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    sizes = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    text, data = (_exactly(pipe, size) for size in sizes)
    return json.loads(text), data


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
