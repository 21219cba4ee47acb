"""From the loader's images to the network's inputs: the one entry to augmentation.

The order is that of the reference scripts of torchvision and timm: crop (in the loader), flip,
policy, colour jitter, blur, normalisation, erasing; mixing, which needs pairs, comes last
(``rn50.augment.mixing``).
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from rn50.augment import rounds
from rn50.augment.device import Normalise, flip
from rn50.augment.draws import AugmentDraws
from rn50.augment.erasing import erase
from rn50.augment.rounds import Sampling


@torch.no_grad()
def prepare(
    images: UInt8[Tensor, "batch 3 height width"],
    flips: Bool[Tensor, " batch"],
    draws: AugmentDraws | None,
    normalise: Normalise,
    sampling: Sampling,
) -> Float[Tensor, "batch 3 height width"]:
    """Return the network's inputs: flipped, augmented as drawn and normalised, channels-last.

    Args:
        images: As decoded, channels-last in memory.
        flips: Those to be mirrored.
        draws: One column or row for each image; None: no more than flip and normalisation.
        normalise: Mean and deviation.
        sampling: How the geometric operations look up pixels.
    """
    images = flip(images, flips)
    if draws is not None:
        images = rounds.apply(images, draws.ops, draws.magnitudes, sampling)
    inputs: Tensor = normalise(images)
    return inputs if draws is None else erase(inputs, draws.holes, draws.noise)


def sampling_of(policy: str, mean: tuple[float, float, float]) -> Sampling:
    """Return how a policy samples: timm's linearly and filled with the mean, others the nearest."""
    if policy != "randaugment-timm":
        return Sampling()
    red, green, blue = (round(255 * value) for value in mean)
    return Sampling(linear=True, fill=(red, green, blue))
