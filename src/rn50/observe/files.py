"""The reports in a run's folder, derived from its record alone: a log, a history and plots."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rn50 import durable
from rn50.observe.figures import FIGURES, accuracy, png
from rn50.observe.history import History, scores, timing
from rn50.observe.published import Curve
from rn50.observe.record import NETWORKS, Record, shown
from rn50.observe.standing import DATA_BOUND

_MAX_STALLS = 10
_COUNTS = ("epochs", "steps_per_epoch", "total_steps", "num_train", "num_val", "num_classes")


class Reports:
    """Rewrites the reports of a run after each epoch, in a thread of its own.

    An epoch that ends while the last one's reports are still being written is reported together
    with the next one, or on closing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")
        self._pending: Future[History] | None = None
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


def write_reports(run_dir: Path) -> History:
    """Write ``training_log.md``, ``history.json`` and the figures of a run anew, into its folder.

    Nothing but the run's record and settings is read, so this may be done at any time, also while
    the run is training. Of a damaged record, what is sound is reported, and the log says what is
    missing.

    Returns:
        What was reported.

    Raises:
        UsageError: The folder is not that of a run, or cannot be written.
    """
    history = History.read(run_dir)
    write_history(history, run_dir)
    return history


def write_history(history: History, folder: Path, reference: Curve | None = None) -> list[Path]:
    """Write the reports of a run into a folder; each file is replaced atomically.

    Args:
        history: Of the run.
        folder: Is made if need be.
        reference: A published curve to show with the accuracy (see ``figures.accuracy``).

    Returns:
        The files.

    Raises:
        UsageError: The folder cannot be written.
    """
    log, facts = folder / "training_log.md", folder / "history.json"
    with durable.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    durable.write_text(log, _log(history))
    durable.write_json(
        facts,
        {
            "run": history.facts,
            "resumed_at": [record["step"] for record in history.resumes],
            "finished": history.finished,
            "problems": history.problems,
            "epochs": history.epochs,
        },
    )
    figures = FIGURES | {"accuracy": partial(accuracy, reference=reference)}
    pictures = {folder / f"{name}.png": draw for name, draw in figures.items()}
    for path, draw in pictures.items():
        durable.write_bytes(path, png(draw(history)))
    return [log, facts, *pictures]


def _log(history: History) -> str:
    rows = _rows(history)
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


def _header(history: History) -> list[str]:
    facts = history.latest_facts
    lines = []
    if facts:
        count = {name: _count(facts, name) for name in (*_COUNTS, "world_size")}
        versions = (history.facts.get("versions") or {}).items()
        lines += [
            f"- Plan: {count['epochs']} epochs of {count['steps_per_epoch']} steps, "
            f"{count['total_steps']} steps in all",
            f"- Data: {count['num_train']} training and {count['num_val']} validation images "
            f"of {count['num_classes']} classes",
            f"- Machine: {facts.get('device', '-')}, {facts.get('precision', '-')}, "
            f"world size {count['world_size']}",
            f"- Versions: {', '.join(f'{name} {version}' for name, version in versions) or '-'}",
            f"- Started: {timing(history.facts, 'time') or '-'}",
        ]
    if history.resumes:
        steps = ", ".join(f"{record['step']:,}" for record in history.resumes)
        lines.append(f"- Resumed at step: {steps}")
    if history.bad_images:
        lines.append(f"- Images that could not be decoded: {_by_class(history.bad_images)}")
    if history.num_skipped:
        lines.append(f"- Updates left out, as their numbers were not finite: {history.num_skipped}")
    lines += [f"- {record['message'].capitalize()}" for record in history.rollbacks]
    stalls = [f"- Step {record['step']:,}: {record['message']}" for record in history.stalls]
    lines += stalls[-_MAX_STALLS:]
    if len(stalls) > _MAX_STALLS:
        lines.append(f"- Stalls before these {_MAX_STALLS}: {len(stalls) - _MAX_STALLS}")
    cost = "" if history.dollars is None else f" and ${history.dollars:,.2f}"
    hours = history.hours
    spent = f"{hours:,.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
    lines.append(f"- State: {history.state}, after {spent}{cost}")
    lines += [f"- Missing: {problem}" for problem in history.problems]
    if best := history.best:
        record, name = best
        top1 = scores(record, name)["top1"]
        lines.append(f"- Best: top-1 {top1:.2%} after epoch {record['epoch']} ({name})")
    return lines


def _count(facts: Record, name: str) -> str:
    return shown(facts.get(name), ",")


def _by_class(bad_images: Sequence[Record]) -> str:
    counts = Counter((record["split"], record["class"]) for record in bad_images)
    return ", ".join(f"{n} {split} of {name}" for (split, name), n in counts.most_common())


def _rows(history: History) -> list[dict[str, str]]:
    rows = []
    for record in history.epochs:
        model, average, swa = (scores(record, name) for name in NETWORKS)
        rows.append(
            {
                "epoch": str(record["epoch"]),
                "train loss": shown(record.get("train_loss"), ".4f"),
                "val loss": shown(model.get("loss"), ".4f"),
                "top-1": shown(model.get("top1"), ".2%"),
                "top-5": shown(model.get("top5"), ".2%"),
                "average top-1": shown(average.get("top1"), ".2%"),
                "SWA top-1": shown(swa.get("top1"), ".2%"),
                "LR": shown(record.get("lr"), ".4g"),
                "px": shown(record.get("px"), ".0f"),
                "seconds": shown(timing(record, "seconds"), ",.1f"),
                "img/s": shown(timing(record, "images_per_second"), ",.0f"),
                "data wait": shown(timing(record, "data_wait"), ".0%"),
                "note": _note(history, record) or "-",
            }
        )
    return rows


def _note(history: History, record: Record) -> str:
    notes = []
    if history.best and record is history.best[0]:
        notes.append("**best**")
    if ratio := history.slow_epochs.get(record["epoch"]):
        notes.append(f"slow ({ratio:.1f}x)")
    if (timing(record, "data_wait") or 0.0) > DATA_BOUND:
        notes.append("data-bound")
    return ", ".join(notes)


def _table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return (
        "|"
        + "|".join(f" {cell:>{width}} " for cell, width in zip(cells, widths, strict=True))
        + "|"
    )
