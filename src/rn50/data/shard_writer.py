"""The writing side of the packed format: one split's shards, index and keys."""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rn50 import durable
from rn50.data.shards import END, RECORD, Records, frame, image_digest

SHARD_BYTES = 256 << 20
"""Small enough to copy again when a transfer breaks, large enough that ImageNet has 600."""


class ShardWriter:
    """Writes one split, image after image; not for use by several threads.

    Args:
        folder: An existing folder that nothing else writes to.
        split: ``"train"`` or ``"val"``, the beginning of every file's name.
        shard_bytes: A new shard begins before one would exceed this; a larger image has its own.
    """

    def __init__(self, folder: Path, split: str, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self._file: BinaryIO | None = None
        self._hash = hashlib.blake2b(digest_size=16)
        self._offset = 0
        self._shards: list[dict[str, Any]] = []
        self._rows = bytearray()
        self._keys: list[str] = []
        self._taken: set[str] = set()

    def add(self, key: str, jpeg: bytes | memoryview, label: int, size: tuple[int, int]) -> None:
        """Append an image of (width, height) ``size``; a key that is taken gets a suffix."""
        key = self._unique(key)
        head, tail = frame(key, len(jpeg), label)
        total = len(head) + len(jpeg) + len(tail)
        if self._file is None or self._offset + total + len(END) > self._shard_bytes:
            self._next_shard()
        self._rows += np.array(
            (
                len(self._shards),
                self._offset + len(head),
                len(jpeg),
                label,
                *size,
                image_digest(jpeg),
            ),
            RECORD,
        ).tobytes()
        self._keys.append(key)
        for piece in (head, jpeg, tail):
            self._write(piece)

    def close(self) -> tuple[dict[str, Any], Records]:
        """Finish the last shard and write index and keys.

        Returns:
            The split's entry of the manifest, and its index.
        """
        self._end_shard()
        index = np.frombuffer(self._rows, RECORD)
        order = sorted(range(len(index)), key=lambda i: (index["label"][i], self._keys[i]))
        index = index[order]
        index_file = self._folder / f"{self._split}.index.npy"
        np.save(index_file, index, allow_pickle=False)
        keys_file = self._folder / f"{self._split}.keys.txt"
        keys_file.write_bytes(b"".join(f"{self._keys[i]}\n".encode() for i in order))
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
        """Close the open file, if any, without finishing it."""
        if self._file is not None:
            self._file.close()

    def _unique(self, key: str) -> str:
        candidate, number = key, 1
        # Compared without case: on macOS and Windows `tar -x` would write one over the other.
        while candidate.casefold() in self._taken:
            number += 1
            candidate = f"{key}-{number}"
        self._taken.add(candidate.casefold())
        return candidate

    def _next_shard(self) -> None:
        self._end_shard()
        path = self._folder / f"{self._split}-{len(self._shards):06d}.tar"
        self._file = path.open("wb")
        self._hash = hashlib.blake2b(digest_size=16)
        self._offset = 0

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._shards.append(
            {
                "file": Path(self._file.name).name,
                "bytes": self._offset,
                "blake2b": self._hash.hexdigest(),
            }
        )
        self._file = None

    def _write(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(piece)
        self._hash.update(piece)
        self._offset += len(piece)
