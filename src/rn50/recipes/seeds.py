"""Runs of the four ResNet-50 projects that rn50 replaces: its seeds, called S0, S1, S3 and S4.

On record is what each docstring names under "Recorded": lengths, results, methods, traps. The rest
of each run was filled in with what is usual ("filled in"), and so a result here is no repetition
to the tenth of a point. Known mistakes were not taken over.
"""

from rn50.config import Augment, Average, Images, Loss, Mix, Model, Optim, Run, Schedule
from rn50.recipes.scaling import Sizes, scaled_lr


def s0_kaggle() -> Run:
    """S0, first phase: ImageNet-mini.

    Source: S0, "81% in three phases". Recorded: that this phase is to show in a notebook that all
    parts work, on one T4. Filled in: the data (ImageNet-mini-1000, which Kaggle hosts: 34,745
    images), 20 epochs, the settings of ``s0-production``.
    Command: ``rn50 train s0-kaggle --data IMAGENET_MINI``
    Published: none.
    Measured: not yet run.
    """
    return _s0("s0-kaggle", 20, classes=1000, warmup_epochs=2)


def s0_ec2_sample() -> Run:
    """S0, second phase: a small sample.

    Source: S0, "81% in three phases". Recorded: the data, imagenette2-320, taken for a sample of
    100 classes and trained with 1000 outputs; it has 10, and so has the network here. Filled in:
    40 epochs, the settings of ``s0-production``.
    Command: ``rn50 train s0-ec2-sample --data IMAGENETTE``
    Published: none.
    Measured: not yet run.
    """
    return _s0("s0-ec2-sample", 40, classes=10, warmup_epochs=2)


def s0_production() -> Run:
    """S0, third phase: all methods.

    Source: S0, "81% in three phases". Recorded: 100 epochs on one T4; the methods: SGD with
    Nesterov momentum, cosine after warm-up, zero-initialised residuals, RandAugment, mixup, CutMix,
    random erasing, label smoothing, stochastic depth, an average. Filled in: their strengths, the
    batch and the rate.
    The target of 81% is not to be expected: no published run of a plain ResNet-50 is above 78.7 in
    100 epochs, nor at 81 at 224 px in any number. On one T4 S3 measured 131 hours for as many
    epochs, where S0 planned for 60 to 80.
    Command: ``rn50 train s0-production --data IMAGENET``
    Published: none; a target only.
    Measured: not yet run.
    """
    return _s0("s0-production", 100, classes=1000, warmup_epochs=5)


def s1_cosine_swa(batch_size: int = 256) -> Run:
    """S1's cosine, then SWA.

    Source: S1. Recorded: a cosine over 90 epochs to nothing, then SWA over 10; 40 minutes an epoch
    on one A10G. Filled in: the batch and its rate (torchvision's 0.1 for 256 images), mixup 0.2,
    label smoothing.
    Not taken over: the tail's rate of 0.1, which raised the rate back to the peak and undid the
    cosine; a twentieth of the peak holds here, reached within an epoch. S1's own average of the
    weights stood at chance, since it left BatchNorm's statistics behind; here both averages have
    theirs, and both resume.
    Command: ``rn50 train s1-cosine-swa --data IMAGENET``
    Published: 75.74% top-1 (S1's log, after 91 epochs, before SWA had any effect; 224 px).
    Measured: not yet run.
    """
    return Run(
        recipe="s1-cosine-swa",
        epochs=100,
        model=Model(),
        images=Images(batch_size=batch_size),
        mix=Mix(mixup_alpha=0.2),
        optim=Optim(peak_lr=scaled_lr(0.1, batch_size), weight_decay=5e-5),
        schedule=Schedule(tail_epochs=10, tail_lr=0.05, tail_anneal_epochs=1),
        average=Average(ema_horizon=0.02, swa_epochs=10),
    )


def s3_onecycle_50() -> Run:
    """S3's OneCycle on one T4.

    Source: S3. Recorded: OneCycle with a last rate 10,000 times below the first, batch 170, 4,724 s
    an epoch (271 images/s) on one T4, and its curve: 49.9 after 10 epochs, 52.6 after 20, 57.1
    after 30, 62.2 after 40. Filled in: the peak (0.2 for 256 images), torch's other defaults, with
    a momentum that moves against the rate, mixup 0.2, label smoothing.
    Command: ``rn50 train s3-onecycle-50 --data IMAGENET``
    Published: 75.27% top-1, 92.56% top-5 (S3's log, epoch 51; 224 px, one crop).
    Measured: not yet run.
    """
    return _s3("s3-onecycle-50", 50)


def s3_onecycle_120() -> Run:
    """S3's OneCycle, longer.

    Source: S3, ``s3-onecycle-50`` at its planned greater length.
    Command: ``rn50 train s3-onecycle-120 --data IMAGENET``
    Published: none.
    Measured: not yet run.
    """
    return _s3("s3-onecycle-120", 120)


def s4_medium(batch_size: int = 1024) -> Run:
    """S4's medium: up to 288 px.

    Source: S4. Recorded: images of 128, 224 and 288 px, the last as FixRes's phase at a higher
    resolution, BlurPool, OneCycle, 90 epochs, 10 to 11 hours on 8 V100. Filled in: the epochs at
    which images grow (35 and 80), the rate (torchvision's 0.5 for 1024 images), and from Mosaic's
    medium recipe mixup 0.2 and label smoothing 0.1.
    Its claim is word for word the range that Mosaic published for 60 to 240 epochs of its medium
    recipe, so that it may be a quotation rather than a measurement.
    Command: ``rn50 train s4-medium --data IMAGENET``
    Published: 78.1% to 79.5% top-1 (S4's own claim; how it was tested is not on record).
    Measured: not yet run.
    """
    sizes: Sizes = ((0, 128), (35, 224), (80, 288))
    return Run(
        recipe="s4-medium",
        epochs=90,
        model=Model(blurpool="convs-and-max-pool"),
        images=Images(
            batch_size=batch_size, train_px=288, sizes=sizes, test_px=288, test_resize_px=328
        ),
        mix=Mix(mixup_alpha=0.2),
        optim=Optim(peak_lr=scaled_lr(0.5, batch_size, 1024)),
        schedule=Schedule(name="onecycle", warmup_epochs=0, cycle_momentum=(0.85, 0.95)),
        loss=Loss(label_smoothing=0.1),
    )


def _s0(name: str, epochs: int, *, classes: int, warmup_epochs: float) -> Run:
    batch_size = 256
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(num_classes=classes, stochastic_depth=0.05),
        images=Images(batch_size=batch_size),
        augment=Augment(policy="randaugment", num_ops=2, magnitude=9, erase_prob=0.1),
        mix=Mix(mixup_alpha=0.2, cutmix_alpha=1.0),
        optim=Optim(peak_lr=scaled_lr(0.1, batch_size), weight_decay=5e-5),
        schedule=Schedule(warmup_epochs=warmup_epochs),
        average=Average(ema_horizon=0.02),
    )


def _s3(name: str, epochs: int) -> Run:
    batch_size = 170
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(),
        images=Images(batch_size=batch_size),
        mix=Mix(mixup_alpha=0.2),
        optim=Optim(peak_lr=scaled_lr(0.2, batch_size), weight_decay=5e-5),
        schedule=Schedule(
            name="onecycle", warmup_epochs=0, final_div=1e4, cycle_momentum=(0.85, 0.95)
        ),
    )
