"""What a person watching a run sees: a live line on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rn50.observe.record import TIMING, Record, shown

INPUT_BOUND = 0.2
"""The fraction of an epoch spent waiting for data above which its line says so."""

_PLAIN_INTERVAL_S = 10.0
_BAD_IMAGES_SHOWN = 10
"""Of each split."""


class Console:
    """Shows the records of a run as they come, and draws nothing between them.

    Args:
        stream: Where to write; standard output by default.
        live: Whether the stream understands cursor movements; None asks it. Without, no escape
            code is written, and at most one line of progress every ten seconds.
        clock: Seconds from any origin.
        prefix: What each line begins with, away from a terminal.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._prefix = prefix
        self._last_plain_s: float | None = None
        self._pace = _Pace()
        if live is None:
            live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Live | None = None
        if live:
            terminal = _Terminal(
                file=self._stream, force_terminal=True, force_jupyter=False, highlight=False
            )
            # No refreshing thread: it would take the interpreter from the decoders, and its errors
            # would reach nobody.
            self._live = Live(console=terminal, auto_refresh=False, transient=True)

    def write(self, record: Record) -> None:
        """Show one record.

        Raises:
            OSError: The stream is broken. It is then led to nowhere, so that the interpreter does
                not fail at exit when it flushes standard output.
        """
        try:
            self._show(record)
        except OSError:
            _lead_to_nowhere(self._stream)
            raise

    def close(self) -> None:
        """Take the live line away and show the cursor again."""
        if self._live is not None:
            self._live.stop()

    def _show(self, record: Record) -> None:
        match record["kind"]:
            case "start" | "resume":
                self._pace.begin(record)
                self._line(_opening(record))
                if self._live is not None:
                    self._live.start()
            case "train":
                self._pace.train(record)
                self._progress(record)
            case "epoch":
                self._pace.epoch(record)
                self._line(_epoch(record, self._pace.epochs))
            case "bad_image":
                self._bad_image(record)
            case "warning" | "notice" | "rollback":
                self._line(f"{record['kind']}: {record['message']}", style="yellow")
            case "end":
                self._line(f"finished at step {record['step']:,}")
                self.close()

    def _bad_image(self, record: Record) -> None:
        done = (
            "trained on another of its class" if record["split"] == "train" else "scored as wrong"
        )
        where = f"{record['key']} ({record['shard']} at byte {record['offset']})"
        if record["count"] <= _BAD_IMAGES_SHOWN:
            self._line(f"warning: cannot decode {where}: {done}", style="yellow")
        if record["count"] == _BAD_IMAGES_SHOWN:
            self._line("warning: further bad images are told in the record only", style="yellow")

    def _progress(self, record: Record) -> None:
        facts = _facts(record, self._pace)
        if self._live is not None:
            done = record["step"] / self._pace.total_steps
            self._live.update(_LiveLine(facts, done), refresh=True)
            return
        now_s = self._clock()
        if self._last_plain_s is None or now_s - self._last_plain_s >= _PLAIN_INTERVAL_S:
            self._last_plain_s = now_s
            self._line("  ".join(facts))

    def _line(self, text: str, *, style: str = "") -> None:
        if self._live is not None:
            # Not wrapped here: the terminal wraps what is too wide, and copies it as one line.
            self._live.console.print(Text(text, style), soft_wrap=True)
            return
        encoding = self._stream.encoding or "utf-8"
        text = self._prefix + text.replace("\n", f"\n{self._prefix}")
        self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()


class _Terminal(rich.console.Console):
    """A rich console that reports a closed pipe instead of ending the program."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError("the terminal or pipe was closed")


class _Pace:
    """How long the run will still take, from its latest speed and its evaluations so far."""

    def __init__(self) -> None:
        self.epochs = self.total_steps = self._steps_per_epoch = self._step = 0
        self._px: int | None = None
        self._step_s: float | None = None
        self._epochs_seen = 0
        self._eval_s = 0.0

    def begin(self, record: Record) -> None:
        self.epochs, self.total_steps = record["epochs"], record["total_steps"]
        self._steps_per_epoch, self._step = record["steps_per_epoch"], record["step"]

    def train(self, record: Record) -> None:
        steps, self._step = record["step"] - self._step, record["step"]
        if steps <= 0:
            return
        step_s = record[TIMING]["seconds"] / steps
        if self._step_s is None or record.get("px") != self._px:
            self._step_s = step_s
        else:
            self._step_s += 0.3 * (step_s - self._step_s)
        self._px = record.get("px")

    def epoch(self, record: Record) -> None:
        self._epochs_seen += 1
        self._eval_s += record[TIMING].get("eval_seconds") or 0.0

    def remaining_s(self) -> float | None:
        """Seconds to the end of the run; None before the first window is known."""
        if self._step_s is None:
            return None
        epochs_left = self.epochs - self._step // self._steps_per_epoch
        eval_s = self._eval_s / max(1, self._epochs_seen)
        return (self.total_steps - self._step) * self._step_s + epochs_left * eval_s


class _LiveLine:
    """One line of facts and a bar, of which a narrow terminal shows as many as it has room for."""

    def __init__(self, facts: list[str], done: float) -> None:
        self._facts = facts
        self._done = done

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[rich.console.RenderableType]:
        facts = list(self._facts)
        # The last column stays free: writing it makes some terminals begin a new line.
        width = options.max_width - 1
        # The epoch and the time left, first and last, are the last to go.
        while len(facts) > 1 and len("  ".join(facts)) > width:
            facts.pop(-2 if len(facts) > 2 else -1)
        text = Text("  ".join(facts), no_wrap=True, overflow="ellipsis")
        room = width - len(text) - 2
        if room < 8:
            text.truncate(width, overflow="ellipsis")
            yield text
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(ProgressBar(total=1.0, completed=self._done, width=min(room, 30)), text)
        yield grid


def _opening(record: Record) -> str:
    processes = record.get("world_size", 1)
    facts = (
        f"{record['recipe']}: {record['epochs']} epochs of {record['steps_per_epoch']:,} steps, "
        f"{record['num_train']:,} training and {record['num_val']:,} validation images of "
        f"{record['num_classes']:,} classes; {record['device']}, {record['precision']}, "
        f"{processes} process{'es' if processes > 1 else ''}"
    )
    if record["kind"] == "start":
        return facts
    epoch = record["step"] / record["steps_per_epoch"]
    return f"{facts}\nresumed at step {record['step']:,} (epoch {epoch:.2f})"


def _facts(record: Record, pace: _Pace) -> list[str]:
    timing = record[TIMING]
    remaining_s = pace.remaining_s()
    return [
        f"epoch {record['epoch']:.2f}/{pace.epochs}",
        f"loss {shown(record['loss'], '.3f')}",
        f"top-1 {shown(record.get('top1'), '.1%')}",
        f"{shown(timing.get('images_per_second'), ',.0f')} img/s",
        f"waiting {shown(timing.get('data_wait'), '.0%')}",
        f"lr {shown(record.get('lr'), '.4g')}",
        f"step {record['step']:,}/{pace.total_steps:,}",
        "-" if remaining_s is None else f"{_duration(remaining_s)} left",
    ]


def _epoch(record: Record, epochs: int) -> str:
    timing = record[TIMING]
    facts = [
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {shown(record['train_loss'], '.3f')}",
    ]
    for name, scores in (record.get("val") or {}).items():
        label = {"model": "val", "swa": "SWA"}.get(name, name)
        facts.append(f"{label} loss {shown(scores['loss'], '.3f')}")
        facts.append(f"top-1 {shown(scores['top1'], '.2%')} top-5 {shown(scores['top5'], '.2%')}")
    facts.append(f"lr {shown(record.get('lr'), '.4g')}")
    facts.append(f"{record['px']} px")
    spent = f"{_duration(timing['seconds'])} training"
    if timing.get("eval_seconds"):
        spent += f" + {_duration(timing['eval_seconds'])} evaluation"
    facts.append(spent)
    facts.append(f"{shown(timing.get('images_per_second'), ',.0f')} img/s")
    if (waiting := timing.get("data_wait") or 0.0) > INPUT_BOUND:
        facts.append(f"input-bound: {waiting:.0%} of the time was spent waiting for data")
    return "  ".join(facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lead_to_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
