"""A progress bar for work that is counted, with its rate and the time that is left."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rn50.observe.terminal import moves_cursor

_PLAIN_INTERVAL_S = 10.0


@contextmanager
def progress(verb: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to be called with the numbers of things done and in all.

    On a terminal a bar is drawn on standard error; elsewhere a line at most every ten seconds.
    What was already done at the first call does not count towards the rate.

    Args:
        verb: What is being done, such as ``"packing"``.
        in_bytes: The things are bytes: shown as megabytes.
    """
    if not moves_cursor(sys.stderr):
        yield _plain(verb, in_bytes=in_bytes)
        return
    counts: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn())
        if in_bytes
        else (TaskProgressColumn(show_speed=True), MofNCompleteColumn())
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(verb: str, *, in_bytes: bool) -> Callable[[int, int], None]:
    start = last = time.monotonic()
    before: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal last, before
        now = time.monotonic()
        before = done if before is None and done < total else before
        if now - last >= _PLAIN_INTERVAL_S or done == total:
            rate = (done - (before or 0)) / max(1e-9, now - start)
            left = (total - done) / rate if rate else math.inf
            if in_bytes:
                amount = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rate / 1e6:,.1f} MB/s"
            else:
                amount = f"{done:,} of {total:,}, {rate:,.0f}/s"
            sys.stderr.write(f"{verb}: {amount}, {left:.0f} s left\n")
            last = now

    return report
