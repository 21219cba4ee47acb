"""Turn a source of labelled images into a packed data set, whole or not at all."""

import os
import re
import shutil
import socket
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import rn50
from rn50 import durable
from rn50.data.jpeg import Jpeg, NotAnImageError, to_jpeg, warnings_ignored
from rn50.data.shard_writer import SHARD_BYTES, ShardWriter
from rn50.data.shards import FORMAT, MANIFEST, Records, fingerprint
from rn50.data.sources.base import (
    SPLITS,
    BadImageError,
    ClassName,
    Skipped,
    Source,
    SourceImage,
    Stored,
)
from rn50.errors import DataError, UsageError

BAD = "a bad image"
NOT_AN_IMAGE = "not an image"

_EXAMPLES = 20
"""Paths that the manifest names for each reason; the count is complete."""
_CHUNK = 16
"""Images per task: 64 px images would spend their time in the queue, large ones in memory."""
_MAX_WORKERS = 16
_IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif"),
        *("tif", "tiff", "heic", "avif", "jp2", "ppm", "pgm"),
    )
)
"""A file so named that is no image is an error; any other file that is no image is left out."""


def pack(
    source: Source,
    dest: Path,
    *,
    skip_bad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the images of ``source`` to the new folder ``dest``.

    Every image is decoded once, so that what is broken is found now and not in epoch 30. The
    folder appears under its name when all is written; on any error nothing is left. The same
    source gives the same bytes.

    Args:
        source: What ``open_source`` returns.
        dest: A folder that does not exist yet, or is empty.
        skip_bad: Leave out images that do not decode and list them in the manifest.
        shard_bytes: Upper bound of a shard's size, but for an image that exceeds it alone.
        report: Called now and then with the numbers of images done and in all.

    Returns:
        The manifest.

    Raises:
        DataError: An image is bad, or a class or a split has no images.
        UsageError: ``dest`` cannot be used, or the disk is full.
    """
    with durable.explained(dest):
        _check_destination(dest, source)
    with durable.explained(dest), _aside(dest) as folder, warnings_ignored(), ExitStack() as stack:
        packing = _Packing(folder, source.classes, skip_bad, shard_bytes)
        stack.callback(packing.abort)
        outcomes = stack.enter_context(closing(_decoded(source.images())))
        total = source.count()
        for done, outcome in enumerate(outcomes, 1):
            packing.take(outcome)
            if report is not None and (done % _CHUNK == 0 or done == total):
                report(done, total)
        manifest = packing.finish(source)
        durable.write_json(folder / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An image of the source, decoded or found to be bad."""

    image: SourceImage
    result: Jpeg | BadImageError


class _Packing:
    """The writers of both splits, and what was not taken as it came."""

    def __init__(
        self, folder: Path, classes: tuple[ClassName, ...], skip_bad: bool, shard_bytes: int
    ) -> None:
        assert list(classes) == sorted(classes), "a label is the rank of the class's id"
        self._classes = classes
        self._skip_bad = skip_bad
        self._label = {class_.id: label for label, class_ in enumerate(classes)}
        self._writers = {split: ShardWriter(folder, split, shard_bytes) for split in SPLITS}
        self._skipped = Skipped()
        self._converted = Skipped()

    def take(self, outcome: _Outcome) -> None:
        image, result = outcome.image, outcome.result
        if isinstance(result, BadImageError):
            self._leave_out(image, result)
            return
        if result.converted is not None:
            self._converted.add(result.converted, image.path)
        self._writers[image.split].add(
            key(image.class_id, image.path),
            result.data,
            self._label[image.class_id],
            (result.width, result.height),
        )

    def finish(self, source: Source) -> dict[str, Any]:
        """Close the shards and return the manifest."""
        written = {split: writer.close() for split, writer in self._writers.items()}
        self._check_counts(written["train"][1], written["val"][1])
        name = source.origin.name if isinstance(source, Stored) else source.kind
        return {
            "format": FORMAT,
            "tool": f"rn50 {rn50.__version__}",
            "source": {"kind": source.kind, "name": name},
            "classes": [{"id": class_.id, "name": class_.name} for class_ in self._classes],
            "splits": {split: entry for split, (entry, _) in written.items()},
            "skipped": _summary(source.skipped, self._skipped),
            "converted": _summary(self._converted),
            "fingerprint": fingerprint(
                self._classes, ((split, index) for split, (_, index) in written.items())
            ),
        }

    def abort(self) -> None:
        for writer in self._writers.values():
            writer.abort()

    def _leave_out(self, image: SourceImage, error: BadImageError) -> None:
        suffix = os.path.splitext(image.path)[1].lower()
        if isinstance(error, NotAnImageError) and suffix not in _IMAGE_SUFFIXES:
            self._skipped.add(NOT_AN_IMAGE, image.path)
        elif self._skip_bad:
            self._skipped.add(BAD, f"{image.path} ({error})")
        else:
            raise DataError(
                f"{image.path} cannot be decoded: {error}; every image must be whole; replace it, "
                "or leave bad images out with --skip-bad, which lists them in the manifest"
            )

    def _check_counts(self, train: Records, val: Records) -> None:
        left_out = sum(len(paths) for paths in self._skipped.paths.values())
        hint = f" ({left_out} files there were left out)" if left_out else ""
        counts = np.bincount(train["label"], minlength=len(self._classes))
        for class_, count in zip(self._classes, counts, strict=True):
            if count == 0:
                raise DataError(
                    f"class {class_.id!r} has no training images{hint}; every class needs at "
                    "least one; add its images or remove the class"
                )
        if len(val) == 0:
            raise DataError(
                f"the validation split has no images{hint}; it needs at least one; add images"
            )


def key(class_id: str, path: str) -> str:
    """Return the name of an image in the shards: its class and its path below it, no suffix.

    WebDataset ends a key at the first dot, so that dots become underscores, as does all that is
    not a letter, a digit, or one of ``_-``.
    """
    *folders, name = path.split("/")
    below = folders[folders.index(class_id) + 1 :] if class_id in folders else []
    stem = os.path.splitext(name)[0]
    parts = [class_id, *(folder for folder in below if folder != "images"), stem]
    return "/".join(re.sub(r"[^\w-]", "_", unicodedata.normalize("NFC", part)) for part in parts)


def _decoded(images: Iterator[SourceImage]) -> Generator[_Outcome, None, None]:
    """Yield the images decoded by threads, in order; few are held at a time."""
    workers = min(os.cpu_count() or 1, _MAX_WORKERS)
    pending: deque[Future[list[_Outcome]]] = deque()
    with ThreadPoolExecutor(workers, "decode") as pool:
        try:
            while chunk := list(islice(images, _CHUNK)):
                pending.append(pool.submit(_decode, chunk))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _decode(images: list[SourceImage]) -> list[_Outcome]:
    return [_Outcome(image, _jpeg_or_error(image)) for image in images]


def _jpeg_or_error(image: SourceImage) -> Jpeg | BadImageError:
    try:
        return to_jpeg(image.read())
    except BadImageError as error:
        return error


def _summary(*parts: Skipped) -> dict[str, Any]:
    """Return count and examples for each reason."""
    paths: dict[str, list[str]] = {}
    for part in parts:
        for reason, some in part.paths.items():
            paths.setdefault(reason, []).extend(some)
    return {
        reason: {"count": len(paths[reason]), "examples": paths[reason][:_EXAMPLES]}
        for reason in sorted(paths)
    }


def _check_destination(dest: Path, source: Source) -> None:
    if isinstance(source, Stored) and source.origin.is_dir():
        inside = source.origin.resolve()
        if dest.resolve().is_relative_to(inside):
            raise UsageError(
                f"destination {dest} lies in the source {source.origin}; it must lie outside, or "
                "it would become part of the data; choose another folder"
            )
    for folder in (dest, *dest.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"destination {dest} cannot be made: {folder} is a file; it must be a new folder; "
                "choose another"
            )
    if dest.exists() and any(dest.iterdir()):
        raise UsageError(
            f"destination {dest} exists and is not empty; it must be a new or empty folder; "
            "choose another, or remove this one first"
        )


@contextmanager
def _aside(dest: Path) -> Iterator[Path]:
    """Yield a folder beside ``dest`` that takes its name at the end, or is removed on an error."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(dest)
    folder = dest.with_name(str(os.getpid()).join(_temporary_ends(dest)))
    folder.mkdir()
    try:
        yield folder
        durable.sync_folder(folder)
        if dest.exists():
            dest.rmdir()  # empty, as was checked; Windows renames onto nothing
        folder.rename(dest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    durable.sync_folder(dest.parent)


def _temporary_ends(dest: Path) -> tuple[str, str]:
    """Return what stands before and after the process id in the temporary folder's name."""
    return f"{durable.TEMPORARY_PREFIX}{socket.gethostname()}-", f"-{dest.name}"


def _remove_stale(dest: Path) -> None:
    """Remove what processes that were killed on this host have left for the same destination."""
    before, after = _temporary_ends(dest)
    for folder in dest.absolute().parent.iterdir():
        if folder.name.startswith(before) and folder.name.endswith(after):
            pid = folder.name.removeprefix(before).removesuffix(after)
            if pid.isdecimal() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a container gives every process the same number
    if os.name == "nt":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
