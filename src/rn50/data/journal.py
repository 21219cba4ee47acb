"""The folder in which a data set grows, and the journal that lets an interrupted run go on.

Beside ``DEST`` lies ``.DEST.partial``: in it ``data``, which becomes ``DEST`` by one rename when
all is there, and ``journal``, with one file for each shard that is finished and what it was made
from. A shard's file of the journal is written after the shard is flushed to the disk, aside and
renamed: a shard without one counts as not there. A lock that the system releases when its holder
dies keeps two processes from writing the same destination.
"""

import base64
import errno
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rn50 import durable
from rn50.data.shard_writer import Shard
from rn50.errors import UsageError

_EXAMPLES = 20
"""Paths that are kept for each reason; the count is complete."""
_IDENTITY = "identity.json"
_UNLOCKABLE = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)

Identity = dict[str, Any]
"""Source and options of a run; a journal of another identity is of no use."""


@dataclass(slots=True)
class Tally:
    """How often each thing happened, and to which files, such as."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Up to 20 for each."""

    def add(self, reason: str, *paths: str) -> None:
        """Count ``paths`` under ``reason``."""
        self.merge({reason: {"count": len(paths), "examples": list(paths[:_EXAMPLES])}})

    def merge(self, other: dict[str, dict[str, Any]]) -> None:
        """Add what another's ``summary`` holds."""
        for reason, entry in other.items():
            self.counts[reason] = self.counts.get(reason, 0) + entry["count"]
            examples = self.examples.setdefault(reason, [])
            examples += entry["examples"][: _EXAMPLES - len(examples)]

    @classmethod
    def of(cls, *parts: dict[str, dict[str, Any]]) -> "Tally":
        """Return the sum of several ``summary``."""
        tally = cls()
        for part in parts:
            tally.merge(part)
        return tally

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return count and examples by reason, as the manifest has them."""
        return {
            reason: {"count": self.counts[reason], "examples": self.examples[reason]}
            for reason in sorted(self.counts)
        }


@dataclass(slots=True)
class Part:
    """What one shard was made from: a stretch of its split's images, in the source's order."""

    seen: int = 0
    """Images of the split from its first one to the end of this stretch, those left out too."""
    listing: str = ""
    """Hash of the classes and paths of all these images."""
    digests: bytes = b""
    """Hash of each packed image's file as it lay in the source, 8 bytes each."""
    samples: list[tuple[int, int]] = field(default_factory=list)
    """(Number in the split, hash of the file) of some images, to compare with the source."""
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As ``Tally.summary``."""
    converted: dict[str, dict[str, Any]] = field(default_factory=dict)
    resized: int = 0
    source_bytes: int = 0
    """Of the files of the packed images."""


class Workplace:
    """The folder beside ``dest`` that this process alone may write; see ``workplace``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._journal = folder / "journal"

    def begin(self, identity: Identity) -> list[str]:
        """Make the folders, without what another identity has left.

        Returns:
            In what the run that was interrupted differs; nothing where it goes on, or is the first.
        """
        stored = _read(self._journal / _IDENTITY)
        found = stored is not None and any(self._journal.glob("*-*.json"))
        differing = [key for key in identity if stored is None or stored.get(key) != identity[key]]
        if differing:
            self._renew(identity)
        return differing if found else []

    def forget(self) -> None:
        """Remove all finished shards; the identity stays."""
        self._renew(_read(self._journal / _IDENTITY) or {})

    def finished(self, split: str) -> list[tuple[Shard, Part]]:
        """Return the split's shards that are whole, from the first one on; forget all after a gap.

        What comes after a gap may not continue what will fill it.
        """
        found: list[tuple[Shard, Part]] = []
        while (entry := _read(self._entry(split, len(found)))) is not None:
            shard = Shard(entry["shard"], base64.b64decode(entry["rows"]), entry["keys"].encode())
            file = self.data / shard.entry["file"]
            if not file.is_file() or file.stat().st_size != shard.entry["bytes"]:
                break
            fields = entry["part"]
            fields["digests"] = base64.b64decode(fields["digests"])
            fields["samples"] = [(number, digest) for number, digest in fields["samples"]]
            found.append((shard, Part(**fields)))
        for path in self._journal.glob(f"{split}-*.json"):
            if path >= self._entry(split, len(found)):
                path.unlink()
        return found

    def record(self, split: str, number: int, shard: Shard, part: Part) -> None:
        """Note that a shard is finished, in a way that survives a power cut."""
        durable.sync_folder(self.data)
        fields = {name: getattr(part, name) for name in Part.__slots__}
        entry = {
            "shard": shard.entry,
            "rows": base64.b64encode(shard.rows).decode(),
            "keys": shard.keys.decode(),
            "part": fields | {"digests": base64.b64encode(part.digests).decode()},
        }
        durable.write_bytes(self._entry(split, number), json.dumps(entry).encode())

    def kept(self) -> str:
        """Remove what is not finished and say what is kept, where anything is."""
        entries = [_read(path) for path in sorted(self._journal.glob("*-*.json"))]
        shards = {entry["shard"]["file"]: entry["shard"]["bytes"] for entry in entries if entry}
        if not shards:
            self.clear()
            return ""
        for path in self.data.iterdir():
            if path.name not in shards:
                path.unlink()
        return (
            f"{len(shards)} finished shards ({sum(shards.values()) / 1e6:,.1f} MB) are kept in "
            f"{self.folder}; the same command goes on from there"
        )

    def publish(self, dest: Path) -> None:
        """Give the finished data its name, and remove the journal."""
        durable.sync_folder(self.data)
        if dest.exists():
            dest.rmdir()  # empty, as was checked; Windows renames onto nothing
        self.data.rename(dest)
        durable.sync_folder(dest.parent)
        self.clear()

    def clear(self) -> None:
        """Remove data and journal; the journal first, so that no shard is missed by half of it."""
        for folder in (self._journal, self.data):
            if folder.exists():
                shutil.rmtree(folder)

    def _renew(self, identity: Identity) -> None:
        self.clear()
        self.data.mkdir()
        self._journal.mkdir()
        durable.write_json(self._journal / _IDENTITY, identity)

    def _entry(self, split: str, number: int) -> Path:
        return self._journal / f"{split}-{number:06d}.json"


@contextmanager
def workplace(dest: Path) -> Iterator[Workplace]:
    """Yield the folder where ``dest`` is made, for this process alone.

    Raises:
        UsageError: Another process is making ``dest``.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = dest.with_name(f".{dest.name}.partial")
    lock = _locked(folder, dest)
    try:
        yield Workplace(folder)
    finally:
        if sys.platform == "win32":
            lock.close()  # an open file cannot be removed there
        with suppress(OSError):
            (folder / "lock").unlink()
            folder.rmdir()
        lock.close()


def _locked(folder: Path, dest: Path) -> TextIO:
    while True:
        folder.mkdir(exist_ok=True)
        path = folder / "lock"
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue  # its holder has just removed the folder
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UsageError(
                f"destination {dest} is being made by {holder}; one process at a time may; "
                "wait until it ends, or stop it"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # removed by its last holder between opening and locking
    with suppress(OSError):  # on a full disk the holder stays unnamed
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _lock(file: TextIO) -> None:
    """Lock a file until it is closed, or its process ends in whatever way."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # beyond the text, which others may then read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNLOCKABLE:  # some network drives have no locks: go without
            raise


def _read(path: Path) -> dict[str, Any] | None:
    """Return a journal file's content; None if it is not there or not whole."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
