"""Where the objects of the demo data are in the images that a network is tested on."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from rn50.analyze.games import Objects
from rn50.config import Images
from rn50.data import demo
from rn50.data.decode import centre
from rn50.data.shards import PackedDataset, PackedSplit

_SEED = 0
"""Of the pictures that ``rn50 prepare demo`` and a run without data pack."""


def objects(
    dataset: PackedDataset, ids: Int64[np.ndarray, " ids"], images: Images
) -> Objects | None:
    """Return the objects in validation images, resized and cropped as they are for a test.

    Args:
        dataset: Any data.
        ids: Images of its validation split.
        images: Test size and resize.

    Returns:
        None of data other than the demo's, or drawn from another seed.
    """
    if dataset.manifest.get("source", {}).get("kind") != demo.DemoSource.kind:
        return None
    split = dataset.split("val")
    masks = [_mask(split, i, images) for i in ids.tolist()]
    found = [mask for mask in masks if mask is not None]
    return Objects(torch.stack(found)) if found and len(found) == len(masks) else None


def _mask(split: PackedSplit, i: int, images: Images) -> Tensor | None:
    class_id, _, number = split.key(i).partition("/")
    if not number.isdecimal() or demo.class_of(int(number)).id != class_id:
        return None
    mask = demo.mask(_SEED, "val", int(number))
    height, width = mask.shape
    # Another seed's pictures have other shapes; packed smaller, a picture keeps its own.
    if abs(int(split.widths[i]) * height - int(split.heights[i]) * width) > max(height, width):
        return None
    pixels = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    found = centre(pixels, images.test_resize_px, images.test_px)[0, 0] >= 128
    return found if found.any() else None
