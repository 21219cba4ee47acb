"""One writer per run folder."""

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from rn50 import durable
from rn50.errors import UsageError

FILE_NAME = ".lock"
PATIENCE_S = 30.0
"""As long as a run that is asked to stop may take."""
_HOLDER = ".lock.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def locked(
    place: Path, *, patience_s: float = PATIENCE_S, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold a run's folder against a second writer, in this process or any other.

    A writer that was told to end may still be saving, so that its successor has to wait for it.

    The operating system's lock ends with the process that holds it, however that ends (filelock,
    which also knows what to do on file systems without ``flock``). Where a network file system
    refuses locks, the note beside it decides: its writer is taken for dead where this machine no
    longer runs that process or was started anew, and for alive where it was another machine.

    Args:
        place: The folder; made if it is not there.
        patience_s: How long to wait for another writer, in seconds.
        say: Shows the user a line.

    Raises:
        UsageError: Another process writes there, or the folder cannot be written.
    """
    with durable.explained(place / FILE_NAME):
        place.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place / FILE_NAME)
        try:
            _acquire(lock, place, patience_s, say)
        except filelock.Timeout:
            raise _taken(place, _holder(place)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if (holder := _holder(place)) is not None and may_be_alive(holder):
                raise _taken(place, holder) from None
    try:
        durable.write_json(place / _HOLDER, myself())
        yield
    finally:
        (place / _HOLDER).unlink(missing_ok=True)
        with suppress(OSError):
            if [path.name for path in place.iterdir()] == [FILE_NAME]:  # Nothing was written.
                (place / FILE_NAME).unlink()
                place.rmdir()
        lock.release()


def _acquire(
    lock: filelock.BaseFileLock, place: Path, patience_s: float, say: Callable[[str], None]
) -> None:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if patience_s > 0:
            say(f"another process is writing {place}; waiting up to {patience_s:.0f} s for its end")
        lock.acquire(timeout=patience_s)


def myself() -> dict[str, Any]:
    """Return who this process is: host, pid, the machine's current boot, the time."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "boot": _boot(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def may_be_alive(holder: dict[str, Any]) -> bool:
    """Return whether the process that a note tells of may still be running."""
    me = myself()
    if holder.get("host") != me["host"]:
        return True
    if holder.get("boot") != me["boot"] or holder.get("pid") == me["pid"]:
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError, TypeError):
        return True
    return True


def _holder(place: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads((place / _HOLDER).read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _taken(place: Path, holder: dict[str, Any] | None) -> UsageError:
    by = "another process"
    if holder is not None:
        by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    return UsageError(
        f"{place} is being written by {by}; wait for it or stop it, or give another --output-dir "
        f"(if that process is surely gone, remove {place / _HOLDER} and {place / FILE_NAME})"
    )


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
