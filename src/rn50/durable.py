"""Files that exist whole or not at all.

A file is written beside its place, flushed to the disk, and renamed; the folder is flushed too, so
that the new name survives a power cut. What is interrupted leaves only a name that begins with
``.tmp-``, which the next writer removes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn50.errors import UsageError

TEMPORARY_PREFIX = ".tmp-"


def digest(data: bytes | memoryview) -> str:
    """Return the 32 hexadecimal digits of the 128-bit BLAKE2b hash of ``data``."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Return ``digest`` of a file's content, read in pieces of 1 MiB."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's names to the disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old content or the new, never a part.

    Raises:
        UsageError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    with explained(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Do ``write_bytes`` with text as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Do ``write_bytes`` with ``value`` as JSON, keys in the order given, indented by two."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into a line that says what to do."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission is denied",
            errno.EPERM: "permission is denied",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0)
        if reason is None:
            raise
        raise UsageError(
            f"cannot write {path}: {reason}{_free(path)}; "
            "make room or rights there, or choose another place, and run the same command again"
        ) from error


def _free(path: Path) -> str:
    for folder in path.absolute().parents:
        if folder.exists():
            return f" ({shutil.disk_usage(folder).free / 1e6:,.0f} MB free in {folder})"
    return ""
