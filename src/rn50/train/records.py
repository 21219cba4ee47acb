"""What the loop records of a window of steps and of an epoch."""

from typing import Any

from rn50.observe.record import Record
from rn50.train.meter import Totals
from rn50.train.pace import Pace
from rn50.train.schedule import Timeline


def train(totals: Totals, timeline: Timeline, facts: dict[str, Any], pace: Pace) -> Record:
    """Return the record of a window of steps that ends at ``facts["step"]``."""
    position = {"epoch": facts["step"] / timeline.steps_per_epoch}
    scores = {"loss": totals.loss, "top1": totals.top1}
    return {"kind": "train", **facts, **position, **scores, "timing": pace.timing()}


def epoch(
    totals: Totals,
    timeline: Timeline,
    facts: dict[str, Any],
    scores: dict[str, dict[str, float]] | None,
    timing: dict[str, Any],
) -> Record:
    """Return the record of an epoch that ends at ``facts["step"]``."""
    training = {
        "epoch": facts["step"] // timeline.steps_per_epoch,
        "train_loss": totals.loss,
        "train_top1": totals.top1,
    }
    return {"kind": "epoch", **facts, **training, "val": scores, "timing": timing}
