"""Turn a source of labelled images into a packed data set, whole or not at all."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL

import rn50
from rn50 import durable
from rn50.data.conversion import CHUNK, Outcome, converted
from rn50.data.duplicates import duplicates
from rn50.data.encoding import Encoding, described
from rn50.data.in_place import InPlacePacking
from rn50.data.journal import Identity, Tally, Workplace, workplace
from rn50.data.jpeg import NotAnImageError, warnings_ignored
from rn50.data.shard_writer import SHARD_BYTES
from rn50.data.shards import FOREIGN, FORMAT, MANIFEST, fingerprint, image_digest
from rn50.data.sources.base import (
    SPLITS,
    BadImageError,
    Checked,
    Noted,
    Skipped,
    Source,
    SourceImage,
)
from rn50.data.split_packing import Finished, SourceChangedError, SplitPacking
from rn50.data.subset import Subset
from rn50.errors import DataError, UsageError, UserError

BAD = "a bad image"
NOT_AN_IMAGE = "not an image"

_IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif"),
        *("tif", "tiff", "heic", "avif", "jp2", "ppm", "pgm"),
    )
)
"""A file so named that is no image is an error; any other file that is no image is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How images are stored, and by how many."""

    encoding: Encoding | None = None
    """None: the original bytes."""
    in_place: bool = False
    """Refer to the source's plain tars instead of storing anything; see ``in_place``."""
    workers: int = 0
    """Threads, each with a process of its own where images are resized; 0: one per core. The
    bytes that are written do not depend on it."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(
                f"--workers is {self.workers}; it must be at least 1, or 0 for one per core; "
                "leave it out to use every core"
            )
        if self.in_place and self.encoding is not None:
            raise UsageError(
                "--in-place uses the images as they lie, and --resize-short stores others; one of "
                "them can be had; leave the other out"
            )


def pack(
    source: Source,
    dest: Path,
    *,
    skip_bad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    options: Options = Options(),
    report: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the images of ``source`` to the new folder ``dest``.

    Every image is decoded once, so that what is broken is found now and not in epoch 30. The
    folder appears under its name when all is written. Shards that are finished when the work is
    interrupted, in whatever way, stay in ``.DEST.partial`` beside it: the same call goes on after
    them, and ends with the same bytes. The same source and options give the same bytes.

    Args:
        source: What ``open_source`` returns.
        dest: A folder that does not exist yet, or is empty.
        skip_bad: Leave out images that do not decode, or cannot be used in place as is asked for,
            and list them in the manifest.
        shard_bytes: Upper bound of a shard's size, but for an image that exceeds it alone.
        options: How images are stored.
        report: Called now and then with the numbers of images done and in all.
        say: Called with a line when the work of an earlier run is continued or dropped.

    Returns:
        The manifest.

    Raises:
        DataError: An image is bad, a class or a split has no images, or the source's archives are
            not those that were published.
        UsageError: ``dest`` cannot be used, or the disk is full.
    """
    say = say or (lambda line: None)
    if dest.is_symlink() or not dest.name:
        dest = dest.resolve()
    with durable.explained(dest):
        _check_destination(dest, source)
    with durable.explained(dest), workplace(dest) as place, warnings_ignored():
        _check_destination(dest, source)  # another process may have finished it meanwhile
        opened = (
            partial(InPlacePacking, place, skip_bad=skip_bad)
            if options.in_place
            else partial(SplitPacking, place, shard_bytes=shard_bytes)
        )
        packing = _Packing(source, place, skip_bad, opened)
        try:
            if differing := place.begin(_identity(source, options, shard_bytes)):
                say(
                    f"{place.folder} holds shards of an interrupted run with another "
                    f"{' and '.join(differing)}; starting over"
                )
            manifest = packing.run(options, report, say)
            if options.in_place:
                manifest[FOREIGN] = True
            durable.write_json(place.data / MANIFEST, manifest)
            place.publish(dest)
        except BaseException as error:
            packing.abort()
            kept = place.kept()
            if kept and isinstance(error, UserError | OSError):
                raise _with(error, kept, dest) from error
            if kept:
                say(kept)
            raise
    return manifest


class _Packing:
    """The packing of both splits, and what was not taken as it came."""

    def __init__(
        self,
        source: Source,
        place: Workplace,
        skip_bad: bool,
        opened: Callable[[str], SplitPacking],
    ) -> None:
        classes = source.classes
        assert list(classes) == sorted(classes), "a label is the rank of the class's id"
        self._source = source
        self._place = place
        self._skip_bad = skip_bad
        self._opened = opened
        self._label = {class_.id: label for label, class_ in enumerate(classes)}
        self._splits: dict[str, SplitPacking] = {}

    def run(
        self,
        options: Options,
        report: Callable[[int, int], None] | None,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Pack all that is not finished and return the manifest."""
        self._open()
        if not self._skip_bad and any(p.left_out(BAD) for p in self._splits.values()):
            say("an interrupted run left out bad images, which --skip-bad asks for; starting over")
            self._start_over()
        if done := self._num_finished():
            say(f"continuing in {self._place.folder} after {done:,} images in finished shards")
        try:
            self._take_all(options, report)
        except SourceChangedError:
            say("the source has changed since the run that was interrupted; starting over")
            self._start_over()
            self._take_all(options, report)
        return self._manifest(options.encoding)

    def abort(self) -> None:
        for packing in self._splits.values():
            packing.abort()

    def _open(self) -> None:
        self._splits = {split: self._opened(split) for split in SPLITS}

    def _start_over(self) -> None:
        self.abort()
        self._place.forget()
        self._open()

    def _num_finished(self) -> int:
        return sum(packing.num_finished for packing in self._splits.values())

    def _take_all(self, options: Options, report: Callable[[int, int], None] | None) -> None:
        done, total = self._num_finished(), self._source.count()
        if report is not None and done:
            report(done, max(done, total))
        with ExitStack() as stack:
            images = stack.enter_context(closing(self._unfinished()))
            outcomes = converted(images, options.encoding, options.workers)
            for outcome in stack.enter_context(closing(outcomes)):
                self._take(outcome)
                done += 1
                if report is not None and done % CHUNK == 0 and done != total:
                    report(done, max(done, total))  # a subset's total is an estimate
        if report is not None:
            report(done, done)

    def _unfinished(self) -> Generator[SourceImage, None, None]:
        """Yield the images that no finished shard holds; the others are not even read."""
        finished = {split: Finished(packing.parts) for split, packing in self._splits.items()}
        with closing(_closable(self._source.images())) as images:
            for image in images:
                held, digest = finished[image.split].holds(image)
                if not held:
                    yield image
                elif digest is not None and _digest(image) != digest:
                    raise SourceChangedError
        for split in finished.values():
            split.ended()

    def _take(self, outcome: Outcome) -> None:
        image = outcome.image
        if isinstance(outcome.result, BadImageError):
            self._leave_out(image, outcome.result)
        else:
            label = self._label[image.class_id]
            name = key(image.class_id, image.path)
            self._splits[image.split].take(image, outcome.result, name, label)

    def _leave_out(self, image: SourceImage, error: BadImageError) -> None:
        suffix = os.path.splitext(image.path)[1].lower()
        split = self._splits[image.split]
        if isinstance(error, NotAnImageError) and suffix not in _IMAGE_SUFFIXES:
            split.leave_out(image, NOT_AN_IMAGE, image.path)
        elif self._skip_bad:
            split.leave_out(image, BAD, f"{image.path} ({error})")
        else:
            raise DataError(
                f"{image.path} cannot be decoded: {error}; every image must be whole; replace it, "
                "or leave bad images out with --skip-bad, which lists them in the manifest"
            )

    def _manifest(self, encoding: Encoding | None) -> dict[str, Any]:
        """Close the shards and return the manifest."""
        source, splits = self._source, self._splits
        checks = source.check() if isinstance(source, Checked) else []
        self._check_counts()
        written = {split: packing.close() for split, packing in splits.items()}
        origin = _origin(source)
        return {
            "format": FORMAT,
            "tool": f"rn50 {rn50.__version__}",
            "source": {"kind": source.kind, "name": origin.name if origin else source.kind},
            "chosen": source.chosen if isinstance(source, Subset) else None,
            "stored": described(encoding)
            | {
                "resized": {split: packing.resized for split, packing in splits.items()},
                "source_bytes": sum(packing.source_bytes for packing in splits.values()),
                "stored_bytes": sum(int(index["length"].sum()) for _, index in written.values()),
            },
            "classes": [{"id": class_.id, "name": class_.name} for class_ in source.classes],
            "splits": {split: entry for split, (entry, _) in written.items()},
            "skipped": Tally.of(
                _summary(source.skipped), *(p.skipped.summary() for p in splits.values())
            ).summary(),
            "converted": Tally.of(
                *(packing.converted.summary() for packing in splits.values())
            ).summary(),
            "duplicates": duplicates(splits["train"].contents(), splits["val"].contents()),
            "checks": checks,
            "notes": list(source.notes) if isinstance(source, Noted) else [],
            "fingerprint": fingerprint(
                source.classes, ((split, index) for split, (_, index) in written.items())
            ),
        }

    def _check_counts(self) -> None:
        counts = {split: p.counts(len(self._label)) for split, p in self._splits.items()}
        left_out = sum(packing.num_left_out for packing in self._splits.values())
        hint = f" ({left_out} files there were left out)" if left_out else ""
        for class_, count in zip(self._source.classes, counts["train"], strict=True):
            if count == 0:
                raise DataError(
                    f"class {class_.id!r} has no training images{hint}; every class needs at "
                    "least one; add its images or remove the class"
                )
        if not counts["val"].any():
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


def _identity(source: Source, options: Options, shard_bytes: int) -> Identity:
    """Return what must be the same for finished shards to be of use."""
    origin = _origin(source)
    place: list[Any] = [source.kind, str(origin.absolute()) if origin else None]
    if origin is not None and origin.is_file():
        # A folder's own size and time say nothing of what is below.
        place += [origin.stat().st_size, origin.stat().st_mtime_ns]
    classes = [(class_.id, class_.name) for class_ in source.classes]
    return {
        "source": place,
        "set of classes": hashlib.blake2b(json.dumps(classes).encode()).hexdigest(),
        "number of images per class": source.chosen if isinstance(source, Subset) else None,
        "way of storing": [described(options.encoding), options.in_place],
        "size of shards": shard_bytes,
        "version": [rn50.__version__, PIL.__version__],
    }


def _origin(source: Source) -> Path | None:
    """Return where the source lies, for one that is ``Stored``."""
    return getattr(source, "origin", None)


def _closable(images: Iterator[SourceImage]) -> Generator[SourceImage, None, None]:
    yield from images


def _digest(image: SourceImage) -> int | None:
    try:
        return image_digest(image.read())
    except BadImageError:
        return None


def _with(error: UserError | OSError, kept: str, dest: Path) -> Exception:
    """Return the error as a user reads it, with what is kept for the next run."""
    try:
        with durable.explained(dest):
            raise error
    except UserError as explained:
        return type(explained)(f"{explained}; {kept}")
    except OSError as unexplained:
        return unexplained


def _summary(skipped: Skipped) -> dict[str, Any]:
    tally = Tally()
    for reason, paths in skipped.paths.items():
        tally.add(reason, *paths)
    return tally.summary()


def _check_destination(dest: Path, source: Source) -> None:
    origin = _origin(source)
    if origin is not None and origin.is_dir() and dest.resolve().is_relative_to(origin.resolve()):
        raise UsageError(
            f"destination {dest} lies in the source {origin}; it must lie outside, or "
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
    if dest.exists() and os.path.ismount(dest):
        raise UsageError(
            f"destination {dest} is where a disk is mounted, and cannot be renamed; it must be a "
            f"folder of its own; choose {dest / 'packed'}"
        )
