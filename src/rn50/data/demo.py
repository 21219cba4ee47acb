"""A labelled data set that is drawn instead of downloaded: objects on clutter, made to be learnt.

The class is what the object is (a star, a fish, a ladder), never its colour, place, size or the
light on it, which are drawn anew for each picture; so a linear classifier on the pixels fails and
a convolutional network learns the set in minutes. A picture is a pure function of (seed, split,
index), made of exactly rounded arithmetic alone: its pixels are the same on every machine.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image

from rn50 import rng
from rn50.data.shapes import SHAPES, Plane, Shape, length
from rn50.data.sources.base import ClassName, Skipped, SourceImage, Split

CLASSES = tuple(ClassName(name, name) for name in SHAPES)

_DRAWS = 256
"""More numbers than any picture takes."""

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""

Canvas = Float64[np.ndarray, "height width 3"]


class DemoSource:
    """Pictures of ten kinds of objects on cluttered backgrounds, drawn when they are read.

    Args:
        seed: Another seed gives other pictures of the same classes; at least 0.
        train_per_class: Training images of each class; at least 1.
        val_per_class: Validation images of each class, from draws that training shares none of; at
            least 1.
    """

    kind = "demo"
    classes = CLASSES

    def __init__(self, seed: int = 0, train_per_class: int = 300, val_per_class: int = 50) -> None:
        for name, value, least in (
            ("seed", seed, 0),
            ("train_per_class", train_per_class, 1),
            ("val_per_class", val_per_class, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self._seed = seed
        self._per_class: dict[Split, int] = {"train": train_per_class, "val": val_per_class}

    @property
    def skipped(self) -> Skipped:
        """Return nothing: every picture that is drawn is a picture."""
        return Skipped()

    def count(self) -> int:
        """Return the number of images of both splits."""
        return len(CLASSES) * sum(self._per_class.values())

    def images(self) -> Iterator[SourceImage]:
        """Yield the training images, then the validation images, each class in its turn.

        Nothing is drawn before ``read`` is called, which may be from any thread.
        """
        for split, per_class in self._per_class.items():
            for index in range(per_class * len(CLASSES)):
                class_id = class_of(index).id
                yield SourceImage(
                    split,
                    class_id,
                    f"{split}/{class_id}/{index:06d}.jpg",
                    partial(jpeg, self._seed, split, index),
                )


def class_of(index: int) -> ClassName:
    """Return the class of a split's picture number ``index``."""
    return CLASSES[index % len(CLASSES)]


def jpeg(seed: int, split: Split, index: int) -> bytes:
    """Return the picture as a JPEG file, of a quality and chroma resolution that vary."""
    draws = Draws(seed, f"demo/{split}/jpeg", index)
    file = io.BytesIO()
    Image.fromarray(picture(seed, split, index)).save(
        file,
        format="JPEG",
        quality=draws.integer(75, 95),
        subsampling="4:2:0" if draws.chance(0.5) else "4:4:4",
    )
    return file.getvalue()


def picture(seed: int, split: Split, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one picture: background, clutter, shadow, object, something in front, light, noise."""
    return _drawn(seed, split, index)[0]


def mask(seed: int, split: Split, index: int) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of a picture are the object's: half of each or more, shadow left out.

    What may lie in front of the object counts as the object.
    """
    return _drawn(seed, split, index)[1] >= 0.5


def _drawn(
    seed: int, split: Split, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], Plane]:
    """Return a picture, and how much of each of its pixels the object covers."""
    draws = Draws(seed, f"demo/{split}/scene", index)
    height, width = _size(draws)
    palette = _palette(draws)
    canvas = _background(draws, height, width, palette)
    for _ in range(draws.integer(0, 2)):
        _blot(draws, canvas)
    coverage = _object(draws, canvas, SHAPES[class_of(index).id], palette)
    if draws.chance(0.15):
        _blot(draws, canvas)
    _light(draws, canvas)
    grain = rng.uniform(
        rng.key(seed, f"demo/{split}/grain"), np.array([index]), 3 * height * width
    ).reshape(height, width, 3)
    canvas += (grain - 0.5) * draws.between(0.02, 0.06)
    pixels: UInt8[np.ndarray, "height width 3"] = np.floor(
        np.minimum(np.maximum(canvas, 0.0), 1.0) * 255.0 + 0.5
    ).astype(np.uint8)
    return pixels, coverage


class Draws:
    """The random numbers of one picture, handed out in order."""

    def __init__(self, seed: int, purpose: str, index: int) -> None:
        values = rng.uniform(rng.key(seed, purpose), np.array([index]), _DRAWS)[0]
        self._values = iter(values.tolist())

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(next(self._values))

    def integer(self, low: int, high: int) -> int:
        """Return one of low … high, both included."""
        return low + int((high + 1 - low) * float(next(self._values)))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(next(self._values) < probability)

    def direction(self, steepest: float) -> tuple[float, float]:
        """Return a unit vector whose slope is at most ``steepest``."""
        slope = self.between(-steepest, steepest)
        norm = math.sqrt(1.0 + slope * slope)
        return 1.0 / norm, slope / norm

    def plane(self, rows: int, columns: int) -> Float64[np.ndarray, "{rows} {columns}"]:
        """Return a grid of numbers in [0, 1)."""
        return np.array([[next(self._values) for _ in range(columns)] for _ in range(rows)])


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a picture, the object's apart from the background's in lightness."""

    ground: tuple[Colour, Colour]
    body: Colour
    ink: Colour


def _size(draws: Draws) -> tuple[int, int]:
    short = draws.integer(72, 112)
    long = int(short * draws.between(1.0, 4 / 3))
    return (short, long) if draws.chance(0.5) else (long, short)


def _palette(draws: Draws) -> Palette:
    ground = draws.between(0.4, 0.6)
    tones = draws.between(0.05, 0.2), draws.between(0.85, 0.95)
    body, ink = tones if draws.chance(0.5) else tones[::-1]
    return Palette(
        (
            _colour(draws, ground - 0.07, draws.between(0.0, 0.3)),
            _colour(draws, ground + 0.07, draws.between(0.0, 0.3)),
        ),
        _colour(draws, body, draws.between(0.1, 0.4)),
        _colour(draws, ink, draws.between(0.1, 0.4)),
    )


def _colour(draws: Draws, lightness: float, saturation: float) -> Colour:
    """Return a colour of any hue."""
    hue = draws.between(0.0, 6.0)
    red, green, blue = (
        min(max(abs((hue + shift) % 6.0 - 3.0) - 1.0, 0.0), 1.0) for shift in (0.0, 4.0, 2.0)
    )
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    return (
        min(max(lightness + saturation * (red - grey), 0.0), 1.0),
        min(max(lightness + saturation * (green - grey), 0.0), 1.0),
        min(max(lightness + saturation * (blue - grey), 0.0), 1.0),
    )


def _background(draws: Draws, height: int, width: int, palette: Palette) -> Canvas:
    """Return clouds of two colours, coarse and fine."""
    clouds = 0.65 * _clouds(draws, height, width, 3) + 0.35 * _clouds(draws, height, width, 7)
    low, high = (np.array(colour) for colour in palette.ground)
    canvas: Canvas = low + (high - low) * clouds[:, :, None]
    return canvas


def _clouds(draws: Draws, height: int, width: int, cells: int) -> Plane:
    """Return smooth noise in [0, 1): a grid of numbers, interpolated."""
    grid = draws.plane(cells + 1, cells + 1)
    row, down = _cells(height, cells)
    column, across = _cells(width, cells)
    rows = grid[row] + (grid[row + 1] - grid[row]) * down[:, None]
    clouds: Plane = rows[:, column] + (rows[:, column + 1] - rows[:, column]) * across[None, :]
    return clouds


def _cells(
    side: int, cells: int
) -> tuple[Int64[np.ndarray, " side"], Float64[np.ndarray, " side"]]:
    """Return, for each pixel of a side, its cell and how far it is through it, eased."""
    place = np.arange(side) * (cells / side)
    cell = np.floor(place)
    through = place - cell
    return cell.astype(np.int64), through * through * (3.0 - 2.0 * through)


def _blot(draws: Draws, canvas: Canvas) -> None:
    """Paint a small disc or bar of any colour, in place."""
    height, width, _ = canvas.shape
    radius = draws.between(0.03, 0.08) * min(height, width)
    x, y = draws.between(0.0, width), draws.between(0.0, height)
    reach = int(3 * radius) + 2
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    window = canvas[top : int(y) + reach, left : int(x) + reach]
    across = np.arange(left, left + window.shape[1]) - x
    down = np.arange(top, top + window.shape[0]) - y
    u, v = _turned(across, down, draws.direction(1.0))
    if draws.chance(0.5):
        distance = length(u, v) - radius
    else:
        distance = np.maximum(np.abs(u) - 2.5 * radius, np.abs(v) - 0.4 * radius)
    colour = np.array(_colour(draws, draws.between(0.1, 0.6), draws.between(0.0, 0.6)))
    window += (colour - window) * _inside(distance)[:, :, None]


def _object(draws: Draws, canvas: Canvas, shape: Shape, palette: Palette) -> Plane:
    """Paint the object and its shadow, in place; return how much of each pixel it covers."""
    height, width, _ = canvas.shape
    side = min(height, width)
    radius = draws.between(0.42, 0.5) * side
    x = 0.5 * width + draws.between(-1.0, 1.0) * (0.52 * width - radius)
    y = 0.5 * height + draws.between(-1.0, 1.0) * (0.52 * height - radius)
    stretch = draws.between(0.92, 1.08)
    u, v = _turned(np.arange(width) - x, np.arange(height) - y, draws.direction(0.35))
    outline, ink = shape(u * (stretch / radius), v / radius)
    outline, ink = outline * radius, ink * radius

    down, right = draws.integer(1, 5), draws.integer(0, 5)
    shadow = _inside(outline[: height - down, : width - right] * 0.2)
    canvas[down:, right:] *= 1.0 - draws.between(0.2, 0.6) * shadow[:, :, None]

    body, second = (np.array(colour) for colour in (palette.body, palette.ink))
    paint = body + (second - body) * _inside(ink)[:, :, None]
    paint *= 1.0 + draws.between(0.2, 0.6) * _relief(outline, 0.15 * radius)[:, :, None]
    coverage = _inside(outline)
    canvas += (paint - canvas) * coverage[:, :, None]
    return coverage


def _turned(
    across: Float64[np.ndarray, " width"],
    down: Float64[np.ndarray, " height"],
    direction: tuple[float, float],
) -> tuple[Plane, Plane]:
    """Return the places of a frame's pixels in a frame turned to ``direction``."""
    cos, sin = direction
    u = (cos * across)[None, :] + (sin * down)[:, None]
    v = (cos * down)[:, None] - (sin * across)[None, :]
    return u, v


def _inside(distance: Plane) -> Plane:
    """Return how much of each pixel a shape covers, given its distance in pixels."""
    coverage: Plane = np.minimum(np.maximum(0.5 - distance, 0.0), 1.0)
    return coverage


def _relief(outline: Plane, bevel: float) -> Plane:
    """Return the light on a body with a rounded edge, -1 to 1, from above and a little left."""
    depth = np.minimum(np.maximum(outline / -bevel, 0.0), 1.0)
    light = np.zeros_like(depth)
    light[1:-1] += (0.4 * bevel) * (depth[2:] - depth[:-2])
    light[:, 1:-1] += (0.2 * bevel) * (depth[:, 2:] - depth[:, :-2])
    return light


def _light(draws: Draws, canvas: Canvas) -> None:
    """Let light fall from one side, in place."""
    height, width, _ = canvas.shape
    across = draws.between(-0.3, 0.3) * (np.arange(width) / width - 0.5)
    down = draws.between(-0.3, 0.3) * (np.arange(height) / height - 0.5)
    canvas *= (draws.between(0.75, 1.1) + across[None, :] + down[:, None])[:, :, None]
