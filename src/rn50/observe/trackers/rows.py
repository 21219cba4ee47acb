"""What trackers show of a run, made of its records: one row of values for each step told of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from rn50.observe.record import TIMING, Record


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values lie in equal intervals from the least to the greatest."""

    low: float
    high: float
    counts: tuple[int, ...]

    def edges(self) -> list[float]:
        """Return the borders of the intervals, one more than there are intervals."""
        count = len(self.counts)
        width = (self.high - self.low) / count
        return [*(self.low + i * width for i in range(count)), self.high]

    def middles(self) -> list[float]:
        """Return the middle of each interval."""
        return [(left + right) / 2 for left, right in pairwise(self.edges())]


@dataclass(frozen=True, slots=True)
class Row:
    """All that a tracker is given of one step; it takes a step once and whole."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    """Files in the run's folder, by what they show."""


class Rows:
    """Makes rows of records, in their order.

    What is told of the last step of an epoch comes in several records, with an evaluation between
    them. They make one row, so that a step is either in a tracker or not, whenever a run is killed.
    """

    def __init__(self) -> None:
        self._held: Row | None = None

    def take(self, record: Record) -> Iterator[Row]:
        """Yield the rows that are complete with this record."""
        step, kind = record.get("step", 0), record.get("kind")
        # Between them may stand what is told of other steps, such as of a save that has ended.
        if self._held is not None and self._held.step != step and kind in ("train", "epoch", "end"):
            yield self._held
            self._held = None
        match kind:
            case "train":
                row = Row(step, scalars(record))
                if float(record["epoch"]).is_integer():
                    self._held = row
                else:
                    yield row
            case "histograms":
                self._of(step).histograms.update(
                    {
                        f"weights/{name}": Histogram(one["low"], one["high"], tuple(one["counts"]))
                        for name, one in record["weights"].items()
                    }
                )
            case "epoch":
                row, self._held = self._of(step), None
                row.scalars.update(scalars(record))
                yield row
            case "images":
                yield Row(step, pictures={record["file"].rpartition(".")[0]: record["file"]})

    def _of(self, step: int) -> Row:
        if self._held is None:
            self._held = Row(step)
        return self._held


_TRAIN = {
    "loss": "train/loss",
    "top1": "train/top1",
    "skipped": "train/skipped",
    "overflows": "train/overflows",
    "lr": "schedule/lr",
    "px": "schedule/px",
    "epoch": "schedule/epoch",
}
_TRAIN_TIMING = {
    "images_per_second": "speed/images_per_second",
    "data_wait": "speed/data_wait",
    "slowest_s": "speed/slowest_step_seconds",
    "gpu_utilisation": "gpu/utilisation",
    "gpu_memory": "gpu/memory_bytes",
    "gpu_power_w": "gpu/power_watts",
}
_EPOCH = {"train_loss": "epoch/train_loss", "train_top1": "epoch/train_top1"}
_EPOCH_TIMING = {
    "seconds": "epoch/seconds",
    "eval_seconds": "epoch/eval_seconds",
    "saving_s": "epoch/saving_seconds",
}


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a train or epoch record by the names that trackers show them under.

    Shares are 0 to 1, times are seconds. What is null or absent is left out.
    """
    of_epoch = record["kind"] == "epoch"
    plain, timed = (_EPOCH, _EPOCH_TIMING) if of_epoch else (_TRAIN, _TRAIN_TIMING)
    found = {shown: record.get(name) for name, shown in plain.items()}
    timing = record.get(TIMING, {})
    found |= {shown: timing.get(name) for name, shown in timed.items()}
    for network, scores in (record.get("val") or {}).items():
        found |= {f"val_{network}/{score}": scores.get(score) for score in ("loss", "top1", "top5")}
    return {name: value for name, value in found.items() if value is not None}
