"""The settings of how images are augmented on the device, and how they are mixed."""

from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from rn50.section import Count, Fraction, NotNegative, Positive, section

Policy = Literal["none", "randaugment", "randaugment-timm", "autoaugment", "trivialaugment"]
UpToHalf = Annotated[float, Field(ge=0, le=0.5)]
UpToTwo = Annotated[float, Field(gt=0, le=2)]


@section
class Augment:
    """Augmentation of single images, after crop and flip; all of it is off by default.

    In this order: policy, colour jitter, blur; and after normalisation, erasing and dropout.
    """

    policy: Annotated[Policy, tyro.conf.arg(aliases=["--auto-augment"])] = "none"
    """Automatic augmentation: torchvision's RandAugment, AutoAugment (ImageNet) or
    TrivialAugmentWide, or timm's rand-mM-mstd0.5-inc1, which is another thing than the first."""
    num_ops: Count = 2
    """RandAugment: operations per image."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """RandAugment: strength, a whole number up to 30; for randaugment-timm up to 10."""
    color_jitter: tuple[NotNegative, NotNegative, NotNegative, UpToHalf] = (0.0, 0.0, 0.0, 0.0)
    """Reach of brightness, contrast, saturation (factors of 1 plus or minus this) and hue (in parts
    of the circle)."""
    blur_prob: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Positive, UpToTwo] = (0.1, 2.0)
    """Its deviation in pixels is drawn evenly from this range."""
    erase_prob: Annotated[Fraction, tyro.conf.arg(aliases=["--random-erase"])] = 0.0
    """Probability that a random rectangle is erased (random erasing)."""
    erase_mode: Literal["const", "pixel"] = "const"
    """const: with the mean colour; pixel: with normal noise."""
    erase_area: tuple[Fraction, Fraction] = (0.02, 1 / 3)
    """Share of the image that is erased, drawn evenly from this range."""
    dropout_prob: Fraction = 0.0
    """Probability that square holes are cut (coarse dropout), filled as ``erase_mode`` says."""
    dropout_holes: Count = 8
    """Holes: at most so many, at least one."""
    dropout_side: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Side of a hole as a part of the image's side."""
    repeats: Count = 1
    """Repeated augmentation: each image of a batch is in it so often, augmented anew each time, and
    an epoch visits as many times fewer images."""

    @model_validator(mode="after")
    def _in_range(self) -> "Augment":
        most = 10 if self.policy == "randaugment-timm" else 30
        if self.magnitude > most:
            raise ValueError(f"magnitude is {self.magnitude:g}; {self.policy} allows up to {most}")
        if self.policy == "randaugment" and self.magnitude % 1:
            raise ValueError(
                f"magnitude is {self.magnitude:g}; randaugment has whole ones only, 0 to 30"
            )
        for name, (low, high) in (("blur_sigma", self.blur_sigma), ("erase_area", self.erase_area)):
            if low > high:
                raise ValueError(f"{name} is ({low:g}, {high:g}); it must ascend")
        return self


@section
class Mix:
    """Mixing pairs of images and their labels; off by default."""

    mixup_alpha: Annotated[NotNegative, tyro.conf.arg(aliases=["--mixup-alpha"])] = 0.0
    """Mixup: the share of an image is drawn from Beta(alpha, alpha); 0: no mixup."""
    cutmix_alpha: Annotated[NotNegative, tyro.conf.arg(aliases=["--cutmix-alpha"])] = 0.0
    """CutMix: the share kept of an image's area is drawn from Beta(alpha, alpha); 0: no CutMix."""
    prob: Fraction = 1.0
    """Probability that a batch is mixed at all."""
    switch_prob: Fraction = 0.5
    """Where both are on: the probability of CutMix rather than mixup, for a batch."""

    @property
    def is_on(self) -> bool:
        """Return whether batches are mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
