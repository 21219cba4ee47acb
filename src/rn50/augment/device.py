"""From the uint8 images of the loader to the network's input, on whatever device they are."""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn


def flip(
    images: UInt8[Tensor, "batch 3 height width"], flips: Bool[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Return the images, those marked in ``flips`` mirrored left to right; layout is kept."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)


class Normalise(nn.Module):
    """Scale 0..255 to 0..1, subtract the mean and divide by the deviation, per channel.

    Equal to torchvision's ``ToDtype(float32, scale=True)`` and ``Normalize`` up to rounding. The
    channels-last layout of the input is kept.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale)[:, None, None])
        self.register_buffer("shift", torch.tensor(shift)[:, None, None])

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return float32 network inputs."""
        return torch.addcmul(self.shift, images.float(), self.scale)
