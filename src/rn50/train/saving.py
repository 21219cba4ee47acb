"""What a run saves: which checkpoints stay, which is the best, which weights files are written."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rn50 import config
from rn50.config import Run, Storage
from rn50.errors import UsageError
from rn50.observe.record import Record
from rn50.train import checkpoint
from rn50.train.exports import BEST, Export, Exports
from rn50.train.state import Snapshot
from rn50.train.store import Order, Store


@dataclass(frozen=True, slots=True)
class Best:
    """The best network so far, of those that were evaluated when a checkpoint was saved."""

    step: int
    network: str
    """One of ``record.NETWORKS``."""
    value: float
    """Of the metric; of several networks and epochs with the same one the first counts."""

    @classmethod
    def of(cls, epoch: Record, storage: Storage) -> "Best | None":
        """Return the best network of an epoch's record, or None where none was evaluated."""
        metric = storage.best_metric
        scores = {
            name: score[metric]
            for name, score in (epoch["val"] or {}).items()
            if storage.best_of in ("any", name) and score[metric] is not None
        }
        if not scores:
            return None
        name = (min if metric == "loss" else max)(scores, key=lambda name: scores[name])
        return cls(step=epoch["step"], network=name, value=scores[name])

    def beats(self, other: "Best | None", storage: Storage) -> bool:
        """Return whether this is better than the best before."""
        if other is None:
            return True
        if storage.best_metric == "loss":
            return self.value < other.value
        return self.value > other.value


def check_space(place: Path, num_bytes: int, storage: Storage) -> None:
    """Refuse to begin where there is no room for the checkpoints to come.

    Args:
        place: The run's folder.
        num_bytes: Of one checkpoint.
        storage: How many are kept.

    Raises:
        UsageError: There is no room for those that are kept, one that is being written and the
            weights files, as far as they are not there yet.
    """
    planned = _newest_kept(storage) + 3  # the best one, one being written, and the weights files
    there = sum(1 for _ in (place / checkpoint.FOLDER).glob("step-*"))
    needed = num_bytes * max(2, planned - there)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"{place} has {free / 1e6:,.0f} MB free; the checkpoints of this run need up to "
            f"{needed / 1e6:,.0f} MB; make room, give another --output-dir, or fewer "
            "--storage.keep-checkpoints"
        )


def _newest_kept(storage: Storage) -> int:
    return 1 if storage.save_best_only else storage.keep_checkpoints


def _other_measure(resumed: tuple[dict[str, Any], int], storage: Storage) -> Record | None:
    """Return a warning where the best so far was told by another measure than it is now."""
    told, step = resumed
    before = config.from_dict(told["run"]).storage
    was, now = ((one.best_metric, one.best_of) for one in (before, storage))
    if was == now:
        return None
    message = (
        f"the best network so far was told by the {was[0]} of {was[1]}, and is by the {now[0]} of "
        f"{now[1]} from now on: it is forgotten, and the next that is evaluated is the best; "
        f"{BEST} stays as it is until then"
    )
    return {"kind": "warning", "step": step, "message": message}


class Saver:
    """Decides what a save writes and keeps, on the first process; on the others it does nothing.

    Args:
        exports: The weights files of the run, and its settings.
        about: What each checkpoint tells, besides the best so far.
        store: Writes; None on the other processes.
        resumed: What the checkpoint told that the run went on from, and its step; None: a new run.
    """

    def __init__(
        self,
        exports: Exports,
        about: dict[str, Any],
        store: Store | None,
        resumed: tuple[dict[str, Any], int] | None,
    ) -> None:
        self._exports = exports
        self._run: Run = exports.run
        self._about = {"run": config.to_dict(exports.run), **about}
        self._store = store
        self._evaluated: Record | None = None
        self._resumed_from = None if resumed is None else resumed[1]
        best = None if resumed is None else resumed[0].get("best")
        self._best = None if best is None else Best(**best)
        self._forgotten = None
        if resumed is not None and best is not None:
            self._forgotten = _other_measure(resumed, exports.run.storage)
        if self._forgotten is not None:
            self._best = None

    def told(self, write: Callable[[Record], None]) -> Callable[[Record], None]:
        """Return ``write``, followed by what became of saves; warn of a best that was forgotten."""
        if self._forgotten is not None and self._store is not None:
            write(self._forgotten)

        def both(one: Record) -> None:
            if one["kind"] == "epoch":
                self._evaluated = one
            write(one)
            self._tell(write, one["step"])

        return both

    def save(self, snapshot: Snapshot) -> None:
        """Have a state saved, and at the end of an epoch the weights files.

        Raises:
            UserError: Earlier saves failed.
        """
        if self._store is None:
            return
        found = None
        if self._evaluated is not None and self._evaluated["step"] == snapshot.step:
            found = Best.of(self._evaluated, self._run.storage)
        is_best = found is not None and found.beats(self._best, self._run.storage)
        self._best = found if is_best else self._best
        networks = checkpoint.parts(snapshot)
        # Of an epoch left open, the SWA's statistics may not have been estimated.
        is_open = snapshot.is_left_open(self._exports.timeline)
        due = [] if is_open else self._exports.at(snapshot.step, networks)
        if is_best and self._best is not None:
            due.append(Export(BEST, self._best.network, snapshot.step))
        exports = tuple((one.file, one.network, self._exports.header(one)) for one in due)
        about = {**self._about, "best": asdict(self._best) if self._best else None}
        self._store.save(snapshot, Order(about, self.kept, self._kept_least, exports))

    def finish(self, write: Callable[[Record], None], step: int) -> None:
        """Wait until all is written, and tell of it.

        Raises:
            UserError: The last save failed.
        """
        if self._store is not None:
            self._store.wait()
        self._tell(write, step)

    def _tell(self, write: Callable[[Record], None], step: int) -> None:
        if self._store is None:
            return
        for news in self._store.news():
            write({"step": step, **news})

    def kept(self, steps: list[int]) -> set[int]:
        """Return, of the steps of all checkpoints, those to keep."""
        storage = self._run.storage
        every = storage.keep_every_epochs * self._exports.timeline.steps_per_epoch
        lasting = {step for step in steps if every and step % every == 0}
        return {*steps[-_newest_kept(storage) :], *lasting, *self._kept_least(steps)}

    def _kept_least(self, steps: list[int]) -> set[int]:
        kept = {*steps[-1:]}
        if self._best is not None:
            kept.add(self._best.step)
        if self._resumed_from is not None:
            kept.add(self._resumed_from)
        return kept
