"""Shear, translation and rotation of batches of uint8 images: one affine map for each image.

The maps are torchvision's (``transforms/v2/functional/_geometry.py``) with the centres that its
automatic augmentations use: the corner for shear, the middle for rotation. They are computed on the
host in double precision. Sampling at the nearest pixel picks the same pixels as torchvision but
where a source lies within rounding of the border between two. Linear sampling is Pillow's
``Image.transform(..., BILINEAR)``, to one level.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int8, UInt8
from torch import Tensor

from rn50.augment.colour import to_bytes
from rn50.augment.ops import Op

Images = UInt8[Tensor, "batch 3 height width"]


def matrices(
    ops: Int8[np.ndarray, " batch"],
    magnitudes: Float32[np.ndarray, " batch"],
    height: int,
    width: int,
) -> Float64[np.ndarray, "batch 6"]:
    """Return the map from each pixel of the result to its source, as a row (a b c, d e f).

    A pixel at column x and row y is taken from column ``a x + b y + c`` and row ``d x + e y + f``,
    where pixel centres are whole numbers.

    Args:
        ops: Geometric operations only.
        magnitudes: Shear as a factor, translation in pixels, rotation in degrees (anticlockwise).
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    m = magnitudes.astype(np.float64)
    shear_x, shear_y = (np.where(ops == op, m, 0) for op in (Op.SHEAR_X, Op.SHEAR_Y))
    shift_x, shift_y = (np.where(ops == op, m, 0) for op in (Op.TRANSLATE_X, Op.TRANSLATE_Y))
    angle = np.radians(np.where(ops == Op.ROTATE, m, 0))
    cos, sin = np.cos(angle), np.sin(angle)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    column = [cos, shear_x - sin, middle_x - cos * middle_x + sin * middle_y]
    row = [shear_y + sin, cos, middle_y - sin * middle_x - cos * middle_y]
    column[2] = column[2] + shear_x / 2 - shift_x
    row[2] = row[2] + shear_y / 2 - shift_y
    return np.stack(column + row, axis=1)


def affine(
    images: Images,
    maps: Float[Tensor, "batch 6"],
    *,
    linear: bool = False,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Images:
    """Return the images as ``maps`` say; what comes from outside becomes ``fill``."""
    count, _, height, width = images.shape
    columns = torch.arange(width, dtype=torch.float32, device=images.device)
    rows = torch.arange(height, dtype=torch.float32, device=images.device)[:, None]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    x = a * columns + (b * rows + c)
    y = d * columns + (e * rows + f)
    if linear:
        return _linear(images, x, y, fill)
    # A border of one pixel stands for all that lies outside.
    framed = torch.empty(3, count, height + 2, width + 2, dtype=torch.uint8, device=images.device)
    for channel, value in enumerate(fill):
        framed[channel].fill_(value)
    framed[:, :, 1:-1, 1:-1] = images.transpose(0, 1)
    # Counted in floats, which are exact up to 2 to the 24th, or images of 4,000 px a side.
    x, y = x.clamp_(-1, width).round_(), y.clamp_(-1, height).round_()
    first = (width + 2) * (height + 2) * torch.arange(count, device=images.device) + width + 3
    places = x.add_(y, alpha=width + 2).to(torch.int32)
    places = places.add_(first.to(torch.int32)[:, None, None]).flatten()
    taken = [plane.index_select(0, places) for plane in framed.flatten(1)]
    return torch.stack([one.view(count, height, width) for one in taken], 1)


def _linear(
    images: Images,
    x: Float[Tensor, "batch height width"],
    y: Float[Tensor, "batch height width"],
    fill: tuple[int, int, int],
) -> Images:
    """Mix the four pixels around each source, those beyond the edge being the edge's."""
    count, _, height, width = images.shape
    planes = images.transpose(0, 1).float().flatten(1)
    first = (height * width * torch.arange(count, device=images.device)).to(torch.int32)
    left, top = x.floor(), y.floor()
    across, along = x - left, y - top
    mixed = torch.zeros_like(planes)
    for right in (0, 1):
        for down in (0, 1):
            column = (left + right).clamp_(0, width - 1).to(torch.int32)
            row = (top + down).clamp_(0, height - 1).to(torch.int32)
            places = row.mul_(width).add_(column).add_(first[:, None, None]).flatten()
            weight = (across if right else 1 - across) * (along if down else 1 - along)
            for plane, result in zip(planes, mixed, strict=True):
                result.addcmul_(plane.index_select(0, places), weight.flatten())
    outside = (x < -0.5) | (x >= width - 0.5) | (y < -0.5) | (y >= height - 0.5)
    for value, result in zip(fill, mixed, strict=True):
        result.masked_fill_(outside.flatten(), value)
    return to_bytes(mixed.round_().view(3, count, height, width).transpose(0, 1))
