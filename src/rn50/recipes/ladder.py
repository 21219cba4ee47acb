"""Our own recipes for ImageNet-1k, from the cheapest that is useful to the best that is known.

Each combines methods that are published apart. The targets are projections from those; none has
been run. A fair score is that of the last step of the schedule, one crop, at 224 px and at 288 px,
over three seeds, and compared with networks that blur too (all of these have BlurPool).

Common to all: weight decay on convolution and linear weights only, residual branches that start at
zero, an average of the weights (its score is the one meant), images that are smaller in training
than in the test, and a schedule that moves with every step.
"""

from dataclasses import replace

from rn50.config import Average, Images, Loss, Mix, Model, Optim, Run, Schedule
from rn50.recipes.published import torchvision
from rn50.recipes.scaling import (
    Sizes,
    composer_sizes,
    decoupled_decay,
    scaled_lr,
)

PX = 176


def ladder_16(batch_size: int = 2048) -> Run:
    """Ours, the shortest.

    Source: Mosaic's mild recipe, shortened: warm-up 2 instead of 8 epochs, images from 128 px on,
    since a run this short has no time to make up for 96 px.
    Command: ``rn50 train ladder-16 --data IMAGENET``
    Target: 74 to 75% top-1 (a projection).
    Published: none; FFCV reaches 73.8 in 16 epochs at 256 px.
    Measured: not yet run.
    """
    sizes = composer_sizes(PX, 16, initial_scale=128 / PX)
    return _short("ladder-16", 16, batch_size, sizes=sizes, warmup_epochs=2)


def ladder_30(batch_size: int = 2048) -> Run:
    """Ours: growing images, BCE.

    Source: Mosaic's mild recipe.
    Command: ``rn50 train ladder-30 --data IMAGENET``
    Target: 76.2 to 76.6% top-1 (a projection).
    Published: none; Mosaic's mild recipe reaches 76.2 in 28.8 and 76.6 in 32.4 epochs.
    Measured: not yet run.
    """
    return _short("ladder-30", 30, batch_size, sizes=composer_sizes(PX, 30), warmup_epochs=5)


def ladder_50(batch_size: int = 2048) -> Run:
    """Ours: growing images, BCE.

    Source: Mosaic's mild recipe, which is meant for up to 60 epochs.
    Command: ``rn50 train ladder-50 --data IMAGENET``
    Target: 77.5 to 78% top-1 (a projection).
    Published: none; Mosaic's mild recipe stays below 78.1 up to some 60 epochs.
    Measured: not yet run.
    """
    return _short("ladder-50", 50, batch_size, sizes=composer_sizes(PX, 50), warmup_epochs=8)


def ladder_90(batch_size: int = 2048) -> Run:
    """Ours: the same with mixup and SAM.

    Source: Mosaic's medium recipe.
    Command: ``rn50 train ladder-90 --data IMAGENET``
    Target: 78.5 to 79% top-1 (a projection).
    Published: none; Mosaic's medium recipe spans 78.1 in 60 to 79.5 in 240 epochs.
    Measured: not yet run.
    """
    run = _short("ladder-90", 90, batch_size, sizes=composer_sizes(PX, 90), warmup_epochs=8)
    return replace(
        run,
        mix=Mix(mixup_alpha=0.2),
        optim=replace(run.optim, sam_rho=0.5, sam_every=10),
        loss=replace(run.loss, label_smoothing=0.1),
    )


def ladder_300(batch_size: int = 1024) -> Run:
    """Ours: all methods.

    Source: torchvision's second recipe at half its length, with BlurPool (0.6 to 0.9 points in
    timm's bt weights) and stochastic depth 0.05 (ResNet strikes back).
    Command: ``rn50 train ladder-300 --data IMAGENET``
    Target: 80.2 to 80.6% top-1 (a projection).
    Published: none; at 300 epochs others reach 79.8 (A2) to 80.3 (AutoMix), at 600 epochs
    torchvision 80.9.
    Measured: not yet run.
    """
    return _long("ladder-300", 300, batch_size)


def ladder_600(batch_size: int = 1024) -> Run:
    """Ours, for the highest score.

    Source: torchvision's second recipe with BlurPool and stochastic depth 0.05.
    Command: ``rn50 train ladder-600 --data IMAGENET``
    Target: 80.9 to 81.3% top-1 at 224 px, 81.5% and more at 256 to 288 px (a projection; above 81%
    at 224 px would be the first of its kind).
    Published: none; torchvision reaches 80.9 without the two, and A1 81.2 at 288 px.
    Measured: not yet run.
    """
    return _long("ladder-600", 600, batch_size)


def imagenet_90(batch_size: int = 1024) -> Run:
    """The plain run: flip and crop only.

    Source: pytorch/vision, references/classification (weights V1: batch 256, learning rate 0.1,
    weight decay 1e-4), with the linear scaling, warm-up and unscaled BatchNorm of Goyal et al.
    (2017, arXiv:1706.02677) and a cosine (arXiv:1812.01187) in place of three steps. What all other
    recipes are measured against.
    Command: ``rn50 train imagenet-90 --data IMAGENET``
    Published: none of these 90 epochs; 76.86% top-1 in 100 with a cosine at batch 1024
    (giung2/jax-imagenet, 224 px), and 76.13% for torchvision's V1.
    Measured: not yet run.
    """
    return Run(
        recipe="imagenet-90",
        epochs=90,
        model=Model(num_classes=1000),
        images=Images(batch_size=batch_size, train_px=224, test_px=224, test_resize_px=256),
        optim=Optim(peak_lr=scaled_lr(0.1, batch_size), weight_decay=1e-4),
        schedule=Schedule(warmup_epochs=5),
        loss=Loss(label_smoothing=0.0),
        average=Average(ema_horizon=0.0),
    )


def _short(name: str, epochs: int, batch_size: int, *, sizes: Sizes, warmup_epochs: float) -> Run:
    """Return a run in the style of Mosaic's: growing images, BCE, decoupled decay, BlurPool."""
    peak_lr, momentum = scaled_lr(0.256, batch_size), 0.875
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(blurpool="convs-and-max-pool"),
        images=Images(
            batch_size=batch_size, train_px=PX, sizes=sizes, test_px=224, test_resize_px=232
        ),
        optim=Optim(
            name="sgdw",
            peak_lr=peak_lr,
            momentum=momentum,
            weight_decay=decoupled_decay(3.05e-5, peak_lr=peak_lr, momentum=momentum),
        ),
        schedule=Schedule(warmup_epochs=warmup_epochs),
        loss=Loss(name="bce", label_smoothing=0.08),
        average=Average(ema_horizon=0.01, every_steps=4),  # Mosaic: 0.6%, torchvision: 3.9%
    )


def _long(name: str, epochs: int, batch_size: int) -> Run:
    """Return a run in the style of torchvision's second, with BlurPool and stochastic depth."""
    run = torchvision.torchvision_v2(batch_size)
    return replace(
        run,
        recipe=name,
        epochs=epochs,
        model=Model(blurpool="convs-and-max-pool", stochastic_depth=0.05),
        optim=replace(run.optim, decayed="weights"),
    )
