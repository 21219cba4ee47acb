"""Packed data in object storage, read through a verified copy in the cache folder.

Below ``<cache>/remote/<hash of the URL>/`` lies one folder for each manifest that was seen there.
Each file is fetched beside its place, compared with the manifest by size and hash, and renamed; the
manifest itself comes last. So a file that is there is whole, a folder with a manifest is complete,
and whoever was killed goes on at the first file that is missing. One process of a machine fetches
while the others wait for its lock, with no need to know of each other.

Where the URL cannot be reached, the complete copy that was used last is taken.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from rn50 import durable, remote_files
from rn50.data import cache
from rn50.data.shards import FORMAT, MANIFEST, PackedDataset, files
from rn50.errors import DataError, UsageError
from rn50.observe.progress import progress
from rn50.remote_files import (
    Count,
    Folder,
    Terms,
    UnreachableError,
    fetch_all,
    is_plain_name,
    is_remote,
)

_TERMS = Terms(
    must_be="the folder that `rn50 prepare` made, copied whole",
    remedy="copy the whole folder there again and run the same command",
)

Say = Callable[[str], None]


def local_folder(data: str, *, say: Say = lambda line: None) -> Path:
    """Return a local folder with the packed data set at ``data``.

    A path is returned as it is, unopened. What a URL names is copied into the cache folder first,
    as far as it is not there; the files that are there are not read again. While the URL cannot be
    reached, a whole copy will do.

    Args:
        data: A folder made by ``rn50 prepare``, or the URL of a copy of one: ``s3://``,
            ``https://``, or whatever else fsspec has a file system for.
        say: Shows the user a line.

    Raises:
        DataError: There is no packed data set, it may not be read, or it is damaged.
        UnreachableError: The URL cannot be reached, and no whole copy of it is here.
        UsageError: A package is missing, or there is no room.
    """
    if not is_remote(data):
        return Path(data)
    remote = remote_files.open_folder(data, _TERMS)
    place = cache.folder() / "remote" / durable.digest(remote.url.encode())[:16]
    try:
        manifest = _manifest(remote)
    except UnreachableError as error:
        if (copy := _last_used(place)) is None:
            raise
        say(
            f"{remote.url} cannot be reached ({error.__cause__}); using its whole copy in {copy}, "
            "not knowing whether it was changed there"
        )
        return copy
    with durable.explained(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = place / durable.digest(manifest)[:16]
        if not _is_whole(folder, manifest):
            with _lock(place, remote, say):
                _fetch_missing(remote, folder, manifest, say)
    with suppress(OSError):  # Of another user, say: only an outage makes use of it.
        os.utime(folder / MANIFEST)
    return folder


def _last_used(place: Path) -> Path | None:
    """Return the complete copy of a URL that was used last, or None where there is none."""
    used: dict[Path, float] = {}
    for path in place.glob(f"*/{MANIFEST}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest, folder = path.read_bytes(), path.parent
            if folder.name == durable.digest(manifest)[:16] and _is_whole(folder, manifest):
                used[folder] = path.stat().st_mtime
    return max(used, key=lambda folder: used[folder], default=None)


def _manifest(remote: Folder) -> bytes:
    """Return the manifest's bytes, having checked that they are one."""
    url = remote.url_of(MANIFEST)
    content = remote.read(MANIFEST)
    try:
        manifest = json.loads(content)
        if manifest["format"] == FORMAT:
            listed = files(PackedDataset(Path(), manifest).manifest)
            if wrong := [f["file"] for f in listed if not is_plain_name(f["file"])]:
                raise ValueError(f"{wrong[0]!r} is no name of a file")
            if not all(isinstance(f["bytes"], int) and f["bytes"] >= 0 for f in listed):
                raise ValueError("a size is no number of bytes")
            return content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{url} is not the manifest of a packed data set ({type(error).__name__}: {error}); it "
            "must be the file that `rn50 prepare` wrote; copy the whole folder there again"
        ) from error
    raise DataError(
        f"{url} has format {manifest['format']}; this version reads format {FORMAT}; prepare the "
        f"data again, or use the version that wrote it ({manifest.get('tool', 'unknown')})"
    )


def _is_whole(folder: Path, manifest: bytes) -> bool:
    path = folder / MANIFEST
    return path.is_file() and path.read_bytes() == manifest and not _missing(folder, manifest)


def _missing(folder: Path, manifest: bytes) -> list[dict[str, Any]]:
    """Return the entries of the files that are not there, small ones first."""

    def is_there(entry: dict[str, Any]) -> bool:
        path = folder / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"]

    listed = sorted(files(json.loads(manifest)), key=lambda entry: entry["bytes"])
    return [entry for entry in listed if not is_there(entry)]


@contextmanager
def _lock(place: Path, remote: Folder, say: Say) -> Iterator[None]:
    lock = filelock.FileLock(place / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"another process is fetching {remote.url}; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_missing(remote: Folder, folder: Path, manifest: bytes, say: Say) -> None:
    """Make ``folder`` complete; the caller holds the lock."""
    if _is_whole(folder, manifest):  # Another process did it while this one waited.
        return
    _tell_of_others(remote, folder, manifest, say)
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f"{durable.TEMPORARY_PREFIX}*"):
        left.unlink()
    missing = _missing(folder, manifest)
    all_bytes = sum(entry["bytes"] for entry in files(json.loads(manifest)))
    num_bytes = sum(entry["bytes"] for entry in missing)
    _check_space(remote, folder, num_bytes)
    say(f"fetching {remote.url} into {folder}: {num_bytes / 1e6:,.1f} of {all_bytes / 1e6:,.1f} MB")
    with progress("fetching", in_bytes=True) as report:
        fetch_all(remote, folder, missing, Count(all_bytes - num_bytes, all_bytes, report))
    durable.write_bytes(folder / MANIFEST, manifest)


def _check_space(remote: Folder, folder: Path, num_bytes: int) -> None:
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise UsageError(
            f"{folder} has {free / 1e6:,.0f} MB free; the copy of {remote.url} needs "
            f"{num_bytes / 1e6:,.0f} MB; make room, or name another cache folder with "
            f"{cache.CACHE_VARIABLE}"
        )


def _tell_of_others(remote: Folder, folder: Path, manifest: bytes, say: Say) -> None:
    """Say that the remote data set has changed since it was fetched."""
    now = json.loads(manifest)["fingerprint"]
    for other in sorted(folder.parent.glob(f"*/{MANIFEST}")):
        with suppress(ValueError, KeyError, OSError):
            before = json.loads(other.read_bytes())["fingerprint"]
            if other.parent != folder:
                say(
                    f"{remote.url} was changed since it was last fetched (fingerprint {before} "
                    f"-> {now}); the old copy {other.parent} may be removed"
                )
