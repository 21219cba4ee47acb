"""Training loss and accuracy, counted on the device and read only when they are reported.

Everything is an integer: images, correct answers, and the loss in units of 2**-16. Integer sums do
not depend on their order, so the history is the same for any number of processes and wherever a run
was cut and resumed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rn50.distributed import Group
from rn50.errors import DivergedError
from rn50.evaluate import LOSS_UNIT


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
        """Return the mean loss."""
        return self.loss_units * LOSS_UNIT / max(1, self.images)

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
        self._group = group

    def add(
        self,
        loss: Float[Tensor, ""],
        logits: Float[Tensor, "batch classes"],
        labels: Int64[Tensor, " batch"],
    ) -> None:
        """Count a micro-batch, given its mean loss. The host does not wait."""
        finite = torch.isfinite(loss)
        units = torch.where(finite, loss.float() * (len(labels) / LOSS_UNIT), 0).round()
        correct = (logits.argmax(1) == labels).sum()
        images = torch.full_like(correct, len(labels))
        self._counts += torch.stack([images, units.long(), correct, (~finite).long()])

    def drain(self) -> None:
        """Read the device's counts, over all processes, into ``window`` and ``epoch``.

        Every process must call it at the same step.

        Raises:
            DivergedError: A loss was not finite.
        """
        images, loss_units, correct, bad = self._group.sum(self._counts).tolist()
        self._counts.zero_()
        if bad:
            raise DivergedError(
                f"the loss became infinite or not a number in {bad} of the last micro-batches; the "
                "checkpoints from before are whole: resume with a lower --lr, a longer "
                "--warmup-epochs, --clip-grad-norm 1 or --precision fp32"
            )
        self.window.add(images, loss_units, correct)
        self.epoch.add(images, loss_units, correct)
