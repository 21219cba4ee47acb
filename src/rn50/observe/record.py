"""The record of a run: one JSON object per line, from which every other report is derived.

A record has a ``kind`` and the ``step`` after which it was made. Whatever depends on the clock lies
under its key ``timing``, so that without it the histories of two runs can be compared bit for bit.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rn50 import durable
from rn50.errors import DataError, UsageError

Record = dict[str, Any]

FILE_NAME = "metrics.jsonl"
"""Where a run's record lies in the folder of the run."""

TIMING = "timing"
"""The key of a record under which everything lies that depends on the clock."""

NETWORKS = ("model", "average", "swa")
"""The networks of a run, by their names in the records and on the disk: what is trained, its EMA
and its SWA, of which a run may lack the last two."""

_INCIDENTAL = {"resume", "checkpoint", "warning", "notice", "mirror", "stall", "images"}


class Recorder:
    """Appends records to a file, and on resume forgets what the checkpoint does not know.

    Args:
        path: The file; its folder is made if need be.
        keep_through_step: The step from which the run goes on: records of later steps, and a torn
            last line, are cut off. None begins a new file.
        epoch_is_open: The checkpoint of that step is from before its epoch was evaluated, so that
            a record of the epoch is cut off, too.

    Raises:
        UsageError: The file holds records although a new one was asked for, or cannot be written.
        DataError: A line to keep is not a record.
    """

    def __init__(
        self, path: Path, *, keep_through_step: int | None = None, epoch_is_open: bool = False
    ) -> None:
        self.path = path
        if keep_through_step is None and path.exists() and path.stat().st_size:
            raise UsageError(
                f"{path} already holds the record of a run; "
                "add --resume to go on with that run, or choose another folder"
            )
        with durable.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if keep_through_step is not None and path.exists():
            _cut(path, keep_through_step, epoch_is_open=epoch_is_open)
        with durable.explained(path):
            # Unbuffered: a refused write shows at once, and is not tried again when closing.
            self._file = path.open("ab", buffering=0)
            durable.sync_folder(path.parent)

    def write(self, record: Record) -> None:
        """Append one record and hand it to the operating system.

        Numbers that are not finite are written as null, because JSON has no word for them.

        Raises:
            UsageError: The disk is full; the file ends with the last whole record.
        """
        rest = memoryview(json.dumps(_finite(record), allow_nan=False).encode() + b"\n")
        with durable.explained(self.path):
            size = os.fstat(self._file.fileno()).st_size
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise

    def sync(self) -> None:
        """Flush the file to the disk; a checkpoint may only be published after that."""
        with durable.explained(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush the file to the disk and close it; closing twice is allowed."""
        if not self._file.closed:
            with self._file:
                self.sync()


@runtime_checkable
class Observer(Protocol):
    """What is shown every record and never changes training."""

    def write(self, record: Record) -> None:
        """Take in one record, without changing it."""

    def close(self) -> None:
        """Finish what is shown or written."""


class Observers:
    """Hands each record to the recorder and then to the observers, none of which can stop training.

    An observer that raises is dropped, with a warning to the record and to the other observers.
    Only the recorder's own errors are passed on: without a record the run could not be resumed.
    A process that only shows what another one records has no recorder.
    """

    def __init__(self, recorder: Recorder | None, others: Sequence[Observer] = ()) -> None:
        self.recorder = recorder
        self._others = list(others)
        self._step = 0

    def add(self, observer: Observer) -> None:
        """Show an observer all that comes from now on, after the others."""
        self._others.append(observer)

    def write(self, record: Record) -> None:
        """Record ``record`` and show it to all observers.

        Raises:
            UsageError: The record cannot be written.
        """
        self._step = record.get("step", self._step)
        if self.recorder is not None:
            self.recorder.write(record)
        for observer in tuple(self._others):
            # An observer dropped for its failure at an inner warning has seen enough.
            if observer not in self._others:
                continue
            try:
                observer.write(record)
            except Exception as error:
                self._others.remove(observer)
                with contextlib.suppress(Exception):
                    observer.close()
                self._warn(observer, error)

    def sync(self) -> None:
        """Flush the record to the disk; call it before a checkpoint is published."""
        if self.recorder is not None:
            self.recorder.sync()

    def close(self) -> None:
        """Close all observers, the last first, and then the recorder; closing twice is allowed."""
        with contextlib.ExitStack() as stack:
            if self.recorder is not None:
                stack.callback(self.recorder.close)
            for observer in self._others:
                stack.callback(self._close, observer)

    def _close(self, observer: Observer) -> None:
        self._others.remove(observer)
        try:
            observer.close()
        except Exception as error:
            self._warn(observer, error)

    def _warn(self, observer: Observer, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{type(observer).__name__} failed and is switched off ({reason})"
        self.write({"kind": "warning", "step": self._step, "message": message})


def read(path: Path) -> list[Record]:
    """Return the records of a file; a torn last line, which a crash leaves behind, is ignored.

    Raises:
        UsageError: There is no such file.
        DataError: Any other line is not a record.
    """
    return [json.loads(line) for line in _whole_lines(path)]


def without_timing(records: Iterable[Record]) -> list[Record]:
    """Return what training produced, which is equal for a resumed and an uninterrupted run.

    Left out are the clock's values, and whole records that tell when a process was stopped, saved,
    was told something, was slow, drew a picture or had something to warn of: resume, checkpoint,
    notice, mirror, stall, images and warning.
    """
    return [
        {key: value for key, value in record.items() if key != TIMING}
        for record in records
        if record.get("kind") not in _INCIDENTAL
    ]


def shown(value: float | None, spec: str) -> str:
    """Return ``value`` formatted by ``spec``, or ``-`` where nothing or no number was recorded."""
    return "-" if value is None else format(value, spec)


def duration(seconds: float) -> str:
    """Return seconds as people read them: ``12:34``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _cut(path: Path, last_step: int, *, epoch_is_open: bool) -> None:
    def is_known(record: Record) -> bool:
        step = record.get("step", last_step)
        open_one = epoch_is_open and record.get("kind") == "epoch"
        return step < last_step or (step == last_step and not open_one)

    # Lines are kept as they are, not written anew: what was recorded stays the same to the byte.
    kept = b"".join(line + b"\n" for line in _whole_lines(path) if is_known(json.loads(line)))
    if kept != path.read_bytes():
        durable.write_bytes(path, kept)


def _whole_lines(path: Path) -> list[bytes]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; name the folder of a run") from None
    if not lines[-1]:
        lines.pop()
    if lines and not _is_record(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not _is_record(line):
            raise DataError(
                f"line {number} of {path} is not a record: {line[:60]!r}; "
                "a record is a JSON object; remove the line to go on without it"
            )
    return lines


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
