"""What takes the place of an image that cannot be decoded: another of its class.

Which one is a function of the data and the image alone, so it is the same for any number of
workers, processes and micro-batches, in every epoch, and after a resumption. It is of the same
class, so that a batch keeps its labels and an epoch its balance.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from rn50.data.shards import PackedSplit


def substitutes(split: PackedSplit, i: int) -> Iterator[int]:
    """Yield the other images of the class of image ``i``: those after it, then those before."""
    same = np.flatnonzero(split.labels == split.labels[i])
    yield from same[same > i].tolist()
    yield from same[same < i].tolist()


def moved_box(
    box: Int64[np.ndarray, " 4"], size: tuple[int, int], other: tuple[int, int]
) -> Int64[np.ndarray, " 4"]:
    """Return the crop of another image that corresponds to a crop of this one.

    It covers the same share of the area with the same ratio of its sides, as far as that fits, and
    lies as far between the borders.

    Args:
        box: (top, left, height, width), in pixels.
        size: (width, height) of the image that the box was drawn for.
        other: (width, height) of the image to crop.
    """
    scale = np.sqrt(other[0] * other[1] / (size[0] * size[1]))
    top, height = _moved(int(box[0]), int(box[2]), size[1], other[1], scale)
    left, width = _moved(int(box[1]), int(box[3]), size[0], other[0], scale)
    return np.array([top, left, height, width], np.int64)


def _moved(start: int, length: int, side: int, other: int, scale: float) -> tuple[int, int]:
    new_length = min(max(round(length * scale), 1), other)
    share = start / (side - length) if side > length else 0.5
    return round(share * (other - new_length)), new_length
