"""Feeds a tracker from a run's record, as far as the record is and while it grows.

The record itself is the queue: nothing has to be kept in memory while a tracker cannot be reached,
nothing is dropped, and a tracker that a run is given only when it is resumed gets all from the
beginning.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rn50.config import Storage
from rn50.observe.record import FILE_NAME, NETWORKS, Record
from rn50.observe.trackers.rows import Row, Rows
from rn50.observe.trackers.sink import Ended, Sink, Tracked

_POLL_S = 1.0
_LONGEST_PAUSE_S = 60.0
_PAUSE_AT_END_S = 1.0

_Result = TypeVar("_Result")


class Feed(threading.Thread):
    """Feeds one tracker in a thread of its own, and tries again whatever it refuses.

    Args:
        sink: The tracker.
        run: As it is to know the run.
        storage: By which score the best network is told.
        ending: Set when nothing is recorded any more.
        tell: Tells the user something: of what kind, and what.
    """

    def __init__(
        self,
        sink: Sink,
        run: Tracked,
        storage: Storage,
        ending: threading.Event,
        tell: Callable[[str, str], None],
    ) -> None:
        super().__init__(name=f"rn50-{sink.name}", daemon=True)
        self.sink = sink
        self._run, self._storage = run, storage
        self._ending = ending
        self._tell = tell
        self._last = -1
        self._failed = False

    def run(self) -> None:
        """Feed the tracker until the record has come to its end."""
        try:
            self._feed()
        except BaseException as error:
            self._tell("warning", f"{self.sink.name} gets no more of this run ({_line(error)})")
            raise

    def _feed(self) -> None:
        self._last = self._insist(lambda: self.sink.open(self._run))
        rows, epoch, ended = Rows(), None, None
        for record in grown(self._run.place / FILE_NAME, self._ending):
            for row in rows.take(record):
                self._log(row)
            if record.get("kind") == "epoch":
                epoch = record
            if record.get("kind") == "end":
                ended = best_weights(self._run.place, self._storage, epoch)
        self._insist(lambda: self.sink.close(ended))

    def undelivered(self) -> int:
        """Return how many rows of the record the tracker does not have."""
        rows = Rows()
        records = grown(self._run.place / FILE_NAME, self._ending)
        return sum(row.step > self._last for record in records for row in rows.take(record))

    def _log(self, row: Row) -> None:
        if row.step > self._last:
            self._insist(lambda: self.sink.log(row))
            self._last = row.step

    def _insist(self, work: Callable[[], _Result]) -> _Result:
        pause_s = 1.0
        while True:
            try:
                result = work()
            except Exception as error:
                self._say_once(error)
                if self._ending.is_set():
                    time.sleep(_PAUSE_AT_END_S)
                else:
                    self._ending.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            if self._failed:
                self._failed = False
                self._tell("notice", f"{self.sink.name} goes on; it gets what has waited")
            return result

    def _say_once(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._tell(
                "warning",
                f"{self.sink.name} failed ({_line(error)}); it is tried again, and then gets what "
                "has waited; training goes on",
            )


def grown(path: Path, ending: threading.Event) -> Iterator[Record]:
    """Yield the records of a file, and those that come, until ``ending`` is set and all is read.

    A torn last line, which a crash leaves behind, is no record.
    """
    line = b""
    with path.open("rb") as file:
        while True:
            is_last = ending.is_set()
            while piece := file.readline():
                line += piece
                if line.endswith(b"\n"):
                    yield json.loads(line)
                    line = b""
            if is_last:
                return
            ending.wait(_POLL_S)


def best_weights(place: Path, storage: Storage, epoch: Record | None) -> Ended:
    """Return the best network of a run at its end: ``best.safetensors``, else by the last scores.

    Args:
        place: The run's folder.
        storage: By which score the best one is told.
        epoch: The record of the last epoch.
    """
    val: dict[str, Any] = (epoch or {}).get("val") or {}
    if (best := place / "best.safetensors").exists():
        return Ended(best, {"network": "best", "val": val})
    metric = storage.best_metric
    scores = {
        name: val[name][metric]
        for name in NETWORKS
        if name in val and val[name][metric] is not None
        if (place / f"{name}.safetensors").exists()
    }
    if not scores:
        return Ended(None, {"val": val})
    name = (min if metric == "loss" else max)(scores, key=lambda name: scores[name])
    return Ended(place / f"{name}.safetensors", {"network": name, "val": val})


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
