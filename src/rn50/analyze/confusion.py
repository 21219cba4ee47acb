"""The confusion matrix as a picture, legible with 2 classes and with 1000."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from rn50.analyze.drawing import canvas, picture, shortened
from rn50.analyze.ordering import confusion_order
from rn50.analyze.section import Picture

_NUMBERED, _NAMED = 20, 40
"""Up to so many classes each cell has its number, and each row its class's name."""
_CELLS = 500
"""Cells at most a side: of more classes several share one."""
_CLOSE_UP = 16
_GAMMA = 0.4
"""The exponent of the colour scale: one image of fifty is to be seen."""
_COLOURS = "magma_r"
_TICKS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
OTHERS = "other classes"


def matrix(confusion: Int64[np.ndarray, "classes classes"], names: Sequence[str]) -> Picture:
    """Draw all classes that have images, those that are confused beside each other.

    What is taken for a class without images is drawn in one last column.

    Args:
        confusion: Counts; rows are the true classes.
        names: Of the classes.
    """
    shares, order, outside = ordered_shares(confusion)
    count = len(order)
    labels = [names[i] for i in order.tolist()]
    alt = (
        f"Confusion matrix of {count:,} classes: a row for each true class, a column for each "
        "predicted one, neighbours being those most often confused."
    )
    if count > _NAMED:
        return picture(_large(shares, labels), "confusion.png", alt, cut=True)
    counts = confusion[np.ix_(order, order)]
    columns = labels
    if outside:
        rest = confusion[order].sum(axis=1) - counts.sum(axis=1)
        counts, columns = np.column_stack([counts, rest]), [*labels, OTHERS]
    return picture(_small(counts, shares, labels, columns), "confusion.png", alt, cut=True)


def ordered_shares(
    confusion: Int64[np.ndarray, "classes classes"],
) -> tuple[Float64[np.ndarray, "present columns"], Int64[np.ndarray, " present"], bool]:
    """Return the share of each true class that is taken for each class, in the order drawn.

    Returns:
        The shares; the classes of the rows and columns; and whether there is one more column, of
        what is taken for a class without images.
    """
    present = np.flatnonzero(confusion.sum(axis=1))
    within = confusion[np.ix_(present, present)]
    order = present[confusion_order(within)]
    support = confusion[order].sum(axis=1, keepdims=True)
    shares = confusion[np.ix_(order, order)] / support
    rest = 1.0 - shares.sum(axis=1)
    outside = bool((within.sum(axis=1) < confusion[present].sum(axis=1)).any())
    if outside:
        shares = np.column_stack([shares, rest])
    return shares, order, outside


def close_up(
    confusion: Int64[np.ndarray, "classes classes"],
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> Picture | None:
    """Draw only the classes of the first of ``pairs``, or nothing where ``matrix`` tells all."""
    if np.count_nonzero(confusion.sum(axis=1)) <= _NUMBERED or not pairs:
        return None
    chosen: list[int] = []
    for pair in pairs:
        more = [i for i in pair if i not in chosen]
        if len(chosen) + len(more) > _CLOSE_UP:
            break
        chosen += more
    kept = np.sort(np.array(chosen, np.int64))
    order = kept[confusion_order(confusion[np.ix_(kept, kept)])]
    counts = confusion[np.ix_(order, order)]
    shares = counts / np.maximum(confusion[order].sum(axis=1, keepdims=True), 1)
    labels = [names[i] for i in order.tolist()]
    alt = f"Confusion matrix of the {len(order)} classes that are most often confused."
    return picture(_small(counts, shares, labels, labels), "confusion-pairs.png", alt, cut=True)


def pooled(
    shares: Float64[np.ndarray, "rows columns"], most: int
) -> tuple[Float64[np.ndarray, "fewer_rows fewer_columns"], int]:
    """Return at most so many cells a side, each the largest of a square, and the square's side."""
    side = -(-max(shares.shape) // most)
    rows, columns = (-(-length // side) for length in shares.shape)
    padded = np.zeros((rows * side, columns * side))
    padded[: shares.shape[0], : shares.shape[1]] = shares
    return padded.reshape(rows, side, columns, side).max(axis=(1, 3)), side


def _small(
    counts: Int64[np.ndarray, "rows columns"],
    shares: Float64[np.ndarray, "rows columns"],
    labels: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    num_rows, num_columns = shares.shape
    figure = canvas(8, 9)  # what is left empty is cut off
    axes = figure.add_subplot()
    drawn = _drawn(axes, shares)
    small = 7 if num_rows > _NUMBERED else 8
    axes.set_xticks(
        range(num_columns),
        [shortened(name, 22) for name in columns],
        rotation=90 if num_columns > 6 else 30,
        ha="center" if num_columns > 6 else "right",
        fontsize=small,
    )
    axes.set_yticks(range(num_rows), [shortened(name, 22) for name in labels], fontsize=small)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_rows <= _NUMBERED:
        _write_counts(axes, counts, shares)
    _colour_bar(figure, axes, drawn)
    return figure


def _write_counts(
    axes: Axes,
    counts: Int64[np.ndarray, "rows columns"],
    shares: Float64[np.ndarray, "rows columns"],
) -> None:
    for row, column in np.argwhere(counts).tolist():
        dark = shares[row, column] ** _GAMMA > 0.5
        axes.text(
            column,
            row,
            f"{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )


def _large(shares: Float64[np.ndarray, "rows columns"], labels: Sequence[str]) -> Figure:
    cells, side = pooled(shares, _CELLS)
    figure = canvas(8, 8)
    axes = figure.add_subplot()
    drawn = _drawn(axes, cells)
    every = max(1, len(labels) // 20)
    places = np.arange(every // 2, len(labels), every)
    axes.set_yticks(places / side, [shortened(labels[i], 22) for i in places.tolist()], fontsize=7)
    axes.set_xticks([])
    what = f"predicted class (all {len(labels):,}, in the order of the rows)"
    axes.set_xlabel(f"{what}\neach cell: the most of {side} × {side} classes" if side > 1 else what)
    axes.set_ylabel(f"true class (one in {every} is named)" if every > 1 else "true class")
    _colour_bar(figure, axes, drawn)
    return figure


def _drawn(axes: Axes, shares: Float64[np.ndarray, "rows columns"]) -> AxesImage:
    scale = PowerNorm(_GAMMA, vmin=0.0, vmax=1.0)
    seen = np.ma.masked_equal(shares, 0.0)  # white: even a small share stands out from none
    return axes.imshow(seen, cmap=_COLOURS, norm=scale, interpolation="nearest", aspect="equal")


def _colour_bar(figure: Figure, axes: Axes, drawn: AxesImage) -> None:
    bar = figure.colorbar(drawn, ax=axes, ticks=_TICKS, shrink=0.5)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    bar.set_label("share of the true class's images")
