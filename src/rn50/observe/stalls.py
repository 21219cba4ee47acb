"""Stalls: steps, saves and epochs much slower than the run's own others, and what was the cause.

A run is compared with itself, and by size of images, so that no threshold depends on the machine.
"""

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rn50.observe.record import TIMING, Record, duration

KIND = "stall"

STEP_FACTOR, STEP_LEAST_S = 5.0, 2.0
"""A step or a save stalls where it lasts so many times the usual, and so many seconds longer. Below
that, a host that does not wait for its GPU sees mostly noise."""
EPOCH_FACTOR, EPOCH_LEAST_S = 1.5, 10.0
"""The same of an epoch with its evaluation and its saves."""
MOST = 20
"""Stalls of steps and saves that are told of by a process, and as many of epochs."""
GAP_S = 60.0
"""Seconds from one stall of a step or save that is told to the next."""

_LEARN, _LEARN_EPOCHS, _REMEMBER = 3, 2, 100
_SAME_MACHINE = ("device", "world_size", "micro_batch", "precision", "profile")
_DATA, _SAVING = "waiting for data", "saving a checkpoint"
_OTHER = "the device or other work on the machine"
_PARTS = {"seconds": "", "saving_s": _SAVING, "eval_seconds": "evaluation"}


@dataclass
class _Span:
    """Steps, how long they took, and what the GPU did meanwhile."""

    steps: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0
    gpu_s: float = 0.0
    """Seconds of which the GPU is known."""
    busy_s: float = 0.0
    mhz_s: float = 0.0
    throttled_s: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, steps: int, timing: dict[str, Any]) -> "_Span":
        seconds = timing["seconds"]
        span = cls(steps, seconds, (timing.get("data_wait") or 0.0) * seconds)
        if (mhz := timing.get("gpu_clock_mhz")) is not None:
            span.gpu_s, span.mhz_s = seconds, mhz * seconds
            span.busy_s = (timing.get("gpu_utilisation") or 0.0) * seconds
            for reason, share in (timing.get("gpu_throttled") or {}).items():
                span.throttled_s[reason] = share * seconds
        return span

    def add(self, other: "_Span") -> None:
        for name in ("steps", "seconds", "wait_s", "gpu_s", "busy_s", "mhz_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.throttled_s.update(other.throttled_s)

    def throttled_unlike(self, others: Iterable["_Span"]) -> str:
        """Return how the GPU was held down, unlike at other times; empty: it was not."""
        known = [span for span in others if span.gpu_s]
        if not self.gpu_s or not known:
            return ""
        for reason, seconds in self.throttled_s.items():
            usual = statistics.median(span.throttled_s[reason] / span.gpu_s for span in known)
            if seconds / self.gpu_s >= 0.5 > 2 * usual:
                return f"the GPU was slowed down ({reason})"
        # A GPU that has nothing to do lowers its clock too: then that is no cause.
        mhz, usual = self.mhz_s / self.gpu_s, statistics.median(s.mhz_s / s.gpu_s for s in known)
        if mhz < 0.8 * usual and self.busy_s > 0.5 * self.gpu_s:
            return f"the GPU's clock fell from {usual:,.0f} to {mhz:,.0f} MHz"
        return ""


def _memory() -> defaultdict[int, deque[Any]]:
    return defaultdict(lambda: deque(maxlen=_REMEMBER))


class Stalls:
    """Finds stalls in the records of a run as they come, without a clock of its own.

    A step is judged by the window of steps that it lies in: both its own time on the host and the
    window's must be too long. The first steps of an image size in a process, in which kernels are
    compiled, are no stall: they are not among the slowest steps of a window (see ``train.pace``).

    Args:
        tell: Takes a record of kind ``stall``.
    """

    def __init__(self, tell: Callable[[Record], None]) -> None:
        self._tell = tell
        self._machine: list[Any] = []
        self._begun = self._step = 0
        self._steps_per_epoch = 0
        self._told_at: float | None = None
        self._count: Counter[str] = Counter()
        self._forget()

    def _forget(self) -> None:
        self._windows = _memory()
        self._epochs = _memory()
        self._saves: deque[float] = deque(maxlen=_REMEMBER)
        self._span = _Span()

    def recall(self, records: Iterable[Record]) -> None:
        """Learn from what earlier processes of the run recorded, and tell of nothing."""
        tell, self._tell = self._tell, lambda stall: None
        for record in records:
            self.write(record)
        self._tell, self._told_at = tell, None
        self._count.clear()

    def write(self, record: Record) -> None:
        """Take in a record, and tell of the stall that it shows."""
        match record.get("kind"):
            case "start" | "resume":
                self._begin(record)
            case "train":
                self._window(record, record[TIMING])
            case "epoch":
                self._epoch(record, record[TIMING])

    def close(self) -> None:
        """Do nothing: all has been told."""

    def _begin(self, record: Record) -> None:
        machine = [record.get(name) for name in _SAME_MACHINE]
        if machine != self._machine:
            self._forget()
        self._machine = machine
        self._begun = self._step = record["step"]
        self._steps_per_epoch = record["steps_per_epoch"]
        self._span = _Span()

    def _window(self, record: Record, timing: dict[str, Any]) -> None:
        first, self._step = self._step + 1, record["step"]
        span = _Span.of(self._step - first + 1, timing)
        if span.steps <= 0:
            return
        self._save(record, timing)
        known = self._windows[record["px"]]
        if len(known) >= _LEARN and (slowest_s := timing.get("slowest_s")) is not None:
            usual_s = statistics.median(other.seconds / other.steps for other in known)
            seconds = min(slowest_s, span.seconds - (span.steps - 1) * usual_s)
            if seconds >= max(STEP_FACTOR * usual_s, usual_s + STEP_LEAST_S):
                which = f"one of the steps {first:,} to {self._step:,} took"
                if span.steps == 1:
                    which = f"step {first:,} took"
                waited = (timing.get("slowest_wait_s") or 0.0) >= slowest_s / 2
                cause = _DATA if waited else span.throttled_unlike(known) or _OTHER
                self._say(record, "step", which, (seconds, usual_s), cause)
        known.append(span)
        self._span.add(span)

    def _save(self, record: Record, timing: dict[str, Any]) -> None:
        if not (seconds := timing.get("saving_s")):
            return
        if len(self._saves) >= _LEARN:
            usual_s = statistics.median(self._saves)
            if seconds >= max(STEP_FACTOR * usual_s, usual_s + STEP_LEAST_S):
                self._say(record, "save", "a save held training up for", (seconds, usual_s), "")
        self._saves.append(seconds)

    def _epoch(self, record: Record, timing: dict[str, Any]) -> None:
        span, self._span = self._span, _Span()
        whole = record["step"] - self._begun >= self._steps_per_epoch
        if not whole:  # the process began within it
            return
        known = self._epochs[record["px"]]
        now = {part: timing[part] for part in _PARTS if timing.get(part) is not None}
        if len(known) >= _LEARN_EPOCHS:
            usual = {
                part: statistics.median_low(values)
                for part in now
                if (values := [parts[part] for parts, _ in known if part in parts])
            }
            seconds, usual_s = sum(now[part] for part in usual), sum(usual.values())
            if is_slow_epoch(seconds, usual_s):
                part = max(usual, key=lambda part: now[part] - usual[part])
                others = [other for _, other in known]
                cause = _PARTS[part] or _cause(span, others)
                which = f"epoch {record['epoch']} took"
                self._say(record, "epoch", which, (seconds, usual_s), cause)
        known.append((now, span))

    def _say(
        self, record: Record, of: str, which: str, times: tuple[float, float], cause: str
    ) -> None:
        kind = "epoch" if of == "epoch" else "step"
        self._count[kind] += 1
        now_s = record[TIMING].get("elapsed_s")
        if kind == "step":
            if None not in (now_s, self._told_at) and now_s - self._told_at < GAP_S:
                return
            self._told_at = now_s
        told = self._count[f"{kind}, told"] = self._count[f"{kind}, told"] + 1
        if told > MOST:
            return
        seconds, usual_s = times
        message = f"{which} {_shown(seconds)} instead of the usual {_shown(usual_s)}"
        message += f": {cause}" if cause else ""
        message += f" (further slow {kind}s are not told of)" if told == MOST else ""
        timing = {"seconds": round(seconds, 3), "usual_s": round(usual_s, 3)}
        self._tell(
            {
                "kind": KIND,
                "step": record["step"],
                "of": of,
                "cause": cause or _SAVING,
                "message": message,
                TIMING: {**timing, "count": self._count[kind]},
            }
        )


def is_slow_epoch(seconds: float, usual_s: float) -> bool:
    """Return whether an epoch lasted so much longer than the usual that it is to be told."""
    return seconds >= max(EPOCH_FACTOR * usual_s, usual_s + EPOCH_LEAST_S)


def _cause(span: _Span, others: list[_Span]) -> str:
    usual_s = statistics.median_low(other.seconds for other in others)
    usual_wait_s = statistics.median_low(other.wait_s for other in others)
    if span.wait_s - usual_wait_s >= (span.seconds - usual_s) / 2 > 0:
        return _DATA
    return span.throttled_unlike(others) or _OTHER


def _shown(seconds: float) -> str:
    return duration(seconds) if seconds >= 100 else f"{seconds:.2g} s"
