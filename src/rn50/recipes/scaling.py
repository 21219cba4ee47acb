"""Settings carried from one batch size, optimizer or peer to another, as functions of recipes."""

import math
from dataclasses import replace
from typing import Literal

from rn50.config import Run
from rn50.errors import UsageError

SIZE_STEP = 32
"""Sizes of a ramp are multiples of it, the stride of the whole network."""

MOST_SIZES = 5
"""Different sizes that ``images.sizes`` may hold."""

IMAGENET_TRAIN = 1_281_167
"""Training images of ImageNet-1k."""

Sizes = tuple[tuple[int, int], ...]
"""A value of ``images.sizes``: (epoch, side of the training crop from there on)."""


def scaled_lr(
    base: float, batch: int, reference: int = 256, *, rule: Literal["linear", "sqrt"] = "linear"
) -> float:
    """Return the learning rate of a batch, given that of a reference batch.

    Tested against the figures of published recipes.

    Args:
        base: Learning rate of the reference batch.
        batch: Images per update.
        reference: Images per update that ``base`` was found with.
        rule: linear, for SGD (Goyal et al., 2017, arXiv:1706.02677), or the square root, for LAMB
            and AdamW (You et al., 2019, arXiv:1904.00962; timm's train.py chooses alike).
    """
    ratio = batch / reference
    return base * (ratio if rule == "linear" else math.sqrt(ratio))


def decoupled_decay(coupled: float, *, peak_lr: float, momentum: float) -> float:
    """Return the decoupled weight decay (SGDW) that shrinks weights as a coupled one (SGD) does.

    A coupled decay goes through the learning rate and the momentum: over time a weight loses
    ``lr * decay / (1 - momentum)`` of itself per step. The decoupled one is that share, at the
    peak. Mosaic's 5.0e-4 is NVIDIA's 3.0518e-5 at learning rate 2.048 and momentum 0.875
    (composer/optim/decoupled_weight_decay.py); giving SGD the former is a 16-fold mistake. Tested
    on that pair, and on weights that decay under both.
    """
    return peak_lr * coupled / (1 - momentum)


def coupled_decay(decoupled: float, *, peak_lr: float, momentum: float) -> float:
    """Return the coupled weight decay of a decoupled one: the inverse of ``decoupled_decay``."""
    return decoupled * (1 - momentum) / peak_lr


def half_life_horizon(
    half_life: float, *, batch_size: int, epochs: int, images: int = IMAGENET_TRAIN
) -> float:
    """Return the horizon, as a share of the run, of an average with a half-life in steps.

    Composer's half-life of 100 batches is a time constant of 144 (100 / ln 2), 0.64% of 36 epochs
    at batch 2048. Tested on that, and on the decay of an update.
    """
    return half_life / math.log(2) / (epochs * images / batch_size)


def at_length(run: Run, epochs: int) -> Run:
    """Return a run of another length, in which every phase keeps its share of the whole.

    Warm-up, milestones, tail, SWA and image sizes move with the number of epochs. Horizons of EMA
    and OneCycle's rise are shares already. Of two sizes that would begin in the same epoch, the
    later one stays. Tested: the shares, and that the own length changes nothing.

    Args:
        run: Any run.
        epochs: The new length.
    """
    share, schedule = epochs / run.epochs, run.schedule
    begun = {min(round(epoch * share), epochs - 1): px for epoch, px in run.images.sizes}
    return replace(
        run,
        epochs=epochs,
        images=replace(run.images, sizes=tuple(begun.items())),
        schedule=replace(
            schedule,
            warmup_epochs=schedule.warmup_epochs * share,
            milestones=tuple(epoch * share for epoch in schedule.milestones),
            tail_epochs=schedule.tail_epochs * share,
            tail_anneal_epochs=schedule.tail_anneal_epochs * share,
            tail_cycle_epochs=schedule.tail_cycle_epochs * share,
        ),
        average=replace(run.average, swa_epochs=run.average.swa_epochs * share),
    )


def ffcv_sizes(low: int, high: int, *, start: int, end: int) -> Sizes:
    """Return FFCV's ramp: ``low`` up to epoch ``start``, ``high`` from ``end``, a line between.

    Sizes between are rounded to multiples of 32, halves to the even multiple, once per epoch
    (ffcv-imagenet, train_imagenet.py, get_resolution). Tested epoch by epoch against that formula.

    Raises:
        UsageError: The ramp has more than five sizes.
    """
    ramp = [low if epoch <= start else high for epoch in range(end + 2)]
    for epoch in range(start + 1, end):
        side = low + (high - low) * (epoch - start) / (end - start)
        ramp[epoch] = round(side / SIZE_STEP) * SIZE_STEP
    if len(set(ramp)) > MOST_SIZES:
        raise UsageError(
            f"the ramp from {low} to {high} px has {len(set(ramp))} sizes; at most {MOST_SIZES} "
            "are allowed: bring its ends nearer"
        )
    return _changes(ramp)


def composer_sizes(
    px: int,
    epochs: int,
    *,
    initial_scale: float = 0.5,
    delay_fraction: float = 0.4,
    finetune_fraction: float = 0.2,
) -> Sizes:
    """Return Composer's ramp up to ``px`` in at most five sizes that change between epochs.

    Composer scales each batch by ``initial + (1 - initial) * clip((t - delay) / (1 - finetune -
    delay), 0, 1)``, t being the share of training done, to a multiple of 4 px
    (composer/algorithms/progressive_resizing). Here the scale in the middle of each epoch is
    rounded to a multiple of 32 px, or of 64, 128 … where that gives more than five sizes; the last
    size is ``px`` itself. Tested: no size is further from Composer's than half a multiple.

    Returns:
        A value of ``images.sizes`` for a run whose ``images.train_px`` is ``px``.
    """
    exact = []
    for epoch in range(epochs):
        passed = (epoch + 0.5) / epochs - delay_fraction
        share = min(max(passed / (1 - finetune_fraction - delay_fraction), 0.0), 1.0)
        exact.append(px * (initial_scale + (1 - initial_scale) * share))
    step = SIZE_STEP
    while len(set(ramp := [_rounded(side, step, px) for side in exact])) > MOST_SIZES:
        step *= 2
    return _changes(ramp)


def _rounded(side: float, step: int, most: int) -> int:
    if side >= most:
        return most
    return min(max(step, round(side / step) * step), most)


def _changes(ramp: list[int]) -> Sizes:
    """Return the epochs at which a size begins, with that size."""
    return tuple(
        (epoch, px) for epoch, px in enumerate(ramp) if epoch == 0 or px != ramp[epoch - 1]
    )
