"""The settings of how weights are moved: optimizer, schedule and loss."""

from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from rn50.section import Count, Fraction, NotNegative, Positive, section

BelowOne = Annotated[float, Field(ge=0, lt=1)]


@section
class Optim:
    """The optimizer: stochastic gradient descent with momentum, or another."""

    name: Annotated[
        Literal["sgd", "sgdw", "lars", "lamb", "adamw"], tyro.conf.arg(aliases=["--optimizer"])
    ] = "sgd"
    """sgd: coupled decay; sgdw: SGD with decoupled decay; lars and lamb: with a trust ratio per
    layer, for large batches; adamw: Adam with decoupled decay."""
    peak_lr: Annotated[Positive, tyro.conf.arg(aliases=["--lr"])]
    """Learning rate after warm-up, for the whole global batch (not per 256 images)."""
    momentum: Annotated[float, Field(ge=0, lt=1), tyro.conf.arg(aliases=["--momentum"])] = 0.9
    """Share of the last step that is kept. LAMB and AdamW use ``betas`` instead."""
    nesterov: bool = True
    """Look ahead along the momentum (Nesterov) instead of plain momentum; SGD, SGDW and LARS."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """LAMB and AdamW: share of the averages of the gradient and its square that is kept."""
    eps: Positive = 1e-6
    """LAMB and AdamW: added to the root of the squared gradient's average (timm's LAMB: 1e-6;
    torch's AdamW: 1e-8)."""
    trust_coefficient: Positive = 0.001
    """LARS: length of a step, before the learning rate, as a share of the weights' length."""
    weight_decay: Annotated[NotNegative, tyro.conf.arg(aliases=["--weight-decay", "--wd"])] = 5e-5
    """Decay of the weights named by ``decayed``. sgd, lars: coupled, added to the gradient as L2.
    sgdw: the share of a weight that one step at the peak removes (16 times the coupled one and
    more: see `rn50.recipes.scaling.decoupled_decay`). adamw, lamb: multiplied by the learning
    rate."""
    decayed: Literal["weights", "all-but-norm", "all"] = "weights"
    """weights: convolution and linear weights; all-but-norm: biases too, not BatchNorm
    (torchvision's second recipe); all: every parameter (torchvision's first, Mosaic's)."""
    clip_grad_norm: Annotated[NotNegative, tyro.conf.arg(aliases=["--clip-grad-norm"])] = 0.0
    """Largest norm of the whole gradient, after unscaling; 0 turns clipping off. timm's LAMB
    clips at 1."""
    sam_rho: NotNegative = 0.0
    """Sharpness-aware minimisation: length of the ascent before the gradient; 0 turns it off."""
    sam_every: Count = 10
    """Steps from one sharpness-aware step, which costs two, to the next."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optim":
        if self.nesterov and self.momentum == 0 and self.name in ("sgd", "sgdw", "lars"):
            raise ValueError("nesterov needs a momentum above 0; set --optim.no-nesterov")
        if self.name == "sgdw" and self.weight_decay >= 1:
            raise ValueError(
                f"weight_decay is {self.weight_decay:g}; sgdw takes that share of the weights away "
                "at each step, so it must be below 1 (5e-4 is usual)"
            )
        return self


@section
class Schedule:
    """The learning rate as a function of the step: linear warm-up, a body, a constant tail."""

    name: Annotated[
        Literal["cosine", "onecycle", "step", "triangular", "polynomial", "constant"],
        tyro.conf.arg(aliases=["--lr-schedule"]),
    ] = "cosine"
    """Shape after warm-up. triangular: a straight line from the peak down to ``final``, with a
    ``warmup_start`` of 1e-4 FFCV's; onecycle: torch's OneCycleLR, which warms up by itself."""
    warmup_epochs: Annotated[NotNegative, tyro.conf.arg(aliases=["--warmup-epochs"])] = 5.0
    """Epochs of linear rise to the peak; the schedule fills the rest of the run, up to its tail."""
    warmup_start: Fraction = 0.01
    """Learning rate of the first step, as a share of the peak."""
    warmup_inside: bool = False
    """Cosine and polynomial: let their clock run during warm-up, as timm does by default, so that
    the rate after it is below the peak; otherwise they begin at the peak when it ends."""
    final: Fraction = 0.0
    """Learning rate after the last step, as a share of the peak: cosine, triangular, polynomial."""
    milestones: tuple[Positive, ...] = ()
    """step: epochs, from the run's start, at which the rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step: factor at each milestone."""
    power: Positive = 2.0
    """polynomial: exponent of the remaining share of the run."""
    rise: BelowOne = 0.3
    """onecycle: share of the run until the peak (torch's pct_start)."""
    start_div: Positive = 25.0
    """onecycle: the peak over the first rate (torch's div_factor)."""
    final_div: Positive = 1e4
    """onecycle: the first rate over the last (torch's final_div_factor)."""
    anneal: Literal["cos", "linear"] = "cos"
    """onecycle: shape between its corners (torch's anneal_strategy)."""
    three_phase: bool = False
    """onecycle: fall to the first rate in a phase as long as the rise, then to the last one."""
    cycle_momentum: tuple[BelowOne, BelowOne] | None = None
    """onecycle: momentum (or first beta) at the peak and at both ends; torch's default is 0.85
    and 0.95. None leaves it as the optimizer has it."""
    tail_epochs: NotNegative = 0.0
    """Last epochs, after the body has come to its end, for weight averaging (SWA); 0: no tail."""
    tail_lr: Fraction = 0.05
    """Learning rate of the tail as a share of the peak; of a cycle, its highest."""
    tail_anneal_epochs: NotNegative = 0.0
    """Epochs of the tail in which half a cosine leads from the body's last rate to ``tail_lr``."""
    tail_cycle_epochs: NotNegative = 0.0
    """Length of one cycle, in which the rate falls in a line to ``tail_low``; 0: constant."""
    tail_low: Fraction = 0.0005
    """Lowest rate of a cycle of the tail, as a share of the peak."""

    @model_validator(mode="after")
    def _agrees(self) -> "Schedule":
        if self.name == "onecycle":
            self._agrees_with_onecycle()
        elif self.cycle_momentum is not None:
            raise ValueError("cycle_momentum belongs to --schedule.name onecycle; leave it out")
        if self.warmup_inside and self.name not in ("cosine", "polynomial"):
            raise ValueError(
                f"warmup_inside says where a cosine or polynomial begins; {self.name} has no such "
                "clock: leave it out"
            )
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                f"name is {self.name} and milestones are {self.milestones}; give milestones, in "
                "epochs, with --schedule.name step and only with it"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are {self.milestones}; they must ascend")
        if self.tail_cycle_epochs and self.tail_low > self.tail_lr:
            raise ValueError(
                f"tail_low is {self.tail_low:g}; it must be at most tail_lr ({self.tail_lr:g})"
            )
        if self.tail_cycle_epochs and self.tail_anneal_epochs:
            raise ValueError(
                "tail_cycle_epochs and tail_anneal_epochs are both set; a cycle begins at tail_lr: "
                "leave tail_anneal_epochs out"
            )
        return self

    def _agrees_with_onecycle(self) -> None:
        if self.tail_epochs:
            raise ValueError(
                f"onecycle ends at almost no learning rate, and a tail of {self.tail_epochs:g} "
                "epochs would raise it again; set tail_epochs 0 or another --schedule.name"
            )
        if self.warmup_epochs:
            raise ValueError("onecycle warms up by itself; set --warmup-epochs 0")
        if self.three_phase and self.rise > 0.5:
            raise ValueError(
                f"rise is {self.rise:g}; with three_phase the fall is as long, so it must be at "
                "most 0.5"
            )


@section
class Loss:
    """Softmax cross-entropy, or binary cross-entropy per class."""

    name: Annotated[Literal["cross-entropy", "bce"], tyro.conf.arg(aliases=["--loss"])] = (
        "cross-entropy"
    )
    """cross-entropy: one class among all; bce: each class is a question of its own."""
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1), tyro.conf.arg(aliases=["--label-smoothing"])
    ] = 0.1
    """Share of the target spread evenly over all classes."""
    bce_over_classes: Literal["sum", "mean"] = "sum"
    """bce: sum over classes has gradients of cross-entropy's size, as SGD's rates expect; mean is
    smaller by the number of classes, which only LAMB and AdamW even out."""
    bce_threshold: BelowOne = 0.0
    """bce: targets above it become 1 and others 0 after mixing (0.2 in ResNet strikes back), which
    undoes smoothing; 0 keeps them as they are."""
    bce_log_bias: bool = True
    """bce: begin with the classifier's bias at -log(classes), so that the answers sum to one."""

    @model_validator(mode="after")
    def _smooths_once(self) -> "Loss":
        if self.bce_threshold and self.name != "bce":
            raise ValueError(
                f"bce_threshold is {self.bce_threshold:g}, but the loss is {self.name}; give "
                "--loss bce too, or --loss.bce-threshold 0"
            )
        if self.bce_threshold and self.label_smoothing:
            raise ValueError(
                f"bce_threshold is {self.bce_threshold:g} and label_smoothing "
                f"{self.label_smoothing:g}; the threshold makes every target 0 or 1 again, which "
                "undoes smoothing: set --label-smoothing 0 or --loss.bce-threshold 0"
            )
        return self


def check_scale(optim: Optim, loss: Loss) -> None:
    """Refuse a loss whose gradients are a thousandth of what the optimizer's rates expect.

    SGD's steps are as long as the gradient, and LARS evens out those of convolutions and of the
    classifier's weights only.

    Raises:
        ValueError: With the reason and what to do.
    """
    if loss.name == "bce" and loss.bce_over_classes == "mean" and optim.name in _AS_LONG:
        raise ValueError(
            f"loss.bce_over_classes is mean, which divides the gradient by the number of classes, "
            f"and {optim.name} does not even that out; give --loss.bce-over-classes sum, or "
            "--optimizer lamb or adamw"
        )


_AS_LONG = ("sgd", "sgdw", "lars")
