"""The objects of the demo data set, drawn as signed distances.

An object lives in a frame of its own: ``u`` to the right, ``v`` down, the object within about
one unit of the origin. Only operations that IEEE 754 rounds exactly are used (no sine, no power,
no sum over an axis), so that a picture is the same, bit for bit, on every machine; directions are
therefore written out as the numbers they are.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Plane = Float64[np.ndarray, "height width"]
"""One value per pixel."""

Shape = Callable[[Plane, Plane], tuple[Plane, Plane]]
"""From the pixels' ``u`` and ``v`` to two distances, both negative inside and in the frame's units:
to the object's outline, and to the parts of it that have its second colour."""

_COS_18, _SIN_18 = 0.9510565162951535, 0.3090169943749474
_COS_36, _SIN_36 = 0.8090169943749475, 0.5877852522924731
_COS_30, _SIN_30 = 0.8660254037844386, 0.5


def length(u: Plane, v: Plane) -> Plane:
    """Return the distance from the origin."""
    distance: Plane = np.sqrt(u * u + v * v)
    return distance


def chessboard(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a square board of six by six fields."""
    x, y = _ripple(u + 0.14, 0.56), _ripple(v + 0.14, 0.56)
    fields = np.copysign(np.minimum(np.abs(x), np.abs(y)), x * y)
    return _box(u, v, 0.84, 0.84), fields


def fish(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a fish from the side: a pointed oval, a tail, bands and an eye."""
    side = np.abs(v)
    body = length(u + 0.18, side + 0.5) - 1.0
    tail = np.maximum(np.maximum(u - 0.98, 0.4 - u), 0.7 * (side - (u - 0.4)))
    eye = length(u + 0.66, v + 0.08) - 0.11
    bands = np.maximum(_ripple(u, 0.36), -0.46 - u)
    return np.minimum(body, tail), np.minimum(eye, bands)


def flower(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw six round petals about a centre."""
    x, y = _folded(np.abs(u), np.abs(v), -_SIN_30, _COS_30)
    petal = length(x - 0.64, y) - 0.34
    centre = length(u, v) - 0.32
    return np.minimum(petal, centre), np.minimum(length(x - 0.64, y) - 0.17, centre)


def heart(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a heart with a lighter or darker heart inside."""
    x, y = np.abs(u) * 0.6, 0.53 - v * 0.6
    lobe = length(x - 0.25, y - 0.75) - 0.3535533905932738
    along = 0.5 * np.maximum(x + y, 0.0)
    flank = np.minimum(length(x, y - 1.0), length(x - along, y - along))
    outline = np.where(x + y > 1.0, lobe, np.copysign(flank, x - y)) / 0.6
    return outline, outline + 0.27


def ladder(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw two rails and five rungs."""
    rails = _box(np.abs(u) - 0.44, v, 0.1, 1.0)
    rungs = np.maximum(_ripple(v, 0.38) + 0.025, _box(u, v, 0.44, 0.9))
    return np.minimum(rails, rungs), -rails


def leaf(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a pointed oval with a rib, from which stripes slant upwards to both sides."""
    side = np.abs(u)
    return length(side + 0.6, v) - 1.14, np.minimum(
        0.75 * _ripple(v + 0.9 * side, 0.5), side - 0.05
    )


def moon(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a crescent with three craters."""
    craters = np.minimum(
        length(u + 0.62, v) - 0.14,
        np.minimum(length(u + 0.38, v - 0.52) - 0.11, length(u + 0.36, v + 0.55) - 0.09),
    )
    return np.maximum(length(u, v) - 0.95, 0.76 - length(u - 0.44, v)), craters


def mushroom(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a toadstool: a dotted cap on a stem."""
    cap = np.maximum(length(u, v - 0.06) - 0.94, v - 0.12)
    stem = _box(u, v - 0.48, 0.24, 0.42)
    dots = np.minimum(
        length(np.abs(u) - 0.5, v + 0.17) - 0.15,
        np.minimum(length(u, v + 0.54) - 0.16, length(u, v + 0.1) - 0.12),
    )
    return np.minimum(cap, stem), np.minimum(dots, np.maximum(stem, -cap))


def star(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw a star of five points whose arms are lit from one side."""
    x, y = np.abs(u), -v
    first = -_SIN_18 * x - _COS_18 * y
    x, y = _folded(x, y, -_SIN_18, -_COS_18)
    second = _COS_36 * x - _SIN_36 * y
    x, y = _folded(x, y, _COS_36, -_SIN_36)
    edge = np.minimum(np.abs(x), np.abs(second))
    facets = np.copysign(edge, u * first * second * x)
    return 0.9233 * np.abs(x) + 0.384 * (y - 1.05), facets


def target(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Draw concentric rings."""
    radius = length(u, v)
    return radius - 0.95, _ripple(radius + 0.1, 0.42)


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        chessboard,
        fish,
        flower,
        heart,
        ladder,
        leaf,
        moon,
        mushroom,
        star,
        target,
    )
}
"""Class id -> its shape, in the order of the ids."""


def _box(u: Plane, v: Plane, half_width: float, half_height: float) -> Plane:
    distance: Plane = np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)
    return distance


def _ripple(x: Plane, period: float) -> Plane:
    """Return a triangle wave of slope one that is lowest at the multiples of ``period``."""
    turns = x / period
    wave: Plane = (np.abs(turns - np.floor(turns + 0.5)) - 0.25) * period
    return wave


def _folded(u: Plane, v: Plane, normal_u: float, normal_v: float) -> tuple[Plane, Plane]:
    """Mirror the half plane on the normal's side of the origin onto the other half."""
    beyond = 2.0 * np.maximum(normal_u * u + normal_v * v, 0.0)
    return u - normal_u * beyond, v - normal_v * beyond
