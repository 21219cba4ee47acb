"""Which images make up a step, and how each is cropped: pure functions of the step.

The plan holds no position. A run that resumes at step 1234 asks for batch 1234, and a machine with
other workers, other processes or another micro-batch asks for other slices of the same batch.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from rn50 import rng
from rn50.augment.draws import AugmentDraws, MixDraws, augment_draws, mix_draws
from rn50.config import Augment, Images, Mix
from rn50.errors import UsageError

CROP_TRIES = 10
"""Attempts at a crop that fits before the central crop is taken, as torchvision does."""

_DRAWS_PER_CROP = 2 * CROP_TRIES + 2


@dataclass(frozen=True, slots=True)
class Request:
    """Images to be decoded into one batch."""

    ids: Int64[np.ndarray, " batch"]
    """Positions in the split."""
    px: int
    """Side of the square result."""
    boxes: Int64[np.ndarray, "batch 4"] | None
    """Crop of each image as (top, left, height, width); None: resize and take the centre."""
    resize_px: int
    """Where ``boxes`` is None: the shorter side after resizing."""
    flips: Bool[np.ndarray, " batch"]
    """Images to be mirrored, later, on the device."""
    draws: AugmentDraws | None = None
    """How each image is augmented, on the device; None: not at all."""
    mix: MixDraws | None = None
    """How pairs of images are mixed, on the device; None: not at all."""
    step: int = -1
    """The update that it is for, counted from 0; -1: none, it is for evaluation."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """The batches of a run over one split, for one process of a group."""

    images: Images
    seed: int
    widths: Int64[np.ndarray, " images"]
    heights: Int64[np.ndarray, " images"]
    rank: int = 0
    world_size: int = 1
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        count, batch = len(self.widths), self.images.batch_size
        if count < batch:
            raise UsageError(
                f"images.batch_size is {batch}, but the training split has only {count} images; "
                f"give --batch-size {count} or less"
            )
        if batch % self.world_size:
            raise UsageError(
                f"images.batch_size is {batch}, which {self.world_size} processes cannot share "
                "evenly; give a multiple, or start fewer processes"
            )
        if self.mix.is_on and batch // self.world_size % 2:
            raise UsageError(
                f"each of {self.world_size} processes has {batch // self.world_size} images of a "
                "batch, but images are mixed in pairs; give a batch size of which each process's "
                "share is even"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of whole batches in the split; the rest waits for the next shuffle."""
        return len(self.widths) // self.images.batch_size

    def sample_ids(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the global batch of a step, in order; the same for every process."""
        return self._samples(step)[0]

    def px(self, step: int) -> int:
        """Return the side of the crops of a step; all processes draw the same from several."""
        sides = self.images.sides_at(step // self.steps_per_epoch)
        if len(sides) == 1:
            return sides[0]
        drawn = rng.uniform(rng.key(self.seed, "side", step), np.arange(1), 1)[0, 0]
        return sides[int(drawn * len(sides))]

    def request(self, step: int) -> Request:
        """Return this process's share of the batch of ``step``."""
        share = self.images.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        ids, copies = (samples[mine] for samples in self._samples(step))
        # Copies of an image draw as images of their own would.
        keys = ids + copies * len(self.widths)
        epoch = step // self.steps_per_epoch
        px = self.px(step)
        boxes = random_resized_crops(
            rng.uniform(rng.key(self.seed, "crop", epoch), keys, _DRAWS_PER_CROP),
            self.widths[ids],
            self.heights[ids],
            area=self.images.crop_area,
            ratio=self.images.crop_ratio,
        )
        flips = rng.uniform(rng.key(self.seed, "flip", epoch), keys, 1)[:, 0]
        return Request(
            ids=ids,
            px=px,
            boxes=boxes,
            resize_px=0,
            flips=flips < self.images.flip_prob,
            draws=augment_draws(self.augment, self.seed, epoch, keys, px),
            mix=mix_draws(self.mix, self.seed, step, px),
            step=step,
        )

    def _samples(
        self, step: int
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """Return the ids of the global batch of a step, and which copy of its image each is."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batch, repeats = self.images.batch_size, self.augment.repeats
        order = _permutation(rng.key(self.seed, "order", epoch), len(self.widths))
        places = np.arange(index * batch, (index + 1) * batch)
        ids, copies = order[places // repeats], places % repeats
        if repeats > 1:
            mixed = spread_copies(ids, copies, rng.key(self.seed, "repeat", step))
            ids, copies = ids[mixed], copies[mixed]
        return ids, copies


_permutations: dict[tuple[int, int], Int64[np.ndarray, " images"]] = {}


def _permutation(stream: int, count: int) -> Int64[np.ndarray, " images"]:
    # Two epochs are alive at once, since the loader reads ahead across their border.
    if (stream, count) not in _permutations:
        while len(_permutations) > 1:
            _permutations.pop(next(iter(_permutations)))
        _permutations[stream, count] = rng.permutation(stream, count)
    return _permutations[stream, count]


def spread_copies(
    ids: Int64[np.ndarray, " batch"], copies: Int64[np.ndarray, " batch"], stream: int
) -> Int64[np.ndarray, " batch"]:
    """Return an order of a batch in which no image comes right after a copy of itself.

    Repeated augmentation (Hoffer et al. 2019, arXiv 1901.09335; Berman et al. 2019, arXiv
    1902.05509) puts copies of an image into one batch. Left beside each other they would be mixed
    with themselves, as happens in timm's ``RepeatAugSampler`` on one GPU. Here all first copies
    come first, shuffled, then all second ones, and so on: the images of a process or micro-batch
    are then as different as they can be. Tested: no copies side by side, in any share of a batch,
    and none mixed with itself.

    Args:
        ids: At least two different images.
        copies: Which copy each is, from 0.
        stream: Key of the draws.
    """
    keys = rng.bits(stream, np.arange(len(ids), dtype=np.int64), 1)[:, 0]
    order = np.lexsort((keys, copies))
    starts = np.flatnonzero(np.diff(copies[order])) + 1
    for start in starts.tolist():
        if ids[order[start]] == ids[order[start - 1]]:
            order[[start, start + 1]] = order[[start + 1, start]]
    return order


def evaluation_requests(
    images: Images, count: int, batch: int, *, rank: int = 0, world_size: int = 1
) -> list[Request]:
    """Return the evaluation batches of one process: every image once over all processes.

    Args:
        images: Test size and resize.
        count: Images in the split.
        batch: Largest batch; the last one is smaller rather than padded.
        rank: This process.
        world_size: Processes that share the split.
    """
    share = np.array_split(np.arange(count, dtype=np.int64), world_size)[rank]
    return [
        Request(
            ids=share[start : start + batch],
            px=images.test_px,
            boxes=None,
            resize_px=images.test_resize_px,
            flips=np.zeros(len(share[start : start + batch]), dtype=bool),
        )
        for start in range(0, len(share), batch)
    ]


def random_resized_crops(
    draws: Float64[np.ndarray, "batch draws"],
    widths: Int64[np.ndarray, " batch"],
    heights: Int64[np.ndarray, " batch"],
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Int64[np.ndarray, "batch 4"]:
    """Return the crop boxes that torchvision's ``RandomResizedCrop.get_params`` would choose.

    Up to ten times an area share and an aspect ratio (even in its logarithm) are drawn; the first
    pair that fits gives the size, and two more draws the position. Where none fits, the largest
    central crop with the nearest allowed ratio is taken.

    Args:
        draws: ``2 * CROP_TRIES + 2`` values in [0, 1) per image: areas, ratios, top, left.
        widths: Image widths in pixels.
        heights: Image heights in pixels.
        area: Smallest and largest share of the image's area.
        ratio: Smallest and largest width over height.

    Returns:
        (top, left, height, width) per image, in pixels.
    """
    shares = area[0] + draws[:, :CROP_TRIES] * (area[1] - area[0])
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(log_low + draws[:, CROP_TRIES : 2 * CROP_TRIES] * (log_high - log_low))
    target = shares * (widths * heights)[:, None]
    crop_w = np.rint(np.sqrt(target * ratios)).astype(np.int64)
    crop_h = np.rint(np.sqrt(target / ratios)).astype(np.int64)
    fits = (crop_w > 0) & (crop_w <= widths[:, None]) & (crop_h > 0) & (crop_h <= heights[:, None])
    first = fits.argmax(axis=1)
    rows = np.arange(len(widths))
    central_w, central_h = _central_size(widths, heights, ratio)
    found = fits[rows, first]
    width = np.where(found, crop_w[rows, first], central_w)
    height = np.where(found, crop_h[rows, first], central_h)
    top = np.where(found, draws[:, -2] * (heights - height + 1), (heights - height) // 2)
    left = np.where(found, draws[:, -1] * (widths - width + 1), (widths - width) // 2)
    return np.stack([top.astype(np.int64), left.astype(np.int64), height, width], axis=1)


def _central_size(
    widths: Int64[np.ndarray, " batch"],
    heights: Int64[np.ndarray, " batch"],
    ratio: tuple[float, float],
) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
    shape = widths / heights
    width = np.where(shape > ratio[1], np.rint(heights * ratio[1]), widths)
    height = np.where(shape < ratio[0], np.rint(widths / ratio[0]), heights)
    return width.astype(np.int64), height.astype(np.int64)
