"""The writing side of the packed format: one split's shards, index and keys."""

import hashlib
import os
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from rn50 import durable
from rn50.data.index import RECORD, Records
from rn50.data.shards import END, frame, image_digest

SHARD_BYTES = 256 << 20
"""Small enough to copy again when a transfer breaks, large enough that ImageNet has 600."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that is whole and on the disk, and the images in it."""

    entry: dict[str, Any]
    """``file``, ``bytes`` and ``blake2b``, as the manifest lists them."""
    rows: bytes
    """A ``RECORD`` for each image."""
    keys: bytes
    """A line for each image."""


class ShardWriter:
    """Writes one split, image after image; not for use by several threads.

    Args:
        folder: An existing folder that nothing else writes to.
        split: ``"train"`` or ``"val"``, the beginning of every file's name.
        shard_bytes: A new shard begins before one would exceed this; a larger image has its own.
        finished: Called with each shard once it is flushed to the disk, before the next begins.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_bytes: int = SHARD_BYTES,
        *,
        finished: Callable[[Shard], None] | None = None,
    ) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self._finished = finished
        self._file: BinaryIO | None = None
        self._hash = hashlib.blake2b(digest_size=16)
        self._offset = 0
        self._shards: list[dict[str, Any]] = []
        # A million images: no Python object is kept for each but one number in a set.
        self._rows = bytearray()
        self._keys = bytearray()
        self._key_ends = array("Q")
        self._begin = 0, 0
        self._taken: set[int] = set()

    def restore(self, shard: Shard) -> None:
        """Go on after a finished shard whose file lies in the folder; before any ``add``."""
        assert self._file is None
        self._shards.append(shard.entry)
        self._rows += shard.rows
        for line in shard.keys.splitlines():
            self._append_key(line)
            self._taken.add(_hash(line.decode()))

    def add(
        self,
        key: str,
        jpeg: bytes | memoryview,
        label: int,
        size: tuple[int, int],
        digest: int | None = None,
    ) -> None:
        """Append an image of (width, height) ``size``; a key that is taken gets a suffix.

        ``digest`` is its ``image_digest``, where the caller has computed it already.
        """
        key = self._unique(key)
        head, tail = frame(key, len(jpeg), label)
        total = len(head) + len(jpeg) + len(tail)
        if self._file is None or self._offset + total + len(END) > self._shard_bytes:
            self._next_shard()
        digest = image_digest(jpeg) if digest is None else digest
        self._append((self._offset + len(head), len(jpeg), label, *size, digest), key)
        for piece in (head, jpeg, tail):
            self._write(piece)

    def refer(
        self, key: str, place: tuple[int, int], label: int, size: tuple[int, int], digest: int
    ) -> None:
        """Note an image that lies at (byte, length) ``place`` of what ``include`` will name next.

        Not for a writer that writes shards of its own.
        """
        self._append((*place, label, *size, digest), self._unique(key))

    def include(self, entry: dict[str, Any]) -> None:
        """Take a file of the folder as the shard of the images that were referred to since."""
        assert self._file is None
        self._shards.append(entry)

    def close(self) -> tuple[dict[str, Any], Records]:
        """Finish the last shard and write index and keys.

        Returns:
            The split's entry of the manifest, and its index.
        """
        self._end_shard()
        self._taken.clear()
        order = self._order()
        index = self.rows[order]
        index_file = self._folder / f"{self._split}.index.npy"
        np.save(index_file, index, allow_pickle=False)
        keys_file = self._folder / f"{self._split}.keys.txt"
        with keys_file.open("wb") as file:
            file.writelines(self._key(i) + b"\n" for i in order.tolist())
        entry = {"images": len(index), "shards": self._shards}
        for name, path in (("index", index_file), ("keys", keys_file)):
            durable.sync_file(path)
            entry[name] = {
                "file": path.name,
                "bytes": path.stat().st_size,
                "blake2b": durable.file_digest(path),
            }
        return entry, index

    def abort(self) -> None:
        """Remove the file that is open, if any."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk closing flushes, and fails again
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None

    @property
    def rows(self) -> Records:
        """Return the ``RECORD`` of each image so far, in the order of ``add``.

        It is a view: nothing can be added while it is held.
        """
        return np.frombuffer(self._rows, RECORD)

    def key(self, i: int) -> str:
        """Return the key of an image, counted in the order of ``add``."""
        return self._key(i).decode()

    def _order(self) -> Int64[np.ndarray, " images"]:
        """Return what sorts the images by label and key."""
        labels = self.rows["label"]
        order = np.argsort(labels, kind="stable").astype(np.int64)
        starts = np.flatnonzero(np.diff(labels[order], prepend=np.uint32(2**32 - 1)))
        for group in np.split(order, starts[1:]):  # views of ``order``, a class each
            # UTF-8 orders bytes as text is ordered by code points.
            group[:] = sorted(group.tolist(), key=self._key)
        return order

    def _key(self, i: int) -> bytes:
        start = self._key_ends[i - 1] if i > 0 else 0
        return bytes(self._keys[start : self._key_ends[i]])

    def _append(self, row: tuple[int, ...], key: str) -> None:
        self._rows += np.array((len(self._shards), *row), RECORD).tobytes()
        self._append_key(key.encode())

    def _append_key(self, key: bytes) -> None:
        self._keys += key
        self._key_ends.append(len(self._keys))

    def _unique(self, key: str) -> str:
        candidate, number = key, 1
        while (hashed := _hash(candidate)) in self._taken:
            number += 1
            candidate = f"{key}-{number}"
        self._taken.add(hashed)
        return candidate

    def _next_shard(self) -> None:
        self._end_shard()
        path = self._folder / f"{self._split}-{len(self._shards):06d}.tar"
        self._file = path.open("wb")
        self._hash = hashlib.blake2b(digest_size=16)
        self._offset = 0
        self._begin = len(self._rows), len(self._key_ends)

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        entry = {
            "file": Path(self._file.name).name,
            "bytes": self._offset,
            "blake2b": self._hash.hexdigest(),
        }
        self._file = None
        self._shards.append(entry)
        if self._finished is not None:
            rows, first = self._begin
            keys = b"".join(self._key(i) + b"\n" for i in range(first, len(self._key_ends)))
            self._finished(Shard(entry, bytes(self._rows[rows:]), keys))

    def _write(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(piece)
        self._hash.update(piece)
        self._offset += len(piece)


def _hash(key: str) -> int:
    """Return 64 bits of a key without its case.

    On macOS and Windows `tar -x` would write one of two such files over the other. Should two keys
    ever share the bits, one gets a suffix that it does not need.
    """
    return int.from_bytes(
        hashlib.blake2b(key.casefold().encode(), digest_size=8).digest(), "little"
    )
