"""Reading shards: open files and positioned reads, for any number of threads.

Not by mapping them: when a mapped file is cut short, or its disk fails, the next touch of its pages
ends the process by SIGBUS, without a word. A read returns too few bytes or an error, which can be
told. See docs/design.md for what it costs.
"""

import errno
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from rn50.errors import DataError


class ShardFiles:
    """The shards of a split, opened once.

    Args:
        paths: The files, by number.

    Raises:
        DataError: A file cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        _allow_open_files(len(paths))
        opened: list[int] = []
        self._closed = weakref.finalize(self, _close_all, opened)
        self._closed.atexit = False  # decoding threads may still be reading
        try:
            for path in paths:
                opened.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
        except OSError as error:
            raise unreadable(error) from error
        self._lock = threading.Lock()
        self.descriptors: Int32[np.ndarray, " shards"] = np.array(opened, np.int32)
        """For ``native``; open as long as this object lives."""
        self.sizes = [os.fstat(one).st_size for one in opened]
        """In bytes, when they were opened."""

    def read(self, number: int, start: int, num_bytes: int) -> bytes:
        """Return ``num_bytes`` of a shard from the byte ``start`` on.

        Raises:
            DataError: The file has become shorter, or the disk does not give the bytes.
        """
        descriptor = int(self.descriptors[number])
        try:
            data = self._read_at(descriptor, start, num_bytes)
            while len(data) < num_bytes:  # rare: a signal, or more than 2 GiB at once
                more = self._read_at(descriptor, start + len(data), num_bytes - len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(
                f"cannot read {self._paths[number]} at byte {start}: {error.strerror}; the disk or "
                "the network share has failed; look at it (dmesg), then run the same command with "
                "--resume"
            ) from error
        if len(data) < num_bytes:
            raise DataError(
                f"{self._paths[number]} now ends at byte {os.fstat(descriptor).st_size}, and had "
                f"{self.sizes[number]}: it was changed while in use; packed data must stay as it "
                "is: copy the file again and run the same command with --resume"
            )
        return data

    def _read_at(self, descriptor: int, start: int, num_bytes: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(descriptor, num_bytes, start)
        with self._lock:
            os.lseek(descriptor, start, os.SEEK_SET)
            return os.read(descriptor, num_bytes)


def unreadable(error: OSError) -> DataError:
    """Return what it means that a file of a packed data set cannot be opened or read."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return DataError(
            f"cannot open {error.filename}: too many open files; each shard is one, for each "
            "process; allow more (ulimit -Hn, or docker run --ulimit nofile=65536), or prepare the "
            "data again, into larger shards"
        )
    return DataError(
        f"cannot read {error.filename}: {error.strerror}; a packed data set must be readable; "
        "check its permissions and the disk"
    )


def _close_all(descriptors: list[int]) -> None:
    for one in descriptors:
        os.close(one)


def _allow_open_files(extra: int) -> None:
    """Raise the soft limit of open files where it leaves no room."""
    if os.name == "nt":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + extra
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
