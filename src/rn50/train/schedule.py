"""The learning rate and the average's decay as closed forms of the step.

Nothing here has state: step 1234 has one learning rate, whether the run came there in one go, after
ten resumptions, or is only being plotted.
"""

import math
from dataclasses import dataclass

from rn50.config import Run, Schedule
from rn50.model import average


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the schedule turns, at one step."""

    lr: float
    average_keep: float | None
    """Share of the average that survives this step; None: the average is not updated."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The run laid out in steps, counted from 0."""

    run: Run
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Return the number of updates of the whole run."""
        return self.run.epochs * self.steps_per_epoch

    def at(self, step: int) -> Knobs:
        """Return the settings of update number ``step``."""
        warmup = round(self.run.schedule.warmup_epochs * self.steps_per_epoch)
        share = lr_share(
            step, warmup_steps=warmup, total_steps=self.total_steps, schedule=self.run.schedule
        )
        return Knobs(lr=self.run.optim.peak_lr * share, average_keep=self._average_keep(step))

    def ends_epoch(self, steps_done: int) -> bool:
        """Return whether a whole number of epochs is done after ``steps_done`` updates."""
        return steps_done % self.steps_per_epoch == 0

    def _average_keep(self, step: int) -> float | None:
        settings = self.run.average
        if settings.ema_horizon == 0 or (step + 1) % settings.every_steps:
            return None
        horizon = settings.ema_horizon * self.total_steps / settings.every_steps
        return average.decay(step // settings.every_steps, horizon_updates=horizon)


def lr_share(step: int, *, warmup_steps: int, total_steps: int, schedule: Schedule) -> float:
    """Return the learning rate of ``step`` as a share of the peak.

    Linear from ``schedule.warmup_start`` at step 0 to 1 at step ``warmup_steps`` (Goyal et al.,
    2017, arXiv:1706.02677), then half a cosine to ``schedule.final`` at ``total_steps``, one step
    after the last (Loshchilov and Hutter, 2016, arXiv:1608.03983). Equal to torch's ``LinearLR``
    followed by ``CosineAnnealingLR``, both stepped once per update.
    """
    if step < warmup_steps:
        return schedule.warmup_start + (1 - schedule.warmup_start) * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
