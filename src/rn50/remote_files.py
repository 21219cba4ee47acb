"""Folders that fsspec reads and writes: patience, verification, and errors a user can act on.

Reading packed data and mirroring a run share this. A network that fails for a moment is tried
again; what needs a person (credentials, a name, a right) is told at once; and no file is taken for
whole before its size and hash are those of a manifest.
"""

import errno
import hashlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.callbacks import Callback

from rn50 import durable
from rn50.errors import DataError, UsageError, UserError

_PARALLEL = 8
"""Files fetched at a time: one S3 connection brings some 50 to 90 MB/s, whatever the machine."""
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_PIECE_BYTES = 8 << 20
_EXTRA = "pip install 'rn50[s3]'"
_NAME = re.compile(r"\w[\w.-]*")


def is_remote(place: str) -> bool:
    """Return whether ``place`` is a URL, such as ``s3://bucket/prefix``, and not a path."""
    return re.match(r"[A-Za-z][\w+.:-]+://", place) is not None


def is_plain_name(name: object) -> bool:
    """Return whether a manifest may name a file so: it cannot lead out of its folder."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class Terms(NamedTuple):
    """How an error names what a folder is for."""

    must_be: str
    """What has to lie there."""
    remedy: str
    """What to do where a file is damaged."""
    used: str = "read"
    """``read`` or ``written``."""
    rights: str = "s3:GetObject"


class UnreachableError(UserError):
    """The network or the store failed, several times: later it may do, so that it exits with 1."""


class WrongContentError(Exception):
    """A file is not the one of the manifest; the text says in what."""


class _StoppedError(Exception):
    """Another file failed: this one is no longer wanted."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that fsspec can read or write."""

    url: str
    fs: Any
    path: str
    terms: Terms

    def of(self, name: str) -> str:
        """Return the path of a file as the file system wants it."""
        return f"{self.path}/{name}"

    def url_of(self, name: str) -> str:
        """Return the address of a file as a user knows it."""
        return f"{self.url}/{name}"

    def speaks(self, *protocols: str) -> bool:
        """Return whether the file system is one of these, such as ``"s3"``."""
        own = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        return not set(own).isdisjoint(protocols)

    def read(self, name: str) -> bytes:
        """Return a small file's content.

        Raises:
            UserError: It cannot be read, as ``retried`` tells.
        """
        content: bytes = retried(
            partial(self.fs.cat_file, self.of(name)), self.url_of(name), self.terms
        )
        return content


def open_folder(url: str, terms: Terms, **options: Any) -> Folder:
    """Return the folder that a URL or a path names; nothing is read yet.

    Args:
        url: Anything that fsspec has a file system for.
        terms: For the errors.
        options: Of fsspec's file system.

    Raises:
        UsageError: A package is missing, or nobody knows the protocol.
    """
    address = url if is_remote(url) else str(Path(url).absolute())
    try:
        fs, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = "is needed: pip install the one it names"
        if protocol in ("s3", "s3a", "http", "https"):
            package = f"is the extra s3: {_EXTRA}"
        raise UsageError(
            f"{url} cannot be {terms.used}: {error}; what reads {protocol}:// {package}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{url} cannot be {terms.used}: {error}; give a folder, or a URL such as "
            "s3://bucket/prefix or https://host/folder"
        ) from error
    return Folder(url.rstrip("/"), fs, path.rstrip("/"), terms)


def fetch_all(
    remote: Folder, folder: Path, entries: Sequence[dict[str, Any]], count: "Count"
) -> None:
    """Fetch files side by side, each verified before it gets its name.

    Args:
        remote: Where they lie.
        folder: Where they go.
        entries: For each its ``file``, ``bytes`` and ``blake2b``.
        count: Is told of the bytes that arrive.

    Raises:
        UserError: One of them cannot be had, or is not as its entry says, twice.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch") as pool:
        tasks = [pool.submit(_fetch, remote, folder, entry, count, stop) for entry in entries]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            # After the first failure, or Ctrl-C, the others need not go on to their ends.
            stop.set()
            pool.shutdown(cancel_futures=True)


def _fetch(
    remote: Folder, folder: Path, entry: dict[str, Any], count: "Count", stop: threading.Event
) -> None:
    """Fetch one file until it is right: twice at most where its content is wrong."""
    url = remote.url_of(entry["file"])
    for is_last in (False, True):
        try:
            retried(partial(_fetch_once, remote, folder, entry, count, stop), url, remote.terms)
            return
        except WrongContentError as error:
            if is_last:
                raise DataError(
                    f"{url} {error}, twice; it must be as the manifest beside it lists it: the "
                    "folder there was changed meanwhile or is damaged; " + remote.terms.remedy
                ) from error


def _fetch_once(
    remote: Folder, folder: Path, entry: dict[str, Any], count: "Count", stop: threading.Event
) -> None:
    name = entry["file"]
    temporary = folder / f"{durable.TEMPORARY_PREFIX}{name}"
    arriving = _Arriving(entry["bytes"], count, stop)
    # s3fs else holds 500 MB for each file.
    options = {"max_concurrency": 1} if remote.speaks("s3") else {}
    try:
        with durable.explained(temporary):
            temporary.touch()
        remote.fs.get_file(remote.of(name), str(temporary), callback=arriving, **options)
        if (size := temporary.stat().st_size) != entry["bytes"]:
            raise WrongContentError(f"has {size} bytes; it must have {entry['bytes']}")
        if durable.file_digest(temporary) != entry["blake2b"]:
            raise WrongContentError("has another hash than it must have")
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


def check(remote: Folder, name: str, num_bytes: int, digest: str) -> None:
    """Read a file that was written there back, in pieces of 8 MiB, and compare.

    Raises:
        WrongContentError: Its size or hash is another.
        Exception: What the file system raises.
    """
    path = remote.of(name)
    remote.fs.invalidate_cache()
    if (size := remote.fs.info(path)["size"]) != num_bytes:
        raise WrongContentError(f"has {size} bytes; it must have {num_bytes}")
    state = hashlib.blake2b(digest_size=16)
    for start in range(0, num_bytes, _PIECE_BYTES):
        end = min(start + _PIECE_BYTES, num_bytes)
        state.update(remote.fs.cat_file(path, start=start, end=end))
    if state.hexdigest() != digest:
        raise WrongContentError("has another hash than it must have")


class Count:
    """Bytes that have arrived, from many threads."""

    def __init__(self, done: int, total: int, report: Callable[[int, int], None]) -> None:
        self._done, self._total, self._report = done, total, report
        self._lock = threading.Lock()
        report(done, total)

    def add(self, num_bytes: int) -> None:
        """Count more bytes, or fewer."""
        if num_bytes == 0:
            return
        with self._lock:
            self._done += num_bytes
            self._report(self._done, self._total)


class _Arriving(Callback):  # type: ignore[misc]
    """Counts the bytes of one file, and ends what is too long or no longer wanted."""

    def __init__(self, limit: int, count: Count, stop: threading.Event) -> None:
        super().__init__()
        self._limit, self._count, self._stop = limit, count, stop
        self._here = 0

    def relative_update(self, inc: int = 1) -> None:
        self._here += inc
        self._count.add(inc)
        if self._here > self._limit:
            raise WrongContentError(f"has more than the {self._limit} bytes it must have")
        if self._stop.is_set():
            raise _StoppedError

    def complete(self) -> None:
        """Count what a file system has not told of."""
        self._count.add(self._limit - self._here)

    def take_back(self) -> None:
        """Count none of it: it will be fetched again."""
        self._count.add(-self._here)
        self._here = 0


def retried(work: Callable[[], Any], url: str, terms: Terms) -> Any:
    """Do ``work`` until the network lets it, at most four times within some seven seconds.

    Raises:
        UserError: It failed for good.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except (UserError, WrongContentError, _StoppedError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # The caller explains it.
            final = explained(url, error, terms)
            if final is not None or attempt == _ATTEMPTS - 1:
                raise final or _unreachable(url, error, terms) from error
        time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")


def explained(url: str, error: Exception, terms: Terms) -> UserError | None:
    """Return what an error of a file system means, or None where trying again may help."""
    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    status = next((s for one in chain if isinstance(s := getattr(one, "status", None), int)), 0)
    if names & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        public = "; for a public bucket set FSSPEC_S3_ANON=true" if terms.used == "read" else ""
        return UsageError(
            f"{url} cannot be {terms.used}: {error}; that needs credentials: run `aws configure`, "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role" + public
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return DataError(
            f"{url} is not there ({error}); it must be {terms.must_be}; check the bucket and the "
            "prefix"
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return DataError(
            f"{url} may not be {terms.used} ({error}); the credentials must be valid and allow "
            f"{terms.rights} there (some stores say so of a file that is missing, too); check them "
            "and the prefix"
        )
    return None


def _unreachable(url: str, error: Exception, terms: Terms) -> UnreachableError:
    return UnreachableError(
        f"{url} cannot be {terms.used}: {type(error).__name__}: {error} ({_ATTEMPTS} attempts); it "
        "must be reachable from this machine; check the network, AWS_ENDPOINT_URL and the region, "
        "and run the same command again: what is there whole is kept"
    )
