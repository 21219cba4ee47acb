"""A progress bar for work that is counted, with its rate and the time that is left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL_S = 10.0


@contextmanager
def progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to be called with the numbers of things done and in all.

    On a terminal a bar is drawn on standard error; elsewhere a line at most every ten seconds.
    """
    if not sys.stderr.isatty():
        yield _plain(verb)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(verb: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S or done == total:
            rate = done / max(1e-9, now - start)
            left = (total - done) / max(1e-9, rate)
            sys.stderr.write(f"{verb}: {done:,} of {total:,}, {rate:,.0f}/s, {left:.0f} s left\n")
            last = now

    return report
