"""The settings of the averages that are kept of the weights, and when they make sense."""

from typing import Annotated

import tyro
from pydantic import Field, model_validator

from rn50.optimisation import Schedule
from rn50.section import Count, Fraction, NotNegative, section


@section
class Average:
    """Averages of the weights, each kept as a network of its own: EMA, SWA, both or none."""

    ema_horizon: Annotated[Fraction, tyro.conf.arg(aliases=["--ema-horizon"])] = 0.0
    """Time constant as a fraction of the run: 0.02 averages about the last 2% of all steps, on any
    data set and batch size. 0 keeps no exponential moving average (EMA)."""
    every_steps: Count = 1
    """Steps between two updates of the EMA; the horizon does not depend on it."""
    swa_epochs: Annotated[NotNegative, tyro.conf.arg(aliases=["--swa-epochs"])] = 0.0
    """Stochastic weight averaging (SWA): last epochs of the run, in the schedule's tail, whose
    weights are averaged with equal shares. 0 keeps no such average."""
    swa_every_steps: Annotated[int, Field(ge=0)] = 0
    """SWA: steps from one averaged weight to the next, counted from where averaging begins; 0: the
    weights at the end of each epoch."""
    swa_bn_images: Count = 10_000
    """SWA: training images, at most an epoch of them, over which its BatchNorm statistics are
    estimated anew before it is evaluated or written."""

    @model_validator(mode="after")
    def _swa_agrees(self) -> "Average":
        if self.swa_every_steps and not self.swa_epochs:
            raise ValueError(
                f"swa_every_steps is {self.swa_every_steps}, but swa_epochs is 0, so nothing is "
                "averaged; give --swa-epochs too"
            )
        if 0 < self.swa_epochs <= 1 and not self.swa_every_steps:
            raise ValueError(
                f"swa_epochs is {self.swa_epochs:g}, in which one epoch ends: an average of one is "
                "the model; give 2 or more, or --average.swa-every-steps"
            )
        return self


def check(average: Average, schedule: Schedule, epochs: int) -> None:
    """Refuse an SWA that has no weights to average, or none worth averaging.

    It averages weights that one learning rate keeps moving about a good place (Izmailov et al.,
    2018, arXiv:1803.05407). While the rate still falls, the early ones are worse than the late;
    once it has fallen to nothing, all are the same.

    Raises:
        ValueError: With the reason and what to do.
    """
    length, tail = average.swa_epochs, schedule.tail_epochs
    if length == 0:
        return
    told = f"average.swa_epochs is {length:g}"
    if schedule.warmup_epochs + length >= epochs:
        raise ValueError(
            f"{told}, but only {epochs - schedule.warmup_epochs:g} of the run's {epochs} epochs "
            "come after warm-up; give fewer, or more --epochs"
        )
    if schedule.name == "onecycle":
        raise ValueError(
            f"{told}, but onecycle ends at almost no learning rate, where all weights are the "
            "same; give --swa-epochs 0, or a schedule with a tail: --schedule.name cosine "
            f"--schedule.tail-epochs {length:g}"
        )
    if 0 < tail < length:
        raise ValueError(
            f"{told}, but schedule.tail_epochs is {tail:g}: the weights before the tail, at a rate "
            f"that still falls, are worse; give --swa-epochs {tail:g}, or a longer tail"
        )
    late = [epoch for epoch in schedule.milestones if epoch > epochs - length]
    if tail == 0 and late:
        raise ValueError(
            f"{told}, but schedule.milestones lowers the learning rate at epoch {late[-1]:g}, "
            "among them: the weights before that are worse; give --swa-epochs "
            f"{epochs - late[-1]:g}, or earlier milestones"
        )
    if tail == 0 and schedule.name not in ("constant", "step"):
        raise ValueError(
            f"{told}, but {schedule.name} lowers the learning rate to the end, where the last "
            f"weights differ little; give --schedule.tail-epochs {length:g}, in which "
            "--schedule.tail-lr holds"
        )
