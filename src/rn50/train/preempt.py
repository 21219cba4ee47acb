"""Being asked to stop: a signal sets a flag, and the loop acts on it between two steps."""

import os
import signal
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Whether this process was asked to stop, while used as a context manager.

    The handler only sets a flag: saving in the middle of a step would save half a step. A second
    signal ends the process at once, which is safe because every file is written aside first.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for name in _NAMES:
            if (number := getattr(signal, name, None)) is not None:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
