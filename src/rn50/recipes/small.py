"""Recipes for data sets that a laptop can hold."""

from rn50.config import Average, Images, Log, Loss, Model, Optim, Run, Schedule

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)


def demo() -> Run:
    """ResNet-50 on procedural images of ten objects: a real run in minutes, with no download.

    Source: ours, to show the whole path on any machine.
    Command: ``rn50 train``
    Published: none; chance is 10%.
    Measured: 98.6% top-1 in 2.5 minutes on 2 CPU cores (docs/results.md).
    """
    return Run(
        recipe="demo",
        epochs=4,
        model=Model(num_classes=10),
        images=Images(
            batch_size=64, train_px=64, test_px=64, test_resize_px=72, crop_area=(0.35, 1.0)
        ),
        optim=Optim(peak_lr=0.1),
        schedule=Schedule(warmup_epochs=1),
        average=Average(ema_horizon=0.03),
        log=Log(every_steps=5),
    )


def cifar10_resnet18() -> Run:
    """ResNet-18 with the small-image stem on CIFAR-10, 30 epochs at 32 px.

    Source: ours; the stem and the weight decay are those of the usual CIFAR ResNet-18.
    Command: ``rn50 train cifar10-resnet18 --data CIFAR10``
    Published: 94.8% to 95.4% in 200 epochs (mmpretrain; afzalxo).
    Measured: not yet run.
    """
    return Run(
        recipe="cifar10-resnet18",
        epochs=30,
        model=Model(arch="resnet18", num_classes=10, stem="small"),
        images=Images(
            batch_size=256,
            train_px=32,
            test_px=32,
            test_resize_px=32,
            crop_area=(0.4, 1.0),
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
        ),
        optim=Optim(peak_lr=0.2, weight_decay=5e-4),
        schedule=Schedule(warmup_epochs=3),
        average=Average(ema_horizon=0.02),
    )


def cifar10_resnet50() -> Run:
    """ResNet-50 with the small-image stem on CIFAR-10, 60 epochs at 32 px.

    Source: ``cifar10_resnet18``, longer for the larger network.
    Command: ``rn50 train cifar10-resnet50 --data CIFAR10``
    Published: 95.5% in 200 epochs (mmpretrain; afzalxo).
    Measured: not yet run.
    """
    return Run(
        recipe="cifar10-resnet50",
        epochs=60,
        model=Model(arch="resnet50", num_classes=10, stem="small"),
        images=cifar10_resnet18().images,
        optim=Optim(peak_lr=0.2, weight_decay=5e-4),
        schedule=Schedule(warmup_epochs=5),
        average=Average(ema_horizon=0.02),
    )


def tiny_imagenet_resnet50() -> Run:
    """ResNet-50 with the small-image stem on Tiny-ImageNet, 100 epochs at 64 px.

    Source: giung2's JAX runs (SGD with Nesterov momentum, batch 128, learning rate 0.1, weight
    decay 5e-4, cosine with 5 epochs of warm-up), at twice the batch and learning rate, with
    label smoothing, random resized crops and an average.
    Command: ``rn50 train tiny-imagenet-resnet50 --data TINY_IMAGENET``
    Published: 69.2% to 69.4% top-1 in 100 epochs (giung2, 90,000 training images).
    Measured: 10.7% after one epoch with the ImageNet stem, on a CPU (docs/results.md).
    """
    return Run(
        recipe="tiny-imagenet-resnet50",
        epochs=100,
        model=Model(num_classes=200, stem="small"),
        images=Images(
            batch_size=256, train_px=64, test_px=64, test_resize_px=64, crop_area=(0.25, 1.0)
        ),
        optim=Optim(peak_lr=0.2, weight_decay=5e-4),
        schedule=Schedule(warmup_epochs=5),
        loss=Loss(label_smoothing=0.1),
        average=Average(ema_horizon=0.02),
    )
