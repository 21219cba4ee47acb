"""Mixup and CutMix of network inputs, and the targets that belong to them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from rn50.augment.draws import MixDraws


@dataclass(frozen=True, slots=True)
class Targets:
    """What each image shows: one class, or two with their shares."""

    labels: Int64[Tensor, " batch"]
    partner_labels: Int64[Tensor, " batch"] | None = None
    share: Float[Tensor, " batch"] | None = None
    """How much of each image is of its own label, 0 to 1."""

    def dense(self, classes: int) -> Float[Tensor, "batch classes"]:
        """Return the share of each class in each image; not smoothed, which the loss does once."""
        own = F.one_hot(self.labels, classes).float()
        if self.partner_labels is None or self.share is None:
            return own
        partner = F.one_hot(self.partner_labels, classes).float()
        return torch.lerp(partner, own, self.share[:, None])


def partners(values: Tensor) -> Tensor:
    """Return for each row that of its partner: 1 for 0, 0 for 1, 3 for 2, 2 for 3 and so on.

    Image i is mixed with image i XOR 1, not with its predecessor as in torchvision (``roll(1)``):
    pairs then lie in one process and one micro-batch, provided both have even sizes, and how many
    there are changes nothing. The batch is shuffled, so that partners are as random as
    torchvision's.
    """
    return values.reshape(len(values) // 2, 2, *values.shape[1:]).flip(1).flatten(0, 1)


def mix(
    inputs: Float[Tensor, "batch 3 height width"],
    labels: Int64[Tensor, " batch"],
    draws: MixDraws | None,
) -> tuple[Float[Tensor, "batch 3 height width"], Targets]:
    """Return the inputs mixed with their partners, and the targets of the result.

    Mixup (Zhang et al. 2017, arXiv 1710.09412) is the weighted mean of both; CutMix (Yun et al.
    2019, arXiv 1905.04899) takes the box from the partner. Both equal torchvision's of the same
    draws, but for who the partner is.

    Args:
        inputs: Normalised, an even number of them; changed in place.
        labels: Their classes.
        draws: None: nothing is mixed.
    """
    if draws is None:
        return inputs, Targets(labels)
    # Seen with channels last, which is how they lie in memory, and so stay.
    pixels = inputs.permute(0, 2, 3, 1)
    if draws.box is None:
        torch.lerp(partners(pixels), pixels, draws.share, out=pixels)
    else:
        top, left, height, width = draws.box
        part = (slice(None), slice(top, top + height), slice(left, left + width))
        pixels[part] = partners(pixels[part])
    share = torch.full(labels.shape, draws.share, device=labels.device)
    return inputs, Targets(labels, partners(labels), share)
