"""Read, decode and encode the images of a source on every core, in their order."""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from rn50.data.encoder import EncoderProcess
from rn50.data.encoding import Encoding
from rn50.data.jpeg import Jpeg, to_jpeg
from rn50.data.shards import image_digest
from rn50.data.sources.base import BadImageError, SourceImage, Split

CHUNK = 16
"""Images per task: 64 px images would spend their time in the queue, large ones in memory."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What is stored for an image, and what it came from."""

    jpeg: Jpeg
    digest: int
    """``image_digest`` of the JPEG."""
    source_bytes: int
    source_digest: int
    """``image_digest`` of the file as it lay in the source."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An image of the source, converted or found to be bad."""

    image: SourceImage
    result: Converted | BadImageError


def converted(
    images: Iterator[SourceImage], encoding: Encoding | None, workers: int = 0
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each image, in order; few are held at a time.

    Args:
        images: The images; drawn from in the caller's thread.
        encoding: What makes training images smaller; None: all are stored as they are.
        workers: Threads; 0: one per core.
    """
    workers = workers or _cores()
    pending: deque[Future[list[Outcome]]] = deque()
    with _Converter(encoding) as converter, ThreadPoolExecutor(workers, "convert") as pool:
        try:
            while chunk := list(islice(images, CHUNK)):
                pending.append(pool.submit(converter.convert, chunk))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _cores() -> int:
    """Return the cores that this process may use, as ``rn50.hardware`` does; that imports torch."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Converter:
    """Converts images in any thread: there, or in a process of the thread's own."""

    def __init__(self, encoding: Encoding | None) -> None:
        self._encoding = encoding
        self._local = threading.local()
        self._processes: list[EncoderProcess] = []

    def __enter__(self) -> "_Converter":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.close()

    def convert(self, images: list[SourceImage]) -> list[Outcome]:
        return [Outcome(image, self._one(image)) for image in images]

    def _one(self, image: SourceImage) -> Converted | BadImageError:
        try:
            data = image.read()
            jpeg = self._to_jpeg(data, image.split)
        except BadImageError as error:
            return error
        source_digest = image_digest(data)
        digest = source_digest if jpeg.data is data else image_digest(jpeg.data)
        return Converted(jpeg, digest, len(data), source_digest)

    def _to_jpeg(self, data: bytes, split: Split) -> Jpeg:
        if self._encoding is None or split == "val":
            return to_jpeg(data)  # nearly nothing is encoded, and decoding holds no lock
        if not hasattr(self._local, "process"):
            self._local.process = EncoderProcess(self._encoding)
            self._processes.append(self._local.process)
        return self._local.process.to_jpeg(data)
