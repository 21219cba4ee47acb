"""Starting a run again after what ends runs on machines that fail, and telling its exit code.

A run that can go on ends with 33, by a signal or with 1, as it does when what it needs cannot be
reached; what only a person can mend ends with 2, 3 or 4 (see ``rn50.errors``). ``torchrun`` ends
with 1 whatever its workers end with, so that these tell their codes by files besides.
"""

import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from rn50.errors import DataError, DivergedError, InterruptedRunError, UsageError

EXIT_CODES_VARIABLE = "RN50_EXIT_CODES"
"""Folder where each process of a run leaves its exit code, in a file named by its rank."""

_SAVED = InterruptedRunError.exit_code
_HOPELESS = (UsageError.exit_code, DataError.exit_code, DivergedError.exit_code)
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def tell(code: int) -> None:
    """Leave this process's exit code for a supervisor, if there is one."""
    if folder := os.environ.get(EXIT_CODES_VARIABLE):
        try:
            (Path(folder) / os.environ.get("RANK", "0")).write_text(str(code))
        except OSError:
            return  # The supervisor is gone; nobody else reads it.


def supervise(
    command: Sequence[str], *, restarts: int, wait_s: float, say: Callable[[str], None]
) -> int:
    """Run a command, again and again until it is done, and return its last exit code.

    Asked to stop by a signal, it hands the signal on, waits, and starts nothing any more.

    Args:
        command: A program and its arguments, which must make it resume.
        restarts: How often it is started again at most.
        wait_s: Seconds before each: a machine that is about to be taken away is gone by then.
        say: Shows the user a line.

    Returns:
        The worst of the codes of a run's processes, where they tell one; else the command's, as a
        shell gives it (128 and the number of the signal that ended it).

    Raises:
        UsageError: The command cannot be started, or would not resume.
    """
    _check(command)
    with tempfile.TemporaryDirectory(prefix="rn50-") as folder, _Child() as child:
        for left in range(restarts, -1, -1):
            code = child.run(command, Path(folder))
            if code == 0 or child.signalled:
                return code
            if code in _HOPELESS:
                say(f"the run ended with {code}, which no restart mends")
                return code
            if left == 0:
                say(f"the run ended with {code}; it was started {restarts + 1} times, as allowed")
                return code
            say(f"the run ended with {code}; starting it again in {wait_s:g} s, {left} left")
            if child.wait(wait_s):
                return code
    raise AssertionError("the last round returns")


def _check(command: Sequence[str]) -> None:
    if not command:
        raise UsageError(
            "there is nothing to supervise; give the command after --, such as "
            "`rn50 supervise -- rn50 train imagenet-90 --data packed --resume`"
        )
    names = [Path(word).name for word in command]
    if ("rn50", "train") in itertools.pairwise(names) and "--resume" not in command:
        raise UsageError(
            "the command has no --resume, without which every restart would begin anew; add it"
        )


class _Child:
    """The command as a process of its own session, to which signals are handed on once."""

    def __init__(self) -> None:
        self.signalled = False
        self._number = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "_Child":
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and _is_ignored(number)):
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, command: Sequence[str], folder: Path) -> int:
        for old in folder.iterdir():
            old.unlink()
        # torchrun gives its workers 30 s after a signal, which is short for a slow disk.
        settings = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60", **os.environ}
        try:
            # In a session of its own, Ctrl-C reaches it by us alone, and not twice.
            self._process = subprocess.Popen(
                command,
                env={**settings, EXIT_CODES_VARIABLE: str(folder)},
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(
                f"cannot start {command[0]}: {error.strerror}; name a program that can be run"
            ) from error
        if self.signalled:
            self._process.send_signal(self._number)
        code = self._process.wait()
        if code < 0:
            return 128 - code
        return (_told(folder) or code) if code else 0

    def wait(self, seconds: float) -> bool:
        """Return whether a signal came within so many seconds."""
        # In slices, as no lock that a waiting thread holds may be taken in a handler.
        end = time.monotonic() + seconds
        while not self.signalled and (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, 0.2))
        return self.signalled

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signalled, self._number = True, number
        if self._process is not None:
            self._process.send_signal(number)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _told(folder: Path) -> int:
    """Return what the processes left: a code that forbids a restart, else 33, else 0."""
    codes = {int(file.read_text() or 0) for file in folder.iterdir()}
    return next((code for code in (*_HOPELESS, _SAVED) if code in codes), 0)
