"""Several runs in one picture: validation by epoch, by share of the run, by hour, by dollar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rn50 import durable
from rn50.errors import UsageError, UserError
from rn50.observe import drawing, published
from rn50.observe.drawing import Points
from rn50.observe.history import History, scores
from rn50.observe.published import Curve
from rn50.observe.record import Record, shown

By = Literal["epoch", "fraction", "hour", "dollar"]
Which = Literal["auto", "model", "average", "swa"]

AXES: dict[By, str] = {
    "epoch": "epoch",
    "fraction": "share of the run done",
    "hour": "hours of machine time",
    "dollar": "cost of machine time (US dollars)",
}
"""What a comparison can be laid along, and what the axis then says."""

_BY: dict[By, str] = AXES | {"fraction": "share of the run", "hour": "hour", "dollar": "dollar"}
_UNPLACED: dict[By, str] = {
    "epoch": "its epochs are unknown",
    "fraction": "its planned length is unknown",
    "hour": "its hours are unknown",
    "dollar": "its price is unknown (give --price-per-hour)",
}
_MAX_LABEL = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that is compared with others."""

    label: str
    """What tells it from the others: its folder, and its recipe where the folder does not say."""
    history: History
    price_per_hour: float = 0.0
    """Dollars of an hour, where the record tells no price; 0: unknown."""

    def network(self, which: Which) -> str | None:
        """Return which network is compared: the one asked for, if it was ever evaluated.

        ``auto`` is the average where there is one, else the model.
        """
        asked = ("average", "model") if which == "auto" else (which,)
        return next((name for name in asked if self.evaluated(name)), None)

    def evaluated(self, network: str) -> list[Record]:
        """Return the epochs after which a network was evaluated."""
        return [r for r in self.history.epochs if scores(r, network).get("top1") is not None]

    @property
    def dollars(self) -> float | None:
        """What the run has cost so far, None if unknown."""
        return self._priced(self.history.dollars, self.history.hours)

    def at(self, record: Record, by: By) -> float | None:
        """Return where a record of an epoch lies on an axis, None if that is unknown."""
        planned = self.history.num_planned_epochs
        match by:
            case "epoch":
                return float(record["epoch"])
            case "fraction":
                return record["epoch"] / planned if planned else None
            case "hour":
                return self.history.hours_at(record)
            case "dollar":
                history = self.history
                return self._priced(history.dollars_at(record), history.hours_at(record))

    def points(self, network: str, score: str, by: By) -> Points:
        """Return a score of a network along an axis; empty where the axis is unknown."""
        found = ((self.at(r, by), scores(r, network).get(score)) for r in self.evaluated(network))
        return [(x, y) for x, y in found if x is not None and y is not None]

    def is_placed(self, which: Which, by: By) -> bool:
        """Return whether there is anything of the run to draw along an axis."""
        network = self.network(which)
        return network is not None and bool(self.points(network, "top1", by))

    def _priced(self, dollars: float | None, hours: float) -> float | None:
        if dollars is None and self.price_per_hour:
            return hours * self.price_per_hour
        return dollars


def comparison(
    entries: Sequence[Entry],
    by: By = "epoch",
    *,
    which: Which = "auto",
    reference: Curve | None = None,
) -> Figure | None:
    """Draw validation top-1 of all runs, and below it their validation loss.

    A published curve is drawn as a band where the axis is one of epochs or of the share done.

    Args:
        entries: The runs; those that were never evaluated, or not placed on the axis, are left out.
        by: What the runs are laid along.
        which: The network of each run.
        reference: By default the curve of a recipe among the runs', if one is known.

    Returns:
        The figure, or None where there is nothing to draw.
    """
    drawn = [
        (entry, network)
        for entry in entries
        if (network := entry.network(which)) and entry.is_placed(which, by)
    ]
    if not drawn:
        return None
    curve = None
    if by in ("epoch", "fraction"):
        theirs = (published.belonging_to(entry.history) for entry, _ in drawn)
        curve = reference or next(filter(None, theirs), None)
    title = f"validation of {len(drawn)} run{'s' * (len(drawn) > 1)} by {_BY[by]}"
    figure, (top1, loss) = drawing.new_figure(title, 4.2, 2.8)

    points = _lines(top1, drawn, "top1", by)
    last = max(x for x, _ in points)
    if curve:
        unit = curve.num_epochs if by == "fraction" else 1
        near = [(epoch / unit, y) for epoch, y in curve.of("top1", last * unit)]
        drawing.band(top1, near, curve.half_width, curve.label)
        points += [(x, y + curve.half_width) for x, y in near]
    drawing.percent_axis(top1, "validation top-1 accuracy", max(y for _, y in points))
    drawing.fit(loss, [y for _, y in _lines(loss, drawn, "loss", by)])
    loss.set_ylabel("validation loss (nats)")
    loss.set_xlabel(AXES[by])
    loss.set_xlim(0, 1.02 * (last or 1))
    if by == "fraction":
        loss.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    drawing.legend_below(figure, top1, title="run: network and its last top-1")
    return figure


def _lines(
    axes: Axes, drawn: Sequence[tuple[Entry, str]], score: str, by: By
) -> list[tuple[float, float]]:
    """Draw a line for each run, and return all points."""
    drawn_points: list[tuple[float, float]] = []
    for number, (entry, network) in enumerate(drawn):
        points = entry.points(network, score, by)
        last = f" {points[-1][1]:.2%}" if points and score == "top1" else ""
        drawing.line(axes, points, drawing.style_of(number), f"{entry.label}: {network}{last}")
        drawn_points += points
    return drawn_points


def table(entries: Sequence[Entry], which: Which = "auto") -> str:
    """Return the runs' last and best scores, time and cost as a Markdown table."""
    lines = [
        "| run | recipe | state | network | last top-1 | best top-1 | at epoch | hours | dollars |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for entry in entries:
        cells = [entry.label, entry.history.title, entry.history.state, *_results(entry, which)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _results(entry: Entry, which: Which) -> list[str]:
    history, network = entry.history, entry.network(which)
    results = ["-"] * 4
    if network:
        top1 = [(scores(r, network)["top1"], r["epoch"]) for r in entry.evaluated(network)]
        best, epoch = max(top1, key=lambda pair: pair[0])
        results = [network, f"{top1[-1][0]:.2%}", f"{best:.2%}", str(epoch)]
    dollars = entry.dollars
    return [*results, f"{history.hours:,.2f}", shown(dollars, ",.2f")]


def gather(
    folders: Sequence[Path], price_per_hour: float = 0.0
) -> tuple[dict[Path, Entry], list[str]]:
    """Read runs to compare, each once.

    Args:
        folders: Of the runs.
        price_per_hour: Dollars, for the runs whose record tells no price; 0: unknown.

    Returns:
        What could be read, by folder, and in a line each why others could not.

    Raises:
        UsageError: None could be read, or the price is none.
    """
    if not 0 <= price_per_hour < math.inf:
        raise UsageError(f"--price-per-hour is {price_per_hour}; give dollars, 0 or more")
    once = list({folder.resolve(): folder for folder in folders}.values())
    entries, refused = {}, []
    for folder, name in zip(once, _labels(once), strict=True):
        try:
            history = History.read(folder)
        except UserError as error:
            refused.append(str(error))
            continue
        label = name if history.title in name else f"{name} ({history.title})"
        entries[folder] = Entry(label, history, price_per_hour)
    if not entries:
        raise UsageError("; ".join(refused))
    return entries, refused


def write(
    entries: Sequence[Entry],
    folder: Path,
    along: Sequence[By] = (),
    *,
    which: Which = "auto",
    reference: Curve | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the table and the figures of a comparison into a folder.

    Args:
        entries: The runs.
        folder: Is made if need be.
        along: The axes to draw; none: each on which any of the runs can be placed.
        which: The network of each run.
        reference: See ``comparison``.

    Returns:
        The files, and in a line each what could not be drawn.

    Raises:
        UsageError: The folder cannot be written.
    """
    with durable.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files, notes = [folder / "comparison.md"], list[str]()
    durable.write_text(files[0], table(entries, which))
    evaluated = [entry for entry in entries if entry.network(which)]
    notes += [
        f"not compared: {entry.label}: no epoch of its network '{which}' was evaluated yet"
        for entry in entries
        if entry not in evaluated
    ]
    for by in along or AXES:
        figure = comparison(evaluated, by, which=which, reference=reference)
        if figure is not None:
            files.append(folder / f"comparison-{by}.png")
            durable.write_bytes(files[-1], drawing.png(figure))
        # Where no price is known, dollars are only missed by who asked for them.
        if figure is not None or along:
            notes += [
                f"not compared by {by}: {entry.label}: {_UNPLACED[by]}"
                for entry in evaluated
                if not entry.is_placed(which, by)
            ]
    return files, notes


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; their names, where those do."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(mine[-length:] == other[-length:] for other in parts) > 1:
            length += 1
        name = str(Path(*mine[-length:]))
        names.append(name if len(name) <= _MAX_LABEL else f"…{name[1 - _MAX_LABEL :]}")
    return names
