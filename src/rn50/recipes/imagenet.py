"""Recipes for ImageNet-1k."""

from rn50.config import Average, Images, Loss, Model, Optim, Run, Schedule
from rn50.recipes.scaling import scaled_lr


def imagenet_90(batch_size: int = 1024) -> Run:
    """ResNet-50 for 90 epochs at 224 px with flip and crop only, as torchvision's first weights.

    Source: pytorch/vision, references/classification (weights V1: batch 256, learning rate 0.1,
    weight decay 1e-4), with the linear scaling, warm-up and unscaled BatchNorm of Goyal et al.
    (2017, arXiv:1706.02677) and a cosine (arXiv:1812.01187) in place of three steps.
    Command: ``rn50 train imagenet-90 --data IMAGENET``
    Published: 76.13% top-1 at 224 px (torchvision V1); 76.86% for 100 epochs with cosine at
    batch 1024 (giung2/jax-imagenet).
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
