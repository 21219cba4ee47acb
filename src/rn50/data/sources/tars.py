"""Tar files read from begin to end or at any place, also those that lie within others."""

import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast, runtime_checkable

from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import (
    LINK,
    MAX_FILE_BYTES,
    SPECIAL,
    Listing,
    Member,
    limited,
    printable,
    safe_path,
    unreadable,
)
from rn50.errors import DataError

MAX_RATIO = 200
"""Photographs hardly shrink; what unpacks to more than this, beyond a GiB, fills disks and days."""
_FREE_BYTES = 1 << 30
_STEP = 1 << 20


@runtime_checkable
class Readable(Protocol):
    """What is needed of a file to walk a tar: it is only ever moved forward."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        ...

    def seek(self, position: int, /) -> int:
        """Move forward to ``position`` and return where that led."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...


class Hashed:
    """A file read from begin to end, hashed on the way; moving forward reads what lies between."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        data = self._file.read(size)
        self._md5.update(data)
        self._position += len(data)
        return data

    def seek(self, position: int, /) -> int:
        """Move forward to ``position``."""
        while self._position < position and self.read(min(_STEP, position - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def finish(self) -> str:
        """Read what is left and return the MD5 of all."""
        while self.read(_STEP):
            pass
        return self._md5.hexdigest()


class Window:
    """The next ``size`` bytes of a file, as a file of its own."""

    def __init__(self, file: Readable, size: int) -> None:
        self._file = file
        self._start = file.tell()
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        left = self._size - self.tell()
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, position: int, /) -> int:
        """Move forward to ``position``."""
        return self._file.seek(self._start + min(position, self._size)) - self._start

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell() - self._start


class Walk:
    """The headers of a tar, in order; between two of them, the member's bytes may be read."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._last = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes."""
        self._last = self._file.read(size)
        return self._last

    def seek(self, position: int, /) -> int:
        """Move forward to ``position``."""
        return self._file.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def content(self, header: tarfile.TarInfo) -> bytes:
        """Return the bytes of the member whose header came last.

        Raises:
            EOFError: The file ends before.
        """
        data = self.read(header.size)
        if len(data) < header.size:
            raise EOFError("unexpected end of data")
        return data

    def image(self, header: tarfile.TarInfo) -> Callable[[], bytes]:
        """Return what returns these bytes later, or refuses the member as too large."""
        if header.size > MAX_FILE_BYTES:
            return partial(_too_large, header.size)
        return partial(bytes, self.content(header))

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        with tarfile.open(fileobj=cast(IO[bytes], self), mode="r:") as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep a million headers
                yield header
        # tarfile ends in silence at a header that is damaged or cut off; a whole archive ends in
        # zeros, and tarfile does not tell why it stopped.
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end-of-archive mark")
        # A decompressor compares its checksum at its own end, which lies behind that of the tar.
        while self._file.read(_STEP):
            pass


class Tar:
    """A tar file; a compressed one is decompressed from the start at each pass.

    Args:
        path: The file.
        opener: What decompresses it, or None: then members are read at any place.
        hashed: Read a plain tar from begin to end too, so that ``md5`` is known afterwards.
    """

    def __init__(
        self, path: Path, opener: Callable[..., Any] | None = None, *, hashed: bool = False
    ) -> None:
        self.path = path
        self.hashed = hashed
        self.md5: str | None = None
        """Of the file, once all its ``members`` were yielded, if ``hashed``."""
        self._opener = opener

    @property
    def compressed(self) -> bool:
        """Tell whether it must be decompressed."""
        return self._opener is not None

    def listing(self) -> Listing:
        """Read all headers."""
        found = Listing()
        with self._walk() as (walk, _):
            for header in walk:
                if header.isdir():
                    found.add_folder(header.name)
                elif header.islnk() or header.issym():
                    found.skipped.add(LINK, printable(header.name))
                elif not header.isreg() or header.issparse():
                    found.skipped.add(SPECIAL, printable(header.name))
                else:
                    found.add_file(header.name)
        return found

    def first(self) -> str:
        """Return the name of the first member, ``""`` if there is none."""
        with self._walk() as (walk, _):
            header = next(iter(walk), None)
            return printable(header.name) if header else ""

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the wanted files in the order of the archive."""
        remaining = set(wanted)
        sequential = self.hashed or self._opener is not None
        with self._walk(self.hashed) as (walk, hashed):
            for header in walk:
                path = safe_path(header.name)
                if path not in remaining or not header.isreg():
                    continue
                remaining.remove(path)
                if sequential:
                    yield Member(path, walk.image(header))
                else:
                    yield Member(path, partial(self._read, header.offset_data, header.size))
                if not remaining and hashed is None:
                    return
            if remaining:
                raise EOFError(f"{min(remaining)} is no longer in it")
            if hashed is not None:
                self.md5 = hashed.finish()

    @contextmanager
    def _walk(self, hash_it: bool = False) -> Iterator[tuple[Walk, Hashed | None]]:
        with damage_told(self.path), self.path.open("rb") as file:
            hashed = Hashed(file) if hash_it else None
            raw = hashed or file
            if self._opener is None:
                yield Walk(raw), hashed
            else:
                with self._opener(_Raw(raw)) as unpacked:
                    yield Walk(_Bounded(unpacked, os.path.getsize(self.path))), hashed

    def _read(self, offset: int, size: int) -> bytes:
        limited(size)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if len(data) < size:
            raise damaged(self.path, EOFError("unexpected end of data"))
        return data


class _Raw:
    """A file as the decompressors want it."""

    def __init__(self, file: Readable) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell

    def seekable(self) -> bool:
        return True


class _Bounded:
    """What comes out of a decompressor, up to a multiple of what goes in."""

    def __init__(self, unpacked: Readable, packed_bytes: int) -> None:
        self._file = unpacked
        self._limit = max(_FREE_BYTES, MAX_RATIO * packed_bytes)

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._check(self._file.tell())
        return data

    def seek(self, position: int, /) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise tarfile.ReadError(
                f"it unpacks to more than {MAX_RATIO} times its size, as no photographs do"
            )


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into a ``DataError`` that names ``path``."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for an archive that cannot be read to its end."""
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    return DataError(
        f"source {path} is cut off or damaged ({error}); the whole archive is needed; "
        "download or copy it again"
    )


def ends_whole(path: Path) -> bool:
    """Tell whether a plain tar file ends as one does, in zeros; one that is cut off seldom does."""
    size = os.path.getsize(path)
    if size < 2 * tarfile.BLOCKSIZE or size % tarfile.BLOCKSIZE:
        return False
    with path.open("rb") as file:
        file.seek(size - tarfile.BLOCKSIZE)
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _too_large(size: int) -> bytes:
    limited(size)
    raise BadImageError("it is too large")  # not reached: the limit is what refused it
