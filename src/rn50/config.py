"""Every setting of a run: frozen, typed, validated, written to JSON and read back.

A ``Run`` has two halves. The recipe half (``model``, ``images``, ``optim``, ``schedule``, ``loss``,
``average``, ``epochs``, ``seed``) fixes the mathematics. The other half (``hardware``, ``storage``,
``log``) fixes how and where it is computed, and can change between a run and its resumption.
Nothing is derived into a setting: the number of steps or the micro-batch per process are computed
where they are used.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic
import tyro
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rn50.errors import UsageError

_Section = TypeVar("_Section")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _section(cls: type[_Section]) -> type[_Section]:
    """Make a frozen pydantic dataclass whose refusals are one-line usage errors."""
    made: Any = pydantic.dataclasses.dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
    )(cls)
    checked = made.__init__
    prefix = "" if cls.__name__ == "Run" else f"{cls.__name__.lower()}."

    @functools.wraps(checked)
    def init(self: Any, **values: Any) -> None:
        try:
            checked(self, **values)
        except ValidationError as error:
            raise UsageError(explain(error, prefix)) from None

    made.__init__ = init
    section: type[_Section] = made
    return section


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@_section
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


@_section
class Images:
    """How images are batched, cropped and normalised."""

    batch_size: Annotated[Count, tyro.conf.arg(aliases=["--batch-size", "-b"])]
    """Images per update, over all processes and accumulation steps."""
    train_px: Annotated[int, Field(ge=8), tyro.conf.arg(aliases=["--train-px"])] = 224
    """Side of the square training crop after resizing, in pixels."""
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
        return self


@_section
class Optim:
    """Stochastic gradient descent with momentum."""

    peak_lr: Annotated[Positive, tyro.conf.arg(aliases=["--lr"])]
    """Learning rate after warm-up, for the whole global batch (not per 256 images)."""
    momentum: Annotated[float, Field(ge=0, lt=1), tyro.conf.arg(aliases=["--momentum"])] = 0.9
    """Share of the last step that is kept."""
    nesterov: bool = True
    """Look ahead along the momentum (Nesterov) instead of plain momentum."""
    weight_decay: Annotated[NotNegative, tyro.conf.arg(aliases=["--weight-decay", "--wd"])] = 5e-5
    """Coupled L2 decay of convolution and linear weights; never of BatchNorm or biases."""
    clip_grad_norm: Annotated[NotNegative, tyro.conf.arg(aliases=["--clip-grad-norm"])] = 0.0
    """Largest norm of the whole gradient, after unscaling; 0 turns clipping off."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optim":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set --optim.no-nesterov")
        return self


@_section
class Schedule:
    """Linear warm-up, then half a cosine, both as functions of the step."""

    warmup_epochs: Annotated[NotNegative, tyro.conf.arg(aliases=["--warmup-epochs"])] = 5.0
    """Epochs of linear rise to the peak; the cosine fills the rest of the run."""
    warmup_start: Fraction = 0.01
    """Learning rate of the first step, as a share of the peak."""
    final: Fraction = 0.0
    """Learning rate after the last step, as a share of the peak."""


@_section
class Loss:
    """Softmax cross-entropy."""

    label_smoothing: Annotated[
        float, Field(ge=0, lt=1), tyro.conf.arg(aliases=["--label-smoothing"])
    ] = 0.1
    """Share of the target spread evenly over all classes."""


@_section
class Average:
    """Exponential moving average (EMA) of the model, kept as a second model."""

    ema_horizon: Annotated[Fraction, tyro.conf.arg(aliases=["--ema-horizon"])] = 0.0
    """Time constant as a fraction of the run: 0.02 averages about the last 2% of all steps, on any
    data set and batch size. 0 keeps no average."""
    every_steps: Count = 1
    """Steps between two updates of the average; the horizon does not depend on it."""


@_section
class Hardware:
    """How the run is computed. Nothing here changes what is computed, but rounding."""

    device: Annotated[Device, tyro.conf.arg(aliases=["--device"])] = "auto"
    """auto: CUDA, else MPS, else the CPU."""
    precision: Annotated[Precision, tyro.conf.arg(aliases=["--precision"])] = "auto"
    """Arithmetic of forward and backward; weights stay fp32. auto: bf16 where the device computes
    it natively, else fp16 with a loss scaler on CUDA, else fp32."""
    micro_batch: Annotated[int, Field(ge=0), tyro.conf.arg(aliases=["--micro-batch"])] = 0
    """Images per forward pass and process; gradients are accumulated up to the batch. 0: the
    process's whole share. BatchNorm statistics are those of one micro-batch."""
    workers: Annotated[int, Field(ge=0), tyro.conf.arg(aliases=["--workers", "-j"])] = 0
    """Decoding threads per process; 0: one per core available to the process."""
    prefetch_batches: Count = 3
    """Batches decoded ahead."""
    compile: Annotated[bool, tyro.conf.arg(aliases=["--compile"])] = False
    """Compile the model with torch.compile."""
    deterministic: Annotated[bool, tyro.conf.arg(aliases=["--deterministic"])] = False
    """Use only deterministic kernels, so that two runs on one GPU type agree bit for bit (CPU runs
    do without it). Slower."""
    tf32: bool = True
    """Let fp32 matrix products and convolutions on CUDA use TensorFloat-32."""


@_section
class Storage:
    """Where data is read and results are written."""

    data: Annotated[str, tyro.conf.arg(name="data", aliases=["--data", "-d"])] = ""
    """Folder made by `rn50 prepare`, or the URL of a copy of one, such as `s3://bucket/prefix`.
    Empty: the demo data, made in the cache folder."""
    output_dir: Annotated[str, tyro.conf.arg(aliases=["--output-dir", "-o"])] = ""
    """Folder of the run. Empty: runs/<recipe>."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    """Save every so many steps; 0: never by steps."""
    checkpoint_minutes: NotNegative = 15.0
    """Save when so many minutes have passed since the last save; 0: never by time."""
    checkpoint_epochs: Annotated[int, Field(ge=0)] = 1
    """Save every so many epochs, and at the end; 0: only at the end."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept."""


@_section
class Log:
    """What is reported, and how often."""

    every_steps: Annotated[Count, tyro.conf.arg(aliases=["--log-every"])] = 20
    """Steps between two progress records; the only time the device is waited for."""
    eval_epochs: Annotated[Count, tyro.conf.arg(aliases=["--eval-every"])] = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `rn50[track]`)."""


@_section
class Run:
    """One training run, completely."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe that the run began from."""
    epochs: Count
    """Passes over the training images."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes every random draw of the run."""
    model: Model
    images: Images
    optim: Optim
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    average: Average = Average()
    hardware: Hardware = Hardware()
    storage: Storage = Storage()
    log: Log = Log()

    @model_validator(mode="after")
    def _warmup_ends_in_time(self) -> "Run":
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs:g}, but the run has only "
                f"{self.epochs} epochs; warm-up must end before the run: give --warmup-epochs too"
            )
        return self


MATHEMATICS = ("epochs", "seed", "model", "images", "optim", "schedule", "loss", "average")
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


def from_plain(section: type[_Section], values: Mapping[str, Any]) -> _Section:
    """Build one section from plain JSON values, as ``from_dict`` does a whole run."""
    try:
        return TypeAdapter(section).validate_python(dict(values))
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
    return dict(_flat({name: values[name] for name in MATHEMATICS}))


def explain(error: ValidationError, prefix: str = "") -> str:
    """Return a validation error as one line: name, value, what is allowed, what was meant."""
    return "; ".join(_explain_one(dict(item), prefix) for item in error.errors())


def _explain_one(item: dict[str, Any], prefix: str) -> str:
    name = prefix + ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        close = difflib.get_close_matches(name, _names(Run), n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"there is no setting '{name}'{hint}"
    if item["type"] in ("missing", "missing_argument"):
        return f"the setting '{name}' is missing; add it"
    if item["type"] == "value_error":
        return f"{name.removesuffix('.')}: {message}" if name else message
    return f"{name} is {item.get('input')!r}: {message[0].lower()}{message[1:]}"


def _names(section: Any, prefix: str = "") -> list[str]:
    names = []
    for item in fields(section):
        kind = item.type
        if is_dataclass(kind):
            names += _names(kind, f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs
