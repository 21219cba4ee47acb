"""A run as seen on a terminal: a few rows that are drawn again, or one line where it is small."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rn50.observe.record import TIMING, duration, shown
from rn50.observe.standing import Standing

LEAST_COLUMNS = 36
"""A terminal that is narrower, or too low for all rows and some lines above, shows one line."""

_LINES_ABOVE = 3
_LABEL_COLUMNS = 6
_LEAST_BAR, _MOST_BAR = 6, 40
_GIB = 2**30
_NAMES = {"average": "EMA", "swa": "SWA"}


class Panel:
    """Draws how a run stands, in as much room as there is."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        rows = list(_rows(self._standing))
        # The last column stays free: writing it makes some terminals begin a new line.
        width = options.max_width - 1
        if width < LEAST_COLUMNS or console.height < len(rows) + _LINES_ABOVE:
            yield _line(self._standing, width)
            return
        told = [
            _fitting(row, width - (0 if done is None else _LEAST_BAR + 2)) for _, done, row in rows
        ]
        bar = min(
            width - _LABEL_COLUMNS - 2 - len(text)
            for text, (_, done, _) in zip(told, rows, strict=True)
            if done is not None
        )
        for text, (label, done, _) in zip(told, rows, strict=True):
            cells: list[RenderableType] = [Text(label.ljust(_LABEL_COLUMNS), "dim")]
            if done is not None:
                cells += [_bar(done, min(bar, _MOST_BAR)), Text("  ")]
            grid = Table.grid()
            grid.add_row(*cells, text)
            yield grid


def facts(standing: Standing) -> list[str]:
    """Return what one line tells, in its order."""
    timing, remaining_s = standing.window[TIMING], standing.remaining_s()
    told = [
        f"epoch {standing.epoch:.2f}/{standing.epochs}",
        f"loss {shown(standing.window['loss'], '.3f')}",
        f"top-1 {shown(standing.top1, '.1%')}",
        f"{standing.window.get('px', '-')} px",
        f"{shown(timing.get('images_per_second'), ',.0f')} img/s",
        f"{standing.verdict}, waiting {standing.waiting:.0%}".removeprefix(", "),
    ]
    if gpu := " ".join(_gpu_in_short(standing.gpu)):
        told.append(f"GPU {gpu}")
    told.append(f"lr {shown(standing.window.get('lr'), '.4g')}")
    told.append(f"step {standing.step:,}/{standing.total_steps:,}")
    if standing.cost.dollars:
        told.append(f"${standing.cost.dollars:,.2f}")
    told.append("-" if remaining_s is None else f"{duration(remaining_s)} left")
    return told


def _line(standing: Standing, width: int) -> RenderableType:
    told = facts(standing)
    # The epoch and the time left, first and last, are the last to go.
    while len(told) > 1 and len("  ".join(told)) > width:
        told.pop(-2 if len(told) > 2 else -1)
    text = Text("  ".join(told), no_wrap=True, overflow="ellipsis")
    room = width - len(text) - 2
    if room < 8:
        text.truncate(width, overflow="ellipsis")
        return text
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(_bar(standing.step / standing.total_steps, min(room, 30)), text)
    return grid


_Row = tuple[str, float | None, list[tuple[str, str]]]
"""A label, the part that is done where there is a bar, and facts with their styles."""


def _rows(standing: Standing) -> Iterator[_Row]:
    window, timing = standing.window, standing.window[TIMING]
    left = standing.remaining_s()
    done = standing.step / standing.total_steps
    yield (
        "epoch",
        # Of the epoch that the latest step belongs to, which at its end is through.
        standing.epoch % 1 or float(standing.epoch > 0),
        _plain(
            f"{standing.epoch:.2f}/{standing.epochs}",
            f"step {standing.step:,}/{standing.total_steps:,}",
        ),
    )
    ran = f"{duration(standing.cost.seconds)} so far"
    yield "run", done, _plain("-" if left is None else f"{duration(left)} left", f"{done:.1%}", ran)
    yield (
        "train",
        None,
        _plain(
            f"loss {shown(window['loss'], '.3f')}",
            f"top-1 {shown(standing.top1, '.1%')}",
            f"{window.get('px', '-')} px",
            f"lr {shown(window.get('lr'), '.4g')}",
        ),
    )
    yield from _validation(standing)
    verdict = standing.verdict
    yield (
        "speed",
        None,
        [
            (f"{shown(timing.get('images_per_second'), ',.0f')} img/s", ""),
            (verdict, "" if verdict in ("GPU-bound", "compute-bound") else "yellow"),
            (f"waiting for data {standing.waiting:.0%}", ""),
        ],
    )
    if standing.gpu:
        yield "GPU", None, _plain(*_gpu(standing))
    if standing.cost.price_per_hour or standing.cost.dollars:
        total = standing.dollars_at_end()
        expected = [] if total is None else [f"${total:,.2f} at the end"]
        yield "cost", None, _plain(f"${standing.cost.dollars:,.2f} so far", *expected)


def _validation(standing: Standing) -> Iterator[_Row]:
    if not standing.evaluated:
        return
    told = [
        f"{_NAMES.get(name, name)} {_percent(score['top1'])}/{_percent(score['top5'])}"
        for name, score in standing.evaluated["val"].items()
    ]
    yield "val", None, _plain(*told, f"% top-1/5, epoch {standing.evaluated['epoch']}")


def _gpu(standing: Standing) -> Iterator[str]:
    gpu = standing.gpu
    if (busy := gpu.get("gpu_utilisation")) is not None:
        yield f"{busy:.0%} busy"
    if (memory := gpu.get("gpu_memory")) is not None:
        total = gpu.get("gpu_memory_total")
        yield f"{memory / _GIB:.1f}{'' if total is None else f'/{total / _GIB:.1f}'} GiB"
    if (watts := gpu.get("gpu_power_w")) is not None:
        yield f"{watts:,.0f} W"
    if (mhz := gpu.get("gpu_clock_mhz")) is not None:
        yield f"{mhz:,.0f} MHz"


def _gpu_in_short(gpu: dict[str, Any]) -> Iterator[str]:
    if (busy := gpu.get("gpu_utilisation")) is not None:
        yield f"{busy:.0%}"
    if (memory := gpu.get("gpu_memory")) is not None:
        yield f"{memory / _GIB:.1f} GiB"
    if (watts := gpu.get("gpu_power_w")) is not None:
        yield f"{watts:,.0f} W"


def _percent(share: float | None) -> str:
    return shown(None if share is None else 100 * share, ".1f")


def _plain(*told: str) -> list[tuple[str, str]]:
    return [(one, "") for one in told]


def _fitting(row: list[tuple[str, str]], width: int) -> Text:
    """Return as many of a row's facts as fit beside its label, the first ones first."""
    row, room = [fact for fact in row if fact[0]], width - _LABEL_COLUMNS
    while len(row) > 1 and len("  ".join(fact for fact, _ in row)) > room:
        row.pop()
    text = Text("  ", no_wrap=True, overflow="ellipsis").join(Text(*fact) for fact in row)
    text.truncate(room, overflow="ellipsis")
    return text


def _bar(done: float, width: int) -> ProgressBar:
    return ProgressBar(total=1.0, completed=done, width=width, complete_style="cyan")
