"""Being asked to stop or to save, by a signal or by the cloud; acted on between two steps."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from types import FrameType
from typing import NamedTuple

from rn50.distributed import Group
from rn50.observe.record import TIMING, Record
from rn50.train.notices import Notice, Watch

AGAIN_AFTER_S = 2.0
"""Signals that follow the first one sooner are taken for the same request.

A scheduler or service manager signals every process of a job, and `torchrun` hands on to its
workers what it gets itself: without this, one request would come as two and lose the save.
"""

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class StopRequest:
    """Whether this process is to stop: signalled, or left behind; used as a context manager.

    The handler only sets a flag: saving in the middle of a step would save half a step. A signal
    more than two seconds after the first ends the process at once, which is safe because every file
    is written aside first. A process whose `torchrun` was killed is to stop, too: nobody would end
    it, and it would hold the GPU and the run's folder against its successor.
    """

    def __init__(self) -> None:
        self.requested = ""
        """Name of the first signal, or what else happened; empty: nothing."""
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._first_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for name in _NAMES:
            if (number := getattr(signal, name, None)) is None:
                continue
            if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup wants the run to outlive the terminal
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def look_after_launcher(self) -> None:
        """Request a stop if the `torchrun` that began this process is gone."""
        if self._launcher and not self.requested and os.getppid() != self._launcher:
            self.requested = "the end of torchrun"

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first_at = signal.Signals(number).name, now
        elif now - self._first_at >= AGAIN_AFTER_S:
            os._exit(128 + number)


class Asked(NamedTuple):
    """What the run is asked to do after a step."""

    stop: bool
    """Save and end."""
    save: bool
    """Save and go on."""


class Requests:
    """All that this run's processes are asked from outside, agreed on between two steps.

    Args:
        signals: This process's signals.
        watch: What the cloud announces to this process.
        group: The processes that must agree.
        record: Takes the record of each notice, on the first process.
    """

    def __init__(
        self, signals: StopRequest, watch: Watch, group: Group, record: Callable[[Record], None]
    ) -> None:
        self._signals = signals
        self._watch = watch
        self._group = group
        self._record = record
        self._signal_told = False
        self._due = Asked(stop=False, save=False)

    def stopping(self, step: int) -> bool:
        """Return whether to leave off an evaluation, on every process; each must call it alike.

        What was asked is told again by the next ``agree``.
        """
        self._due = self.agree(step, late=False)
        return self._due.stop

    def agree(self, step: int, late: bool) -> Asked:
        """Return what any process was asked, on every process; each must call it at every step.

        It costs one reduction of three host integers; more only if there is something to tell.

        Args:
            step: Steps done.
            late: Whether it is time for a save anyhow, by this process's clock.
        """
        heard = self._watch.take()
        self._signals.look_after_launcher()
        if self._signals.requested and not self._signal_told:
            self._signal_told = True
            name = self._signals.requested
            heard.append(Notice(name, name, "stop"))
        stop, save, told = self._group.any_of(
            any(notice.action == "stop" for notice in heard),
            late or any(notice.action == "save" for notice in heard),
            bool(heard),
        )
        if told:
            self._tell(heard, step)
        due, self._due = self._due, Asked(stop=False, save=False)
        return Asked(stop or due.stop, save or due.save)

    def _tell(self, heard: list[Notice], step: int) -> None:
        """Record what all processes heard, once each."""
        by_rank = self._group.gather(json.dumps([asdict(notice) for notice in heard]))
        ranks: dict[Notice, list[int]] = {}
        for rank, said in enumerate(by_rank):
            for values in json.loads(said):
                ranks.setdefault(Notice(**values), []).append(rank)
        for notice, of in ranks.items():
            self._record(_record(notice, of, step))


def _record(notice: Notice, ranks: list[int], step: int) -> Record:
    now = datetime.now(UTC)
    timing = {"time": now.isoformat(timespec="seconds"), "due": notice.due}
    if notice.action == "tell":
        return {"kind": "warning", "step": step, "message": notice.text, TIMING: timing}
    then = "stopping with exit code 33" if notice.action == "stop" else "going on"
    return {
        "kind": "notice",
        "step": step,
        "source": notice.source,
        "action": notice.action,
        "ranks": ranks,
        "message": f"{notice.text}{_due(notice, now)}; saving after step {step:,} and {then}",
        TIMING: timing,
    }


def _due(notice: Notice, now: datetime) -> str:
    if not notice.due:
        return ""
    due = datetime.fromisoformat(notice.due)
    return f" at {due:%H:%M:%S} UTC, in {max(0, round((due - now).total_seconds()))} s"
