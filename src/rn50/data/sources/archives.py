"""Folders, zip and tar files, plain or compressed, recognised by their content."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import (
    LINK,
    SPECIAL,
    Container,
    Folder,
    Listing,
    Member,
    limited,
    printable,
    safe_path,
    unreadable,
)
from rn50.data.sources.tars import MAX_RATIO, Tar, damaged
from rn50.errors import DataError

ENCRYPTED = "encrypted"

_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_FREE_BYTES = 16 << 20
"""A single-coloured picture of this size may well have shrunk by more than ``MAX_RATIO``."""
_UNIX_TYPE = 0o170000
_UNIX_LINK = 0o120000
_UNIX_KINDS = (0, 0o100000)
"""File types of a zip entry made on Unix that stand for a regular file; 0 is 'not told'."""


def open_container(path: Path) -> Container:
    """Return the container at ``path``, recognised by its content.

    Raises:
        DataError: It does not exist, or is neither a folder nor a known archive.
    """
    if os.path.isdir(path):
        return Folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise DataError(
            f"source {path} does not exist; it must be a folder or an archive of labelled images, "
            "or `demo`; check the path"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if start.startswith(b"PK"):
        return Zip(path)
    for magic, opener in _COMPRESSED.items():
        if start.startswith(magic):
            return Tar(path, opener)
    if start[257:262] == b"ustar" or tarfile.is_tarfile(path):
        return Tar(path)
    raise DataError(
        f"source {path} is not an archive; it must be a folder, a zip, or a tar, plain or "
        "compressed with gzip, bzip2 or xz; check the download"
    )


class Zip:
    """A zip file, read at any place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise damaged(path, error) from error

    def listing(self) -> Listing:
        """Read the zip file's own list."""
        found = Listing()
        for entry in self._zip.infolist():
            kind = (entry.external_attr >> 16) & _UNIX_TYPE
            name = entry.filename.replace("\\", "/")
            if entry.is_dir():
                found.add_folder(name)
            elif kind == _UNIX_LINK:
                found.skipped.add(LINK, printable(name))
            elif kind not in _UNIX_KINDS:
                found.skipped.add(SPECIAL, printable(name))
            elif entry.flag_bits & 1:
                found.skipped.add(ENCRYPTED, printable(name))
            else:
                found.add_file(name)
        return found

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the wanted files in the order of the zip file's list."""
        remaining = set(wanted)
        for entry in self._zip.infolist():
            path = safe_path(entry.filename.replace("\\", "/"))
            if path in remaining and not entry.is_dir():
                remaining.remove(path)
                yield Member(path, partial(self._read, entry))

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        limited(entry.file_size)
        if entry.file_size > max(_FREE_BYTES, MAX_RATIO * entry.compress_size):
            raise BadImageError(
                f"it unpacks to {entry.file_size:,} bytes, over {MAX_RATIO} times its size, as no "
                "photograph does"
            )
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadImageError(f"the zip file is damaged there: {error}") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
