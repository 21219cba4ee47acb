"""The undecodable images that a run has met: each recorded once, up to a bound, alike everywhere.

Nothing of it is saved in a checkpoint. Which images are bad is told by their bytes, which of them
were met by the record of the run, which ends at the checkpoint's step when a run resumes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from rn50.config import Storage
from rn50.data.loader import Batch, Loader, OnBad
from rn50.data.plan import TrainPlan
from rn50.data.shards import PackedSplit
from rn50.data.sources.base import ClassName
from rn50.distributed import Group
from rn50.errors import DataError
from rn50.observe import record
from rn50.observe.record import Record

KIND = "bad_image"
"""Of the record of an image that could not be decoded."""

Met = Callable[[Int64[np.ndarray, " images"]], None]
"""Told of undecodable images; every process must call it alike."""


class BadImages:
    """What is done about undecodable images in a run, by every process alike.

    Args:
        storage: Whether bad images are skipped, and how many may be.
        classes: In the order of the labels.
        group: The processes that train together.
        write: Writes a record, on the first process.
    """

    def __init__(
        self,
        storage: Storage,
        classes: Sequence[ClassName],
        group: Group,
        write: Callable[[Record], None],
    ) -> None:
        self._classes = classes
        self._group = group
        self._write = write
        self._skip = storage.on_bad_image == "skip"
        self._limit = storage.max_bad_images
        self._first_met: dict[str, dict[int, int]] = {}

    @property
    def in_training(self) -> OnBad:
        """Return what becomes of a bad training image."""
        return "substitute" if self._skip else "error"

    def recall(self, path: Path) -> None:
        """Learn from a run's record of which images it has told; every process must call it."""
        if not self._skip:
            return
        told = []
        if self._group.is_first and path.exists():
            records = (r for r in record.read(path) if r.get("kind") == KIND)
            told = [(r["split"], r["image"], r["step"]) for r in records]
        for split, image, step in json.loads(self._group.from_first(json.dumps(told))):
            self._first_met.setdefault(split, {}).setdefault(image, step)

    def batches(
        self, loader: Loader, split: PackedSplit, plan: TrainPlan, total_steps: int, from_step: int
    ) -> Iterator[Batch]:
        """Yield the training batches from a step on, telling before each of what is bad in it.

        Every process must take them alike.

        Raises:
            DataError: An image is bad and may not be, or too many are.
        """
        met = self._first_met.get(split.name, {})
        # A run that goes back tells again of what it meets again.
        self._first_met[split.name] = {i: step for i, step in met.items() if step <= from_step}
        requests = (plan.request(step) for step in range(from_step, total_steps))
        read = loader.read(split, requests, on_bad=self.in_training)
        for step, batch in enumerate(read, start=from_step + 1):
            if self._skip:
                self.met(split, step, batch.bad)
            yield batch

    def in_evaluation(self, split: PackedSplit, step: int) -> Met | None:
        """Return who is to be told of bad images after an evaluation; None: they are errors."""
        return partial(self.met, split, step) if self._skip else None

    def met(self, split: PackedSplit, step: int, ids: Int64[np.ndarray, " images"]) -> None:
        """Tell of images that this process has found bad, and of those that the others have.

        Every process must call it alike.

        Args:
            split: Whose images they are.
            step: Updates done when the batch that they are of has been trained on.
            ids: Any images, known ones too.

        Raises:
            DataError: Too many of the split's images are bad.
        """
        known = self._first_met.setdefault(split.name, {})
        new = [i for i in ids.tolist() if i not in known]
        if not self._group.sum(torch.tensor([len(new)])).item():
            return
        marks = torch.zeros(split.num_images, dtype=torch.int64)
        marks[new] = 1
        for image in self._group.sum(marks).nonzero().flatten().tolist():
            known[image] = step
            if self._group.is_first:
                self._write(self._told(split, image, step))
        if len(known) > self._limit * split.num_images:
            raise DataError(
                f"{len(known)} of {split.num_images:,} {split.name} images cannot be decoded; "
                f"storage.max_bad_images allows {self._limit:g} of them; run "
                f"`rn50 verify {split.folder}` to see all, copy the damaged shards again and "
                "resume, or allow more"
            )

    def _told(self, split: PackedSplit, image: int, step: int) -> Record:
        known = self._first_met[split.name]
        label = int(split.labels[image])
        by_class = Counter(int(split.labels[i]) for i in known)
        shard, offset = split.place(image)
        return {
            "kind": KIND,
            "step": step,
            "split": split.name,
            "image": image,
            "key": split.key(image),
            "shard": shard,
            "offset": offset,
            "class": self._classes[label].id,
            "class_count": by_class[label],
            "count": len(known),
        }
