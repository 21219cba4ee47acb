"""Training loss and accuracy, counted on the device and read only when they are reported.

Everything is an integer: images, correct answers, and the loss in units of 2**-16. Integer sums do
not depend on their order, so the history is the same for any number of processes and wherever a run
was cut and resumed.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rn50.distributed import Group
from rn50.evaluate import LOSS_UNIT

_MOST = 2.0**20
"""A higher loss counts as this: the sum over an epoch of images must stay within 63 bits."""


class StepEnd(NamedTuple):
    """How a step ended."""

    skipped: bool
    """Whether its update was left out."""
    bad_loss: bool
    """Whether a loss, of any process, was not finite."""

    def is_fault(self, *, scaled: bool) -> bool:
        """Return whether the numbers were bad, and it was not only the loss scale that was high."""
        return self.skipped and (self.bad_loss or not scaled)


@dataclass(slots=True)
class Totals:
    """Sums over images."""

    images: int = 0
    loss_units: int = 0
    correct: int = 0

    def add(self, images: int, loss_units: int, correct: int) -> None:
        """Add another sum."""
        self.images += images
        self.loss_units += loss_units
        self.correct += correct

    @property
    def loss(self) -> float:
        """Return the mean loss; not a number where there are no images."""
        return self.loss_units * LOSS_UNIT / self.images if self.images else math.nan

    @property
    def top1(self) -> float:
        """Return the share of correct answers, 0 to 1."""
        return self.correct / max(1, self.images)


class Meter:
    """Counts of the current window (since the last report) and the current epoch."""

    def __init__(self, device: torch.device, group: Group) -> None:
        self.window = Totals()
        self.epoch = Totals()
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._step_ends: list[Int64[Tensor, " 2"]] = []
        self._group = group

    def add(
        self,
        loss: Float[Tensor, ""],
        logits: Float[Tensor, "batch classes"],
        labels: Int64[Tensor, " batch"],
    ) -> None:
        """Count a micro-batch, given its mean loss. The host does not wait.

        One whose loss is not finite is no part of any mean.
        """
        finite = torch.isfinite(loss)
        units = (loss.float().clamp(max=_MOST) * (len(labels) / LOSS_UNIT)).round()
        correct = (logits.argmax(1) == labels).sum()
        images = torch.full_like(correct, len(labels))
        counts = torch.stack([images, torch.where(finite, units, 0).long(), correct])
        self._counts[:3] += torch.where(finite, counts, 0)
        self._counts[3] += ~finite

    def end_step(self, stepped: Float[Tensor, ""] | None = None) -> None:
        """Take note of whether the step's update was done: 1 or 0 on the device; None: it was."""
        bad_so_far = self._counts[3]
        skipped = torch.zeros_like(bad_so_far) if stepped is None else (stepped == 0).long()
        self._step_ends.append(torch.stack([skipped, bad_so_far]))

    def clear(self) -> None:
        """Forget what the device has counted since the last time it was read."""
        self._counts.zero_()
        self._step_ends.clear()

    def drain(self) -> list[StepEnd]:
        """Read the device's counts, over all processes, into ``window`` and ``epoch``.

        Every process must call it at the same step.

        Returns:
            How each step since the last call ended.
        """
        counts = torch.cat([self._counts, *self._step_ends])
        images, loss_units, correct, _, *ends = self._group.sum(counts).tolist()
        self.clear()
        self.window.add(images, loss_units, correct)
        self.epoch.add(images, loss_units, correct)
        bad = pairwise([0, *ends[1::2]])
        return [
            StepEnd(skipped > 0, after > before)
            for skipped, (before, after) in zip(ends[::2], bad, strict=True)
        ]
