"""What a run saves: which checkpoints stay, which is the best, which weights files are written."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rn50 import config
from rn50.config import Run, Storage
from rn50.data.shards import PackedDataset
from rn50.errors import UsageError
from rn50.model import weights
from rn50.observe import record
from rn50.observe.record import Record
from rn50.train import checkpoint
from rn50.train.schedule import Timeline
from rn50.train.state import Snapshot
from rn50.train.store import Order, Store

BEST = "best.safetensors"


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


class Saver:
    """Decides what a save writes and keeps, on the first process; on the others it does nothing.

    Args:
        run: All settings.
        dataset: What is trained on; its classes go into weights files.
        timeline: The run in steps.
        about: What each checkpoint tells, besides the best so far.
        store: Writes; None on the other processes.
        resumed: What the checkpoint told that the run went on from, and its step; None: a new run.
    """

    def __init__(
        self,
        run: Run,
        dataset: PackedDataset,
        timeline: Timeline,
        about: dict[str, Any],
        store: Store | None,
        resumed: tuple[dict[str, Any], int] | None,
    ) -> None:
        self._run = run
        self._classes = [(one.id, one.name) for one in dataset.classes]
        self._timeline = timeline
        self._about = {"run": config.to_dict(run), **about}
        self._store = store
        self._evaluated: Record | None = None
        self._resumed_from = None if resumed is None else resumed[1]
        best = None if resumed is None else resumed[0].get("best")
        self._best = None if best is None else Best(**best)

    def told(self, write: Callable[[Record], None]) -> Callable[[Record], None]:
        """Return ``write``, followed by what became of saves."""

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
        exports = self._exports(snapshot, is_best=is_best)
        about = {**self._about, "best": asdict(self._best) if self._best else None}
        self._store.save(snapshot, Order(about, self.kept, self._kept_least, tuple(exports)))

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

    def _exports(
        self, snapshot: Snapshot, *, is_best: bool
    ) -> list[tuple[str, str, dict[str, Any]]]:
        names = []
        is_last = snapshot.step == self._timeline.total_steps
        if self._timeline.ends_epoch(snapshot.step) and (
            is_last or not self._run.storage.save_best_only
        ):
            there = set(checkpoint.parts(snapshot))
            if not self._timeline.swa_count(snapshot.step):
                there.discard("swa")
            names = [(f"{name}.safetensors", name) for name in record.NETWORKS if name in there]
        if is_best and self._best is not None:
            names.append((BEST, self._best.network))
        return [(file, name, self._header(name, snapshot.step)) for file, name in names]

    def _header(self, network: str, step: int) -> dict[str, Any]:
        return weights.header(
            model=self._run.model,
            images=self._run.images,
            classes=self._classes,
            about={"recipe": self._run.recipe, "step": step, "network": network},
        )

    def kept(self, steps: list[int]) -> set[int]:
        """Return, of the steps of all checkpoints, those to keep."""
        storage = self._run.storage
        every = storage.keep_every_epochs * self._timeline.steps_per_epoch
        lasting = {step for step in steps if every and step % every == 0}
        return {*steps[-_newest_kept(storage) :], *lasting, *self._kept_least(steps)}

    def _kept_least(self, steps: list[int]) -> set[int]:
        kept = {*steps[-1:]}
        if self._best is not None:
            kept.add(self._best.step)
        if self._resumed_from is not None:
            kept.add(self._resumed_from)
        return kept
