"""torchvision's two sets of weights (pytorch/vision, references/classification)."""

from rn50.config import Augment, Average, Images, Loss, Mix, Model, Optim, Run, Schedule
from rn50.recipes.scaling import IMAGENET_TRAIN, scaled_lr

EMA_DECAY = 0.99998
"""As given to torchvision's script, which scales it; see ``ema_horizon``."""


def torchvision_v1(batch_size: int = 256) -> Run:
    """Torchvision's first weights (V1).

    Source: pytorch/vision, references/classification, weights V1:
    ``torchrun --nproc_per_node=8 train.py --model resnet50``. Plain SGD without Nesterov momentum,
    no warm-up, and weight decay on every parameter, BatchNorm's too.
    Command: ``rn50 train torchvision-v1 --data IMAGENET``
    Published: 76.13% top-1, 92.86% top-5 (224 px of 256, one crop); repeated by others with
    75.38% to 75.88%.
    Measured: not yet run.
    """
    return Run(
        recipe="torchvision-v1",
        epochs=90,
        model=Model(zero_init_residual=False),
        images=Images(batch_size=batch_size, train_px=224, test_px=224, test_resize_px=256),
        optim=v1_optim(batch_size),
        schedule=Schedule(name="step", warmup_epochs=0, milestones=(30, 60)),
        loss=Loss(label_smoothing=0.0),
    )


def torchvision_v2(batch_size: int = 1024) -> Run:
    """Torchvision's second weights (V2).

    Source: pytorch/vision, references/classification, weights V2, and the blog post on its
    "latest primitives": TrivialAugmentWide, random erasing, mixup or CutMix, repeated augmentation,
    label smoothing, no decay of BatchNorm, an average, and a test size above the training size.
    Differences: repeated images are shuffled over the whole batch (torchvision strides them over
    the GPUs); the average's decay is warmed up by a formula where torchvision copies the model
    during warm-up; CutMix keeps its own alpha, which later versions of the script confuse with
    mixup's. No effect is expected of the first two.
    Command: ``rn50 train torchvision-v2 --data IMAGENET``
    Published: 80.86% top-1, 95.43% top-5 (224 px of 232, one crop, the average; best of three).
    Measured: not yet run.
    """
    return Run(
        recipe="torchvision-v2",
        epochs=600,
        model=Model(zero_init_residual=False),
        images=Images(batch_size=batch_size, train_px=176, test_px=224, test_resize_px=232),
        augment=v2_augment(),
        mix=v2_mix(),
        optim=v2_optim(batch_size),
        schedule=Schedule(warmup_epochs=5, warmup_start=0.01),
        loss=Loss(label_smoothing=0.1),
        average=Average(ema_horizon=ema_horizon(IMAGENET_TRAIN), every_steps=32),
    )


def v1_optim(batch_size: int) -> Optim:
    """Return V1's optimizer for a batch: 0.1 for 256 images, decay 1e-4 of everything."""
    return Optim(
        peak_lr=scaled_lr(0.1, batch_size), nesterov=False, weight_decay=1e-4, decayed="all"
    )


def v2_optim(batch_size: int) -> Optim:
    """Return V2's optimizer for a batch: 0.5 for 1024 images, decay 2e-5 but not of BatchNorm."""
    return Optim(
        peak_lr=scaled_lr(0.5, batch_size, 1024),
        nesterov=False,
        weight_decay=2e-5,
        decayed="all-but-norm",
    )


def v2_augment() -> Augment:
    """Return V2's augmentation: TrivialAugmentWide, erasing of a tenth, four copies."""
    return Augment(policy="trivialaugment", erase_prob=0.1, repeats=4)


def v2_mix() -> Mix:
    """Return V2's mixing: mixup 0.2 or CutMix 1.0, at equal chance."""
    return Mix(mixup_alpha=0.2, cutmix_alpha=1.0)


def ema_horizon(images: int, decay: float = EMA_DECAY) -> float:
    """Return the horizon, as a share of the run, of torchvision's average.

    The script turns its decay into ``1 - (1 - decay) * batch * 32 / epochs`` per update (every 32
    steps), whose horizon is ``1 / ((1 - decay) * images)`` of all steps, whatever the batch and the
    length: 3.9% on ImageNet, but half of the run on 100,000 images, where early weights dominate
    the average. That is why it is a share of the run here.
    """
    return 1 / ((1 - decay) * images)
