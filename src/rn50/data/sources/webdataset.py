"""WebDataset tars: ``<key>.jpg`` beside ``<key>.cls``, as timm's ImageNet on the Hugging Face Hub.

The labels are numbers. A thousand of them are taken as the ranks of ImageNet's sorted WordNet ids,
unless the keys contradict; fewer or more stand for themselves.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from rn50.data.sources import published, splits
from rn50.data.sources.base import Place, Skipped, SourceImage, Split
from rn50.data.sources.container import LINK, SPECIAL, UNSAFE, limited, printable, safe_path
from rn50.data.sources.stored import StoredImages
from rn50.data.sources.tars import Walk, damage_told, damaged, ends_whole
from rn50.data.sources.wnids import class_names, imagenet_wnids
from rn50.errors import DataError

KIND = "WebDataset"
EXAMPLE = "imagenet1k-train-0000.tar and imagenet1k-validation-00.tar"
INFO = "_info.json"

_IMAGES = ("jpg", "jpeg", "png", "webp")
_NO_LABEL = "an image without a label"
_MAX_LABEL_BYTES = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstandard begin."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a shard: where its bytes lie, and what it is labelled."""

    key: str
    suffix: str
    offset: int
    size: int
    label: str


def index(path: Path, skipped: Skipped | None = None) -> Iterator[Entry]:
    """Yield where each labelled image of a shard lies; the images themselves are not read.

    Args:
        path: A plain tar.
        skipped: Takes what has no label or is not a file.

    Raises:
        DataError: The tar is cut off, damaged or compressed.
    """
    _refuse_compressed(path)
    published.refuse_cut_off(path)
    left_out = Skipped() if skipped is None else skipped
    sample = _Sample("")
    with damage_told(path), path.open("rb") as file, path.open("rb") as labels:
        for header in Walk(file):
            name = safe_path(header.name)
            if header.isdir():
                continue
            if not name or not header.isreg() or header.issparse():
                link = header.islnk() or header.issym()
                reason = UNSAFE if not name else LINK if link else SPECIAL
                left_out.add(reason, f"{path.name}/{printable(header.name)}")
                continue
            key, suffix = _split_name(name)
            if key != sample.key:
                yield from sample.entry(path, labels, left_out)
                sample = _Sample(key)
            sample.members[suffix] = (header.offset_data, header.size)
        yield from sample.entry(path, labels, left_out)


class _Sample:
    """The members that share a key, one after the other."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: dict[str, tuple[int, int]] = {}

    def entry(self, path: Path, file: BinaryIO, skipped: Skipped) -> Iterator[Entry]:
        suffix = next((name for name in _IMAGES if name in self.members), None)
        if suffix is None:
            return
        label = self._label(file)
        if label is None:
            skipped.add(_NO_LABEL, f"{path.name}/{self.key}.{suffix}")
            return
        yield Entry(self.key, suffix, *self.members[suffix], label)

    def _label(self, file: BinaryIO) -> str | None:
        for name in ("cls", "json"):
            offset, size = self.members.get(name, (0, 0))
            if not 0 < size <= _MAX_LABEL_BYTES:
                continue
            file.seek(offset)
            text = file.read(size).decode("utf-8", "replace").strip()
            if name == "cls":
                return text or None
            try:
                told = json.loads(text)
            except ValueError:
                return None
            label = told.get("label", told.get("cls")) if isinstance(told, dict) else None
            return None if label is None else str(label)
        return None


class Shard:
    """One tar of a split."""

    def __init__(self, path: Path, shown: str, split: Split) -> None:
        self.path = path
        self.split = split
        self.skipped = Skipped()
        self.class_of: dict[str, str] = {}
        """Label -> class id; to be set before ``images``."""
        self.labels: set[str] = set()
        self.wnids: set[tuple[str, str]] = set()
        """Label and WordNet id of the keys that begin with one."""
        self._shown = shown
        self._count = 0
        for entry in index(path):
            self._count += 1
            self.labels.add(entry.label)
            if match := re.search(r"(?:^|[/_])(n\d{8})(?:_|$|/)", entry.key):
                self.wnids.add((entry.label, match[1]))

    def count(self) -> int:
        """Return the number of labelled images."""
        return self._count

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the order of the tar."""
        self.skipped = Skipped()
        for entry in index(self.path, self.skipped):
            yield SourceImage(
                self.split,
                self.class_of[entry.label],
                f"{self._shown}/{entry.key}.{entry.suffix}",
                partial(_read, self.path, entry.offset, entry.size),
                Place(self.path, entry.offset, entry.size),
            )

    def check(self) -> list[str]:
        """Return nothing: the hashes of these were not published."""
        return []


def find(root: Path, files: list[str]) -> list[str]:
    """Return which of the ``files`` in the folder ``root`` are in this form."""
    tars = [path for path in files if path.endswith(".tar") and splits.split_of(path)]
    return tars if tars and _is_shard(root / tars[0]) else []


def read(origin: Path, files: list[str]) -> StoredImages:
    """Return the labelled images of the shards among the ``files`` in the folder ``origin``.

    Raises:
        DataError: A split or a shard is missing, a tar is damaged, or labels contradict keys.
    """
    found = splits.by_split(path for path in files if path.endswith(".tar"))
    infos = [path for path in files if path.rpartition("/")[2] == INFO]
    lengths = _lengths(origin / infos[0]) if infos else {}
    splits.need_both(found, str(origin), EXAMPLE)
    _need_all(lengths, found, origin)
    train = [Shard(origin / path, path, "train") for path in found["train"]]
    val = [Shard(origin / path, path, "val") for path in found["val"]]
    shards = train + val
    for shard in shards:
        if shard.count() != lengths.get(shard.path.name, shard.count()):
            raise DataError(
                f"{shard.path} has {shard.count()} labelled images, and {INFO} tells of "
                f"{lengths[shard.path.name]}; the data set must be whole; download it again"
            )
    class_of, fact = _classes(shards, origin)
    for shard in shards:
        shard.class_of = class_of
    ids = set(class_of.values())
    skipped = splits.unused((path for path in files if path not in infos), found)
    expected = published.ilsvrc2012() if ids == set(imagenet_wnids()) else None
    source = StoredImages(KIND, origin, class_names(ids), shards, skipped, expected=expected)
    source.facts = [fact]
    return source


def _classes(shards: list[Shard], origin: Path) -> tuple[dict[str, str], str]:
    """Return the class id of each label, and a sentence on where they come from."""
    labels = {label for shard in shards for label in shard.labels}
    wnid_of = _wnids_of_keys(shards, origin)
    if wnid_of.keys() == labels and len(set(wnid_of.values())) == len(labels):
        return wnid_of, "classes: the WordNet ids of the keys"
    if not all(label.isdecimal() and label.isascii() for label in labels):
        return {label: label for label in labels}, "classes: the labels as they are"
    numbers = {label: int(label) for label in labels}
    if set(numbers.values()) == set(range(1000)):
        known = imagenet_wnids()
        class_of = {label: known[number] for label, number in numbers.items()}
        if wrong := sorted(label for label in wnid_of if class_of[label] != wnid_of[label]):
            raise DataError(
                f"{origin} has label {wrong[0]} for {wnid_of[wrong[0]]}, and in ImageNet's order "
                f"of classes it is {class_of[wrong[0]]}; labels must be ranks of the sorted "
                "WordNet ids; correct them"
            )
        return class_of, "classes: 1,000 labels, taken as the ranks of ImageNet's WordNet ids"
    width = len(str(max(numbers.values(), default=0)))
    return {label: f"{n:0{width}}" for label, n in numbers.items()}, "classes: the labels' numbers"


def _wnids_of_keys(shards: list[Shard], origin: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, wnid in sorted(pair for shard in shards for pair in shard.wnids):
        if found.setdefault(label, wnid) != wnid:
            raise DataError(
                f"{origin} has label {label} for {found[label]} and for {wnid}; a label must be "
                "one class; the shards are of different data sets, or damaged: download them again"
            )
    return found


def _lengths(path: Path) -> dict[str, int]:
    """Return the number of samples of each shard that timm's ``_info.json`` lists, by name."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return {
            str(name).rpartition("/")[2]: int(length)
            for split in told["splits"].values()
            if isinstance(split["filenames"], list)
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); it must list the shards of each "
            "split with their lengths; download it again, or remove it"
        ) from error


def _need_all(lengths: dict[str, int], found: dict[str, list[str]], origin: Path) -> None:
    there = {path.rpartition("/")[2] for paths in found.values() for path in paths}
    lacking = sorted(
        name for name in lengths if name not in there and splits.split_of(name) != splits.TEST
    )
    if lacking:
        raise DataError(
            f"{origin} lacks {len(lacking)} of the {len(lengths)} shards that {INFO} lists, such "
            f"as {lacking[0]}; the data set must be whole; download the rest"
        )
    if not lengths:
        _need_no_gaps(found, origin)


def _need_no_gaps(found: dict[str, list[str]], origin: Path) -> None:
    """Raise ``DataError`` if the numbers at the ends of the shards' names have a gap."""
    series: dict[str, list[tuple[int, str]]] = {}
    for path in found["train"] + found["val"]:
        if match := re.fullmatch(r"(.*?)(\d+)\.tar", path):
            series.setdefault(match[1], []).append((int(match[2]), path))
    for shards in series.values():
        for (earlier, _), (later, path) in pairwise(sorted(shards)):
            if later != earlier + 1:
                raise DataError(
                    f"{origin} has no shard number {earlier + 1} before {path}; the data set must "
                    "be whole; download the rest"
                )


def _split_name(name: str) -> tuple[str, str]:
    """Return key and suffix: a key ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _is_shard(path: Path) -> bool:
    """Tell whether one of the first members of a tar has a label as its suffix."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            names = [header.name for header, _ in zip(tar, range(8), strict=False)]
    except (tarfile.TarError, EOFError, OSError):
        return path.is_file() and splits.split_of(path.name) is not None
    return any(_split_name(name)[1] in ("cls", "json") for name in names)


def _refuse_compressed(path: Path) -> None:
    with damage_told(path), path.open("rb") as file:
        # A tar may begin so too, with a name; then it ends as a tar does.
        if file.read(6).startswith(_COMPRESSED) and not ends_whole(path):
            raise DataError(
                f"source {path} is compressed; the shards of a WebDataset must be plain tars, so "
                "that each image can be read by its place; decompress them"
            )


def _read(path: Path, offset: int, size: int) -> bytes:
    limited(size)
    with damage_told(path), path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise damaged(path, EOFError("unexpected end of data"))
    return data
