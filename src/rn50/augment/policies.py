"""Automatic augmentation: which operations an image undergoes, and how strongly.

Everything here is NumPy on the host: a policy turns even draws in [0, 1) into operations and
magnitudes, one row per round. The spaces of torchvision's policies are compared with its own tables
in the tests, the distribution of timm's with its formulas.

Sources: RandAugment (Cubuk et al. 2019, arXiv 1909.13719), AutoAugment (Cubuk et al. 2018, arXiv
1805.09501), TrivialAugment (Müller and Hutter 2021, arXiv 2103.10158), as implemented in
torchvision's ``transforms/v2/_auto_augment.py`` and timm's ``data/auto_augment.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8

from rn50.augment.ops import Op

Draws = Float64[np.ndarray, "batch draws"]
Rounds = tuple[Int8[np.ndarray, "rounds batch"], Float32[np.ndarray, "rounds batch"]]

BINS = 31
"""Strengths that torchvision's RandAugment and TrivialAugment tell apart, 0 to 30."""
TIMM_MAX = 10.0
"""The greatest magnitude of timm's RandAugment."""
TIMM_STD = 0.5
"""Deviation of its magnitude (``mstd0.5``)."""
TIMM_PROB = 0.5
"""Probability that an operation it drew is carried out."""

_FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
_PLAIN = (Op.AUTOCONTRAST, Op.EQUALIZE)
_ENHANCED = 1.0


@dataclass(frozen=True, slots=True)
class _Space:
    """Operations and their magnitudes by strength; what is drawn is ``base`` plus or minus it."""

    ops: Int8[np.ndarray, " ops"]
    base: Float64[np.ndarray, " ops"]
    size: Float64[np.ndarray, "ops bins"]
    signed: Bool[np.ndarray, " ops"]

    def magnitudes(
        self, rows: np.ndarray, bins: np.ndarray, sign_draws: np.ndarray
    ) -> Float32[np.ndarray, " batch"]:
        sign = np.where(self.signed[rows] & (sign_draws < 0.5), -1.0, 1.0)
        return (self.base[rows] + sign * self.size[rows, bins]).astype(np.float32)


def rand_augment(draws: Draws, px: int, *, num_ops: int, magnitude: int) -> Rounds:
    """Return ``num_ops`` operations an image, each of 14 (one the identity), at one strength.

    As torchvision's ``RandAugment``: strength ``magnitude`` of 31, signs drawn evenly, what moves
    pixels samples the nearest and fills with black.

    Args:
        draws: 2 ``num_ops`` values per image.
        px: Side of the images; translations are a part of it.
        num_ops: Rounds.
        magnitude: 0 to 30.
    """
    space = _torchvision_space("rand", px, BINS)
    rows = (draws[:, :num_ops] * len(space.ops)).astype(np.int64).T
    bins = np.full(len(draws), magnitude)
    signs = draws[:, num_ops:].T
    values = [space.magnitudes(row, bins, sign) for row, sign in zip(rows, signs, strict=True)]
    return space.ops[rows], np.stack(values)


def trivial_augment(draws: Draws, px: int) -> Rounds:
    """Return one operation an image, of 14, at a strength drawn evenly (TrivialAugmentWide).

    As torchvision's ``TrivialAugmentWide``: shear to 0.99, rotation to 135 degrees, translation to
    32 px whatever the image's side, posterizing to 2 bits.

    Args:
        draws: Three values per image.
        px: Side of the images; not used.
    """
    space = _torchvision_space("wide", px, BINS)
    rows = (draws[:, 0] * len(space.ops)).astype(np.int64)
    bins = (draws[:, 1] * BINS).astype(np.int64)
    return space.ops[rows][None], space.magnitudes(rows, bins, draws[:, 2])[None]


def auto_augment(draws: Draws, px: int) -> Rounds:
    """Return the two operations of one of 25 pairs, each with its probability and strength.

    The policy found on ImageNet (AutoAugment's appendix), as torchvision's ``AutoAugment``.

    Args:
        draws: Five values per image: the pair, then whether and which sign for each operation.
        px: Side of the images; translations are a part of it.
    """
    space = _torchvision_space("auto", px, 10)
    chosen = _pairs()[(draws[:, 0] * len(_PAIRS)).astype(np.int64)]
    ops, values = [], []
    for i in (0, 1):
        rows, probability, bins = chosen[:, i].T
        rows, bins = rows.astype(np.int64), bins.astype(np.int64)
        does = draws[:, 1 + i] < probability
        ops.append(np.where(does, space.ops[rows], Op.IDENTITY).astype(np.int8))
        values.append(space.magnitudes(rows, bins, draws[:, 3 + i]))
    return np.stack(ops), np.stack(values)


def rand_augment_timm(draws: Draws, px: int, *, num_ops: int, magnitude: float) -> Rounds:
    """Return timm's ``rand-mM-mstd0.5-inc1``: 15 operations, each done with probability a half.

    Differs from torchvision's RandAugment in what is drawn (Invert and SolarizeAdd, no identity),
    in the strength (normal around ``magnitude`` of 10), in the ranges, and in how pixels are moved:
    timm interpolates, bilinear or bicubic by turns, and fills with the mean colour; here it is
    always bilinear.

    Args:
        draws: 5 ``num_ops`` values per image.
        px: Side of the images; translations are up to 0.45 of it.
        num_ops: Rounds.
        magnitude: 0 to 10.
    """
    ops, values = [], []
    table = np.array(list(_TIMM), dtype=np.int8)
    for i in range(num_ops):
        which, does, first, second, sign = draws[:, 5 * i : 5 * i + 5].T
        op = table[(which * len(table)).astype(np.int64)]
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
        level = np.clip(magnitude + TIMM_STD * normal, 0, TIMM_MAX) / TIMM_MAX
        signed = np.where(sign < 0.5, -level, level)
        value = np.zeros(len(draws), dtype=np.float32)
        for one, argument in _TIMM.items():
            of_this = op == one
            value[of_this] = argument(level[of_this], signed[of_this], px)
        ops.append(np.where(does < TIMM_PROB, op, Op.IDENTITY).astype(np.int8))
        values.append(value)
    return np.stack(ops), np.stack(values)


def color_jitter(
    draws: Draws, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Rounds:
    """Return brightness, contrast, saturation and hue in an order drawn for each image.

    As torchvision's ``ColorJitter``: factors even in [max(0, 1 - x), 1 + x], hue in [-x, x].

    Args:
        draws: Eight values per image: the order, then the factors.
        brightness: The x of each, 0 for none; as the three that follow.
        contrast: As above.
        saturation: As above.
        hue: As above, at most 0.5.
    """
    reach = np.array([brightness, contrast, saturation, hue])
    low = np.append(np.maximum(0, 1 - reach[:3]), -hue)
    high = np.append(1 + reach[:3], hue)
    factors = low + draws[:, 4:] * (high - low)
    ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], dtype=np.int8)
    ops = np.where(reach > 0, ops, np.int8(Op.IDENTITY))
    order = np.argsort(draws[:, :4], axis=1)
    values = np.take_along_axis(factors, order, axis=1).T.astype(np.float32)
    return np.ascontiguousarray(ops[order].T), np.ascontiguousarray(values)


def gaussian_blur(draws: Draws, *, probability: float, sigma: tuple[float, float]) -> Rounds:
    """Return a blur of a deviation even in ``sigma`` for a part of the images.

    Args:
        draws: Two values per image.
        probability: Of being blurred.
        sigma: Least and greatest deviation, in pixels.
    """
    ops = np.where(draws[:, 0] < probability, Op.BLUR, Op.IDENTITY).astype(np.int8)
    deviation = sigma[0] + draws[:, 1] * (sigma[1] - sigma[0])
    return ops[None], deviation.astype(np.float32)[None]


@cache
def _torchvision_space(policy: str, px: int, bins: int) -> _Space:
    """Return the operations of one of torchvision's policies: rand, auto or wide."""
    wide = policy == "wide"
    bend, turn, factor, lost = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    shift = 32.0 if wide else 150 / 331 * px
    rising = np.arange(bins) / (bins - 1)
    # Whole pixels. The hair undoes a rounding just below a whole number, which in torchvision's
    # single precision makes 15 px of TrivialAugment's 16.
    shifts = np.floor(shift * rising + 1e-4)
    sizes: dict[Op, tuple[float, np.ndarray, bool]] = {
        Op.SHEAR_X: (0, bend * rising, True),
        Op.SHEAR_Y: (0, bend * rising, True),
        Op.TRANSLATE_X: (0, shifts, True),
        Op.TRANSLATE_Y: (0, shifts, True),
        Op.ROTATE: (0, turn * rising, True),
        **dict.fromkeys(_FACTORS, (_ENHANCED, factor * rising, True)),
        Op.POSTERIZE: (0, np.rint(8 - lost * rising), False),
        Op.SOLARIZE: (0, 255 * (1 - rising), False),
        **dict.fromkeys(_PLAIN, (0, 0 * rising, False)),
        (Op.INVERT if policy == "auto" else Op.IDENTITY): (0, 0 * rising, False),
    }
    return _Space(
        ops=np.array(list(sizes), dtype=np.int8),
        base=np.array([base for base, _, _ in sizes.values()], dtype=np.float64),
        size=np.stack([size for _, size, _ in sizes.values()]),
        signed=np.array([signed for _, _, signed in sizes.values()]),
    )


_PAIRS = (
    ((Op.POSTERIZE, 0.4, 8), (Op.ROTATE, 0.6, 9)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    ((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
    ((Op.POSTERIZE, 0.6, 7), (Op.POSTERIZE, 0.6, 6)),
    ((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    ((Op.EQUALIZE, 0.4, 0), (Op.ROTATE, 0.8, 8)),
    ((Op.SOLARIZE, 0.6, 3), (Op.EQUALIZE, 0.6, 0)),
    ((Op.POSTERIZE, 0.8, 5), (Op.EQUALIZE, 1.0, 0)),
    ((Op.ROTATE, 0.2, 3), (Op.SOLARIZE, 0.6, 8)),
    ((Op.EQUALIZE, 0.6, 0), (Op.POSTERIZE, 0.4, 6)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 0.4, 0)),
    ((Op.ROTATE, 0.4, 9), (Op.EQUALIZE, 0.6, 0)),
    ((Op.EQUALIZE, 0.0, 0), (Op.EQUALIZE, 0.8, 0)),
    ((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.ROTATE, 0.8, 8), (Op.COLOR, 1.0, 2)),
    ((Op.COLOR, 0.8, 8), (Op.SOLARIZE, 0.8, 7)),
    ((Op.SHARPNESS, 0.4, 7), (Op.INVERT, 0.6, 0)),
    ((Op.SHEAR_X, 0.6, 5), (Op.EQUALIZE, 1.0, 0)),
    ((Op.COLOR, 0.4, 0), (Op.EQUALIZE, 0.6, 0)),
    ((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    ((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    ((Op.COLOR, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
)
"""(operation, probability, strength of 0 to 9), twice."""


@cache
def _pairs() -> Float64[np.ndarray, "pairs 2 3"]:
    rows = {int(op): row for row, op in enumerate(_torchvision_space("auto", 1, 10).ops)}
    return np.array([[(rows[op], p, level) for op, p, level in pair] for pair in _PAIRS])


# timm's levels to arguments: of the level in [0, 1], the same with a random sign, and the side.
_Argument = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def _times(level: np.ndarray, signed: np.ndarray, px: int, *, most: float) -> np.ndarray:
    return most * signed


def _times_side(level: np.ndarray, signed: np.ndarray, px: int) -> np.ndarray:
    return 0.45 * px * signed


def _around_one(level: np.ndarray, signed: np.ndarray, px: int) -> np.ndarray:
    return np.maximum(0.1, 1 + 0.9 * signed)


def _counted(
    level: np.ndarray, signed: np.ndarray, px: int, *, of: int, down_from: int = 0
) -> np.ndarray:
    count = np.floor(level * of)
    return down_from - count if down_from else count


def _none(level: np.ndarray, signed: np.ndarray, px: int) -> np.ndarray:
    return np.zeros_like(level)


_TIMM: dict[Op, _Argument] = {
    Op.AUTOCONTRAST: _none,
    Op.EQUALIZE: _none,
    Op.INVERT: _none,
    Op.ROTATE: partial(_times, most=30.0),
    Op.POSTERIZE: partial(_counted, of=4, down_from=4),
    Op.SOLARIZE: partial(_counted, of=256, down_from=256),
    Op.SOLARIZE_ADD: partial(_counted, of=110),
    **dict.fromkeys(_FACTORS, _around_one),
    Op.SHEAR_X: partial(_times, most=0.3),
    Op.SHEAR_Y: partial(_times, most=0.3),
    Op.TRANSLATE_X: _times_side,
    Op.TRANSLATE_Y: _times_side,
}
