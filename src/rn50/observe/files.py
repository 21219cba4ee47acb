"""The reports in a run's folder, derived from its record alone: a log, a history and plots."""

import io
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rn50 import durable
from rn50.observe.console import INPUT_BOUND
from rn50.observe.record import FILE_NAME, NETWORKS, TIMING, Record, read, shown

SLOW = 1.2
"""How many times the median of its image size an epoch lasts before the log marks it."""

# Colours that colour-blind readers can tell apart (Paul Tol's bright scheme).
_TRAIN = "#4477AA"
_COLOURS = dict(zip(NETWORKS, ("#EE6677", "#228833", "#CCBB44"), strict=True))
_LABELS = dict(zip(NETWORKS, ("validation", "validation, average", "validation, SWA"), strict=True))

_MAX_POINTS = 2000


@dataclass(frozen=True)
class _History:
    """A run's record, sorted for reporting."""

    facts: Record
    """What the run's first process recorded when it started."""
    windows: list[Record]
    epochs: list[Record]
    resumed_at: list[int]
    bad_images: list[Record]
    rolled_back: list[Record]
    num_skipped: int
    """Updates left out because the loss or the gradient was not finite."""
    finished: bool

    @property
    def title(self) -> str:
        return str(self.facts.get("recipe", "unnamed run"))


class Reports:
    """Rewrites the reports of a run after each epoch, in a thread of its own.

    An epoch that ends while the last one's reports are still being written is reported together
    with the next one, or on closing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")
        self._pending: Future[None] | None = None
        self._stale = False

    def write(self, record: Record) -> None:
        """Begin to rewrite the reports if the record ends an epoch or the run.

        Raises:
            UserError: The last reports could not be written.
        """
        if record["kind"] not in ("epoch", "end"):
            return
        if self._pending is not None and not self._pending.done():
            self._stale = True
            return
        self._finish()
        self._stale = False
        self._pending = self._thread.submit(write_reports, self._run_dir)

    def close(self) -> None:
        """Wait for the reports of the last record; closing twice is allowed."""
        try:
            self._finish()
            if self._stale:
                self._stale = False
                write_reports(self._run_dir)
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def write_reports(run_dir: Path) -> None:
    """Write ``training_log.md``, ``history.json`` and the plots of loss, accuracy and LR anew.

    Each file is replaced atomically. Nothing but the run's record is read, so this may be done at
    any time, also while the run is training.

    Raises:
        UsageError: The folder holds no record, or cannot be written.
        DataError: The record is damaged.
    """
    history = _history(read(run_dir / FILE_NAME))
    durable.write_text(run_dir / "training_log.md", _log(history))
    durable.write_json(
        run_dir / "history.json",
        {
            "run": history.facts,
            "resumed_at": history.resumed_at,
            "finished": history.finished,
            "epochs": history.epochs,
        },
    )
    durable.write_bytes(run_dir / "loss.png", _loss_plot(history))
    durable.write_bytes(run_dir / "accuracy.png", _accuracy_plot(history))
    durable.write_bytes(run_dir / "lr.png", _lr_plot(history))


def _history(records: Sequence[Record]) -> _History:
    of_kind: dict[str, list[Record]] = {}
    for record in records:
        of_kind.setdefault(record.get("kind", ""), []).append(record)
    starts = of_kind.get("start", []) + of_kind.get("resume", [])
    return _History(
        facts=starts[0] if starts else {},
        windows=of_kind.get("train", []),
        # By epoch, the last one counting: a record joined from pieces may hold an epoch twice.
        epochs=list({record["epoch"]: record for record in of_kind.get("epoch", [])}.values()),
        resumed_at=[record["step"] for record in of_kind.get("resume", [])],
        bad_images=of_kind.get("bad_image", []),
        rolled_back=of_kind.get("rollback", []),
        num_skipped=sum(record.get("skipped", 0) for record in of_kind.get("train", [])),
        finished="end" in of_kind,
    )


def _log(history: _History) -> str:
    rows = _rows(history.epochs)
    lines = [f"# Training log: {history.title}", "", *_header(history), ""]
    if rows:
        names = list(rows[0])
        # What was never measured, such as a weight average, needs no column.
        names = [name for name in names if any(row[name] != "-" for row in rows)]
        widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
        lines.append(_table_line(names, widths))
        lines.append("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
        lines.extend(_table_line([row[name] for name in names], widths) for row in rows)
    else:
        lines.append("No epoch is complete yet.")
    return "\n".join(lines) + "\n"


def _header(history: _History) -> list[str]:
    facts, epochs = history.facts, history.epochs
    lines = []
    if facts:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        lines += [
            f"- Plan: {facts['epochs']} epochs of {facts['steps_per_epoch']:,} steps, "
            f"{facts['total_steps']:,} steps in all",
            f"- Data: {facts['num_train']:,} training and {facts['num_val']:,} validation images "
            f"of {facts['num_classes']:,} classes",
            f"- Machine: {facts['device']}, {facts['precision']}, world size {facts['world_size']}",
            f"- Versions: {versions}",
            f"- Started: {facts.get(TIMING, {}).get('time', '-')}",
        ]
    if history.resumed_at:
        steps = ", ".join(f"{step:,}" for step in history.resumed_at)
        lines.append(f"- Resumed at step: {steps}")
    if history.bad_images:
        lines.append(f"- Images that could not be decoded: {_by_class(history.bad_images)}")
    if history.num_skipped:
        lines.append(f"- Updates left out, as their numbers were not finite: {history.num_skipped}")
    lines += [f"- {record['message'].capitalize()}" for record in history.rolled_back]
    done = "finished" if history.finished else f"{len(epochs)} epochs done"
    spent_s = sum(
        _seconds(record, "seconds") + _seconds(record, "eval_seconds") for record in epochs
    )
    lines.append(f"- State: {done}, {spent_s / 60:,.1f} minutes of training and evaluation")
    if best := _best(epochs):
        record, name = best
        top1 = _scores(record, name)["top1"]
        lines.append(f"- Best: top-1 {top1:.2%} after epoch {record['epoch']} ({name})")
    return lines


def _by_class(bad_images: Sequence[Record]) -> str:
    counts = Counter((record["split"], record["class"]) for record in bad_images)
    return ", ".join(f"{n} {split} of {name}" for (split, name), n in counts.most_common())


def _rows(epochs: Sequence[Record]) -> list[dict[str, str]]:
    best_epoch, _ = _best(epochs) or (None, "")
    usual_s = _usual_seconds(epochs)
    rows = []
    for record in epochs:
        timing = record.get(TIMING, {})
        model, average, swa = (_scores(record, name) for name in NETWORKS)
        rows.append(
            {
                "epoch": str(record["epoch"]),
                "train loss": shown(record["train_loss"], ".4f"),
                "val loss": shown(model.get("loss"), ".4f"),
                "top-1": shown(model.get("top1"), ".2%"),
                "top-5": shown(model.get("top5"), ".2%"),
                "average top-1": shown(average.get("top1"), ".2%"),
                "SWA top-1": shown(swa.get("top1"), ".2%"),
                "LR": shown(record.get("lr"), ".4g"),
                "px": str(record.get("px", "-")),
                "seconds": shown(timing.get("seconds"), ",.1f"),
                "img/s": shown(timing.get("images_per_second"), ",.0f"),
                "data wait": shown(timing.get("data_wait"), ".0%"),
                "note": _note(record, usual_s[record.get("px")], best_epoch) or "-",
            }
        )
    return rows


def _note(record: Record, usual_s: float, best: Record | None) -> str:
    notes = []
    if record is best:
        notes.append("**best**")
    if usual_s and (ratio := _seconds(record, "seconds") / usual_s) > SLOW:
        notes.append(f"slow ({ratio:.1f}x)")
    if (record.get(TIMING, {}).get("data_wait") or 0.0) > INPUT_BOUND:
        notes.append("input-bound")
    return ", ".join(notes)


def _table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return (
        "|"
        + "|".join(f" {cell:>{width}} " for cell, width in zip(cells, widths, strict=True))
        + "|"
    )


def _usual_seconds(epochs: Sequence[Record]) -> dict[int | None, float]:
    # Epochs of larger images take longer and are none the worse for it.
    lengths: dict[int | None, list[float]] = {}
    for record in epochs:
        lengths.setdefault(record.get("px"), []).append(_seconds(record, "seconds"))
    return {px: statistics.median(values) for px, values in lengths.items()}


def _seconds(record: Record, name: str) -> float:
    return record.get(TIMING, {}).get(name) or 0.0


def _scores(record: Record, name: str) -> dict[str, Any]:
    return (record.get("val") or {}).get(name) or {}


def _best(epochs: Sequence[Record]) -> tuple[Record, str] | None:
    """Return the epoch of the highest top-1 and whose it was; the earliest among equals."""
    candidates = [
        (record, name)
        for record in epochs
        for name in NETWORKS
        if _scores(record, name).get("top1") is not None
    ]
    return max(candidates, key=lambda item: _scores(*item)["top1"], default=None)


def _loss_plot(history: _History) -> bytes:
    figure, axes = _axes(history, "loss")
    windows = _thinned([(r["epoch"], _number(r["loss"])) for r in history.windows])
    if windows:
        axes.plot(
            *_columns(windows),
            color=_TRAIN,
            alpha=0.35,
            linewidth=0.8,
            label="training, within epochs",
        )
    drawn = _draw(axes, _training(history, "train_loss"), _TRAIN, "training")
    for name in NETWORKS:
        drawn += _draw(axes, _validation(history, name, "loss"), _COLOURS[name], _LABELS[name])
    if finite := sorted(value for value in drawn + [y for _, y in windows] if math.isfinite(value)):
        # A few huge values, usual in the first steps, must not press the rest into a flat line.
        usual = finite[int(0.95 * (len(finite) - 1))]
        top = min(finite[-1], 1.5 * usual)
        margin = 0.05 * (top - finite[0]) or 0.1
        axes.set_ylim(finite[0] - margin, top + margin)
    return _png(figure, axes)


def _accuracy_plot(history: _History) -> bytes:
    figure, axes = _axes(history, "accuracy")
    drawn = _draw(axes, _training(history, "train_top1"), _TRAIN, "training top-1")
    for name, label in _LABELS.items():
        color = _COLOURS[name]
        drawn += _draw(axes, _validation(history, name, "top1"), color, f"{label}: top-1")
        drawn += _draw(axes, _validation(history, name, "top5"), color, f"{label}: top-5", "--")
    highest = max(drawn, default=0.0)
    axes.set_ylim(0.0, min(1.0, 1.1 * highest) or 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=None))
    return _png(figure, axes)


def _lr_plot(history: _History) -> bytes:
    figure, axes = _axes(history, "learning rate")
    records = history.windows or history.epochs
    points = _thinned([(r["epoch"], _number(r.get("lr"))) for r in records])
    axes.plot(*_columns(points), color=_TRAIN, marker="o" if len(points) == 1 else None)
    axes.set_ylim(bottom=0.0)
    px = None
    for record in records:
        if record.get("px") not in (None, px):
            px = record["px"]
            axes.axvline(record["epoch"], color="0.8", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{px} px",
                (record["epoch"], 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color="0.4",
            )
    return _png(figure, axes)


def _axes(history: _History, quantity: str) -> tuple[Figure, Axes]:
    # No pyplot: its global state is neither safe in a thread nor ever freed.
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{history.title}: {quantity}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    last = max((r["epoch"] for r in history.windows + history.epochs), default=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=last > 3))
    axes.set_xlim(0, last * 1.02)
    return figure, axes


def _draw(
    axes: Axes, points: Sequence[tuple[float, float]], color: str, label: str, style: str = "-"
) -> list[float]:
    """Draw a line with a point for each epoch, and return its values."""
    if points:
        marker = "o" if len(points) <= 30 else None
        axes.plot(*_columns(points), style, color=color, label=label, marker=marker, markersize=4)
    return [value for _, value in points]


def _training(history: _History, name: str) -> list[tuple[float, float]]:
    return [(r["epoch"], r[name]) for r in history.epochs if r.get(name) is not None]


def _validation(history: _History, name: str, score: str) -> list[tuple[float, float]]:
    return [
        (record["epoch"], value)
        for record in history.epochs
        if (value := _scores(record, name).get(score)) is not None
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    group = math.ceil(len(points) / _MAX_POINTS)
    if group <= 1:
        return points
    groups = [points[i : i + group] for i in range(0, len(points), group)]
    return [(statistics.fmean(x for x, _ in g), statistics.fmean(y for _, y in g)) for g in groups]


def _png(figure: Figure, axes: Axes) -> bytes:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
