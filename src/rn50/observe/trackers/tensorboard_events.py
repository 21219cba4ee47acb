"""TensorBoard: event files in the run's folder, one for each process that worked on the run."""

import time
from pathlib import Path
from typing import Any

from PIL import Image

from rn50.observe.trackers.rows import Histogram, Row
from rn50.observe.trackers.sink import Ended, Tracked, require

FOLDER = "tensorboard"
_POSITION = "last-step"


class TensorBoard:
    """Writes rows with the tensorboard package alone; torch's writer would import torch.

    An event file that is written after another one can hide the other's events from a step on. So
    the file of a resumed run begins where the ones before it surely end, and what a rolled back run
    does again replaces what it had done.

    Raises:
        UsageError: The tensorboard package is not installed.
    """

    name = "TensorBoard"
    closing_s = 30.0

    def __init__(self) -> None:
        require("tensorboard", self.name, "track")

    def open(self, run: Tracked) -> int:
        """Begin an event file that hides whatever earlier ones hold of the steps to come."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._run = run
        folder = run.place / FOLDER
        self._position = folder / _POSITION
        last = -1 if run.resumed_at is None else min(run.resumed_at, _read(self._position))
        self._writer = EventFileWriter(str(folder))
        self._event(step=last + 1, session_log=SessionLog(status=SessionLog.START))
        if last < 0:
            self._hparams(run)
        return last

    def log(self, row: Row) -> None:
        """Write a row, and hand it to the operating system."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=v) for tag, v in row.scalars.items()]
        values += [Summary.Value(tag=tag, histo=_histo(h)) for tag, h in row.histograms.items()]
        values += [
            Summary.Value(tag=tag, image=_image(self._run.place / file))
            for tag, file in row.pictures.items()
        ]
        self._event(step=row.step, summary=Summary(value=values))
        self._writer.flush()
        self._position.write_text(f"{row.step}\n")

    def close(self, end: Ended | None) -> None:
        """Close the event file."""
        self._writer.close()

    def _hparams(self, run: Tracked) -> None:
        from tensorboard.plugins.hparams import summary_v2 as hp

        plain = {name: _plain(value) for name, value in run.hparams.items()}
        metrics = [hp.Metric(tag) for tag in ("epoch/train_loss", "val_model/top1")]
        names = [hp.HParam(name) for name in plain]
        self._event(step=0, summary=hp.hparams_config_pb(hparams=names, metrics=metrics))
        self._event(step=0, summary=hp.hparams_pb(plain, trial_id=run.id))

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), **fields))


def _read(position: Path) -> int:
    # Whatever it does not tell for sure is written, and hidden, once more.
    try:
        return int(position.read_text())
    except (OSError, ValueError):
        return -1


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _histo(histogram: Histogram) -> Any:
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto

    pairs = list(zip(histogram.middles(), histogram.counts, strict=True))
    return HistogramProto(
        min=histogram.low,
        max=histogram.high,
        num=sum(histogram.counts),
        sum=sum(middle * count for middle, count in pairs),
        sum_squares=sum(middle**2 * count for middle, count in pairs),
        bucket_limit=histogram.edges()[1:],
        bucket=histogram.counts,
    )


def _image(path: Path) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    return Summary.Image(
        width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
    )
