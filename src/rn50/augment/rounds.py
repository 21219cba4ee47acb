"""Rounds of operations on a batch: in each, every image undergoes the one drawn for it.

The images are sorted by their operation, so that each operation present is called once, on
neighbouring images; the five geometric ones, being affine maps, are one call. A round's cost is
therefore that of one operation on the batch, however many the policy has. Which image undergoes
what is known on the host, so that nothing waits for the device.

Within the rounds an image lies in memory channel by channel: operations on whole rows of one
channel are several times faster on a CPU than on colours side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int64, UInt8
from torch import Tensor

from rn50.augment import colour, filters, geometry
from rn50.augment.ops import GEOMETRIC, Op

Images = UInt8[Tensor, "batch 3 height width"]

_WITH_MAGNITUDE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: colour.brightness,
    Op.COLOR: colour.color,
    Op.CONTRAST: colour.contrast,
    Op.SHARPNESS: filters.sharpness,
    Op.POSTERIZE: colour.posterize,
    Op.SOLARIZE: colour.solarize,
    Op.SOLARIZE_ADD: colour.solarize_add,
    Op.HUE: colour.hue,
    Op.BLUR: filters.gaussian_blur,
}
_WITHOUT: dict[Op, Callable[[Tensor], Tensor]] = {
    Op.AUTOCONTRAST: colour.autocontrast,
    Op.EQUALIZE: colour.equalize,
    Op.INVERT: colour.invert,
}
_GEOMETRIC = np.array([op in GEOMETRIC for op in Op])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the geometric operations look up pixels."""

    linear: bool = False
    """Mix the four pixels around a source instead of taking the nearest."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """What comes in from outside of the image."""


@dataclass(frozen=True, slots=True)
class _Round:
    order: Int64[np.ndarray, " batch"]
    """Rows of the previous arrangement, in the new one's order."""
    groups: list[tuple[Op, slice]]
    parameters: Float32[np.ndarray, "batch 6"]
    """In the new order: an affine map, or the magnitude and five zeros."""


def apply(
    images: Images,
    ops: Int8[np.ndarray, "rounds batch"],
    magnitudes: Float32[np.ndarray, "rounds batch"],
    sampling: Sampling,
) -> Images:
    """Return the images after all rounds, in their order and channels-last in memory."""
    rounds, back = _schedule(ops, magnitudes, *images.shape[2:])
    if not rounds:
        return images
    device = images.device
    orders = to_device(np.stack([*(one.order for one in rounds), back]), device)
    parameters = to_device(np.stack([one.parameters for one in rounds]), device)
    planes = images.contiguous()
    for i, one in enumerate(rounds):
        planes = planes.index_select(0, orders[i])
        for op, rows in one.groups:
            planes[rows] = _one(op, planes[rows], parameters[i, rows], sampling)
    planes = planes.index_select(0, orders[-1])
    result = torch.empty_like(planes, memory_format=torch.channels_last)
    for channel in range(3):  # one by one, since copying colours side by side is slow on a CPU
        result[:, channel] = planes[:, channel]
    return result


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a host array to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _one(op: Op, images: Images, parameters: Tensor, sampling: Sampling) -> Images:
    if op in GEOMETRIC:
        return geometry.affine(images, parameters, linear=sampling.linear, fill=sampling.fill)
    if op in _WITHOUT:
        return _WITHOUT[op](images)
    return _WITH_MAGNITUDE[op](images, parameters[:, 0])


def _schedule(
    ops: Int8[np.ndarray, "rounds batch"],
    magnitudes: Float32[np.ndarray, "rounds batch"],
    height: int,
    width: int,
) -> tuple[list[_Round], Int64[np.ndarray, " batch"]]:
    """Return the rounds that do anything, and the order that undoes all of theirs."""
    place = np.arange(ops.shape[1])
    rounds = []
    for drawn, values in zip(ops, magnitudes, strict=True):
        if not drawn.any():
            continue
        # One number for all geometric operations, which puts them beside each other.
        family = np.where(_GEOMETRIC[drawn], np.int8(Op.SHEAR_X), drawn)[place]
        order = np.argsort(family, kind="stable")
        place, family = place[order], family[order]
        present, starts = np.unique(family, return_index=True)
        ends = np.append(starts[1:], len(family))
        groups = [
            (Op(op), slice(start, end))
            for op, start, end in zip(present.tolist(), starts.tolist(), ends.tolist(), strict=True)
            if op != Op.IDENTITY
        ]
        parameters = np.zeros((len(place), 6), dtype=np.float32)
        parameters[:, 0] = values[place]
        moved = _GEOMETRIC[family]
        chosen = place[moved]
        parameters[moved] = geometry.matrices(drawn[chosen], values[chosen], height, width)
        rounds.append(_Round(order, groups, parameters))
    return rounds, np.argsort(place)
