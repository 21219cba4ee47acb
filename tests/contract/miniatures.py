"""Recipes shrunk to seconds with every method left on, and the phases that they have."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from rn50.config import Run
from rn50.model import resnet
from rn50.recipes.scaling import at_length, scaled_lr

IMAGES, BATCH, CLASSES = 16, 8, 4
EPOCHS = 9
STEPS = IMAGES // BATCH
"""Per epoch."""

SHRUNK = {
    *("epochs", "model.arch", "model.num_classes", "optim.peak_lr", "optim.sam_every"),
    *(f"images.{name}" for name in ("batch_size", "train_px", "sizes", "test_px")),
    *("images.test_resize_px", "schedule.warmup_epochs", "schedule.milestones"),
    *("schedule.tail_epochs", "schedule.tail_anneal_epochs", "schedule.tail_cycle_epochs"),
    *("average.every_steps", "average.swa_epochs", "average.swa_bn_images"),
}
"""Settings that a miniature may have otherwise than its recipe; none of them may be turned off."""


class NarrowResNet(resnet.ResNet):
    """A block a stage of few channels, but no fewer than BlurPool asks for."""

    def __init__(
        self, block: type[resnet.BasicBlock], layers: object, *, num_classes: int, stem: str
    ) -> None:
        super().__init__(block, (1, 1, 1, 1), num_classes=num_classes, stem=stem)
        widths = (16, 16, 32, 32)
        inputs = (64, *widths)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.Stage(block(inputs[i], width, 1 if i == 0 else 2))
            for i, width in enumerate(widths)
        )
        self.fc = nn.Linear(widths[-1], num_classes)


@dataclass(frozen=True)
class Phase:
    """A stretch of steps in which one thing holds."""

    name: str
    start: int
    end: int

    @property
    def middle(self) -> int:
        """Steps done in the middle: some of the phase are done, some are not."""
        return (self.start + self.end) // 2


def miniature(run: Run) -> Run:
    """Return a recipe in ``EPOCHS`` epochs of ``STEPS`` steps on images of 16 to 128 px.

    A phase that would be shorter than an epoch is stretched to one: warm-up and tail.
    """
    short = at_length(replace(run, average=replace(run.average, swa_epochs=0.0)), EPOCHS)
    stretch = max(1.0, 2 / short.schedule.tail_epochs) if short.schedule.tail_epochs else 1.0
    side = {"imagenet": 32, "small": 16}[run.model.stem]
    ascending = sorted({px for _, px in run.images.sizes} | {run.images.train_px})
    small = {px: side * (i + 1) for i, px in enumerate(ascending)}
    warmup = short.schedule.warmup_epochs
    return replace(
        short,
        model=replace(run.model, arch="resnet18", num_classes=CLASSES),
        images=replace(
            short.images,
            batch_size=BATCH,
            train_px=small[run.images.train_px],
            sizes=tuple((epoch, small[px]) for epoch, px in short.images.sizes),
            test_px=32,
            test_resize_px=36,
        ),
        optim=replace(
            run.optim,
            peak_lr=scaled_lr(run.optim.peak_lr, BATCH, run.images.batch_size),
            sam_every=min(run.optim.sam_every, 3),
        ),
        schedule=replace(
            short.schedule,
            warmup_epochs=max(1.0, warmup) if warmup else 0.0,
            tail_epochs=short.schedule.tail_epochs * stretch,
            tail_anneal_epochs=short.schedule.tail_anneal_epochs * stretch,
            tail_cycle_epochs=short.schedule.tail_cycle_epochs * stretch,
        ),
        average=replace(
            run.average,
            every_steps=min(run.average.every_steps, 2),
            swa_epochs=run.average.swa_epochs * EPOCHS / run.epochs * stretch,
            swa_bn_images=IMAGES,
        ),
    )


def phases(run: Run, steps: int) -> list[Phase]:
    """Return the phases of a run of ``steps`` steps an epoch: schedule, image sizes, averages."""
    schedule, total = run.schedule, run.epochs * steps
    starts = {0: "start"}
    if schedule.warmup_epochs:
        starts[0] = "warm-up"
        starts[round(schedule.warmup_epochs * steps)] = "body"
    if schedule.name == "onecycle":
        starts[0] = "rise"
        starts[math.ceil(schedule.rise * total)] = "fall"
    for epoch in schedule.milestones:
        starts[round(epoch * steps)] = f"after epoch {epoch:.3g}"
    for epoch, px in run.images.sizes:
        starts[epoch * steps] = f"{starts.get(epoch * steps, '')} {px} px".strip()
    for name, epochs in (("tail", schedule.tail_epochs), ("SWA", run.average.swa_epochs)):
        if epochs:
            place = total - round(epochs * steps)
            starts[place] = f"{starts.get(place, '')} {name}".strip()
    borders = [*sorted(starts), total]
    return [Phase(starts[start], start, end) for start, end in pairwise(borders)]
