"""Receive one file over HTTP: cut off, slow, refused or replaced by a web page, it is handled."""

import http.client
import json
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rn50
from rn50 import durable
from rn50.errors import DataError, UsageError

_PIECE = 1 << 18
_TIMEOUT_S = 30.0
_LONGEST_WAIT_S = 30.0

Say = Callable[[str], None]
Report = Callable[[int, int], None]


class _TransientError(Exception):
    """Something that another attempt may put right."""

    wait_s: float | None = None
    """How long the server asks to be left alone."""


class Part:
    """What has arrived of a file, and what must be known to go on with it.

    Args:
        path: Where to keep it; a note of what the server said of it lies beside.
        url: Where it comes from.
        num_bytes: Its size, where that is known beforehand.
        about_bytes: Its size, roughly, for a server that does not tell.
        magic: What it begins with.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        num_bytes: int | None = None,
        about_bytes: int = 0,
        magic: bytes = b"",
    ) -> None:
        self.path = path
        self.note = path.with_name(f"{path.name}.json")
        self.url = url
        self.expected = num_bytes
        self.about_bytes = about_bytes
        self.magic = magic
        self.total: int | None = None
        """Size of the whole file, as the server said when it began."""
        self.validator = ""
        """What the server calls this version of the file: an ETag or a date."""
        self.reached = False
        """Whether the server has answered at all."""
        try:
            note: dict[str, Any] = json.loads(self.note.read_bytes())
            if note["url"] == url:
                self.total, self.validator = note["total"], note["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # Without a note there is nothing to go on with.

    @property
    def num_bytes(self) -> int:
        """Return how much has arrived and can be continued."""
        if self.total is None or not self.path.exists():
            return 0
        return self.path.stat().st_size

    @property
    def is_whole(self) -> bool:
        """Return whether everything has arrived."""
        return self.total is not None and self.num_bytes == self.total

    def begin(self, total: int | None, validator: str) -> None:
        """Forget what has arrived, and note what is to come."""
        self.path.write_bytes(b"")
        self.total, self.validator = total, validator
        durable.write_json(self.note, {"url": self.url, "total": total, "validator": validator})

    def clear(self) -> None:
        """Forget everything, so that the next attempt begins at the first byte."""
        self.total = None
        self.note.unlink(missing_ok=True)


def receive(
    part: Part,
    *,
    say: Say,
    report: Report | None = None,
    retries: int = 6,
    wait_s: float = 1.0,
) -> None:
    """Let a part become whole, from where it was left.

    Args:
        part: Where to put what.
        say: Shows the user a line.
        report: Called with the numbers of bytes there and in all.
        retries: Failures in a row, without a byte gained, after which it gives up.
        wait_s: Pause after the first failure; it doubles up to 30 seconds. A server that names a
            pause is obeyed up to that.

    Raises:
        DataError: The file cannot be had, or is not of the size or kind that it should be.
        UsageError: There is no room for it, or the URL is none.
    """
    failures, most = 0, part.num_bytes
    if most:
        say(f"going on with {part.path}: {most / 1e6:,.1f} MB are there")
    while not part.is_whole:
        try:
            _attempt(part, say, report)
            return
        except _TransientError as problem:
            failures = 1 if part.num_bytes > most else failures + 1
            most = max(most, part.num_bytes)
            if failures > retries:
                raise DataError(
                    f"cannot fetch {part.url}: {problem}, {failures} times in a row; it must be "
                    f"reachable; {most / 1e6:,.1f} MB are kept in {part.path}: run the same "
                    "command again to go on, or give another source with --url"
                ) from problem
            backoff = wait_s * 2 ** (failures - 1)
            pause = min(_LONGEST_WAIT_S, backoff if problem.wait_s is None else problem.wait_s)
            say(f"{problem}; trying again in {pause:.0f} s")
            time.sleep(pause)


def _attempt(part: Part, say: Say, report: Report | None) -> None:
    """Make one request and write what it brings.

    Raises:
        _TransientError: It ended too early.
    """
    with _answered(part) as reply:
        start = _start(part, reply, say)
        with part.path.open("r+b") as file:
            file.seek(start)
            while piece := _read(reply):
                if file.tell() == 0 and not piece.startswith(part.magic):
                    _refuse_page(part, piece)
                file.write(piece)
                if report is not None and part.total is not None:
                    report(min(file.tell(), part.total), part.total)
    if part.total is not None and part.num_bytes < part.total:
        raise _TransientError("the connection was cut")


@contextmanager
def _answered(part: Part) -> Iterator[http.client.HTTPResponse]:
    """Ask for what is missing."""
    headers = {"User-Agent": f"rn50/{rn50.__version__}", "Accept-Encoding": "identity"}
    if start := part.num_bytes:
        headers["Range"] = f"bytes={start}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        request = urllib.request.Request(part.url, headers=headers)
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            part.reached = True
            _refuse_status(part, error)
        raise
    except urllib.error.URLError as error:
        raise _unreachable(part, error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(part, error) from error
    except ValueError as error:
        raise UsageError(
            f"{part.url!r} is not a URL ({error}); it must begin with https:// or http://"
        ) from error
    part.reached = True
    with reply:
        yield reply


def _read(reply: http.client.HTTPResponse) -> bytes:
    try:
        return reply.read(_PIECE)
    except (OSError, http.client.HTTPException) as error:
        raise _TransientError(f"the connection was cut ({_words(error)})") from error


def _start(part: Part, reply: http.client.HTTPResponse, say: Say) -> int:
    """Return at which byte the answer begins, and make the part ready for it."""
    asked = part.num_bytes
    if reply.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if found is None or (int(found[1]), int(found[2])) != (asked, part.total):
            part.clear()
            raise _TransientError("the server went on at another place than was asked for")
        start, total = asked, part.total
    else:
        if asked:
            say("the server has another file now or cannot go on: beginning again")
        start, length = 0, reply.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if part.expected is not None and total not in (None, part.expected):
            raise DataError(
                f"{part.url} has {total:,} bytes; it must have {part.expected:,}; give another "
                "source with --url"
            )
    _check_space(part, total, start)
    if reply.status != 206:
        etag = reply.headers.get("ETag", "")
        strong = "" if etag.startswith("W/") else etag
        part.begin(total, strong or reply.headers.get("Last-Modified", ""))
    return start


def _check_space(part: Part, total: int | None, start: int) -> None:
    folder = part.path.parent
    needed = (total or part.expected or part.about_bytes) - start
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UsageError(
            f"{folder} has {free / 1e6:,.0f} MB free; {part.url} needs "
            f"{needed / 1e6:,.0f} MB more; make room or choose another folder, and run the same "
            "command again"
        )


def _refuse_status(part: Part, error: urllib.error.HTTPError) -> None:
    """Raise what an HTTP error means."""
    said = f"{error.code} {error.reason}"
    if error.code == 416:  # What is there is longer than the file: it was another one.
        part.clear()
        raise _TransientError("the server has another file now") from error
    if error.code in (408, 425, 429) or error.code >= 500:
        problem = _TransientError(f"the server answered {said}")
        named = error.headers.get("Retry-After", "")
        problem.wait_s = float(named) if named.isdecimal() else None
        raise problem from error
    reason = {
        404: "it is not there (any more)",
        410: "it is not there any more",
        407: "a proxy wants a name and a password: set https_proxy=http://NAME:PASSWORD@HOST:PORT",
    }.get(error.code, "the server or a proxy before it refuses")
    raise DataError(
        f"cannot fetch {part.url}: {said}, {reason}; give another source of the same archive with "
        "--url, or fetch it with a browser and give the file to `rn50 prepare`"
    ) from error


def _unreachable(part: Part, reason: object) -> Exception:
    """Return what a failure without an answer means."""
    host = urllib.request.Request(part.url).host
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"cannot fetch {part.url}: its certificate is not trusted ({reason.verify_message}); "
            "behind a proxy that opens TLS, or without CA certificates, set SSL_CERT_FILE to the "
            "file that has them"
        )
    if isinstance(reason, socket.gaierror) and not part.reached:
        return DataError(
            f"cannot fetch {part.url}: no address is known for {host} ({_words(reason)}); this "
            "machine must reach the network and a name server; check both, or set https_proxy; "
            "elsewhere fetch it with a browser and copy the file"
        )
    return _TransientError(f"{host} cannot be reached ({_words(reason)})")


def _words(error: object) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _refuse_page(part: Part, piece: bytes) -> None:
    part.clear()
    part.path.unlink(missing_ok=True)
    looks = piece.lstrip()[:200].lower()
    what = (
        "a web page" if looks.startswith((b"<!doctype", b"<html", b"<?xml")) else "something else"
    )
    raise DataError(
        f"{part.url} brought {what} instead of the archive: a proxy or a login page answers in "
        "its place; open the URL in a browser to see what it wants, set https_proxy, or give "
        "another source with --url; nothing was kept"
    )
