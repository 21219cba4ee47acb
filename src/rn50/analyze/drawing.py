"""Figures as PNG files: one style for all of an analysis."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rn50.analyze.section import Picture
from rn50.observe.drawing import COLOURS, as_written

BLUE, RED, GREEN = COLOURS[:3]
GREY = "#BBBBBB"

_DPI = 150


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches; at 8 inches wide its text is for a page of 800 px.

    No pyplot: its global state is neither safe in a thread nor ever freed.
    """
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture(figure: Figure, name: str, alt: str, *, cut: bool = False) -> Picture:
    """Return a figure as the PNG file ``name``; ``cut``: without the empty space around it."""
    as_written(figure)
    data = io.BytesIO()
    box = "tight" if cut else None
    figure.savefig(data, format="png", bbox_inches=box, pad_inches=0.1)
    return Picture(name, data.getvalue(), alt)


def shortened(text: str, most: int) -> str:
    """Return ``text`` with at most so many characters, its end replaced where it is longer."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def whole_percent(share: float) -> str:
    """Return whole percents, which never round a doubt away."""
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 <= share < 1:
        return ">99%"
    return f"{share:.0%}"
