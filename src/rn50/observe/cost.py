"""What a run has cost: seconds of machine time, and dollars where an hour has a price.

A run is paid for as long as any of its processes works on it, so that what was lost to a crash, and
what evaluation, saving and setting up took, counts as well.
"""

import time
from collections.abc import Callable, Iterable

from rn50.observe.record import TIMING, Record


class Cost:
    """Adds up what a run has cost, from its records in their order.

    Each process's hours count at its own price. Where records do not tell how long a process had
    been at work, as old ones do not, what its training and evaluation took is added up.
    """

    def __init__(self) -> None:
        self.price_per_hour = 0.0
        """Of the latest process; 0: unknown."""
        self._before_s = self._elapsed_s = 0.0
        self._before_dollars = 0.0

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Cost":
        """Return the cost after these records."""
        cost = cls()
        for record in records:
            cost.take(record)
        return cost

    def take(self, record: Record) -> None:
        """Count on, by the run's next record of any kind."""
        timing = record.get(TIMING) or {}
        kind = record.get("kind")
        if kind in ("start", "resume"):
            self._begin(record)
        if (elapsed_s := timing.get("elapsed_s")) is not None:
            self._elapsed_s = max(self._elapsed_s, elapsed_s)
        elif kind == "train":
            self._elapsed_s += timing.get("seconds") or 0.0
        elif kind == "epoch":
            self._elapsed_s += timing.get("eval_seconds") or 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds paid for by now, over all processes of the run one after another."""
        return self._before_s + self._elapsed_s

    @property
    def dollars(self) -> float:
        """Return what they cost; 0 where no price is known."""
        return self._before_dollars + self.dollars_for(self._elapsed_s)

    def dollars_for(self, seconds: float) -> float:
        """Return what so many seconds cost at the latest price."""
        return seconds / 3600 * self.price_per_hour

    def _begin(self, record: Record) -> None:
        timing, before_s, before_dollars = record.get(TIMING) or {}, self.seconds, self.dollars
        # A process that is told no price goes by that of the one before.
        self.price_per_hour = record.get("price_per_hour") or self.price_per_hour
        self._before_s, self._elapsed_s = timing.get("spent_s", before_s), 0.0
        # Hours of an unknown price count at the first that is known.
        unpriced = 0.0 if before_dollars else self.dollars_for(self._before_s)
        self._before_dollars = timing.get("spent_dollars", before_dollars + unpriced)


class Meter:
    """The running clock of this process's share in a run's cost.

    Args:
        clock: Seconds from any origin; the process is paid for from now on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._before: Cost | None = None

    def elapsed_s(self) -> float:
        """Return the seconds since this process began, or since the run in it last went back."""
        return round(self._clock() - self._since, 3)

    def begin(self, earlier: Iterable[Record], price_per_hour: float) -> dict[str, float]:
        """Return what the ``timing`` of a start or resume record tells of the cost until then.

        A run that goes back begins again in the same process, and pays for what it has lost.

        Args:
            earlier: The run's records so far, before any are cut off.
            price_per_hour: Dollars of all machines together; 0: unknown.
        """
        if self._before is None:
            cost = Cost.of(earlier)
        else:
            cost, elapsed_s = self._before, self.elapsed_s()
            cost.take({"kind": "end", TIMING: {"elapsed_s": elapsed_s}})
            self._since += elapsed_s
        cost.take({"kind": "resume", "price_per_hour": price_per_hour})
        self._before = cost
        return {
            "spent_s": round(cost.seconds, 3),
            "spent_dollars": round(cost.dollars, 6),
            "elapsed_s": self.elapsed_s(),
        }
