"""Every setting of a run: frozen, typed, validated, written to JSON and read back.

A ``Run`` has two halves. The recipe half (``epochs``, ``seed``, ``init_from``, ``model``,
``images``, ``augment``, ``mix``, ``optim``, ``schedule``, ``loss``, ``average``) fixes the
mathematics. The other half (``hardware``, ``storage``, ``guard``, ``log``) fixes how and where it
is computed, and can change between a run and its resumption.
Nothing is derived into a setting: the number of steps or the micro-batch per process are computed
where they are used.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from rn50.augmentation import Augment as Augment
from rn50.augmentation import Mix as Mix
from rn50.averaging import Average as Average
from rn50.averaging import check as check_averages
from rn50.errors import UsageError
from rn50.optimisation import Loss as Loss
from rn50.optimisation import Optim as Optim
from rn50.optimisation import Schedule as Schedule
from rn50.optimisation import check_scale
from rn50.reporting import Log as Log
from rn50.safeguards import Guard as Guard
from rn50.section import Count, Fraction, NotNegative, Positive, explain, section

_Section = TypeVar("_Section")

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
SpotNotices = Literal["auto", "ec2", "gcp", "azure", "off"]
ProfileName = Literal["auto", "local", "t4", "p3", "g5", "p4d", "h100"]


@section
class Model:
    """Which network is trained."""

    arch: Annotated[Arch, tyro.conf.arg(aliases=["--arch"])] = "resnet50"
    """Depth of the residual network (version 1.5: stride in the 3x3 convolution)."""
    num_classes: Count = 1000
    """Outputs of the last layer. It must equal the data set's number of classes."""
    classes: Literal["data", "imagenet"] = "data"
    """data: output i is the i-th class of the data; imagenet: the 1000 outputs are ImageNet's, and
    data of some of its classes (imagenette) is labelled by their places among them."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2 and max-pool; small: 3x3 of stride 1 and no max-pool,
    for images of 32 to 64 px (about 16 times the work per pixel)."""
    zero_init_residual: bool = True
    """Start the last BatchNorm of each block at 0, so that blocks begin as the identity."""
    blurpool: Literal["none", "convs", "convs-and-max-pool"] = "none"
    """Blur before pixels are dropped: in strided convolutions (as FFCV), or in the max-pool too (as
    Composer)."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that an image skips the last residual block in training; linear from 0 at the
    first block."""
    train_only: Literal["all", "classifier-and-last-bn"] = "all"
    """classifier-and-last-bn: all else is frozen, the last BatchNorm follows its statistics alone
    (the fine-tuning of FixRes, from `--init-from`)."""

    @model_validator(mode="after")
    def _frozen_blocks_are_whole(self) -> "Model":
        if self.train_only != "all" and self.stochastic_depth > 0:
            raise ValueError(
                f"stochastic_depth is {self.stochastic_depth:g}, but with train_only "
                f"{self.train_only} no block is trained; give --model.stochastic-depth 0"
            )
        return self


@section
class Images:
    """How images are batched, cropped and normalised."""

    batch_size: Annotated[Count, tyro.conf.arg(aliases=["--batch-size", "-b"])]
    """Images per update, over all processes and accumulation steps."""
    train_px: Annotated[int, Field(ge=8), tyro.conf.arg(aliases=["--train-px"])] = 224
    """Side of the square training crop after resizing, in pixels."""
    sizes: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=8)]], ...] = ()
    """Progressive resizing: (epoch, side of the training crop from there on), ascending in the
    epoch, with at most five sides in all; ``train_px`` holds before the first."""
    multi_scale: tuple[Annotated[int, Field(ge=8)], ...] = ()
    """Multi-scale training: each step draws its crops' side evenly from these, ascending up to
    ``train_px``, until ``sizes`` begin. The batch keeps its size (MobileViT's MSc-FBS, Mehta and
    Rastegari 2021, arXiv 2110.02178; YOLOv2, arXiv 1612.08242, draws every ten steps)."""
    test_px: Annotated[int, Field(ge=8)] = 224
    """Side of the central evaluation crop, in pixels."""
    test_resize_px: Annotated[int, Field(ge=8)] = 256
    """Shorter side that an evaluation image is resized to before it is cropped, in pixels."""
    crop_area: tuple[Positive, Positive] = (0.08, 1.0)
    """Share of the image's area that a training crop covers, drawn evenly from this range."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width over height of a training crop, drawn evenly in the logarithm from this range."""
    flip_prob: Fraction = 0.5
    """Probability of mirroring a training image left to right."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of an image scaled to 0..1 (red, green, blue)."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Each channel is divided by this after the mean was subtracted."""

    @model_validator(mode="after")
    def _ordered(self) -> "Images":
        if not self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area is {self.crop_area}; it must ascend and end at 1 or below")
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; it must ascend")
        if self.test_resize_px < self.test_px:
            raise ValueError(
                f"test_resize_px is {self.test_resize_px}; it must be at least test_px "
                f"({self.test_px}), or the crop would reach beyond the image"
            )
        epochs = [epoch for epoch, _ in self.sizes]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"sizes begin at the epochs {epochs}; these must ascend")
        scales = self.multi_scale
        ascending = list(scales) == sorted({*scales})
        if scales and (len(scales) < 2 or not ascending or scales[-1] != self.train_px):
            raise ValueError(
                f"multi_scale is {scales}; it must be two sides or more that ascend to train_px, "
                f"which is {self.train_px}"
            )
        if scales and epochs and epochs[0] == 0:
            raise ValueError("sizes begin at epoch 0 and leave multi_scale no epoch; drop one")
        sides = {*scales, *(self.px_at(epoch) for epoch in (0, *epochs))}
        if len(sides) > 5:
            raise ValueError(
                f"sizes has {len(sides)} different sides{' with multi_scale' if scales else ''}; "
                "at most five keep memory and compiled code in bounds: merge neighbours"
            )
        return self

    def px_at(self, epoch: int) -> int:
        """Return the side of the training crop in an epoch, counted from 0; the largest of it."""
        begun = [px for start, px in self.sizes if start <= epoch]
        return begun[-1] if begun else self.train_px

    def sides_at(self, epoch: int) -> tuple[int, ...]:
        """Return the sides, ascending, from which the steps of an epoch draw theirs."""
        begun = self.sizes and self.sizes[0][0] <= epoch
        return (self.px_at(epoch),) if begun or not self.multi_scale else self.multi_scale


@section
class Hardware:
    """How the run is computed. Nothing here changes what is computed, but rounding."""

    profile: Annotated[ProfileName, tyro.conf.arg(aliases=["--profile"])] = "auto"
    """Kind of machine, which decides what the settings below leave open; `rn50 hardware` tells what
    each decides. auto: by the GPU."""
    device: Annotated[Device, tyro.conf.arg(aliases=["--device"])] = "auto"
    """auto: CUDA, else MPS, else the CPU."""
    precision: Annotated[Precision, tyro.conf.arg(aliases=["--precision"])] = "auto"
    """Arithmetic of forward and backward; weights stay fp32. auto, as the profile says: bf16 where
    the device computes it natively, else fp16 with a loss scaler on CUDA, else fp32."""
    micro_batch: Annotated[int, Field(ge=0), tyro.conf.arg(aliases=["--micro-batch"])] = 0
    """Images per forward pass and process; gradients are accumulated up to the batch. 0: the
    process's whole share, or the largest divisor of it that fits into memory. BatchNorm statistics
    are those of one micro-batch; a resumed run keeps the one it began with."""
    workers: Annotated[int, Field(ge=0), tyro.conf.arg(aliases=["--workers", "-j"])] = 0
    """Decoding threads per process; 0: one per core available to the process."""
    prefetch_batches: Annotated[int, Field(ge=0)] = 0
    """Batches decoded ahead; 0: as the profile says."""
    recompute: bool = False
    """Activation checkpointing: keep only the residual blocks' inputs and compute the rest anew in
    backward. A third slower, at a fraction of the memory; the same results."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over the micro-batches of all processes together; CUDA only."""
    compile: bool | None = None
    """Compile the model with torch.compile (in short `--compile` or `--no-compile`). None: as the
    profile says."""
    deterministic: Annotated[bool, tyro.conf.arg(aliases=["--deterministic"])] = False
    """Use only deterministic kernels, so that two runs on one GPU type agree bit for bit (CPU runs
    do without it). Slower."""
    tf32: bool = True
    """Let fp32 matrix products and convolutions on CUDA use TensorFloat-32."""


@section
class Storage:
    """Where data is read and results are written."""

    data: Annotated[str, tyro.conf.arg(name="data", aliases=["--data", "-d"])] = ""
    """Folder made by `rn50 prepare`, or the URL of a copy of one, such as `s3://bucket/prefix`.
    Empty: the demo data, made in the cache folder."""
    on_bad_image: Annotated[Literal["error", "skip"], tyro.conf.arg(aliases=["--on-bad-image"])] = (
        "error"
    )
    """An image that no longer decodes, or whose hash is wrong. error: end the run, naming it. skip:
    train on another image of its class, the same on any machine, and score it as wrong; each is
    recorded. A run that ends under error is the same under skip, so it may be changed on resume."""
    max_bad_images: Fraction = 0.001
    """Share of a split's images that may be skipped; more end the run."""
    verify_reads: bool = False
    """Compare every image with its hash whenever it is read (14% of decoding), not only those that
    a decoder complains of."""
    output_dir: Annotated[str, tyro.conf.arg(aliases=["--output-dir", "-o"])] = ""
    """Folder of the run. Empty: runs/<recipe>."""
    mirror: Annotated[str, tyro.conf.arg(aliases=["--mirror"])] = ""
    """URL, such as `s3://bucket/runs/name`, or folder on another disk: checkpoints and reports are
    copied there in the background, and `--resume` fetches from there what is newer."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    """Save every so many steps; 0: never by steps."""
    checkpoint_minutes: NotNegative = 15.0
    """Save when so many minutes have passed since the last save; 0: never by time."""
    checkpoint_epochs: Annotated[int, Field(ge=0)] = 1
    """Save every so many epochs, and at the end; 0: only at the end."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept; the best one and the one that the run was
    resumed from stay besides."""
    keep_every_epochs: Annotated[int, Field(ge=0)] = 0
    """Keep the checkpoint of every so many epochs for good; 0: none but those above."""
    best_metric: Literal["top1", "top5", "loss"] = "top1"
    """Score on the validation images by which the best epoch is told, of those that end with a
    checkpoint; its network is written to best.safetensors."""
    best_of: Literal["any", "model", "average", "swa"] = "any"
    """Which network's score counts."""
    save_best_only: Annotated[bool, tyro.conf.arg(aliases=["--save-best-only"])] = False
    """Write weights files when the score is a new best, and at the end of the run, but not every
    epoch; and keep one checkpoint to resume from besides the best one."""
    spot_notices: SpotNotices = "auto"
    """Whose notices are watched that this machine is about to be taken away: then the run saves and
    exits with 33. auto: those of the cloud that the machine's firmware names, if any."""


@section
class Run:
    """One training run, completely."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe that the run began from."""
    epochs: Count
    """Passes over the training images."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes every random draw of the run."""
    init_from: str = ""
    """Weights to begin from instead of random ones: a weights file, the folder of a run (its SWA,
    else its EMA, else its model), or a state_dict of torchvision or timm (.pth, .safetensors).
    Step 0 and a new optimizer: this is no --resume."""
    model: Model
    images: Images
    augment: Augment = Augment()
    mix: Mix = Mix()
    optim: Optim
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    average: Average = Average()
    hardware: Hardware = Hardware()
    storage: Storage = Storage()
    guard: Guard = Guard()
    log: Log = Log()

    @model_validator(mode="after")
    def _phases_end_in_time(self) -> "Run":
        schedule, epochs = self.schedule, self.epochs
        if schedule.warmup_epochs >= epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {schedule.warmup_epochs:g}, but the run has only "
                f"{epochs} epochs; warm-up must end before the run: give --warmup-epochs too"
            )
        if schedule.warmup_epochs + schedule.tail_epochs >= epochs:
            raise ValueError(
                f"schedule.tail_epochs is {schedule.tail_epochs:g}, but only "
                f"{epochs - schedule.warmup_epochs:g} of the run's {epochs} epochs come after "
                "warm-up; the tail must be shorter than they are"
            )
        for setting, length in (
            ("tail_anneal_epochs", schedule.tail_anneal_epochs),
            ("tail_cycle_epochs", schedule.tail_cycle_epochs),
        ):
            if length > schedule.tail_epochs:
                raise ValueError(
                    f"schedule.{setting} is {length:g}, which is longer than the tail "
                    f"({schedule.tail_epochs:g} epochs); give a longer --schedule.tail-epochs"
                )
        if schedule.milestones and schedule.milestones[-1] >= epochs - schedule.tail_epochs:
            raise ValueError(
                f"schedule.milestones has {schedule.milestones[-1]:g}, but the schedule ends after "
                f"{epochs - schedule.tail_epochs:g} epochs; every milestone must come before"
            )
        return self

    @model_validator(mode="after")
    def _averages_make_sense(self) -> "Run":
        check_averages(self.average, self.schedule, self.epochs)
        check_scale(self.optim, self.loss)
        return self

    @model_validator(mode="after")
    def _batches_hold_pairs(self) -> "Run":
        for name, size in (
            ("images.batch_size", self.images.batch_size),
            ("hardware.micro_batch", self.hardware.micro_batch),
        ):
            if self.mix.is_on and size % 2:
                raise ValueError(f"{name} is {size}, but images are mixed in pairs; make it even")
        if self.augment.repeats > 1 and self.images.batch_size < 2 * self.augment.repeats:
            raise ValueError(
                f"augment.repeats is {self.augment.repeats}, but a batch has only "
                f"{self.images.batch_size} images; it must hold two images so often: give "
                f"--batch-size {2 * self.augment.repeats} or more, or fewer repeats"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Run":
        stride = 32 if self.model.stem == "imagenet" else 8
        for epoch, px in self.images.sizes:
            if epoch >= self.epochs:
                raise ValueError(
                    f"images.sizes has {px} px from epoch {epoch} on, but the run's epochs are 0 "
                    f"to {self.epochs - 1}; give earlier epochs, or more --epochs"
                )
        sides = [("sizes", px) for _, px in self.images.sizes]
        for name, px in (*sides, *(("multi_scale", px) for px in self.images.multi_scale)):
            # A side between two multiples ends in a map as large as the next multiple's, and sees
            # less. The size that training is for is the user's choice (176 px, say).
            if px % stride and px != self.images.train_px:
                raise ValueError(
                    f"images.{name} has {px} px; a size on the way to train_px must be divisible "
                    f"by {stride}, by which the network divides it: {px - px % stride} or "
                    f"{px - px % stride + stride}"
                )
        return self


MATHEMATICS = (
    *("epochs", "seed", "init_from", "model", "images", "augment", "mix"),
    *("optim", "schedule", "loss", "average"),
)
"""Fields of ``Run`` that decide what is trained; the others only decide how and where."""


def to_dict(run: Run) -> dict[str, Any]:
    """Return a run as plain JSON values; tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(run)))
    return plain


def from_dict(values: Mapping[str, Any]) -> Run:
    """Build a run from ``to_dict``'s result, checking every name and value.

    Raises:
        UsageError: A setting is unknown, missing or out of its range.
    """
    return from_plain(Run, values)


def from_plain(kind: type[_Section], values: Mapping[str, Any]) -> _Section:
    """Build one section from plain JSON values, as ``from_dict`` does a whole run."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UsageError(explain(error)) from error


def load(path: Path) -> Run:
    """Read a run from a JSON file, such as the ``config.json`` of an earlier run."""
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(
            f"cannot read the settings in {path}: {error}; give the config.json of a run"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings; give the config.json of a run")
    return from_dict(values)


def mathematics(run: Run) -> dict[str, Any]:
    """Return the settings that decide what is trained, flat: ``{"optim.peak_lr": 0.5, …}``."""
    values = to_dict(run)
    return flat({name: values[name] for name in MATHEMATICS})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``{"section.setting": value, …}``, in their order."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{name}.")
        else:
            pairs[prefix + name] = value
    return pairs
