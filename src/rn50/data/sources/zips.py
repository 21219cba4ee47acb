"""Zip files of any number of entries: their list is read as a stream and never held as a whole."""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import (
    LINK,
    SPECIAL,
    Listing,
    Member,
    limited,
    printable,
    safe_path,
)
from rn50.data.sources.tars import MAX_RATIO, damage_told, damaged

ENCRYPTED = "encrypted"

_END = struct.Struct("<4s4H2LH")
_END_64_PLACE = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFF_FFFF
"""A number that stands in the entry's extra field, for its size."""
_STORED, _DEFLATED = 0, 8
_FREE_BYTES = 16 << 20
"""A single-coloured picture of this size may well have shrunk by more than ``MAX_RATIO``."""
_UNIX_TYPE = 0o170000
_UNIX_LINK = 0o120000
_UNIX_KINDS = (0, 0o100000)
"""File types of a zip entry made on Unix that stand for a regular file; 0 is 'not told'."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a zip file's list."""

    name: str
    flags: int
    method: int
    checksum: int
    packed_bytes: int
    num_bytes: int
    mode: int
    """As Unix has it, 0 where it is not told."""
    offset: int
    """Of the entry's own header."""


class Zip:
    """A zip file, read at any place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_told(path), path.open("rb") as file:
            self._start, self._size, self._shift = _find_list(file)

    def listing(self) -> Listing:
        """Read the zip file's own list."""
        found = Listing()
        for entry in self._entries():
            kind = entry.mode & _UNIX_TYPE
            if entry.name.endswith("/"):
                found.add_folder(entry.name)
            elif kind == _UNIX_LINK:
                found.skipped.add(LINK, printable(entry.name))
            elif kind not in _UNIX_KINDS:
                found.skipped.add(SPECIAL, printable(entry.name))
            elif entry.flags & 1:
                found.skipped.add(ENCRYPTED, printable(entry.name))
            else:
                found.add_file(entry.name)
        return found

    def members(self, wanted: Collection[str]) -> Iterator[Member]:
        """Yield the wanted files in the order of the zip file's list."""
        remaining = set(wanted)
        for entry in self._entries():
            path = safe_path(entry.name)
            if path in remaining and not entry.name.endswith("/"):
                remaining.remove(path)
                yield Member(path, partial(self._read, entry))
            if not remaining:
                return
        raise damaged(self.path, EOFError(f"{min(remaining)} is no longer in it"))

    def _entries(self) -> Iterator[Entry]:
        with damage_told(self.path), self.path.open("rb") as file:
            file.seek(self._start)
            end = self._start + self._size
            while file.tell() < end:
                yield _entry(file, self._shift)

    def _read(self, entry: Entry) -> bytes:
        limited(entry.num_bytes)
        if entry.num_bytes > max(_FREE_BYTES, MAX_RATIO * entry.packed_bytes):
            raise BadImageError(
                f"it unpacks to {entry.num_bytes:,} bytes, over {MAX_RATIO} times its size, as no "
                "photograph does"
            )
        with damage_told(self.path), self.path.open("rb") as file:
            file.seek(entry.offset)
            header = file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
                raise BadImageError("the zip file is damaged there: it has no header")
            *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
            file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
            packed = file.read(min(entry.packed_bytes, MAX_RATIO + 2 * entry.num_bytes))
        return _unpacked(entry, packed)


def _unpacked(entry: Entry, packed: bytes) -> bytes:
    if entry.method == _STORED:
        data = packed
    elif entry.method == _DEFLATED:
        try:
            # One byte more than told shows that there are more, without unpacking them all.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.num_bytes + 1)
        except zlib.error as error:
            raise BadImageError(f"the zip file is damaged there: {error}") from error
    else:
        raise BadImageError(
            f"the zip file has compressed it by method {entry.method}, which is not supported"
        )
    if len(data) != entry.num_bytes or zlib.crc32(data) != entry.checksum:
        raise BadImageError("the zip file is damaged there: Bad CRC-32 or size")
    return data


def _find_list(file: BinaryIO) -> tuple[int, int, int]:
    """Return where the list begins, its bytes, and how far the whole was moved in the file."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END.size - _MAX_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise EOFError("it has no list of its files at its end")
    _, _, _, _, count, list_bytes, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    place = end - _END_64_PLACE.size - _END_64.size
    if (count == 0xFFFF or _IN_EXTRA in (list_bytes, offset)) and place >= 0:
        file.seek(place)
        record = file.read(_END_64.size)
        if record[:4] == b"PK\x06\x06" and file.read(4) == b"PK\x06\x07":
            *_, list_bytes, offset = _END_64.unpack(record)
            end = place
    shift = end - list_bytes - offset
    if shift < 0:
        raise EOFError("its list of files is not where it is told to be")
    return offset + shift, list_bytes, shift


def _entry(file: BinaryIO, shift: int) -> Entry:
    fixed = file.read(_ENTRY.size)
    if len(fixed) < _ENTRY.size or fixed[:4] != b"PK\x01\x02":
        raise EOFError("its list of files is damaged")
    _, _, _, flags, method, _, _, checksum, packed_bytes, num_bytes, *others = _ENTRY.unpack(fixed)
    name_bytes, extra_bytes, comment_bytes, _, _, attributes, offset = others
    rest = file.read(name_bytes + extra_bytes + comment_bytes)
    if len(rest) < name_bytes + extra_bytes + comment_bytes:
        raise EOFError("its list of files is cut off")
    if _IN_EXTRA in (packed_bytes, num_bytes, offset):
        large = _large(rest[name_bytes : name_bytes + extra_bytes])
        num_bytes = next(large) if num_bytes == _IN_EXTRA else num_bytes
        packed_bytes = next(large) if packed_bytes == _IN_EXTRA else packed_bytes
        offset = next(large) if offset == _IN_EXTRA else offset
    name = rest[:name_bytes].decode("utf-8" if flags & 0x800 else "cp437", "backslashreplace")
    return Entry(
        name.partition("\0")[0].replace("\\", "/"),
        flags,
        method,
        checksum,
        packed_bytes,
        num_bytes,
        attributes >> 16,
        offset + shift,
    )


def _large(extra: bytes) -> Iterator[int]:
    """Yield the 64-bit numbers of an entry's extra field."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            for at in range(4, min(4 + size, len(extra)) - 7, 8):
                yield struct.unpack_from("<Q", extra, at)[0]
        extra = extra[4 + size :]
    raise EOFError("its list of files lacks a size")
