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

_CACHED_VALUES = 1 << 21
"""Values that a CPU prepares at once, 14 images of 224 px: few enough for its caches. Steps of a
whole batch at once would each go through memory, and through memory that is new each time."""


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
    result = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    size = len(images)
    if images.device.type == "cpu":
        size = max(1, _CACHED_VALUES // images[0].numel())
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        part = flip(images[rows], flips[rows])
        if draws is None:
            normalise(part, out=result[rows])
            continue
        drawn = draws.part(rows)
        part = rounds.apply(part, drawn.ops, drawn.magnitudes, sampling)
        erase(normalise(part, out=result[rows]), drawn.holes, drawn.noise)
    return result


def sampling_of(policy: str, mean: tuple[float, float, float]) -> Sampling:
    """Return how a policy samples: timm's linearly and filled with the mean, others the nearest."""
    if policy != "randaugment-timm":
        return Sampling()
    red, green, blue = (round(255 * value) for value in mean)
    return Sampling(linear=True, fill=(red, green, blue))
