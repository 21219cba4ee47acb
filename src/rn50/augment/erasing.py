"""Random erasing and coarse dropout: rectangles of normalised inputs replaced."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rn50.augment.draws import NOISE_VALUES
from rn50.augment.rounds import to_device


def erase(
    inputs: Float[Tensor, "batch 3 height width"],
    holes: Int64[np.ndarray, "batch holes 4"],
    noise: Int64[np.ndarray, " batch"] | None,
) -> Float[Tensor, "batch 3 height width"]:
    """Return the inputs with 0, the mean colour, or with normal noise in their holes.

    As torchvision's ``erase`` with value 0 and "random", and timm's ``const`` and ``pixel``, after
    normalisation. Only the images that have a hole are touched. Tested: what lies in the holes and
    that nothing else moves, and that every device gives the same.

    The noise is read from one table of a million normal values, from a place drawn for each image,
    so that it is the same on any device; a GPU's own generator would give other values than a
    CPU's.

    Args:
        inputs: Normalised; changed in place.
        holes: (top, left, height, width) in pixels.
        noise: Where each image's noise begins in the table; None: 0.
    """
    if inputs.device.type == "cpu":
        return _one_by_one(inputs, holes, noise)
    return _together(inputs, holes, noise)


def _one_by_one(
    inputs: Float[Tensor, "batch 3 height width"],
    holes: Int64[np.ndarray, "batch holes 4"],
    noise: Int64[np.ndarray, " batch"] | None,
) -> Float[Tensor, "batch 3 height width"]:
    """Touch nothing but the holes, which on a GPU would take a call for each of them."""
    pixels = inputs.permute(0, 2, 3, 1)
    image = pixels.shape[1:]
    table = _table(inputs.device, 0 if noise is None else image.numel())
    for row, hole in np.argwhere(holes[..., 2] > 0).tolist():
        top, left, height, width = holes[row, hole].tolist()
        inside = (slice(top, top + height), slice(left, left + width))
        if noise is None:
            pixels[row][inside] = 0
        else:
            pixels[row][inside] = table.narrow(0, noise[row], image.numel()).view(image)[inside]
    return inputs


def _together(
    inputs: Float[Tensor, "batch 3 height width"],
    holes: Int64[np.ndarray, "batch holes 4"],
    noise: Int64[np.ndarray, " batch"] | None,
) -> Float[Tensor, "batch 3 height width"]:
    hit = np.flatnonzero((holes[..., 2] > 0).any(axis=1))
    if not len(hit):
        return inputs
    device = inputs.device
    rows = to_device(hit, device)
    pixels = inputs.permute(0, 2, 3, 1)
    chosen = pixels.index_select(0, rows)
    inside = _inside(to_device(holes[hit], device), *inputs.shape[2:])[..., None]
    if noise is None:
        changed = chosen.masked_fill(inside, 0)
    else:
        count = chosen[0].numel()
        starts = to_device(noise[hit], device)[:, None]
        places = starts + torch.arange(count, device=device)
        values = _table(device, count).index_select(0, places.flatten()).view(chosen.shape)
        changed = torch.where(inside, values, chosen)
    return pixels.index_copy_(0, rows, changed).permute(0, 3, 1, 2)


def _inside(holes: Int64[Tensor, "batch holes 4"], height: int, width: int) -> Tensor:
    """Return which pixels lie in a hole, [batch, height, width]."""
    top, left, tall, wide = holes[:, :, :, None].unbind(2)
    row = torch.arange(height, device=holes.device)
    column = torch.arange(width, device=holes.device)
    across = (column >= left) & (column < left + wide)
    along = (row >= top) & (row < top + tall)
    return (along[..., None] & across[:, :, None]).any(1)


def _table(device: torch.device, count: int) -> Float[Tensor, " values"]:
    """Return the noise, and after its end as much of its beginning as an image may need."""
    return _repeated_table(device, 1 + -(-count // NOISE_VALUES))


@cache
def _repeated_table(device: torch.device, times: int) -> Float[Tensor, " values"]:
    values = np.random.Generator(np.random.PCG64(0)).standard_normal(NOISE_VALUES, np.float32)
    return torch.from_numpy(values).repeat(times).to(device)
