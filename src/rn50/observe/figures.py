"""What a run did, as figures: each a function from a run's history to a matplotlib figure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rn50.observe import drawing, published
from rn50.observe.drawing import COLOURS, Points, png
from rn50.observe.history import History, scores, timing
from rn50.observe.published import Curve
from rn50.observe.record import NETWORKS, Record
from rn50.observe.standing import DATA_BOUND

__all__ = ["FIGURES", "accuracy", "loss", "png", "schedule", "throughput"]

_NOTHING = "nothing was recorded yet"
_MAX_SIDES = 6
"""Image sizes that are each told on the axis; of more, round numbers are."""

_TRAIN: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-", "marker": "o"}
_NETWORK_LOOKS: dict[str, dict[str, Any]] = {
    "model": {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    "average": {"color": COLOURS[2], "linestyle": "-.", "marker": "^"},
    "swa": {"color": COLOURS[3], "linestyle": ":", "marker": "D"},
}
_LABELS = dict(zip(NETWORKS, ("validation", "validation, average", "validation, SWA"), strict=True))


def loss(history: History) -> Figure:
    """Draw the training loss, within epochs and by epoch, and the validation loss of each network.

    The training loss is the one that was minimised: with label smoothing or mixing it lies above
    that of the same network in evaluation, which knows neither.
    """
    figure, (axes,) = drawing.new_figure(f"{history.title}: loss", 4.5)
    axes.set_ylabel("loss (nats)")
    windows = _over_epochs(history.windows, "loss")
    epochs = _over_epochs(history.epochs, "train_loss")
    drawing.cloud(axes, windows, COLOURS[0], "training, within epochs")
    drawing.line(axes, epochs, _TRAIN, f"training{_last(epochs, '.3f')}")
    shown = [*windows, *epochs, *_networks(axes, history, "loss", ".3f")]
    drawing.fit(axes, [value for _, value in shown])
    records = [*history.windows, *history.epochs]
    broken = any(name in record for name in ("loss", "train_loss") for record in records)
    missing = "no value was finite" if broken else _NOTHING
    return _finished(history, figure, [axes], "" if shown else missing)


def accuracy(history: History, reference: Curve | None = None) -> Figure:
    """Draw top-1 in training and of each network in validation, and below it their top-5.

    Accuracy in training is of augmented images, and unknown where images are mixed.

    Args:
        history: Of the run.
        reference: A published curve to draw as a band behind; by default that of the run's own
            recipe, if one is known.
    """
    figure, (top1, top5) = drawing.new_figure(f"{history.title}: accuracy", 4.2, 2.6)
    windows = _over_epochs(history.windows, "top1")
    epochs = _over_epochs(history.epochs, "train_top1")
    drawing.cloud(top1, windows, COLOURS[0], "training, within epochs")
    drawing.line(top1, epochs, _TRAIN, f"training{_last(epochs, '.2%')}")
    shown = [*windows, *epochs, *_networks(top1, history, "top1", ".2%")]
    five = _networks(top5, history, "top5", ".2%")
    curve = reference or published.belonging_to(history)
    for axes, score, points in ((top1, "top1", shown), (top5, "top5", five)):
        if curve and points:
            near = curve.of(score, history.epochs[-1]["epoch"] if history.epochs else 0)
            # In two lines, so that the legend leaves the curves uncovered.
            label = curve.label.replace(" (", "\n(") if axes is top1 else "_"
            drawing.band(axes, near, curve.half_width, label)
            points = [*points, *((epoch, y + curve.half_width) for epoch, y in near)]
        drawing.percent_axis(axes, f"{score[:3]}-{score[3:]} accuracy", _highest(points))
    return _finished(history, figure, [top1, top5], "" if shown else _NOTHING)


def schedule(history: History) -> Figure:
    """Draw the learning rate, and below it the side of the training images."""
    figure, (rate, size) = drawing.new_figure(f"{history.title}: schedule", 3.4, 2.0)
    records = history.windows or history.epochs
    rates = _over_epochs(records, "lr")
    look = {"color": COLOURS[0], "linestyle": "-", "marker": "o" if len(rates) == 1 else None}
    drawing.line(rate, drawing.thinned(rates), look, "learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0.0)

    sides = _steps(_over_epochs(records, "px"))
    look = {"color": COLOURS[0], "linestyle": "-", "marker": None}
    drawing.line(size, sides, look, "training images")
    told = {px for _, px in sides}
    test_px = (history.settings.get("images") or {}).get("test_px")
    if sides and isinstance(test_px, int):
        size.axhline(test_px, color=COLOURS[1], linestyle="--", label="validation images")
        told.add(test_px)
    size.set_ylabel("image side (px)")
    size.margins(y=0.25)
    if 0 < len(told) <= _MAX_SIDES:
        size.set_yticks(sorted(told))
    return _finished(history, figure, [rate, size], "" if rates else _NOTHING)


def throughput(history: History) -> Figure:
    """Draw images a second, and below it the share of time spent waiting for data.

    Where they were recorded, the time in which training stood still for checkpoints and the GPUs'
    utilisation are drawn too. Stalls are marked: those on record, and epochs much slower than
    others of their image size.
    """
    figure, (speed, share) = drawing.new_figure(f"{history.title}: throughput", 3.4, 2.6)
    rates = _timed(history.windows, "images_per_second")
    epochs = _timed(history.epochs, "images_per_second")
    drawing.cloud(speed, rates, COLOURS[0], "within epochs")
    drawing.line(speed, epochs, _TRAIN, f"by epoch{_last(epochs, ',.0f')}")
    speed.set_ylabel("images per second")
    stalls = [x for record in history.stalls if (x := history.epoch_at(record)) is not None]
    drawing.marks(speed, stalls, "stall", color=COLOURS[1], marker="X")
    slow = [(x, y) for x, y in epochs if x in history.slow_epochs]
    if slow:
        ring: dict[str, Any] = {
            "marker": "o",
            "markersize": 11,
            "markerfacecolor": "none",
            "linestyle": "none",
        }
        label = "slow epoch" + f" ({len(slow)} times)" * (len(slow) > 1)
        speed.plot(*drawing.columns(slow), markeredgecolor=COLOURS[1], label=label, **ring)
    drawing.fit(speed, [0.0, *(y for _, y in [*rates, *epochs])])
    speed.set_ylim(bottom=0.0)

    top = _shares(history, share)
    drawing.percent_axis(share, "share of time", max(0.1, top))
    if top > DATA_BOUND:
        label = f"data-bound above {DATA_BOUND:.0%}"
        share.axhline(DATA_BOUND, color="0.4", linewidth=0.9, linestyle=(0, (6, 3)), label=label)
    return _finished(history, figure, [speed, share], "" if rates or epochs else _NOTHING)


FIGURES: dict[str, Callable[[History], Figure]] = {
    "loss": loss,
    "accuracy": accuracy,
    "lr": schedule,
    "throughput": throughput,
}
"""The figures of a run, by the names of their files without the ending."""


def _shares(history: History, axes: Axes) -> float:
    """Draw the shares of time and return the highest."""
    wait = _timed(history.windows, "data_wait") or _timed(history.epochs, "data_wait")
    busy = _timed(history.windows, "gpu_utilisation")
    saving = [
        (record["epoch"], seconds / max(1e-9, seconds + (timing(record, "seconds") or 0.0)))
        for record in history.windows
        if (seconds := timing(record, "saving_s")) is not None
    ]
    if not any(y for _, y in saving):
        saving = []
    for points, color, style, label in (
        (wait, COLOURS[0], "-", "waiting for data"),
        (saving, COLOURS[3], ":", "waiting for a checkpoint"),
        (busy, COLOURS[2], "--", "GPU utilisation"),
    ):
        look = {"color": color, "linestyle": style, "marker": "o" if len(points) == 1 else None}
        drawing.line(axes, drawing.thinned(points), look, label)
    return _highest([*wait, *saving, *busy])


def _finished(history: History, figure: Figure, panels: Sequence[Axes], missing: str) -> Figure:
    """Mark restarts, explain the lines or why there are none, and label the axis of epochs."""
    for axes in panels:
        if missing:
            drawing.empty(axes, missing)
        for records, label, marker in (
            (history.resumes, "resumed", "v"),
            (history.rollbacks, "rolled back", "<"),
        ):
            xs = [x for record in records if (x := history.epoch_at(record)) is not None]
            told = label if axes is panels[0] else ""
            drawing.marks(axes, xs, told, color="0.3", marker=marker)
        drawing.legend(axes)
        axes.label_outer()
    last = max((record["epoch"] for record in history.windows + history.epochs), default=1)
    drawing.epochs_axis(panels[-1], last)
    return figure


def _over_epochs(records: Sequence[Record], name: str) -> Points:
    """Return a value of the records by epoch; what was not a number in training breaks the line."""
    points = [(r["epoch"], r.get(name)) for r in records]
    if all(value is None for _, value in points):
        return []
    return [(epoch, math.nan if value is None else value) for epoch, value in points]


def _timed(records: Sequence[Record], name: str) -> Points:
    return [(r["epoch"], value) for r in records if (value := timing(r, name)) is not None]


def _networks(axes: Axes, history: History, score: str, spec: str) -> Points:
    """Draw a score of each network in validation, and return all points."""
    drawn: list[tuple[float, float]] = []
    for name in NETWORKS:
        points = [
            (record["epoch"], value)
            for record in history.epochs
            if (value := scores(record, name).get(score)) is not None
        ]
        drawing.line(axes, points, _NETWORK_LOOKS[name], _LABELS[name] + _last(points, spec))
        drawn += points
    return drawn


def _steps(points: Points) -> Points:
    """Return both ends of each stretch in which the value, told at its end, stays the same."""
    ends: list[tuple[float, float]] = []
    begin = 0.0
    for x, y in points:
        if math.isnan(y):
            continue
        if ends and ends[-1][1] == y:
            ends[-1] = (x, y)
        else:
            ends += [(begin, y), (x, y)]
        begin = x
    return ends


def _last(points: Points, spec: str) -> str:
    last = next((y for _, y in reversed(points) if math.isfinite(y)), None)
    return "" if last is None else f" (last {format(last, spec)})"


def _highest(points: Points) -> float:
    return max((y for _, y in points if math.isfinite(y)), default=0.0)
