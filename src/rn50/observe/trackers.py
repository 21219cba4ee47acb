"""Trackers, which show runs beside each other; each is an extra, imported when asked for."""

from collections.abc import Iterator
from pathlib import Path

from rn50.errors import UsageError
from rn50.observe.record import TIMING, Record


class TensorBoard:
    """Writes the numbers of train and epoch records as scalars, at their step.

    Args:
        folder: Where the event files go, one for each process that worked on the run.
        resume_step: The step from which a run goes on: scalars of later steps, which an earlier
            process wrote, are hidden. None for a new run.

    Raises:
        UsageError: The tensorboard package is not installed.
    """

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"TensorBoard cannot be used ({error}); "
                "install it with: pip install 'rn50[track]', or switch it off"
            ) from error
        self._writer = SummaryWriter(
            str(folder), purge_step=None if resume_step is None else resume_step + 1
        )

    def write(self, record: Record) -> None:
        """Add the scalars of one record; null values are left out."""
        for name, value in _scalars(record):
            if value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is waiting and close the event file."""
        self._writer.close()


def _scalars(record: Record) -> Iterator[tuple[str, float | None]]:
    timing = record.get(TIMING, {})
    match record["kind"]:
        case "train":
            yield "train/loss", record["loss"]
            yield "train/top1", record.get("top1")
            yield "schedule/lr", record.get("lr")
            yield "schedule/px", record.get("px")
            yield "schedule/epoch", record["epoch"]
            yield "speed/images_per_second", timing.get("images_per_second")
            yield "speed/data_wait", timing.get("data_wait")
        case "epoch":
            yield "epoch/train_loss", record["train_loss"]
            yield "epoch/train_top1", record.get("train_top1")
            yield "epoch/seconds", timing.get("seconds")
            yield "epoch/eval_seconds", timing.get("eval_seconds")
            for name, scores in (record.get("val") or {}).items():
                for score in ("loss", "top1", "top5"):
                    yield f"val_{name}/{score}", scores[score]
