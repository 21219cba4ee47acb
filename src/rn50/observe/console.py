"""What a person watching a run sees: a panel on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TextIO

import rich.console
from rich.live import Live
from rich.text import Text

from rn50.observe.live import Panel, facts
from rn50.observe.record import TIMING, Record, duration, shown
from rn50.observe.standing import DATA_BOUND, Standing
from rn50.observe.terminal import moves_cursor

_PLAIN_INTERVAL_S = 10.0
_LIVE_INTERVAL_S = 0.25
"""Drawing takes a few milliseconds, which the host of fast steps does not have for each."""
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
        self._last_s: float | None = None
        self._standing = Standing()
        if live is None:
            live = moves_cursor(self._stream)
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
        """Take the panel away and show the cursor again."""
        if self._live is not None:
            self._live.stop()

    def _show(self, record: Record) -> None:
        self._standing.take(record)
        match record["kind"]:
            case "start" | "resume":
                self._line(_opening(record))
                if self._live is not None:
                    self._live.start()
            case "train":
                self._progress()
            case "epoch":
                self._line(_epoch(record, self._standing.epochs))
            case "bad_image":
                self._bad_image(record)
            case "warning" | "notice" | "rollback" | "stall":
                self._line(f"{record['kind']}: {record['message']}", style="yellow")
            case "end":
                self._line(f"finished at step {record['step']:,}{_spent(self._standing)}")
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

    def _progress(self) -> None:
        now_s = self._clock()
        interval_s = _PLAIN_INTERVAL_S if self._live is None else _LIVE_INTERVAL_S
        if self._last_s is not None and now_s - self._last_s < interval_s:
            return
        self._last_s = now_s
        if self._live is not None:
            self._live.update(Panel(self._standing), refresh=True)
        else:
            self._line("  ".join(facts(self._standing)))

    def _line(self, text: str, *, style: str = "") -> None:
        if self._live is not None:
            # Not wrapped here: the terminal wraps what is too wide, and copies it as one line.
            self._live.console.print(Text(text, style), soft_wrap=True)
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = self._prefix + text.replace("\n", f"\n{self._prefix}")
        self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()


class _Terminal(rich.console.Console):
    """A rich console that reports a closed pipe instead of ending the program."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError("the terminal or pipe was closed")


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
    spent = f"{duration(timing['seconds'])} training"
    if timing.get("eval_seconds"):
        spent += f" + {duration(timing['eval_seconds'])} evaluation"
    facts.append(spent)
    facts.append(f"{shown(timing.get('images_per_second'), ',.0f')} img/s")
    if (waiting := timing.get("data_wait") or 0.0) > DATA_BOUND:
        facts.append(f"data-bound: {waiting:.0%} of the time was spent waiting for data")
    return "  ".join(facts)


def _spent(standing: Standing) -> str:
    cost = standing.cost
    if not cost.seconds:
        return ""
    return f" after {duration(cost.seconds)}" + (f", ${cost.dollars:,.2f}" if cost.dollars else "")


def _lead_to_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
