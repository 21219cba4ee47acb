"""What is drawn for the augmentation of a batch: NumPy on the host, as part of the plan.

Every draw is a function of (seed, purpose, epoch, sample), or (seed, purpose, step) for what a
batch has in common, so that neither workers nor processes nor micro-batches change it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int64

from rn50 import rng
from rn50.augment import policies
from rn50.augmentation import Augment, Mix

NOISE_VALUES = 1 << 20
"""Values in the table that pixel noise is read from, from a place drawn for each image."""

_ERASE_TRIES = 10
_ERASE_RATIO = (0.3, 3.3)
_BETA_TRIES = 128

_Drawing = Callable[[str, int], Float64[np.ndarray, "batch draws"]]


@dataclass(frozen=True, slots=True)
class AugmentDraws:
    """The augmentation of each image of a batch."""

    ops: Int8[np.ndarray, "rounds batch"]
    """``rn50.augment.ops.Op`` of each round and image."""
    magnitudes: Float32[np.ndarray, "rounds batch"]
    holes: Int64[np.ndarray, "batch holes 4"]
    """Rectangles to be erased, as (top, left, height, width); those of no height are none."""
    noise: Int64[np.ndarray, " batch"] | None
    """Where each image's noise begins in the table; None: holes get the mean colour."""

    def part(self, rows: slice) -> "AugmentDraws":
        """Return the draws of some of the images, such as a micro-batch."""
        return AugmentDraws(
            ops=self.ops[:, rows],
            magnitudes=self.magnitudes[:, rows],
            holes=self.holes[rows],
            noise=None if self.noise is None else self.noise[rows],
        )


@dataclass(frozen=True, slots=True)
class MixDraws:
    """How the pairs of a batch are mixed: all of them alike, in every process."""

    share: float
    """How much of each result is its own image."""
    box: tuple[int, int, int, int] | None
    """CutMix: what comes from the partner, as (top, left, height, width); None: mixup."""


def augment_draws(
    settings: Augment, seed: int, epoch: int, ids: Int64[np.ndarray, " batch"], px: int
) -> AugmentDraws | None:
    """Return the draws of these samples, or None where nothing is augmented.

    Args:
        settings: What is done.
        seed: The run's.
        epoch: From 0.
        ids: What keys the draws: positions in the split, apart for repeated copies.
        px: Side of the images.
    """

    def draws(purpose: str, count: int) -> Float64[np.ndarray, "batch draws"]:
        return rng.uniform(rng.key(seed, purpose, epoch), ids, count)

    rounds = []
    if settings.policy != "none":
        rounds.append(_policy(settings, draws, px))
    if any(settings.color_jitter):
        b, c, s, h = settings.color_jitter
        values = draws("color-jitter", 8)
        rounds.append(policies.color_jitter(values, brightness=b, contrast=c, saturation=s, hue=h))
    if settings.blur_prob > 0:
        rounds.append(
            policies.gaussian_blur(
                draws("blur", 2), probability=settings.blur_prob, sigma=settings.blur_sigma
            )
        )
    holes = []
    if settings.erase_prob > 0:
        values = draws("erase", 2 * _ERASE_TRIES + 3)
        holes.append(erasing(values, px, settings.erase_prob, settings.erase_area))
    if settings.dropout_prob > 0:
        values = draws("dropout", 2 + 2 * settings.dropout_holes)
        holes.append(coarse_dropout(values, px, settings.dropout_prob, settings.dropout_side))
    if not rounds and not holes:
        return None
    noise = None
    if settings.erase_mode == "pixel" and holes:
        noise = (draws("noise", 1)[:, 0] * NOISE_VALUES).astype(np.int64)
    nothing = np.zeros((0, len(ids)))
    return AugmentDraws(
        ops=np.concatenate([nothing.astype(np.int8), *(ops for ops, _ in rounds)]),
        magnitudes=np.concatenate([nothing.astype(np.float32), *(m for _, m in rounds)]),
        holes=np.concatenate([np.zeros((len(ids), 0, 4), dtype=np.int64), *holes], axis=1),
        noise=noise,
    )


def mix_draws(settings: Mix, seed: int, step: int, px: int) -> MixDraws | None:
    """Return how the batch of a step is mixed, or None where it is not.

    One share for the batch, and mixup or CutMix by a draw, as torchvision's ``RandomChoice`` of
    both. CutMix's box has a centre drawn anywhere and is clipped to the image; the share is then
    that of the pixels that are kept (mixup, Zhang et al. 2017, arXiv 1710.09412; CutMix, Yun et al.
    2019, arXiv 1905.04899). Tested: box and share against torchvision's for the same draws, how
    often each is drawn, and the shares' distribution.
    """
    if not settings.is_on:
        return None
    values = rng.uniform(rng.key(seed, "mix", step), np.arange(1), 4 + 2 * _BETA_TRIES)[0]
    mixes, switch, column, row = values[:4]
    if mixes >= settings.prob:
        return None
    cuts = settings.mixup_alpha == 0 or (
        settings.cutmix_alpha > 0 and switch < settings.switch_prob
    )
    alpha = settings.cutmix_alpha if cuts else settings.mixup_alpha
    share = symmetric_beta(alpha, values[4:])
    if not cuts:
        return MixDraws(share=share, box=None)
    box = cutmix_box(share, int(column * px), int(row * px), px)
    return MixDraws(share=1 - box[2] * box[3] / px**2, box=box)


def cutmix_box(share: float, column: int, row: int, px: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of CutMix's box around a pixel, clipped to the image.

    Equal to the box of torchvision's ``CutMix`` for the same draws.
    """
    half = int(0.5 * np.sqrt(1 - share) * px)
    left, right = max(column - half, 0), min(column + half, px)
    top, bottom = max(row - half, 0), min(row + half, px)
    return top, left, bottom - top, right - left


def symmetric_beta(alpha: float, draws: Float64[np.ndarray, " draws"]) -> float:
    """Return a value of Beta(alpha, alpha) from many even draws, of which most go unused.

    Below 1 by Jöhnk's method (1964), in logarithms so that small alphas do not underflow; from 1 on
    by rejection from the uniform distribution. Compared with SciPy's in the tests. Where all tries
    fail, which is less likely than once in 2 to the 64th at alphas up to 4, it is one half.

    Args:
        alpha: Above 0.
        draws: Values in [0, 1), tried by pairs.
    """
    first, second = 1 - draws[: len(draws) // 2 * 2].reshape(-1, 2).T
    if alpha >= 1:
        fits = second <= (4 * first * (1 - first)) ** (alpha - 1)
        values = first
    else:
        one, other = np.log(first) / alpha, np.log(second) / alpha
        total = np.logaddexp(one, other)
        fits = total <= 0
        values = np.exp(one - total)
    return float(values[fits.argmax()]) if fits.any() else 0.5


def erasing(
    draws: Float64[np.ndarray, "batch draws"],
    px: int,
    probability: float,
    area: tuple[float, float],
) -> Int64[np.ndarray, "batch 1 4"]:
    """Return the rectangle that random erasing takes from each image, some of no height.

    As torchvision's ``RandomErasing`` (Zhong et al. 2017, arXiv 1708.04896): up to ten times a
    share of the area and an aspect ratio, even in its logarithm from 0.3 to 3.3, are drawn; the
    first rectangle smaller than the image is erased, at a place drawn evenly. Tested: distributed
    as torchvision's.

    Args:
        draws: 23 values per image: areas, ratios, whether, top, left.
        px: Side of the images.
        probability: Of erasing.
        area: Least and greatest share of the image.
    """
    shares = area[0] + draws[:, :_ERASE_TRIES] * (area[1] - area[0])
    low, high = np.log(_ERASE_RATIO)
    ratios = np.exp(low + draws[:, _ERASE_TRIES : 2 * _ERASE_TRIES] * (high - low))
    heights = np.rint(np.sqrt(shares * ratios) * px).astype(np.int64)
    widths = np.rint(np.sqrt(shares / ratios) * px).astype(np.int64)
    fits = (heights < px) & (widths < px)
    first, rows = fits.argmax(axis=1), np.arange(len(draws))
    does = fits[rows, first] & (draws[:, -3] < probability)
    height = np.where(does, heights[rows, first], 0)
    width = np.where(does, widths[rows, first], 0)
    top = (draws[:, -2] * (px - height + 1)).astype(np.int64)
    left = (draws[:, -1] * (px - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1)[:, None]


def coarse_dropout(
    draws: Float64[np.ndarray, "batch draws"], px: int, probability: float, side: float
) -> Int64[np.ndarray, "batch holes 4"]:
    """Return square holes at places drawn evenly, one or more in the images that have any.

    As Albumentations' ``CoarseDropout`` with holes of one size, and Cutout (DeVries and Taylor
    2017, arXiv 1708.04552) with holes that lie within the image. Tested: their number, size and
    places.

    Args:
        draws: Two values per image, whether and how many, and two per hole, top and left.
        px: Side of the images.
        probability: Of having holes.
        side: Side of a hole as a part of the image's.
    """
    most = (draws.shape[1] - 2) // 2
    size = max(1, round(side * px))
    count = np.where(draws[:, 0] < probability, 1 + (draws[:, 1] * most).astype(np.int64), 0)
    places = (draws[:, 2:] * (px - size + 1)).astype(np.int64)
    sizes = np.where(np.arange(most) < count[:, None], size, 0)
    return np.stack([places[:, :most], places[:, most:], sizes, sizes], axis=2)


def _policy(settings: Augment, draws: _Drawing, px: int) -> policies.Rounds:
    num_ops = settings.num_ops
    if settings.policy == "trivialaugment":
        return policies.trivial_augment(draws("policy", 3), px)
    if settings.policy == "autoaugment":
        return policies.auto_augment(draws("policy", 5), px)
    if settings.policy == "randaugment":
        return policies.rand_augment(
            draws("policy", 2 * num_ops), px, num_ops=num_ops, magnitude=int(settings.magnitude)
        )
    return policies.rand_augment_timm(
        draws("policy", 5 * num_ops), px, num_ops=num_ops, magnitude=settings.magnitude
    )
