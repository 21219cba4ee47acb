"""Sharpness and blur on batches of uint8 images, each image with a magnitude of its own.

Both agree with ``torchvision.transforms.v2.functional`` to one level of 255.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from rn50.augment.colour import to_bytes

Images = UInt8[Tensor, "batch 3 height width"]
Magnitudes = Float[Tensor, " batch"]

BLUR_TAPS = 13
"""Width of the Gaussian kernel: three deviations to each side of the strongest blur drawn (2)."""


def sharpness(images: Images, factor: Magnitudes) -> Images:
    """Blend with the smoothed image: 0 is smooth, 1 the image, 2 sharpened.

    The kernel is Pillow's ``ImageFilter.SMOOTH``, (1 1 1, 1 5 1, 1 1 1) / 13; the border of one
    pixel stays as it is.
    """
    if min(images.shape[2:]) <= 2:
        return images
    whole = images.to(torch.int16)
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = whole[:, :, 1:-1, 1:-1]
    # Thirteenths are never halves, so that any way of rounding to the nearest gives the same.
    smooth = ((box + 4 * inner) / 13).round_()
    rest = (1 - factor)[:, None, None, None]
    sharp = torch.addcmul(inner.float(), smooth.sub_(inner), rest)
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = to_bytes(sharp)
    return result


def gaussian_blur(images: Images, sigma: Magnitudes, taps: int = BLUR_TAPS) -> Images:
    """Blur with a Gaussian of this deviation in pixels, cut to ``taps`` and mirrored at the edges.

    Rows and columns are filtered one after the other. An image smaller than half the kernel takes
    the largest kernel that its mirrored edges can fill.
    """
    reach = min(taps // 2, *(side - 1 for side in images.shape[2:]))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    blurred = images.float()
    for dim in (2, 3):
        sides = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        padded = F.pad(blurred, sides, mode="reflect")
        length = images.shape[dim]
        blurred = torch.zeros_like(blurred)
        for tap in range(2 * reach + 1):
            part = padded.narrow(dim, tap, length)
            blurred.addcmul_(part, weights[:, tap, None, None, None])
    return to_bytes(blurred.round_())
