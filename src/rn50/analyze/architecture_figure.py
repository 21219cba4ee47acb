"""The picture of a network: how far it sees, how fine its maps are, where its cost lies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from rn50.analyze import drawing
from rn50.analyze.layers import Layer, Part
from rn50.analyze.section import Picture
from rn50.config import Model
from rn50.observe.drawing import plain

FIGURE = "architecture.png"


def shown(model: Model) -> str:
    """Return a network's name for people, such as ``ResNet-50 with BlurPool``."""
    options = [
        *(["a stem for small images"] if model.stem == "small" else []),
        *(["BlurPool"] if model.blurpool != "none" else []),
    ]
    return shown_arch(model.arch) + (f" with {' and '.join(options)}" if options else "")


def shown_arch(arch: str) -> str:
    """Return ``ResNet-50`` for ``resnet50``."""
    return arch.replace("resnet", "ResNet-")


def alt(model: Model) -> str:
    """Return what the picture shows, in words."""
    return (
        f"{shown(model)}: receptive field and side of the maps by depth; shares of parameters, "
        "work and activation memory by stage"
    )


def figure(model: Model, px: int, found: Sequence[Layer], sums: Sequence[Part]) -> Picture:
    """Draw receptive field and map size by depth, and shares of cost by stage."""
    canvas = drawing.canvas(8, 7)
    above, below = canvas.subplots(2, 1, height_ratios=(1.1, 1.0))
    _draw_depth(plain(above), px, found, sums)
    above.set_title(shown(model), pad=20)
    _draw_shares(plain(below), sums)
    return drawing.picture(canvas, FIGURE, alt(model))


def _draw_depth(axes: Axes, px: int, found: Sequence[Layer], sums: Sequence[Part]) -> None:
    path = [layer for layer in found if layer.field and ".downsample" not in layer.name]
    fields = [layer.field.px for layer in path if layer.field]
    sides = [layer.side for layer in path]
    depth = range(1, len(path) + 1)
    axes.plot(depth, fields, "o-", color=drawing.BLUE, markersize=4, label="receptive field, px")
    axes.plot(depth, sides, "s--", color=drawing.RED, markersize=4, label="map's side, values")
    axes.axhline(px, color="0.4", linewidth=1, linestyle=":", label=f"image's side, {px} px")
    for part in sums[1:-1]:
        first = next(i for i, layer in enumerate(path, 1) if layer.part == part.name)
        axes.axvline(first - 0.5, color="0.8", linewidth=0.8)
        axes.annotate(
            part.name,
            (first - 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=9,
            color="0.3",
        )
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0.5, len(path) + 0.5)
    axes.set_xlabel("depth: convolutions and max-pool on the main path")
    axes.set_ylabel("px, or values (log scale)")
    axes.legend(frameon=False, fontsize=9)


def _draw_shares(axes: Axes, sums: Sequence[Part]) -> None:
    places, width = np.arange(len(sums)), 0.27
    kinds = (
        ("parameters", [part.parameters for part in sums], drawing.BLUE, ""),
        ("multiply-adds", [part.flops for part in sums], drawing.RED, "//"),
        ("activations kept for backward", [part.kept for part in sums], drawing.GREEN, ".."),
    )
    for i, (label, values, colour, hatch) in enumerate(kinds):
        shares = np.array(values) / max(sum(values), 1)
        axes.bar(
            places + (i - 1) * width,
            shares,
            width,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=label,
        )
    axes.set_xticks(places, [part.name for part in sums])
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.set_ylabel("share of the whole network")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
