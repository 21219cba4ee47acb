"""Zip and tar files, plain or compressed, as containers."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import (
    LINK,
    MAX_FILE_BYTES,
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
from rn50.errors import DataError

ENCRYPTED = "encrypted"

_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
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
            raise _damaged(path, error) from error

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
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadImageError(f"the zip file is damaged there: {error}") from error
        except OSError as error:
            raise unreadable(self.path, error) from error


class Tar:
    """A tar file; a compressed one is decompressed from the start at each pass.

    Args:
        path: The file.
        opener: What decompresses it, or None: then members are read at any place.
    """

    def __init__(self, path: Path, opener: Callable[..., Any] | None = None) -> None:
        self.path = path
        self._opener = opener

    def listing(self) -> Listing:
        """Read all headers."""
        found = Listing()
        with self._headers() as (headers, _):
            for header in headers:
                if header.isdir():
                    found.add_folder(header.name)
                elif header.islnk() or header.issym():
                    found.skipped.add(LINK, printable(header.name))
                elif not header.isreg() or header.issparse():
                    found.skipped.add(SPECIAL, printable(header.name))
                else:
                    found.add_file(header.name)
        return found

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the wanted files in the order of the archive."""
        remaining = set(wanted)
        with self._headers() as (headers, file):
            for header in headers:
                path = safe_path(header.name)
                if path not in remaining or not header.isreg():
                    continue
                remaining.remove(path)
                if self._opener is None or header.size > MAX_FILE_BYTES:
                    yield Member(path, partial(self._read, header.offset_data, header.size))
                else:
                    yield Member(path, partial(bytes, file.read(header.size)))
                if not remaining:
                    return
            if remaining:
                raise EOFError(f"{min(remaining)} is no longer in it")

    @contextmanager
    def _headers(self) -> Iterator[tuple[Iterator[tarfile.TarInfo], "_LastRead"]]:
        try:
            with self.path.open("rb") as raw:
                unpacked = self._opener(raw) if self._opener else raw
                file = _LastRead(unpacked)
                with unpacked, tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as tar:
                    yield _each(tar, file), file
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise _damaged(self.path, error) from error

    def _read(self, offset: int, size: int) -> bytes:
        limited(size)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(data) < size:
            raise _damaged(self.path, EOFError("unexpected end of data"))
        return data


class _LastRead:
    """A file that remembers what was read last: tarfile does not tell why it stopped."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


def _each(tar: tarfile.TarFile, file: _LastRead) -> Iterator[tarfile.TarInfo]:
    while (header := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep a million headers
        yield header
    # tarfile ends in silence at a header that is damaged or cut off; a whole archive ends in zeros.
    if file.last != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end-of-archive mark")
    # A decompressor compares its checksum at its own end, which lies behind that of the tar.
    while file.read(1 << 20):
        pass


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    return DataError(
        f"source {path} is cut off or damaged ({error}); the whole archive is needed; "
        "download or copy it again"
    )
