"""The training images of ILSVRC2012: a tar of each class, together in a tar or side by side."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from rn50.data.sources import published
from rn50.data.sources.base import Skipped, SourceImage
from rn50.data.sources.container import (
    LINK,
    REPEATED,
    SPECIAL,
    SYSTEM,
    UNSAFE,
    is_system,
    printable,
    safe_path,
)
from rn50.data.sources.tars import Hashed, Readable, Walk, Window, damage_told, damaged
from rn50.errors import DataError

CLASS_TAR = re.compile(r"(n\d{8})\.tar")
NOT_OF_CLASS = "in the tar of a class, and not named as an image of it"


class TarOfTars:
    """ILSVRC2012_img_train.tar: read once from begin to end, one image in memory at a time.

    Args:
        path: The file, which is not compressed.
    """

    def __init__(self, path: Path) -> None:
        published.refuse_cut_off(path)
        self.path = path
        self.skipped = Skipped()
        self._md5: str | None = None
        with damage_told(path), path.open("rb") as file:
            self.wnids = [wnid for header in Walk(file) if (wnid := class_of(header))]
        if repeated := {wnid for wnid in self.wnids if self.wnids.count(wnid) > 1}:
            raise damaged(path, EOFError(f"it holds {min(repeated)}.tar twice"))

    def count(self) -> int:
        """Return the number of images; all headers are read unless it is the published archive."""
        known = published.ARCHIVES.get(self.path.name)
        if known and known.size == self.path.stat().st_size:
            return published.ilsvrc2012().total["train"]
        with damage_told(self.path), self.path.open("rb") as file:
            walk = Walk(file)
            return sum(
                _count(Window(walk, header.size), wnid)
                for header in walk
                if (wnid := class_of(header))
            )

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the order of the archive."""
        self.skipped = Skipped()
        self._md5 = None
        with damage_told(self.path), self.path.open("rb") as file:
            hashed = Hashed(file)
            walk = Walk(hashed)
            for header in walk:
                place = f"{self.path.name}/{printable(header.name)}"
                if wnid := class_of(header):
                    yield from _images(Window(walk, header.size), wnid, place, self.skipped)
                elif not header.isdir():
                    self.skipped.add("not the tar of a class", place)
            self._md5 = hashed.finish()

    def check(self) -> list[str]:
        """Compare the hash with the published one."""
        return [] if self._md5 is None else [published.verdict(self.path, self._md5)]


class ClassTars:
    """Tars of classes in a folder, as extracting the archive once leaves them.

    Args:
        folder: Where they lie.
        shown: What messages call it, relative to the source.
        wnids: The classes, each of which has its ``<wnid>.tar``.
    """

    def __init__(self, folder: Path, shown: str, wnids: list[str]) -> None:
        self.skipped = Skipped()
        self._shown = shown
        self._paths = {wnid: folder / f"{wnid}.tar" for wnid in sorted(wnids)}
        for path in self._paths.values():
            published.refuse_cut_off(path)

    def count(self) -> int:
        """Return the number of images; all headers are read."""
        total = 0
        for wnid, path in self._paths.items():
            with damage_told(path), path.open("rb") as file:
                total += _count(file, wnid)
        return total

    def images(self) -> Iterator[SourceImage]:
        """Yield the images, class after class."""
        self.skipped = Skipped()
        for wnid, path in self._paths.items():
            with damage_told(path), path.open("rb") as file:
                yield from _images(file, wnid, f"{self._shown}{path.name}", self.skipped)

    def check(self) -> list[str]:
        """Return nothing: the hashes of these were not published."""
        return []


def class_of(header: tarfile.TarInfo) -> str | None:
    """Return the WordNet id of the class whose tar this is the header of; None if of none."""
    path = safe_path(header.name)
    match = CLASS_TAR.fullmatch(path.rpartition("/")[2]) if path and header.isreg() else None
    return match[1] if match else None


def _images(file: Readable, wnid: str, place: str, skipped: Skipped) -> Iterator[SourceImage]:
    taken: set[str] = set()
    walk = Walk(file)
    try:
        for header in walk:
            path = f"{place}/{printable(header.name)}"
            if reason := _refused(header, wnid, taken):
                skipped.add(reason, path)
            elif not header.isdir():
                name = header.name.rpartition("/")[2]
                taken.add(name)
                yield SourceImage("train", wnid, f"{place}/{name}", walk.image(header))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{place} is cut off or damaged ({error}); the tar of each class must be whole; "
            "extract or download it again"
        ) from error


def _count(file: Readable, wnid: str) -> int:
    taken: set[str] = set()
    for header in Walk(file):
        if _refused(header, wnid, taken) is None and not header.isdir():
            taken.add(header.name.rpartition("/")[2])
    return len(taken)


def _refused(header: tarfile.TarInfo, wnid: str, taken: set[str]) -> str | None:
    path = safe_path(header.name)
    if path is None:
        return UNSAFE
    if header.islnk() or header.issym():
        return LINK
    if header.isdir():
        return None
    if not header.isreg() or header.issparse():
        return SPECIAL
    name = path.rpartition("/")[2]
    if is_system(path):
        return SYSTEM
    if not re.fullmatch(rf"{wnid}_\d+\.(JPEG|jpe?g)", name):
        return NOT_OF_CLASS
    return REPEATED if name in taken else None
