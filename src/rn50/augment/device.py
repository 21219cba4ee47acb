"""From the uint8 images of the loader to the network's input, on whatever device they are."""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn


def flip(
    images: UInt8[Tensor, "batch 3 height width"], flips: Bool[Tensor, " batch"]
) -> UInt8[Tensor, "batch 3 height width"]:
    """Return the images, those marked in ``flips`` mirrored left to right; layout is kept."""
    # Bit by bit: on a CPU five times as fast as ``torch.where``.
    marked = (flips.view(torch.uint8) * 255)[:, None, None, None]
    return images ^ ((images ^ images.flip(3)) & marked)


class Normalise(nn.Module):
    """Scale 0..255 to 0..1, subtract the mean and divide by the deviation, per channel.

    Equal to torchvision's ``ToDtype(float32, scale=True)`` and ``Normalize`` up to rounding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]))
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift))

    def forward(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        out: Float[Tensor, "batch 3 height width"] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return float32 network inputs, channels-last in memory.

        Args:
            images: Fastest where they are channels-last.
            out: Where the inputs go; channels-last, too.
        """
        count, _, height, width = images.shape
        # A line at a time: on a CPU four times as fast as a pixel of three colours at a time.
        lines = _pixels(images).reshape(count, height, width * 3)
        scale, shift = self.scale.repeat(width), self.shift.repeat(width)
        if out is None:
            out = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
        torch.addcmul(shift, lines.float(), scale, out=_pixels(out).view(lines.shape))
        return out


def _pixels(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1)
