"""Images with maps laid over them, as rows of tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from rn50.analyze.drawing import canvas, picture
from rn50.analyze.section import Picture

_MAP = "inferno"
"""Even steps of lightness: it reads in grey, and by the colour-blind."""
_STRENGTH = 0.6
_COLUMNS = 6
_SMOOTHED_BELOW = 128
"""Smaller images are enlarged smoothly: their pixels tell no more."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One square of a picture."""

    image: UInt8[np.ndarray, "px px 3"]
    over: Float[np.ndarray, "px px"] | None = None
    """A map from 0 to 1, laid over the image in grey; None: the image alone, in colour."""
    title: str = ""
    """Up to two lines of some 20 characters."""
    outline: Bool[np.ndarray, "px px"] | None = None
    """What is outlined in white."""
    point: tuple[float, float] | None = None
    """Where a cross is, in pixels from the top and the left."""


def tiles(groups: Sequence[Sequence[Tile]], name: str, alt: str) -> Picture:
    """Draw groups of tiles, as many beside each other as six columns hold.

    Args:
        groups: Of one length, up to six tiles each.
        name: The file's name.
        alt: What is to be seen.
    """
    size = len(groups[0])
    beside = _COLUMNS // size
    rows = -(-len(groups) // beside)
    ratios = (([1.0] * size + [0.12]) * beside)[:-1]
    lines = max(tile.title.count("\n") + 1 for group in groups for tile in group)
    figure = canvas(8, rows * (1.25 + 0.15 * lines) + 0.7)
    grid = figure.subplots(rows, len(ratios), squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, group in enumerate(groups):
        row, place = divmod(i, beside)
        for k, tile in enumerate(group):
            _draw(grid[row, place * (size + 1) + k], tile)
    scale = figure.colorbar(
        ScalarMappable(cmap=_MAP),
        ax=grid,
        location="bottom",
        shrink=0.4,
        aspect=40,
        pad=0.02,
        ticks=[0, 0.5, 1],
    )
    scale.set_label("Grad-CAM: from the least to the most of each map", fontsize=8)
    scale.ax.tick_params(labelsize=8)
    return picture(figure, name, alt)


def laid_over(
    image: UInt8[np.ndarray, "px px 3"], over: Float[np.ndarray, "px px"]
) -> Float[np.ndarray, "px px 3"]:
    """Return an image in grey, coloured by a map from 0 to 1; channels from 0 to 1."""
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    colours = colormaps[_MAP](over)[..., :3]
    blended: Float[np.ndarray, "px px 3"] = (1 - _STRENGTH) * grey[..., None] + _STRENGTH * colours
    return blended


def _draw(axes: Axes, tile: Tile) -> None:
    # Not bicubic: where a map is steep it overshoots, into colours that the scale has not.
    smooth = "bilinear" if tile.image.shape[0] < _SMOOTHED_BELOW else "antialiased"
    shown = tile.image if tile.over is None else laid_over(tile.image, tile.over)
    axes.imshow(shown, interpolation=smooth)
    axes.set_title(tile.title, fontsize=7.5, loc="left", pad=3)
    if tile.outline is not None:
        axes.contour(tile.outline, levels=[0.5], colors="white", linewidths=1.2)
    if tile.point is not None:
        row, column = tile.point
        # Pixel 0 reaches from -0.5 to 0.5. Two colours, so that it shows on any.
        for colour, width in (("black", 3.5), ("white", 1.5)):
            axes.plot(column - 0.5, row - 0.5, "+", color=colour, markersize=9, mew=width)
