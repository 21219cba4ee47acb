"""Which split a shard belongs to, by its name, and whether all of its fellows are there."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rn50.data.sources.base import Skipped, Split
from rn50.errors import DataError

_SPLIT_OF: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
TEST = "test"

_MAX_DEPTH = 3
_MAX_FOLDERS = 50
"""A folder of more folders holds classes, and no shards."""


def files_of(root: Path) -> list[str]:
    """Return the files in the folder ``root`` and a few levels below it, relative to it, sorted.

    A file may be a link, as the cache of the Hugging Face Hub has them. Folders of classes are not
    entered, so that this is quick whatever ``root`` is.
    """
    found, folders = [], [""]
    for _ in range(_MAX_DEPTH + 1):
        below: list[str] = []
        for folder in folders:
            try:
                with os.scandir(root / folder) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError:
                continue
            inside = [folder + entry.name for entry in visible if entry.is_dir()]
            if len(inside) <= _MAX_FOLDERS:
                below += [f"{name}/" for name in inside]
            found += [folder + entry.name for entry in visible if entry.is_file()]
        folders = below
    return sorted(found)


def split_of(path: str) -> str | None:
    """Return ``"train"``, ``"val"`` or ``"test"``, by a word in the name or else in the folder's.

    Args:
        path: Relative to the source, with ``/`` between folders.
    """
    for part in reversed(path.split("/")):
        words = re.split(r"[^a-z]+", part.lower())
        for word in words:
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
        if TEST in words:
            return TEST
    return None


def by_split(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths of each split, sorted; those of no split are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        if split := split_of(path):
            found.setdefault(split, []).append(path)
    return found


def need_both(found: Mapping[str, list[str]], place: str, example: str) -> None:
    """Raise ``DataError`` unless there are shards of train and val."""
    for split in ("train", "val"):
        if not found.get(split):
            raise DataError(
                f"{place} has no shards of the {'validation' if split == 'val' else 'training'} "
                f"split; both are needed, such as {example}; download the rest"
            )


def need_all_of(paths: Iterable[str], place: str) -> None:
    """Raise ``DataError`` if a shard named ``…-00007-of-00014…`` lacks any of its fellows."""
    series: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if match := re.search(r"^(.*?)(\d+)-of-(\d+)", path):
            series.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (name, count), numbers in series.items():
        if lacking := sorted(set(range(min(count, 1_000_000))) - numbers):
            raise DataError(
                f"{place} lacks {len(lacking)} of the {count} shards {name}*, such as number "
                f"{lacking[0]}; the data set must be whole; download the rest"
            )


def unused(files: Iterable[str], found: Mapping[str, list[str]]) -> Skipped:
    """Return what of the ``files`` is in neither split."""
    skipped = Skipped()
    used = {*found["train"], *found["val"]}
    for path in files:
        if path not in used:
            of_test = path in found.get(TEST, ())
            skipped.add("test images, which have no labels" if of_test else "not a shard", path)
    return skipped
