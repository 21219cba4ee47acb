"""Matplotlib figures as inline SVG that takes the page's colours, with the numbers for a pointer.

Without JavaScript the picture is whole; with it, a pointer over the picture reads the values. Its
legends become text of the page, which wraps where a screen is narrow.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Affine2D

from rn50.observe.drawing import take_legends

_POINTS_PER_INCH = 72
_WIDTH_IN = 5.5
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_TAG = re.compile(r"<[^>]+>")
_LAST = re.compile(r" (\(last .*\)|[\d.]+%)$")
_DASHES = {"--": "6 2.6", "-.": "10 2.6 1.6 2.6", ":": "1.6 2.6"}
_MOST_POINTS = 500
"""Of a line that a pointer can read; the line itself is drawn whole."""


@dataclass(frozen=True, slots=True)
class Key:
    """A legend: a sample of each line and what the line is."""

    heading: str
    """Which panel is meant, or what the words say; may be empty."""
    lines: list[tuple[Markup, str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure for a page."""

    name: str
    title: str
    svg: Markup
    numbers: dict[str, Any]
    """Where the axes lie in the picture, and their lines: for the page's script."""
    keys: list[Key]


def chart(name: str, figure: Figure, alt: str) -> Chart:
    """Return a figure as a chart of a page.

    Args:
        name: Of letters and hyphens; unique on the page.
        figure: Drawn narrower than its file, so that its words stay legible on small screens, and
            without its legends; the last part of its title becomes the chart's.
        alt: What is to be seen, for those who do not see it.
    """
    title = " ".join(figure.get_suptitle().split()).rpartition(": ")[2]
    figure.suptitle("")
    keys = _keys(figure)
    width, height = figure.get_size_inches()
    figure.set_size_inches(_WIDTH_IN, height * _WIDTH_IN / width)
    figure.set_dpi(_POINTS_PER_INCH)
    data = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.canvas.draw()
        numbers = _numbers(figure)
        figure.savefig(data, format="svg", transparent=True, dpi=_POINTS_PER_INCH)
    return Chart(
        name=name,
        title=(title[:1].upper() + title[1:]) or alt,
        svg=_inline(data.getvalue(), alt),
        numbers=numbers,
        keys=keys,
    )


def _keys(figure: Figure) -> list[Key]:
    panels = {axes.get_legend(): axes.get_ylabel() for axes in figure.axes}
    legends = take_legends(figure)
    several = len(legends) > 1
    return [
        Key(
            legend.get_title().get_text() or (panels.get(legend, "") if several else ""),
            [
                (_sample(handle), text.get_text().replace("\n", " "))
                for handle, text in zip(_handles(legend), legend.get_texts(), strict=True)
            ],
        )
        for legend in legends
    ]


def _handles(legend: Legend) -> list[Artist]:
    return [handle for handle in legend.legend_handles if handle is not None]


def _sample(handle: Artist) -> Markup:
    """Return a small picture of what a legend explains: a line, a marker, a band."""
    drawn = ""
    if isinstance(handle, Patch):
        color, hatch = (_hex(c) for c in (handle.get_facecolor(), handle.get_edgecolor()))
        drawn = f'<rect x="1" y="1.5" width="32" height="9" fill="{color}" stroke="{hatch}"/>'
        drawn += f'<path d="M4 10l7 -8M13 10l7 -8M22 10l7 -8" stroke="{hatch}"/>'
    elif isinstance(handle, Line2D):
        drawn = _line_sample(handle)
    return Markup(
        '<svg class="sample" viewBox="0 0 34 12" aria-hidden="true">'
        + _recoloured(drawn)
        + "</svg>"
    )


def _hex(color: Any) -> str:
    return matplotlib.colors.to_hex(color)


def _line_sample(line: Line2D) -> str:
    color, drawn = _hex(line.get_color()), ""
    if (style := str(line.get_linestyle())) != "None":
        dashes = _DASHES.get(style, "")
        drawn = (
            f'<path d="M1 6H33" stroke="{color}" stroke-width="{line.get_linewidth():g}" '
            f'stroke-dasharray="{dashes}" opacity="{line.get_alpha() or 1:g}"/>'
        )
    if str(marker := line.get_marker()) not in ("None", "", " "):
        face, edge = line.get_markerfacecolor(), line.get_markeredgecolor()
        fill = "none" if str(face) == "none" else _hex(face)
        look = f'fill="{fill}" stroke="{_hex(edge)}"'
        drawn += f'<path d="{_outline(marker, line.get_markersize())}" {look}/>'
    return drawn


def _outline(marker: Any, size: float) -> str:
    """Return the path of a marker in the middle of a sample."""
    style = MarkerStyle(marker)
    across = min(1.3 * size, 10.0)
    place = Affine2D().scale(across, -across).translate(17, 6)
    polygons = style.get_path().transformed(style.get_transform() + place).to_polygons()
    return "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in np.asarray(polygon).tolist()) + "Z"
        for polygon in polygons
    )


def _inline(svg: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # Unique in a picture, not on a page.
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = _recoloured(svg)
    label = Markup('role="img" aria-label="{}" ').format(alt)
    return Markup(svg.replace("<svg ", f"<svg {label}", 1))


def _recoloured(svg: str) -> str:
    """Return a picture whose colours are the page's; its words stay as they are."""

    def tag(found: re.Match[str]) -> str:
        greyed = _GREY.sub(lambda grey: _tone(int(grey[1], 16)), found[0])
        return _COLOUR.sub(r"var(--c-\1, #\1)", greyed)

    return _TAG.sub(tag, svg)


def _tone(grey: int) -> str:
    if grey == 255:
        return "var(--paper)"
    if grey > 160:
        return "var(--grid)"
    return "currentColor" if grey == 0 else "var(--dim)"


def _numbers(figure: Figure) -> dict[str, Any]:
    width, height = figure.get_size_inches() * _POINTS_PER_INCH
    return {
        "width": round(float(width), 2),
        "height": round(float(height), 2),
        "axes": [told for axes in figure.axes if (told := _axes(axes, height))["series"]],
    }


def _axes(axes: Axes, height: float) -> dict[str, Any]:
    box = axes.get_window_extent()
    percent = isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)
    return {
        "left": round(box.x0, 2),
        "right": round(box.x1, 2),
        "top": round(height - box.y1, 2),
        "bottom": round(height - box.y0, 2),
        "x": [_short(value) for value in axes.get_xlim()],
        "y": [_short(value) for value in axes.get_ylim()],
        "xlog": axes.get_xscale() == "log",
        "ylog": axes.get_yscale() == "log",
        "xlabel": axes.get_xlabel(),
        "percent": percent,
        "series": _series(axes),
    }


def _series(axes: Axes) -> list[dict[str, Any]]:
    found = []
    for line in axes.get_lines():
        label = str(line.get_label())
        if label.startswith("_") or line.get_transform() != axes.transData:
            continue
        drawn = np.asarray(line.get_xydata(), dtype=np.float64)
        points = drawn[np.isfinite(drawn).all(axis=1)].tolist()
        every = math.ceil(len(points) / _MOST_POINTS) or 1
        if kept := points[::every]:
            color = _hex(line.get_color())
            xs, ys = ([_short(point[i]) for point in kept] for i in (0, 1))
            found.append({"label": _LAST.sub("", label), "color": color, "x": xs, "y": ys})
    return found


def _short(value: float) -> float:
    return float(f"{value:.6g}")
