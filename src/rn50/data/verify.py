"""Check a packed data set down to the last byte, and name what is damaged."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from rn50 import durable
from rn50.data.jpeg import to_jpeg, warnings_ignored
from rn50.data.shards import (
    END,
    FOREIGN,
    MANIFEST,
    PackedDataset,
    PackedSplit,
    files,
    fingerprint,
    frame,
    image_digest,
    target,
)
from rn50.data.sources.base import BadImageError
from rn50.errors import DataError

_CHUNK = 256
"""Images per task."""
_SHOWN = 20
"""Problems that the error lists; the rest is counted."""

_Check = Callable[[], list[str]]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a whole data set was found to hold."""

    images: dict[str, int]
    """By split."""
    num_classes: int
    num_bytes: int
    """Of all files but the manifest."""
    fingerprint: str


def verify(
    folder: Path, *, workers: int = 0, report: Callable[[int, int], None] | None = None
) -> Verified:
    """Read every byte of a packed data set and decode every image.

    Checked are each file's size and hash; for each image its digest, its size in pixels, its label
    and every header and filler byte of its shard; the index's order, the classes, the fingerprint.
    What tars that were prepared in place hold beside the images is covered by the files' hashes.

    Args:
        folder: What ``pack`` has made.
        workers: Threads; 0 means one per processor.
        report: Called now and then with the numbers of images done and in all.

    Raises:
        DataError: Something is damaged; the message names each image or file, up to 20.
    """
    dataset = PackedDataset.open(folder)
    for split in dataset.manifest["splits"].values():
        # First, and alone: without the keys nothing else can be named.
        if problems := _check_hash(folder, split["keys"]):
            raise DataError(_message(folder, problems))
    splits = [dataset.split(name) for name in dataset.manifest["splits"]]
    total = sum(split.num_images for split in splits)
    problems = _check_lists(dataset, splits)
    done = 0
    with warnings_ignored(), ThreadPoolExecutor(workers or os.cpu_count(), "verify") as pool:
        checks = [check for split in splits for check in _checks(dataset, split)]
        results = pool.map(lambda check: check[1](), checks)
        for (num_images, _), found in zip(checks, results, strict=True):
            problems.extend(found)
            done += num_images
            if report is not None and num_images:
                report(done, total)
    if problems:
        raise DataError(_message(folder, problems))
    return Verified(
        images={split.name: split.num_images for split in splits},
        num_classes=len(dataset.classes),
        num_bytes=sum(file["bytes"] for file in files(dataset.manifest)),
        fingerprint=dataset.fingerprint,
    )


def _checks(dataset: PackedDataset, split: PackedSplit) -> Iterator[tuple[int, _Check]]:
    """Yield (number of images, check): the images in the order of the shards, then the files."""
    order = np.lexsort((split.index["offset"], split.index["shard"]))
    shards = dataset.manifest["splits"][split.name]["shards"]
    foreign = dataset.manifest.get(FOREIGN, False)
    for number, part in enumerate(shards):
        rows = order[split.index["shard"][order] == number]
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            if foreign:
                yield len(chunk), partial(_check_jpegs, split, chunk)
                continue
            begin = _end(split, int(rows[start - 1])) if start > 0 else 0
            yield len(chunk), partial(_check_images, split, chunk, begin)
        if foreign:
            continue
        end = _end(split, int(rows[-1])) if len(rows) else 0
        yield 0, partial(_check_end, split, number, end, part["file"])
    for part in shards:
        yield 0, partial(_check_hash, dataset.folder, part)


def _check_hash(folder: Path, part: dict[str, Any]) -> list[str]:
    path = folder / part["file"]
    if durable.file_digest(path) == part["blake2b"]:
        return []
    return [f"{path.name}{target(path)}: its hash is not that of {MANIFEST}"]


def _check_end(split: PackedSplit, number: int, end: int, file: str) -> list[str]:
    if split.read(number, end) == END:
        return []
    return [f"{file}: what follows its last image was altered"]


def _check_images(split: PackedSplit, rows: Int64[np.ndarray, " rows"], begin: int) -> list[str]:
    """Check images that follow each other in a shard, from its byte ``begin`` on."""
    problems = []
    for i in rows.tolist():
        row = split.index[i]
        shard = int(row["shard"])
        head, tail = frame(split.key(i), int(row["length"]), int(row["label"]))
        start = int(row["offset"])
        end = start + int(row["length"]) + len(tail)
        found = []
        if split.read(shard, begin, start) != head:
            found.append("the tar header of its JPEG was altered")
        found += _check_jpeg(split.jpeg(i), row)
        if split.read(shard, end - len(tail), end) != tail:
            found.append("its label (the member .cls) or the tar header of it was altered")
        problems += [f"{split.describe(i)}: {problem}" for problem in found]
        begin = end
    return problems


def _check_jpegs(split: PackedSplit, rows: Int64[np.ndarray, " rows"]) -> list[str]:
    return [
        f"{split.describe(i)}: {problem}"
        for i in rows.tolist()
        for problem in _check_jpeg(split.jpeg(i), split.index[i])
    ]


def _check_jpeg(jpeg: bytes, row: np.void) -> list[str]:
    if image_digest(jpeg) != row["digest"]:
        return ["its JPEG was altered"]
    try:
        image = to_jpeg(jpeg)
    except BadImageError as error:
        return [f"it cannot be decoded: {error}"]
    if image.converted is not None:
        return [f"it is a {image.converted}, which must not be in a shard"]
    if (image.width, image.height) != (row["width"], row["height"]):
        return [f"it has {image.width}×{image.height} pixels, not {row['width']}×{row['height']}"]
    return []


def _check_lists(dataset: PackedDataset, splits: list[PackedSplit]) -> list[str]:
    problems = []
    classes = dataset.classes
    if list(classes) != sorted(set(classes)):
        problems.append(f"{MANIFEST}: its classes are not sorted and distinct")
    if fingerprint(classes, ((s.name, s.index) for s in splits)) != dataset.fingerprint:
        problems.append(f"{MANIFEST}: its fingerprint is not that of the classes and images")
    for split in splits:
        counts = np.bincount(split.labels, minlength=len(classes))
        if split.name == "train" and (empty := np.flatnonzero(counts == 0)).size:
            problems.append(f"{split.name}: class {classes[empty[0]].id!r} has no images")
        places = zip(split.labels.tolist(), map(split.key, range(split.num_images)), strict=True)
        if any(a >= b for a, b in pairwise(places)):
            problems.append(f"{split.name}: its index is not sorted by label and key")
    return problems


def _end(split: PackedSplit, i: int) -> int:
    """Return the byte after all that belongs to image ``i`` in its shard."""
    row = split.index[i]
    _, tail = frame(split.key(i), int(row["length"]), int(row["label"]))
    return int(row["offset"]) + int(row["length"]) + len(tail)


def _message(folder: Path, problems: list[str]) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"{folder} is damaged in {len(problems)} places; every byte must be as it was packed; "
        f"copy the folder again or prepare it again:{shown}{more}"
    )
