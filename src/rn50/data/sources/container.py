"""Folders and archives read alike: first the list of what is inside, then the files wanted.

Nothing is ever extracted, and only regular files are read: what an archive says about absolute
paths, ``..``, links and devices is recorded and left alone.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from rn50.data.sources.base import BadImageError, Skipped
from rn50.errors import DataError

MAX_FILE_BYTES = 256 << 20
"""No photograph is larger; what is, is an archive or an attack on the memory."""

LINK = "a link, which is never followed"
SPECIAL = "a device or another special file"
UNSAFE = "an absolute path or one with '..', which is never used"
SYSTEM = "a hidden or system file"
REPEATED = "a second file of the same name"

_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a container."""

    path: str
    read: Callable[[], bytes]
    """Return the bytes, from any thread and at any time; or raise ``BadImageError``."""


@dataclass(slots=True)
class Listing:
    """What a container holds, by paths with ``/`` that are relative to its top."""

    files: dict[str, None] = field(default_factory=dict)
    """The regular files, a dict being an ordered set; by name, or in the archive's order."""
    folders: set[str] = field(default_factory=set)
    """The folders that are listed as such, empty ones too."""
    skipped: Skipped = field(default_factory=Skipped)

    def add_file(self, name: str) -> None:
        """Note a regular file by the name that the container gives."""
        path = safe_path(name)
        if not path:
            self.skipped.add(UNSAFE, printable(name))
        elif is_system(path):
            self.skipped.add(SYSTEM, path)
        elif path in self.files:
            self.skipped.add(REPEATED, path)
        else:
            self.files[path] = None

    def add_folder(self, name: str) -> None:
        """Note a folder by the name that the container gives."""
        path = safe_path(name)
        if path and not is_system(path):
            self.folders.add(path)


@runtime_checkable
class Container(Protocol):
    """A folder or an archive."""

    path: Path

    def listing(self) -> Listing:
        """Return what is inside; may read the whole archive.

        Raises:
            DataError: The container is cut off, damaged or unreadable.
        """
        ...

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the files whose paths are ``wanted``, in the container's own order.

        Raises:
            DataError: One of them is not there, or as ``listing``.
        """
        ...


class Folder:
    """A folder on disk and all below it, links excepted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._on_disk: dict[str, str] = {}

    def listing(self, below: str = "", *, deep: bool = True) -> Listing:
        """Walk the folder, or what is in its folder ``below``, in the order of the names.

        Args:
            below: Relative, without a ``/`` at its end.
            deep: Also look into the folders there.
        """
        found = Listing()
        self._walk(below, found, deep)
        return found

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the wanted files in the order of their paths."""
        for path in sorted(wanted):
            on_disk = self.path / self._on_disk.get(path, path)
            yield Member(path, partial(_read_file, on_disk))

    def _walk(self, below: str, found: Listing, deep: bool) -> None:
        try:
            with os.scandir(self.path / below) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(self.path / below, error) from error
        for entry in ordered:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_symlink():
                found.skipped.add(LINK, printable(name))
            elif entry.is_dir():
                found.add_folder(name)
                if deep and not is_system(entry.name):
                    self._walk(name, found, deep)
            elif entry.is_file():
                found.add_file(name)
                if (shown := printable(name)) != name:
                    self._on_disk[shown] = name
            else:
                found.skipped.add(SPECIAL, printable(name))


def safe_path(name: str) -> str | None:
    """Return ``name`` in normal form, or None if it leads out of where it stands."""
    if name.startswith("/") or name[1:3] in (":/", ":\\"):
        return None
    parts = PurePosixPath(printable(name)).parts
    return None if ".." in parts else "/".join(parts)


def is_system(path: str) -> bool:
    """Tell whether any part of ``path`` is hidden or left by an operating system."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM_NAMES for part in path.split("/"))


def printable(name: str) -> str:
    """Return ``name`` with the bytes that are not UTF-8 written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def limited(size: int) -> int:
    """Return ``size``, or raise ``BadImageError`` if no image has so many bytes."""
    if size > MAX_FILE_BYTES:
        raise BadImageError(f"it has {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
    return size


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a source that the operating system refuses to read."""
    return DataError(
        f"cannot read {printable(str(path))}: {error.strerror or error}; the source must be "
        "readable; check its permissions and the disk, and run the same command again"
    )


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            limited(os.fstat(file.fileno()).st_size)
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error
