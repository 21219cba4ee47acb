"""Trackers, which show runs beside each other: TensorBoard, W&B, trackio and MLflow.

A process beside the training feeds them from the run's record. Here is the training's end of it: an
observer that starts that process, passes on what it tells, and at the end waits for it, but not for
long.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rn50 import config
from rn50.config import Log, Run
from rn50.observe.record import Record
from rn50.observe.trackers import identity
from rn50.observe.trackers.process import FINISH, HURRY, HURRY_S, sinks

LOG = "trackers.log"
"""What the libraries print, in the run's folder."""
_GRACE_S = 10.0


def check(log: Log) -> None:
    """Refuse settings that ask for a tracker whose library is not installed.

    That is for a new run. One that is resumed goes on without, see ``begin``.

    Raises:
        UsageError: One is not; it names the extra to install.
    """
    sinks(log)


def begin(
    place: Path,
    run: Run,
    first: Record,
    earlier: Sequence[Record],
    tell: Callable[[Record], None],
) -> "Trackers | None":
    """Begin to feed the trackers that a run's settings ask for, if any.

    One whose library is not installed, on the machine that a run was resumed on, is told of and
    left out; what it misses stays in the record, from which a later resumption sends it.

    Args:
        place: The run's folder, with its settings and its record as far as it is kept.
        run: All settings.
        first: What this process told first: of kind start or resume.
        earlier: What was recorded before, from before anything was cut off.
        tell: Records what there is to tell.
    """

    def warn(message: str) -> None:
        tell({"kind": "warning", "step": first["step"], "message": message})

    if not sinks(run.log, missing=lambda error: warn(f"{error}; the run goes on without")):
        return None
    resumed_at = first["step"] if first["kind"] == "resume" else None
    known = max((r["step"] for r in earlier if r.get("kind") == "train"), default=0)
    identity.choose(
        place,
        config.mathematics(run),
        first.get("detour", 0),
        resumed_at=resumed_at,
        known=known,
    )
    try:
        return Trackers(place, run.log, resumed_at, tell)
    except OSError as error:
        warn(f"the trackers get nothing of this run: their process does not start ({error})")
        return None


class Trackers:
    """Feeds the trackers of a run, whose record and ``trackers.json`` must be in its folder.

    Whatever happens to the other process, training goes on.

    Args:
        place: The run's folder.
        log: Which trackers.
        resumed_at: The step that this process goes on from; None: a new run.
        tell: Records what there is to tell, of kind notice or warning.
    """

    def __init__(
        self, place: Path, log: Log, resumed_at: int | None, tell: Callable[[Record], None]
    ) -> None:
        self._tell = tell
        self._step = resumed_at or 0
        self._ended = False
        self._limit_s = max(sink.closing_s for sink in sinks(log)) + _GRACE_S
        self._messages: deque[Record] = deque()
        words = [sys.executable, "-m", "rn50.observe.trackers", str(place)]
        if resumed_at is not None:
            words.append(str(resumed_at))
        with (place / LOG).open("ab") as printed:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                # Not stopped with the training, but by it.
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True, name="rn50-trackers")
        self._listener.start()

    def write(self, record: Record) -> None:
        """Take note of the step, and tell what the other process has told."""
        self._step = record.get("step", self._step)
        self._ended |= record["kind"] == "end"
        self._pass_on()

    def close(self) -> None:
        """Let the trackers finish, within a limit; closing twice is allowed."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.write(FINISH if self._ended else HURRY)
            self._process.stdin.close()
        try:
            self._process.wait(self._limit_s if self._ended else HURRY_S + _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(1.0)
        self._pass_on()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._messages.append(json.loads(line))
        if code := self._process.wait():
            message = (
                f"the process that feeds the trackers ended with code {code}; {LOG} in the run's "
                "folder may tell why; training goes on, and a resumed run sends what is missing"
            )
            self._messages.append({"kind": "warning", "message": message})

    def _pass_on(self) -> None:
        while self._messages:
            self._tell({"step": self._step, **self._messages.popleft()})
