"""Packed data in object storage, read through a verified copy in the cache folder.

Below ``<cache>/remote/<hash of the URL>/`` lies one folder for each manifest that was seen there.
Each file is fetched beside its place, compared with the manifest by size and hash, and renamed; the
manifest itself comes last. So a file that is there is whole, a folder with a manifest is complete,
and whoever was killed goes on at the first file that is missing. One process of a machine fetches
while the others wait for its lock, with no need to know of each other.
"""

import errno
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import fsspec
from fsspec.callbacks import Callback

from rn50 import durable
from rn50.data import cache
from rn50.data.shards import FORMAT, MANIFEST, PackedDataset, files
from rn50.errors import DataError, UsageError, UserError
from rn50.observe.progress import progress

_PARALLEL = 8
"""Files fetched at a time: one S3 connection brings some 50 to 90 MB/s, whatever the machine."""
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_NAME = re.compile(r"\w[\w.-]*")
_EXTRA = "pip install 'rn50[s3]'"

Say = Callable[[str], None]


def is_remote(data: str) -> bool:
    """Return whether ``data`` is a URL, such as ``s3://bucket/prefix``, and not a path."""
    return re.match(r"[A-Za-z][\w+.:-]+://", data) is not None


def local_folder(data: str, *, say: Say = lambda line: None) -> Path:
    """Return a local folder with the packed data set at ``data``.

    A path is returned as it is, unopened. What a URL names is copied into the cache folder first,
    as far as it is not there; the files that are there are not read again.

    Args:
        data: A folder made by ``rn50 prepare``, or the URL of a copy of one: ``s3://``,
            ``https://``, or whatever else fsspec has a file system for.
        say: Shows the user a line.

    Raises:
        DataError: There is no packed data set, it may not be read, or it is damaged.
        UsageError: A package is missing, or there is no room.
    """
    if not is_remote(data):
        return Path(data)
    remote = _open(data)
    manifest = _manifest(remote)
    place = cache.folder() / "remote" / durable.digest(remote.url.encode())[:16]
    with durable.explained(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = place / durable.digest(manifest)[:16]
        if not _is_whole(folder, manifest):
            with _lock(place, remote, say):
                _fetch_missing(remote, folder, manifest, say)
    return folder


@dataclass(frozen=True, slots=True)
class _Remote:
    """A folder that fsspec can read."""

    url: str
    fs: Any
    path: str

    def of(self, name: str) -> str:
        return f"{self.path}/{name}"

    def options(self) -> dict[str, int]:
        """Return what keeps the memory constant: s3fs else holds 500 MB for each file."""
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        return {"max_concurrency": 1} if "s3" in protocols else {}


class _WrongContentError(Exception):
    """A file is not the one of the manifest; the text says in what."""


class _StoppedError(Exception):
    """Another file failed: this one is no longer wanted."""


def _open(url: str) -> _Remote:
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = "is needed: pip install the one it names"
        if protocol in ("s3", "s3a", "http", "https"):
            package = f"is the extra s3: {_EXTRA}"
        raise UsageError(
            f"{url} cannot be read: {error}; what reads {protocol}:// {package}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{url} cannot be read: {error}; give a folder, or a URL such as s3://bucket/prefix or "
            "https://host/folder"
        ) from error
    return _Remote(url.rstrip("/"), fs, path.rstrip("/"))


def _manifest(remote: _Remote) -> bytes:
    """Return the manifest's bytes, having checked that they are one."""
    url = f"{remote.url}/{MANIFEST}"
    content: bytes = _retried(partial(remote.fs.cat_file, remote.of(MANIFEST)), url)
    try:
        manifest = json.loads(content)
        if manifest["format"] == FORMAT:
            listed = files(PackedDataset(Path(), manifest).manifest)
            if wrong := [f["file"] for f in listed if not _NAME.fullmatch(f["file"])]:
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
def _lock(place: Path, remote: _Remote, say: Say) -> Iterator[None]:
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


def _fetch_missing(remote: _Remote, folder: Path, manifest: bytes, say: Say) -> None:
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
        _fetch_all(remote, folder, missing, _Count(all_bytes - num_bytes, all_bytes, report))
    durable.write_bytes(folder / MANIFEST, manifest)


def _fetch_all(
    remote: _Remote, folder: Path, missing: list[dict[str, Any]], count: "_Count"
) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch") as pool:
        tasks = [pool.submit(_fetch, remote, folder, entry, count, stop) for entry in missing]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            # After the first failure, or Ctrl-C, the others need not go on to their ends.
            stop.set()
            pool.shutdown(cancel_futures=True)


def _fetch(
    remote: _Remote, folder: Path, entry: dict[str, Any], count: "_Count", stop: threading.Event
) -> None:
    """Fetch one file until it is right: twice at most where its content is wrong."""
    url = f"{remote.url}/{entry['file']}"
    for is_last in (False, True):
        try:
            _retried(partial(_fetch_once, remote, folder, entry, count, stop), url)
            return
        except _WrongContentError as error:
            if is_last:
                raise DataError(
                    f"{url} {error}, twice; it must be as {MANIFEST} lists it: the folder there "
                    "was changed meanwhile or is damaged; copy the whole folder there again and "
                    "run the same command"
                ) from error


def _fetch_once(
    remote: _Remote, folder: Path, entry: dict[str, Any], count: "_Count", stop: threading.Event
) -> None:
    name = entry["file"]
    temporary = folder / f"{durable.TEMPORARY_PREFIX}{name}"
    arriving = _Arriving(entry["bytes"], count, stop)
    try:
        with durable.explained(temporary):
            temporary.touch()
        options = remote.options()
        remote.fs.get_file(remote.of(name), str(temporary), callback=arriving, **options)
        if (size := temporary.stat().st_size) != entry["bytes"]:
            raise _WrongContentError(f"has {size} bytes; it must have {entry['bytes']}")
        if durable.file_digest(temporary) != entry["blake2b"]:
            raise _WrongContentError("has another hash than it must have")
        with durable.explained(folder / name):
            durable.sync_file(temporary)
            temporary.replace(folder / name)
            durable.sync_folder(folder)
        arriving.complete()
    except BaseException:
        arriving.take_back()
        with suppress(OSError):
            temporary.unlink()
        raise


class _Count:
    """Bytes that have arrived, from many threads."""

    def __init__(self, done: int, total: int, report: Callable[[int, int], None]) -> None:
        self._done, self._total, self._report = done, total, report
        self._lock = threading.Lock()
        report(done, total)

    def add(self, num_bytes: int) -> None:
        if num_bytes == 0:
            return
        with self._lock:
            self._done += num_bytes
            self._report(self._done, self._total)


class _Arriving(Callback):  # type: ignore[misc]
    """Counts the bytes of one file, and ends what is too long or no longer wanted."""

    def __init__(self, limit: int, count: _Count, stop: threading.Event) -> None:
        super().__init__()
        self._limit, self._count, self._stop = limit, count, stop
        self._here = 0

    def relative_update(self, inc: int = 1) -> None:
        self._here += inc
        self._count.add(inc)
        if self._here > self._limit:
            raise _WrongContentError(f"has more than the {self._limit} bytes it must have")
        if self._stop.is_set():
            raise _StoppedError

    def complete(self) -> None:
        """Count what a file system has not told of."""
        self._count.add(self._limit - self._here)

    def take_back(self) -> None:
        """Count none of it: it will be fetched again."""
        self._count.add(-self._here)
        self._here = 0


def _retried(work: Callable[[], Any], url: str) -> Any:
    """Do ``work`` until the network lets it, at most a few times.

    Raises:
        UserError: It failed for good.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except (UserError, _WrongContentError, _StoppedError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # The caller explains it.
            final = _explained(url, error)
            if final is not None or attempt == _ATTEMPTS - 1:
                raise final or _unreachable(url, error) from error
        time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")


def _explained(url: str, error: Exception) -> UserError | None:
    """Return what an error of a file system means, or None where trying again may help."""
    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    status = next((s for one in chain if isinstance(s := getattr(one, "status", None), int)), 0)
    if names & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return UsageError(
            f"cannot read {url}: {error}; reading it needs credentials: run `aws configure`, set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role; for a "
            "public bucket set FSSPEC_S3_ANON=true"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return DataError(
            f"{url} is not there ({error}); it must be the folder that `rn50 prepare` made, "
            "copied whole; check the bucket and the prefix"
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return DataError(
            f"{url} may not be read ({error}); the credentials must be valid and allow "
            "s3:GetObject there (some stores say so of a file that is missing, too); check them "
            "and the prefix"
        )
    return None


def _unreachable(url: str, error: Exception) -> DataError:
    return DataError(
        f"cannot read {url}: {type(error).__name__}: {error} ({_ATTEMPTS} attempts); it must be "
        "reachable from this machine; check the network, AWS_ENDPOINT_URL and the region, and run "
        "the same command again: what is there whole is kept"
    )


def _check_space(remote: _Remote, folder: Path, num_bytes: int) -> None:
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise UsageError(
            f"{folder} has {free / 1e6:,.0f} MB free; the copy of {remote.url} needs "
            f"{num_bytes / 1e6:,.0f} MB; make room, or name another cache folder with "
            f"{cache.CACHE_VARIABLE}"
        )


def _tell_of_others(remote: _Remote, folder: Path, manifest: bytes, say: Say) -> None:
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
