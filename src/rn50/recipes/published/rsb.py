"""The procedures A1, A2 and A3 of "ResNet strikes back" (Wightman et al., 2021, arXiv:2110.00476).

Read through timm's description of its weights and through mmpretrain's and OpenMixup's settings;
the paper's own tables could not be read. LAMB is timm's, which clips the whole gradient at a norm
of 1, with the rate's clock running during warm-up, timm's default.

Differences: training images are resized bilinearly, timm's by one of two filters at random (0.1
points at most); drawn magnitudes of RandAugment are those of ``rand-mM-mstd0.5-inc1``.
"""

from rn50.config import Augment, Images, Loss, Mix, Model, Optim, Run, Schedule

BATCH = 2048


def rsb_a1() -> Run:
    """ResNet strikes back, A1.

    Source: arXiv:2110.00476. Label smoothing 0.1 comes from mmpretrain's settings and from memory;
    it is used without timm's threshold, which would undo it.
    Command: ``rn50 train rsb-a1 --data IMAGENET``
    Published: 80.4% top-1 (224 px of 235, one crop); timm's weights 80.38%, at 288 px 81.24%;
    mmpretrain 80.12%.
    Measured: not yet run.
    """
    return _rsb(
        "rsb-a1",
        600,
        optim=_lamb(5e-3, decay=0.01),
        augment=_augment(7, repeats=3),
        mixup=0.2,
        loss=_bce(smoothing=0.1, threshold=0.0),
    )


def rsb_a2() -> Run:
    """ResNet strikes back, A2.

    Source: arXiv:2110.00476.
    Command: ``rn50 train rsb-a2 --data IMAGENET``
    Published: 79.8% top-1 (224 px of 235, one crop); timm's weights 79.83%, at 288 px 80.77%;
    mmpretrain 79.55%, OpenMixup 79.80%.
    Measured: not yet run.
    """
    return _rsb(
        "rsb-a2",
        300,
        optim=_lamb(5e-3, decay=0.02),
        augment=_augment(7, repeats=3),
        mixup=0.1,
        loss=_bce(),
    )


def rsb_a3() -> Run:
    """ResNet strikes back, A3.

    Source: arXiv:2110.00476.
    Command: ``rn50 train rsb-a3 --data IMAGENET``
    Published: 78.1% top-1 (224 px of 235, one crop); timm's weights 78.05%, at 160 px 75.99%;
    OpenMixup 78.08%. mmpretrain's 78.30% was trained at 224 px.
    Measured: not yet run.
    """
    return _rsb(
        "rsb-a3",
        100,
        optim=_lamb(8e-3, decay=0.02),
        augment=_augment(6, repeats=1),
        mixup=0.1,
        loss=_bce(),
        px=160,
    )


def _rsb(
    name: str,
    epochs: int,
    *,
    optim: Optim,
    augment: Augment,
    mixup: float,
    loss: Loss,
    px: int = 224,
) -> Run:
    """Return the common run; the two long ones have stochastic depth."""
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(stochastic_depth=0.05 if epochs >= 300 else 0.0),
        images=Images(batch_size=BATCH, train_px=px, test_px=224, test_resize_px=235),
        augment=augment,
        mix=Mix(mixup_alpha=mixup, cutmix_alpha=1.0),
        optim=optim,
        schedule=Schedule(
            warmup_epochs=5,
            warmup_start=1e-4 / optim.peak_lr,
            warmup_inside=True,
            final=1e-6 / optim.peak_lr,
        ),
        loss=loss,
    )


def _lamb(peak_lr: float, *, decay: float) -> Optim:
    return Optim(name="lamb", peak_lr=peak_lr, weight_decay=decay, clip_grad_norm=1.0)


def _augment(magnitude: float, *, repeats: int) -> Augment:
    return Augment(policy="randaugment-timm", magnitude=magnitude, repeats=repeats)


def _bce(*, smoothing: float = 0.0, threshold: float = 0.2) -> Loss:
    """Return timm's binary cross-entropy: the mean over classes, the bias left at its start."""
    return Loss(
        name="bce",
        label_smoothing=smoothing,
        bce_over_classes="mean",
        bce_threshold=threshold,
        bce_log_bias=False,
    )
