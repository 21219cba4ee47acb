"""How this project's figures look: colours, lines, axes and legends that anybody can tell apart.

The colours are Paul Tol's "bright" scheme (Colour Schemes, SRON/EPS/TN/09-002, 2021) without its
yellow and grey, which are faint on white. What has a colour of its own also has a line style and a
marker of its own, for readers of grey copies.
"""

import functools
import io
import math
import statistics
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA3377", "#66CCEE")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Points = Sequence[tuple[float, float]]
"""Pairs of x and y, by x."""

_DPI = 150
_WIDTH_IN = 8.0
_TITLE_CHARACTERS = 72
_MAX_POINTS = 2000
_MAX_MARKERS = 15
_BELOW_IN = 0.1
"""Between the axes and a legend below them."""
_FALLBACK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR"),
    *("IPAexGothic", "IPAGothic", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "NanumGothic"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Droid Sans Fallback"),
    *("Noto Sans Symbols2", "Noto Emoji", "Segoe UI Emoji", "Symbola", "Unifont"),
)
"""Where letters come from that the usual font lacks: of Linux, macOS and Windows, if installed."""


def new_figure(title: str, *heights: float) -> tuple[Figure, list[Axes]]:
    """Return a figure 1200 pixels wide with a panel for each height (in inches), one above another.

    Made without pyplot, whose global state is neither safe in a thread nor ever freed. All panels
    share the x axis.
    """
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 0.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
    axes: list[Axes] = list(panels[:, 0])
    # Matplotlib's own wrapping takes a dollar sign for the beginning of a formula.
    figure.suptitle(textwrap.fill(title, _TITLE_CHARACTERS), fontsize=12)
    return figure, [plain(one) for one in axes]


def plain(axes: Axes) -> Axes:
    """Give axes the style of curves: a light grid below, no frame above and at the right."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def style_of(index: int) -> dict[str, Any]:
    """Return the look of the line of this number: 28 differ without their colours, 140 with."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def line(axes: Axes, points: Points, look: dict[str, Any], label: str) -> None:
    """Draw a line with a marker at some of its points; nothing where there is no point."""
    if not points:
        return
    every = max(1, math.ceil(len(points) / _MAX_MARKERS))
    xs, ys = columns(points)
    axes.plot(xs, ys, label=label, markersize=4.5, linewidth=1.6, markevery=every, **look)


def cloud(axes: Axes, points: Points, color: str, label: str) -> None:
    """Draw what was measured often as a faint thin line behind the others."""
    if points:
        look: dict[str, Any] = {"color": color, "alpha": 0.4, "linewidth": 0.9, "zorder": 1.5}
        alone = "." if len(points) == 1 else None
        axes.plot(*columns(thinned(points)), label=label, marker=alone, **look)


def marks(axes: Axes, xs: Sequence[float], label: str, *, color: str, marker: str) -> None:
    """Mark places on the x axis by thin lines from bottom to top, each with a marker at its top.

    Without a label the legend is silent about them.
    """
    if not xs:
        return
    across = axes.get_xaxis_transform()
    axes.vlines(xs, 0, 1, transform=across, color=color, linewidth=0.8, linestyle=(0, (1, 2)))
    top: dict[str, Any] = {
        "transform": across,
        "clip_on": False,
        "linestyle": "none",
        "markersize": 6,
    }
    if label and len(xs) > 1:
        label += f" ({len(xs)} times)"
    axes.plot(xs, [1.0] * len(xs), marker=marker, color=color, label=label or "_", **top)


def band(axes: Axes, points: Points, half_width: float, label: str) -> None:
    """Shade what lies near a curve that others have published, behind all lines.

    Dots show where the curve is known.
    """
    if not points:
        return
    xs, ys = columns(points)
    axes.plot(xs, ys, color="0.45", linestyle="none", marker=".", markersize=4, zorder=1.3)
    lower, upper = ([y + sign * half_width for y in ys] for sign in (-1, 1))
    shade: dict[str, Any] = {"facecolor": "0.85", "edgecolor": "0.55", "hatch": "////"}
    axes.fill_between(xs, lower, upper, label=label, linewidth=0.6, zorder=1.2, **shade)


def epochs_axis(axes: Axes, last: float) -> None:
    """Make the x axis one of epochs, from 0 to the last that is drawn."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=last > 3, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, 1.02 * (last or 1))


def percent_axis(axes: Axes, label: str, top: float) -> None:
    """Make the y axis one of shares, from 0 to a little above ``top`` and at most to 100%."""
    axes.set_ylabel(label)
    axes.set_ylim(0.0, min(1.02, 1.1 * top) or 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))


def fit(axes: Axes, values: Sequence[float]) -> None:
    """Fit the y axis to the usual values, so that a few huge ones do not flatten the others.

    They are usual in the first steps, and in evaluations of a network whose BatchNorm statistics
    have not settled.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return
    usual = finite[math.ceil(0.95 * len(finite)) - 1]
    top = min(finite[-1], 2.5 * usual)
    margin = 0.05 * (top - finite[0]) or 0.1
    axes.set_ylim(finite[0] - margin, top + margin)
    if above := sum(value > top + margin for value in finite):
        text = f"{above} higher {'value is' if above == 1 else 'values are'} not shown"
        axes.set_title(text, loc="right", fontsize=9, color="0.35")


def empty(axes: Axes, text: str) -> None:
    """Say in the middle of a panel why nothing is drawn there."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")


def legend(axes: Axes) -> None:
    """Explain the lines of a panel, where there are several."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(
            handles, labels, framealpha=0.85, edgecolor="none", fontsize=9, handlelength=3.5
        )


def legend_below(figure: Figure, axes: Axes, *, title: str) -> None:
    """Explain the lines of a panel below the whole figure, which is made higher by that.

    In two columns where these fit into the figure's width, else in one; where even that is too
    wide, in smaller letters.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    look: dict[str, Any] = {"frameon": False, "handlelength": 3.5, "loc": "outside lower center"}
    look |= {"title": title, "title_fontsize": 9}
    for columns, size in ((2, 9.0), (1, 9.0), (1, 7.5), (1, 6.0)):
        found = figure.legend(handles, labels, ncols=columns, fontsize=size, **look)
        as_written(found)
        if found.get_window_extent().width <= figure.bbox.width or size == 6.0:
            break
        found.remove()
    figure.set_figheight(figure.get_figheight() + _height_below(found))


def take_legends(figure: Figure) -> list[Legend]:
    """Remove all legends and return them; what ``legend_below`` had made room for goes with it."""
    as_written(figure)
    for below in figure.legends:
        figure.set_figheight(figure.get_figheight() - _height_below(below))
    inside = (axes.get_legend() for axes in figure.axes)
    found = [*figure.legends, *(legend for legend in inside if legend is not None)]
    for legend in found:
        legend.remove()
    return found


def _height_below(legend: Legend) -> float:
    figure = legend.get_figure(root=True)
    return _BELOW_IN + (legend.get_window_extent().height / figure.dpi if figure else 0.0)


def as_written(artist: Artist) -> None:
    """Have the words in a figure, or in a part of it, drawn as they are written.

    They are names that people gave: a dollar sign in them begins no formula, and letters that the
    usual font lacks come from others that are installed. Powers on logarithmic axes remain
    formulas. Must be called before anything is measured or drawn.
    """
    message = r"Glyph \d+ .*missing from"  # An empty box says as much.
    warnings.filterwarnings("ignore", message, UserWarning)
    powers = {
        label
        for axes in artist.findobj(Axes)
        for axis in (axes.xaxis, axes.yaxis)
        if axis.get_scale() == "log"
        for label in axis.get_ticklabels(which="both")
    }
    for text in artist.findobj(Text):
        if text not in powers:
            text.set_parse_math(False)
        if text.get_fontfamily() == ["sans-serif"]:
            text.set_fontfamily(_families())


@functools.cache
def _families() -> list[str]:
    installed = set(font_manager.get_font_names())
    return ["sans-serif", *(name for name in _FALLBACK_FONTS if name in installed)]


def columns(points: Points) -> tuple[list[float], list[float]]:
    """Return all x and all y."""
    return [x for x, _ in points], [y for _, y in points]


def thinned(points: Points) -> Points:
    """Return at most 2,000 points, each the mean of as many neighbours as it takes."""
    group = math.ceil(len(points) / _MAX_POINTS)
    if group <= 1:
        return points
    groups = [points[i : i + group] for i in range(0, len(points), group)]
    return [(statistics.fmean(x for x, _ in g), statistics.fmean(y for _, y in g)) for g in groups]


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, 1200 pixels wide."""
    as_written(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
