"""FFCV's runs (libffcv/ffcv-imagenet, rn50_configs): short, BlurPool, growing images.

Their published scores are of 256 px with the image and its mirror image averaged (``lr_tta``), as
the repository's own result table and configuration say against its README; that is worth some 0.5
to 1 points (an estimate). Scores here are of one crop at 256 px, without the mirror.

Differences: their weight decay goes by the name ``bn`` and so includes the four BatchNorms of the
shortcuts, ours none (no effect expected); their images are packed at 500 px, half of them as
JPEG of quality 90.
"""

from rn50.config import Images, Loss, Model, Optim, Run, Schedule
from rn50.recipes.scaling import ffcv_sizes, scaled_lr


def ffcv_16() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-16 --data IMAGENET``
    Published: 73.76% top-1, 91.84% top-5 (256 px, mirrored too), 14.9 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(16, start=11, end=13)


def ffcv_24() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-24 --data IMAGENET``
    Published: 75.56% top-1, 92.70% top-5 (256 px, mirrored too), 21.7 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(24, start=17, end=20)


def ffcv_32() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-32 --data IMAGENET``
    Published: 76.59% top-1, 93.47% top-5 (256 px, mirrored too), 28.8 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(32, start=23, end=27)


def ffcv_40() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-40 --data IMAGENET``
    Published: 77.24% top-1, 93.71% top-5 (256 px, mirrored too), 35.6 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(40, start=29, end=34)


def ffcv_56() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-56 --data IMAGENET``
    Published: 78.02% top-1, 94.08% top-5 (256 px, mirrored too), 49.4 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(56, start=41, end=48)


def ffcv_88() -> Run:
    """FFCV: growing images, BlurPool.

    Source: libffcv/ffcv-imagenet, rn50_configs.
    Command: ``rn50 train ffcv-88 --data IMAGENET``
    Published: 78.43% top-1, 94.26% top-5 (256 px, mirrored too), 77.2 minutes on 8 A100.
    Measured: not yet run.
    """
    return _ffcv(88, start=65, end=76)


def _ffcv(epochs: int, *, start: int, end: int, batch_size: int = 4096) -> Run:
    """Return the common run; ``start`` and ``end`` are the corners of the ramp of sizes."""
    return Run(
        recipe=f"ffcv-{epochs}",
        epochs=epochs,
        model=Model(blurpool="convs", zero_init_residual=False),
        images=Images(
            batch_size=batch_size,
            train_px=192,
            sizes=ffcv_sizes(160, 192, start=start, end=end),
            test_px=256,
            test_resize_px=293,  # their crop takes 224/256 of the shorter side
        ),
        optim=Optim(
            peak_lr=scaled_lr(1.7, batch_size, 4096),
            nesterov=False,
            weight_decay=1e-4,
            decayed="all-but-norm",
        ),
        schedule=Schedule(name="triangular", warmup_epochs=2, warmup_start=1e-4),
        loss=Loss(label_smoothing=0.1),
    )
