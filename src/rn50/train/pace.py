"""How fast a run goes, and how much of its time is spent waiting for data."""

import time
from typing import Any


class Pace:
    """Times a window of steps; everything it reports belongs under a record's ``timing``."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new window now."""
        self._start = time.perf_counter()
        self._pause_s = 0.0
        self._wait_s = 0.0
        self._images = 0

    def step(self, images: int, wait_s: float) -> None:
        """Count a step of ``images`` over all processes that waited ``wait_s`` for its data."""
        self._images += images
        self._wait_s += wait_s

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent training, such as an evaluation."""
        self._pause_s += seconds

    def timing(self) -> dict[str, Any]:
        """Return seconds, images per second, and the share of time spent waiting for data."""
        seconds = max(1e-9, time.perf_counter() - self._start - self._pause_s)
        return {
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 1),
            "data_wait": round(min(1.0, self._wait_s / seconds), 4),
        }
