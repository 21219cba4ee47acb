"""Weights & Biases, online or into the run's folder, from where ``wandb sync`` sends it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rn50.observe.trackers.rows import Row
from rn50.observe.trackers.sink import Ended, Tracked, require

_HEADER, _CHUNK_HEADER, _BLOCK = 7, 7, 32_768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandB:
    """Shows rows in one run of W&B, whichever process they come from.

    Online the server tells which step it has; offline the files of the processes before tell it.
    W&B never takes a step again.

    Args:
        mode: Whether to send what is told, or to keep it.

    Raises:
        UsageError: The wandb package is not installed.
    """

    name = "W&B"

    def __init__(self, mode: Literal["online", "offline"]) -> None:
        require("wandb", self.name, "wandb")
        self._mode = mode
        self.closing_s = 120.0 if mode == "online" else 30.0

    def open(self, run: Tracked) -> int:
        """Begin or resume the run of this id."""
        import wandb

        known = max((step for path in _logs(run) for step in _steps(path)), default=-1)
        self._place = run.place
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            dir=run.place,
            config=run.hparams,
            mode=self._mode,
            resume="allow",
            # The console belongs to the training; the caller of this process is not it.
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        if self._mode == "offline":
            return known
        if self._run.url:
            run.say(f"W&B shows this run at {self._run.url}")
        return self._run.step - 1

    def log(self, row: Row) -> None:
        """Hand a row to W&B, which keeps and sends it in a process of its own."""
        import wandb

        shown: dict[str, Any] = dict(row.scalars)
        for name, one in row.histograms.items():
            shown[name] = wandb.Histogram(
                np_histogram=(np.array(one.counts), np.array(one.edges()))
            )
        for name, file in row.pictures.items():
            shown[name] = wandb.Image(str(self._place / file))
        self._run.log(shown, step=row.step, commit=True)

    def close(self, end: Ended | None) -> None:
        """Finish the run; at its end its best weights become an artifact of type model."""
        import wandb

        if end is not None and end.weights is not None:
            name = re.sub(r"[^\w.-]", "-", f"{self._place.resolve().name}-weights")
            artifact = wandb.Artifact(name, type="model", metadata=end.about)
            artifact.add_file(str(end.weights), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact, aliases=["best"])
        self._run.finish(exit_code=0 if end is not None else 1)


def _logs(run: Tracked) -> list[Path]:
    return sorted((run.place / "wandb").glob(f"offline-run-*-{run.id}/run-{run.id}.wandb"))


def _steps(path: Path) -> Iterator[int]:
    """Yield the steps of a file that W&B keeps; one that was killed leaves it torn at the end."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for entry in entries(path):
        record = Record()
        record.ParseFromString(entry)
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def entries(path: Path) -> Iterator[bytes]:
    """Yield the entries of a file in LevelDB's log format, which W&B's begin with a header of 7.

    An entry lies in one chunk, or in several over the borders of the blocks of 32 KiB. A chunk has
    a header: checksum (4 bytes), length (2, little-endian), kind (1). From LevelDB's
    ``doc/log_format.md``; tested on files that W&B wrote.
    """
    data = path.read_bytes()
    at, parts = _HEADER, b""
    while at + _CHUNK_HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < _CHUNK_HEADER or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            at += left  # the rest of a block is padding
            continue
        begin, at = at + _CHUNK_HEADER, at + _CHUNK_HEADER + length
        if at > len(data):
            return
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + data[begin:at]
        if kind in (_FULL, _LAST):
            yield parts
