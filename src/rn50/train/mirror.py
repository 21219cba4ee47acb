"""A run's copy at a URL, kept up to date by a thread that training never waits for.

What is waiting is what is kept on the disk, no more; the newest checkpoint goes first. While the
URL cannot be reached, the run trains on, tells of it once, and sends the rest when it is back.
"""

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from rn50 import durable, remote_files
from rn50.observe import record
from rn50.observe.record import TIMING, Record
from rn50.remote_files import UnreachableError, WrongContentError
from rn50.train import checkpoint, folder
from rn50.train.exports import BEST
from rn50.train.remote_run import TERMS, Parcel, RemoteRun, open_run

STOP_LIMIT_S = 20.0
"""How long a run that is asked to stop waits for its mirror: saving and sending fit into 25 s."""

_FILES_EVERY_S = 60.0
_WAITS_S = (1.0, 60.0)
"""The first and the longest pause between two attempts; each is twice the one before."""
_LONGEST_CLOSING_WAIT_S = 5.0
_PATIENCE_S = 15.0
"""Failures are told of when they last longer: single ones are everyday."""
_SMALL_BYTES = 16 << 20

Kept = Callable[[list[int]], Collection[int]]


class Mirror:
    """Sends a run's folder to a URL, piece by piece.

    ``turn`` does the work and is called by one thread; everything else may be called by any.

    Args:
        place: The run's folder.
        url: Where its copy goes.
        source: The step that the run was resumed from, whose checkpoint is kept as well.
        clock: Seconds, as ``time.monotonic``.
    """

    def __init__(
        self,
        place: Path,
        url: str,
        *,
        source: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._url, self._source = place, url, source
        self._kept: Kept = set
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._parcel: Parcel | None = None
        self._void_after: int | None = None
        self._notices: deque[Record] = deque()
        self._remote: RemoteRun | None = None
        self._is_clean = False
        self._there: set[int] = set()
        self._unfit: set[int] = set()
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._batch: list[Path] = []
        self._files_due = 0.0
        self._failed_since: float | None = None
        self._failures = 0
        self._told = False
        self._retry_at = 0.0
        self._reason = ""
        self._nudged = self._closing = self._stopped = False

    def begin(self, settings: bytes) -> None:
        """Send the settings, so that what only a person can mend is told before training.

        Raises:
            UserError: The URL cannot be written, but for an outage, which is survived.
        """
        self._remote = open_run(self._url)
        work = partial(self._remote.put, folder.CONFIG, settings)
        try:
            remote_files.retried(work, self._remote.folder.url_of(folder.CONFIG), TERMS)
        except UnreachableError as error:
            cause = error.__cause__
            self._failed(cause if isinstance(cause, Exception) else error)

    def published(self, path: Path) -> None:
        """Take note of a checkpoint to send, in place of an older one that is still waiting."""
        with self._changed:
            self._waiting = path
            self._nudge()

    def keep_by(self, kept: Kept) -> None:
        """Remove there, from now on, what the run's own policy removes here; until then, nothing.

        Args:
            kept: Given the steps of all checkpoints, ascending: those to keep.
        """
        self._kept = kept

    def forget_after(self, step: int) -> None:
        """Take note that the run goes back to a step: what was sent of later ones is void."""
        with self._changed:
            self._void_after = step if self._void_after is None else min(step, self._void_after)
            if self._waiting is not None and (checkpoint.step_of(self._waiting.name) or 0) > step:
                self._waiting = None
            self._nudge()

    def notices(self) -> list[Record]:
        """Return what there was to tell since the last call, as records that lack the step."""
        return [self._notices.popleft() for _ in range(len(self._notices))]

    @property
    def is_behind(self) -> bool:
        """Return whether the copy lacks anything of the run's folder."""
        with self._changed:
            if self._void_after is not None:
                return True
            return bool(self._waiting or self._parcel or self._unsent() or self._stale())

    @property
    def reason(self) -> str:
        """Return why the last attempt failed; empty where it did not."""
        return self._reason

    def turn(self) -> float:
        """Send what is most urgent, one piece, and return after how many seconds to come again."""
        now = self._clock()
        if now < self._retry_at:
            return self._retry_at - now
        try:
            worked = self._work()
        except Exception as error:
            self._failed(error)
            return self._retry_at - self._clock()
        if worked:
            self._succeeded()
            return 0.0
        return max(0.0, self._files_due - now)

    def run(self) -> None:
        """Take turns until ``stop``."""
        while not self._stopped:
            pause_s = self.turn()
            with self._changed:
                self._changed.notify_all()
                if pause_s > 0 and not self._nudged:
                    self._changed.wait(pause_s)
                self._nudged = False

    def finish(self, limit_s: float, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the copy is complete, and return whether it is.

        Args:
            limit_s: How long at most, in seconds.
            stopping: Whether the run is asked to stop meanwhile, which shortens the limit.
        """
        with self._changed:
            self._closing, self._retry_at = True, 0.0
            self._nudge()
        until, hurried = self._clock() + limit_s, False
        while self.is_behind:
            if stopping() and not hurried:
                until, hurried = min(until, self._clock() + STOP_LIMIT_S), True
            if self._clock() >= until:
                return False
            with self._changed:
                self._changed.wait(0.1)
        return True

    def stop(self) -> None:
        """End the turns after the current one, and leave nothing of them on the disk."""
        with self._changed:
            self._stopped = True
            self._nudge()
            self._drop()

    def _nudge(self) -> None:
        self._nudged = True
        self._changed.notify_all()

    def _work(self) -> bool:
        """Send one piece, if there is one; return whether there was."""
        if self._remote is None:
            self._remote = open_run(self._url)
        if not self._is_clean:
            self._remote.clean()
            self._there = set(self._remote.steps())
            self._is_clean = True
        if (step := self._void_after) is not None:
            self._forget(self._remote, step)
            return True
        if (parcel := self._next()) is not None:
            self._send(self._remote, parcel)
            return True
        if not self._batch and (self._closing or self._clock() >= self._files_due):
            self._batch = self._stale()
            self._files_due = self._clock() + _FILES_EVERY_S
        if self._batch:
            self._send_file(self._remote, self._batch[0])
            self._batch.pop(0)
            return True
        with self._changed:
            self._waiting = self._waiting or self._unsent()
        if (parcel := self._next()) is None:
            return False
        self._send(self._remote, parcel)
        return True

    def _forget(self, remote: RemoteRun, step: int) -> None:
        with self._changed:
            if self._parcel is not None and self._parcel.step > step:
                self._drop()
        there = {known for known in remote.steps() if known <= step}
        if not there and (source := self._here().get(step)) is not None:
            # What is void is better than nothing, so what the run goes on from is sent first.
            self.published(source)
            if (parcel := self._next()) is not None:
                self._send(remote, parcel)
            there = {known for known in remote.steps() if known <= step}
        remote.retire(there)
        with self._changed:
            self._there, self._unfit = there, {known for known in self._unfit if known <= step}
            if self._void_after == step:
                self._void_after = None

    def _next(self) -> Parcel | None:
        """Return the checkpoint to send, having taken hold of its files."""
        with self._changed:
            path, self._waiting = self._waiting, None
            if path is None or self._stopped:
                return None if self._stopped else self._parcel
            self._drop()
            step = checkpoint.step_of(path.name)
            assert step is not None
            with suppress(FileNotFoundError):  # It has given way to a newer one already.
                history = (self._place / record.FILE_NAME).read_bytes()
                held = _held(path, path.with_name(f"{self._prefix}{path.name}"))
                self._parcel = Parcel(step, held, history, step >= max(self._here(), default=step))
            return self._parcel

    def _send(self, remote: RemoteRun, parcel: Parcel) -> None:
        start = self._clock()
        try:
            remote.send(parcel)
        except (WrongContentError, FileNotFoundError, ValueError):
            if parcel.is_whole:
                raise
            why = "is no longer whole on this disk and was not sent"
            self._tell("warning", f"the checkpoint of step {parcel.step} {why} to {self._url}")
            with self._changed:
                self._drop()
                self._unfit.add(parcel.step)
            return
        seconds = round(self._clock() - start, 3)
        self._notices.append({"kind": "mirror", TIMING: {"sent": parcel.step, "seconds": seconds}})
        with self._changed:
            self._drop()
        # Later steps are of an attempt before this one, and will be written anew.
        there = remote.steps()
        later = {step for step in there if step > max(self._here(), default=parcel.step)}
        source = {self._source} if self._source is not None else set()
        kept = {parcel.step, *self._kept(sorted({*there} - later)), *source, *later}
        remote.retire(kept)
        self._there = {*there} & kept

    def _here(self) -> dict[int, Path]:
        """Return the checkpoints on the disk by their steps."""
        folder = self._place / checkpoint.FOLDER
        found = folder.iterdir() if folder.is_dir() else ()
        return {step: path for path in found if (step := checkpoint.step_of(path.name)) is not None}

    def _unsent(self) -> Path | None:
        """Return the newest checkpoint that is to be kept and is not there; none, if all are."""
        here = self._here()
        kept = {*self._kept(sorted({*here} | self._there))}
        unsent = ({*here} & kept) - self._there - self._unfit
        return here[max(unsent)] if unsent else None

    def _send_file(self, remote: RemoteRun, path: Path) -> None:
        stamp = _stamp(path)
        name = path.relative_to(self._place).as_posix()
        if stamp is None:
            if path.name == BEST:
                remote.remove(name)
            self._stamps.pop(path, None)
            return
        aside = path.with_name(f"{self._prefix}{path.name}")
        try:
            source = path.read_bytes() if stamp[0] <= _SMALL_BYTES else _held(path, aside)
        except FileNotFoundError:
            return
        try:
            if isinstance(source, bytes) or not remote.has(name, source):
                remote.put(name, source)
        except WrongContentError:
            if isinstance(source, bytes) or _stamp(path) == stamp:
                raise
            return  # It grew meanwhile, and is sent the next time.
        finally:
            aside.unlink(missing_ok=True)
        self._stamps[path] = stamp

    def _stale(self) -> list[Path]:
        """Return the files that have changed since they were sent, small ones first.

        The best weights count that were sent and have been taken back here.
        """
        best = {self._place / BEST} & self._stamps.keys()
        stamps = {path: _stamp(path) for path in {*_files(self._place), *best}}
        stale = [path for path, stamp in stamps.items() if stamp != self._stamps.get(path)]
        return sorted(stale, key=lambda path: stamps[path] or (0, 0))

    def _failed(self, error: Exception) -> None:
        now = self._clock()
        if self._failed_since is None:
            self._failed_since = now
        longest = _LONGEST_CLOSING_WAIT_S if self._closing else _WAITS_S[1]
        self._retry_at = now + min(_WAITS_S[0] * 2**self._failures, longest)
        self._failures = min(self._failures + 1, 10)
        known = remote_files.explained(self._url, error, TERMS)
        if known is not None or self._failures % 5 == 0:
            # A new session reads credentials anew, and heals whatever ails the old one.
            self._remote = None
        self._reason = " ".join(str(known or f"{type(error).__name__}: {error}").split())
        if not self._told and now - self._failed_since >= _PATIENCE_S:
            self._told = True
            self._tell(
                "warning",
                f"the mirror {self._url} cannot be written ({self._reason}); training goes on, "
                "checkpoints are saved here, and what the mirror lacks is sent when it is back",
            )

    def _succeeded(self) -> None:
        if self._told and self._failed_since is not None:
            minutes = (self._clock() - self._failed_since) / 60
            self._tell("notice", f"the mirror {self._url} is back after {minutes:.1f} minutes")
        self._failed_since, self._failures, self._told, self._reason = None, 0, False, ""

    def _tell(self, kind: str, message: str) -> None:
        self._notices.append({"kind": kind, "message": message})

    def _drop(self) -> None:
        if self._parcel is not None and self._parcel.folder.name.startswith(self._prefix):
            shutil.rmtree(self._parcel.folder, ignore_errors=True)
        self._parcel = None

    @property
    def _prefix(self) -> str:
        return f"{durable.TEMPORARY_PREFIX}{os.getpid()}-mirror-"


def _held(path: Path, aside: Path) -> Path:
    """Return the same file or folder by another name, which stays when the first is removed."""
    if aside.is_dir():
        shutil.rmtree(aside)
    try:
        if path.is_dir():
            shutil.copytree(path, aside, copy_function=os.link)
        else:
            aside.unlink(missing_ok=True)
            os.link(path, aside)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "was removed", str(path)) from error
        return path  # The file system has no hard links: it may vanish while it is sent.
    return aside


def _files(place: Path) -> Iterator[Path]:
    """Yield a run's files but for its checkpoints and what is hidden or half-written."""
    for folder_name, folders, names in os.walk(place):
        here = Path(folder_name)
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and here / name != place / checkpoint.FOLDER
        ]
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
