"""Who is told of a run: the record, the consoles, the reports and the trackers.

The run's first process records. Where a run spans machines, the first process of each other machine
shows the same on its own console, so that every machine's log tells how far the run is.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from rn50 import config, durable
from rn50.config import Run
from rn50.distributed import Group
from rn50.errors import UserError
from rn50.observe import record, trackers
from rn50.observe.console import Console
from rn50.observe.cost import Meter
from rn50.observe.files import Reports
from rn50.observe.record import TIMING, Observer, Observers, Record, Recorder
from rn50.observe.stalls import Stalls
from rn50.observe.system import Gpus, uuids
from rn50.train import folder


@dataclass(frozen=True, slots=True)
class Observation:
    """How to tell of a run; in a process that tells nobody, nothing happens."""

    write: Callable[[Record], None]
    """Record and show a record."""
    sync: Callable[[], None]
    """Flush the record to the disk."""


@dataclass(frozen=True, slots=True)
class Observing:
    """Tells of a run, each time that this process begins with it or goes back in it."""

    run: Run
    place: Path
    """The run's folder."""
    group: Group
    device: torch.device
    meter: Meter

    @contextmanager
    def begun(self, facts: Record) -> Iterator[Observation]:
        """Yield how to tell of the run, whose first record is told already.

        Args:
            facts: That record, of kind start or resume, without its ``timing``.

        Raises:
            UsageError, DataError: The run's folder cannot be written, or its record is damaged.
        """
        if self.group.local_rank:
            yield Observation(lambda one: None, lambda: None)
            return
        path = self.place / record.FILE_NAME
        earlier = _earlier(path) if self.group.is_first else []
        price = self.run.log.price_per_hour
        timing = {"time": now(), **self.meter.begin(earlier, price)}
        with ExitStack() as stack:
            others: list[Observer] = []
            recorder = None
            if self.group.is_first:
                recorder = self._recording(facts, others, stack)
            else:
                others.append(Console(live=False, prefix=f"[node {self.group.node}] "))
            observers = stack.enter_context(closing(Observers(recorder, others)))
            gpus = None
            if self.device.type == "cuda":
                gpus = Gpus(partial(uuids, self.group.local_world_size))
                stack.callback(gpus.close)
            write = partial(_timed, observers.write, self.meter, gpus)
            if self.group.is_first:
                observers.add(_stalls(earlier, write))
                fed = trackers.begin(self.place, self.run, facts, earlier, observers.write)
                if fed is not None:
                    observers.add(fed)
            write({**facts, "price_per_hour": price, TIMING: timing})
            yield Observation(write, observers.sync)

    def _recording(self, facts: Record, others: list[Observer], stack: ExitStack) -> Recorder:
        """Return who records, and add those that are shown what was recorded."""
        resumed_at = facts["step"] if facts["kind"] == "resume" else None
        if resumed_at is None:
            folder.discard_record(self.place)
        with durable.explained(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(
            self.place / record.FILE_NAME,
            keep_through_step=resumed_at,
            epoch_is_open=facts.get("epoch_is_open", False),
        )
        stack.callback(recorder.close)
        # Not before it is known that the folder holds no other run's record.
        durable.write_json(self.place / folder.CONFIG, config.to_dict(self.run))
        log = stack.enter_context((self.place / "train.log").open("a", encoding="utf-8"))
        others += [Console(), Console(log, live=False), Reports(self.place)]
        return recorder


def now() -> str:
    """Return the time of day, as records tell it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _timed(write: Callable[[Record], None], meter: Meter, gpus: Gpus | None, one: Record) -> None:
    """Write a record with what the clock and the GPUs add to its ``timing``."""
    if TIMING in one:
        more = gpus.take() if gpus is not None and one["kind"] == "train" else {}
        one = {**one, TIMING: {**one[TIMING], **more, "elapsed_s": meter.elapsed_s()}}
    write(one)
    for message in gpus.news() if gpus is not None else ():
        write({"kind": "notice", "step": one["step"], "message": message})


def _stalls(earlier: list[Record], tell: Callable[[Record], None]) -> Stalls:
    stalls = Stalls(tell)
    stalls.recall(earlier)
    return stalls


def _earlier(path: Path) -> list[Record]:
    """Return what earlier processes of the run recorded; whatever is wrong with it shows later."""
    try:
        return record.read(path)
    except UserError:
        return []
