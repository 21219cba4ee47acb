"""NVIDIA's runs: DeepLearningExamples (ResNet-50 v1.5, PyTorch) and the MLPerf submissions.

The weight decay of the former depends on the batch: 6.1e-5 up to 1024 images, half as much above.

Differences: the former finds BatchNorm by the name ``bn`` and so decays the four of the shortcuts,
ours none; its convolutions begin by fan-in, ours by fan-out; its rate rises once an epoch during
warm-up, here at every step. No effect beyond the spread of seeds is expected.
"""

from rn50.config import Images, Loss, Mix, Model, Optim, Run, Schedule
from rn50.recipes.scaling import scaled_lr


def nvidia_90(batch_size: int = 2048) -> Run:
    """NVIDIA's plain run.

    Source: NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5.
    Command: ``rn50 train nvidia-90 --data IMAGENET``
    Published: 77.12% top-1 (224 px of 256, one crop; deviation 0.11 points; A100, mixed precision).
    Measured: not yet run.
    """
    return _nvidia("nvidia-90", 90, batch_size, Mix())


def nvidia_250(batch_size: int = 2048) -> Run:
    """NVIDIA's longer run, with mixup.

    Source: NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5.
    Command: ``rn50 train nvidia-250 --data IMAGENET``
    Published: 78.43% top-1 (224 px of 256, one crop; deviation 0.11 points; A100, mixed precision).
    Measured: not yet run.
    """
    return _nvidia("nvidia-250", 250, batch_size, Mix(mixup_alpha=0.2))


def mlperf_lars(batch_size: int = 3200) -> Run:
    """MLPerf's closed division: LARS.

    Source: NVIDIA's one-node submission to MLPerf Training 4.0 (mlcommons/training_results_v4.0),
    whose rules fix the network and the test. It stops after 35 of these 37 epochs, as soon as the
    target is met, so its score is one on the way and not the end of a schedule.
    At 1536 to 1632 images NVIDIA takes a rate of 7.2 to 7.5, at 408 3.0: nearer to the root of the
    batch than to the batch, so this is how it is scaled here (7.6, 7.9 and 3.9).
    Differences: LARS does not adapt to the bias of the classifier (no effect expected).
    Command: ``rn50 train mlperf-lars --data IMAGENET``
    Published: 75.9% top-1 or more (224 px of 256, one crop; at the first crossing), 12.03 minutes
    on 8 H200.
    Measured: not yet run.
    """
    peak_lr = scaled_lr(11.0, batch_size, 3200, rule="sqrt")
    return Run(
        recipe="mlperf-lars",
        epochs=37,
        model=Model(),
        images=Images(
            batch_size=batch_size,
            train_px=224,
            test_px=224,
            test_resize_px=256,
            crop_area=(0.05, 1.0),
        ),
        optim=Optim(
            name="lars",
            peak_lr=peak_lr,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-5,
            decayed="all-but-norm",
            trust_coefficient=0.001,
        ),
        schedule=Schedule(
            name="polynomial", power=2.0, warmup_epochs=2, warmup_start=0.0, final=1e-4 / peak_lr
        ),
        loss=Loss(label_smoothing=0.1),
    )


def _nvidia(name: str, epochs: int, batch_size: int, mix: Mix) -> Run:
    return Run(
        recipe=name,
        epochs=epochs,
        model=Model(zero_init_residual=False),
        images=Images(batch_size=batch_size, train_px=224, test_px=224, test_resize_px=256),
        mix=mix,
        optim=Optim(
            peak_lr=scaled_lr(0.256, batch_size),
            momentum=0.875,
            nesterov=False,
            weight_decay=6.1e-5 if batch_size <= 1024 else 3.05e-5,
            decayed="all-but-norm",
        ),
        schedule=Schedule(warmup_epochs=8, warmup_start=1 / 8),
        loss=Loss(label_smoothing=0.1),
    )
