"""Matplotlib figures as inline SVG that takes the page's colours, with the numbers for a pointer.

Without JavaScript the picture is whole; with it, a pointer over the picture reads the values.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_POINTS_PER_INCH = 72
_WIDTH_IN = 5.5
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_MOST_POINTS = 500
"""Of a line that a pointer can read; the line itself is drawn whole."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure for a page."""

    name: str
    title: str
    svg: Markup
    numbers: dict[str, Any]
    """Where the axes lie in the picture, and their lines: for the page's script."""


def chart(name: str, figure: Figure, alt: str) -> Chart:
    """Return a figure as a chart of a page.

    Args:
        name: Of letters and hyphens; unique on the page.
        figure: Drawn narrower than its file, so that its words stay legible on small screens; the
            last part of its title becomes the chart's.
        alt: What is to be seen, for those who do not see it.
    """
    title = figure.get_suptitle().rpartition(": ")[2]
    figure.suptitle("")
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
    )


def _inline(svg: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # Unique in a picture, not on a page.
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = _GREY.sub(lambda grey: _tone(int(grey[1], 16)), svg)
    svg = _COLOUR.sub(r"var(--c-\1, #\1)", svg)
    label = Markup('role="img" aria-label="{}" ').format(alt)
    return Markup(svg.replace("<svg ", f"<svg {label}", 1))


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
            color = matplotlib.colors.to_hex(line.get_color())
            xs, ys = ([_short(point[i]) for point in kept] for i in (0, 1))
            found.append(
                {"label": label.partition(" (last ")[0], "color": color.lower(), "x": xs, "y": ys}
            )
    return found


def _short(value: float) -> float:
    return float(f"{value:.6g}")
