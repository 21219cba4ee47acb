"""Several runs on one page: results, curves, what differs, and what it cost."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rn50 import config
from rn50.observe.compare import AXES, By, Entry, comparison, gather
from rn50.observe.history import scores
from rn50.observe.record import NETWORKS, Record, shown
from rn50.report import facts
from rn50.report.charts import Chart, chart
from rn50.report.command import repeat
from rn50.report.page import render

Row = dict[str, str]


def comparison_page(
    run_dirs: Sequence[Path],
    price_per_hour: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the page that lays runs beside each other.

    Args:
        run_dirs: Folders of runs, finished, running or crashed.
        price_per_hour: Dollars an hour for the runs whose record tells no price; 0: unknown.
        say: Told which cannot be read, of which the page is not, and what of others is damaged.

    Raises:
        UsageError: None is a run's folder.
    """
    gathered, problems = gather(run_dirs, price_per_hour)
    entries = list(gathered.values())
    for problem in problems:
        say(f"left out: {problem}")
    for entry in entries:
        damaged = [f"{entry.label}: {problem}" for problem in entry.history.problems]
        for problem in damaged:
            say(problem)
        problems += damaged
    return render(
        "compare.html",
        title=", ".join(dict.fromkeys(entry.history.title for entry in entries)),
        problems=problems,
        rows=[_result(entry, _networks(entries)) for entry in entries],
        seeds=over_seeds(entries),
        charts=_charts(entries),
        settings=differing(entries),
        commands=[
            (entry.label, repeat(facts.settings(entry.history), run_dir))
            for run_dir, entry in gathered.items()
        ],
    )


def over_seeds(entries: Sequence[Entry]) -> list[Row]:
    """Return mean and deviation of the finished runs that differ in nothing but their seed."""
    groups: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        run = facts.settings(entry.history)
        if run is not None and entry.history.finished:
            plain = config.mathematics(run)
            seed = plain.pop("seed")
            groups.setdefault(str(plain), {})[seed] = entry
    rows = []
    for seeds in groups.values():
        alike = list(seeds.values())
        if len(alike) < 2:
            continue
        row = {
            "runs": ", ".join(entry.label for entry in alike),
            "recipe": alike[0].history.title,
            "seeds": str(len(alike)),
        }
        for name in _networks(entries):
            values = [score["top1"] for entry in alike if (score := _last(entry, name))]
            row[f"{name}, top-1"] = (
                f"{statistics.mean(values):.2%} ± {statistics.stdev(values):.2%}"
                if len(values) > 1
                else "-"
            )
        rows.append(row)
    return rows


def differing(entries: Sequence[Entry]) -> list[Row]:
    """Return, a row for each, the settings that decide what is trained and are not all alike."""
    known = [(e.label, facts.settings(e.history)) for e in entries]
    flat: dict[str, dict[str, Any]] = {
        label: config.mathematics(run) for label, run in known if run is not None
    }
    names = dict.fromkeys(name for values in flat.values() for name in values)
    return [
        {"setting": name, **{label: _said(values.get(name)) for label, values in flat.items()}}
        for name in names
        if len({_said(values.get(name)) for values in flat.values()}) > 1
    ]


def _result(entry: Entry, networks: Sequence[str]) -> Row:
    history = entry.history
    run = facts.settings(history)
    row = {"run": entry.label, "recipe": history.title, "state": history.state}
    for name in networks:
        score = _last(entry, name)
        row[f"{name}, top-1"] = facts.with_error(history, score)
        row[f"{name}, top-5"] = shown(score.get("top5"), ".2%")
    dollars = entry.dollars
    return row | {
        "test px": str(run.images.test_px) if run else "-",
        "time": _by(3600 * history.hours, facts.duration(3600 * history.hours)),
        "cost": "-" if dollars is None else f"${dollars:,.2f}",
        "device": facts.device(history),
    }


def _by(value: float, text: str) -> Markup:
    """Return the text of a cell that is sorted by a number which the text does not begin with."""
    return Markup('<data value="{:.0f}">{}</data>').format(value, text)


def _networks(entries: Sequence[Entry]) -> list[str]:
    return [name for name in NETWORKS if any(entry.evaluated(name) for entry in entries)]


def _last(entry: Entry, network: str) -> Record:
    """Return the last scores of a network; empty where it was never evaluated."""
    evaluated = entry.evaluated(network)
    return scores(evaluated[-1], network) if evaluated else {}


def _charts(entries: Sequence[Entry]) -> list[Chart]:
    made = []
    axes: tuple[By, ...] = ("epoch", "hour", "dollar")
    for by in axes:
        if figure := comparison(entries, by):
            alt = f"Validation accuracy and loss of {len(entries)} runs by {AXES[by]}"
            made.append(chart(f"by-{by}", figure, alt))
    return made


def _said(value: Any) -> str:
    return "-" if value is None else str(value)
