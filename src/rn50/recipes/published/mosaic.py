"""MosaicML's mild, medium and hot recipes (mosaicml/benchmarks and mosaicml/examples).

Differences: images grow between epochs, in at most five sizes, where Composer's grow with every
batch by 4 px; BatchNorm's weights begin at 1, theirs evenly between 0 and 1, and convolutions by
fan-out, theirs by fan-in. No effect beyond the spread of seeds is expected. Warm-up lasts 8 epochs
at any length, as theirs does.
"""

from dataclasses import replace

from rn50.config import Augment, Average, Images, Loss, Mix, Model, Optim, Run, Schedule
from rn50.recipes.scaling import Sizes, composer_sizes, half_life_horizon, scaled_lr

PX = 176
BATCH = 2048


def mosaic_mild(epochs: int = 36) -> Run:
    """Mosaic's mild: images grow, BCE.

    Source: mosaicml/examples, resnet_imagenet (default 36 epochs), and its MLPerf 2.0 submission.
    Command: ``rn50 train mosaic-mild --data IMAGENET``
    Published: 76.60% top-1 in 32.4 epochs (224 px of 232, the average), 27 minutes on 8 A100;
    76.16% in 28.8 epochs (mean of five); 75% to 78.1% in up to some 60.
    Measured: not yet run.
    """
    sizes = composer_sizes(PX, epochs)
    return _mosaic("mosaic-mild", epochs, smoothing=0.08, decay=5e-4, sizes=sizes)


def mosaic_medium(epochs: int = 135) -> Run:
    """Mosaic's medium: mixup and SAM.

    Source: mosaicml/examples, resnet_imagenet (default 135 epochs): the mild recipe with mixup 0.2,
    label smoothing 0.1 and a sharpness-aware step in ten.
    Command: ``rn50 train mosaic-medium --data IMAGENET``
    Published: 78.1% to 79.5% top-1 in 60 to 240 epochs (224 px of 232, the average); no single
    point of that curve could be read.
    Measured: not yet run.
    """
    sizes = composer_sizes(PX, epochs)
    mild = _mosaic("mosaic-medium", epochs, smoothing=0.10, decay=5e-4, sizes=sizes)
    return replace(
        mild,
        mix=Mix(mixup_alpha=0.2),
        optim=replace(mild.optim, sam_rho=0.5, sam_every=10),
    )


def mosaic_hot(epochs: int = 270) -> Run:
    """Mosaic's hot: RandAugment too.

    Source: mosaicml/examples, resnet_imagenet (default 270 epochs): RandAugment, mixup 0.25,
    stochastic depth and a sharpness-aware step in five.
    Differences: no ColOut (Composer drops 5% of rows and columns for speed, at 0.2 points less by
    its own account); RandAugment is torchvision's with one operation at the mean strength of
    Composer's, which draws it evenly up to 9 of 10 (from memory), out of other operations.
    Stochastic depth scales in training rather than in evaluation, and drops the first block never
    and the last at the full rate, where Composer's rule, (i + 1) / N, drops the first one, too.
    Command: ``rn50 train mosaic-hot --data IMAGENET``
    Published: 79.5% top-1 or more above 240 epochs (224 px of 232, the average); its best could not
    be read.
    Measured: not yet run.
    """
    sizes = composer_sizes(PX, epochs, initial_scale=0.6, delay_fraction=0.2)
    mild = _mosaic("mosaic-hot", epochs, smoothing=0.13, decay=3e-4, sizes=sizes)
    return replace(
        mild,
        model=replace(mild.model, stochastic_depth=0.1),
        augment=Augment(policy="randaugment", num_ops=1, magnitude=14),
        mix=Mix(mixup_alpha=0.25),
        optim=replace(mild.optim, sam_rho=0.5, sam_every=5),
    )


def _mosaic(name: str, epochs: int, *, smoothing: float, decay: float, sizes: Sizes) -> Run:
    """Return what the three have in common; ``decay`` is the decoupled one."""
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(blurpool="convs-and-max-pool", zero_init_residual=False),
        images=Images(batch_size=BATCH, train_px=PX, sizes=sizes, test_px=224, test_resize_px=232),
        optim=Optim(
            name="sgdw",
            peak_lr=scaled_lr(0.256, BATCH),
            momentum=0.875,
            nesterov=False,
            weight_decay=decay,
            decayed="all",
        ),
        schedule=Schedule(warmup_epochs=8, warmup_start=0.0),
        loss=Loss(name="bce", label_smoothing=smoothing),
        average=Average(
            ema_horizon=half_life_horizon(100, batch_size=BATCH, epochs=epochs), every_steps=20
        ),
    )
