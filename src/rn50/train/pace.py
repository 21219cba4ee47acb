"""How fast a run goes, and how much of its time is spent waiting for data or for checkpoints."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

WARM_UP_STEPS = 2
"""Steps of each image size that a process does not count among its slowest: in them kernels are
compiled or chosen, and memory is taken."""


class Pace:
    """Times a window of steps; everything it reports belongs under a record's ``timing``.

    Steps are timed on the host, which does not wait for a GPU after each: the wait at the end of a
    window counts as part of its last step.

    Args:
        clock: Seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seen: Counter[int] = Counter()
        self.restart()

    def restart(self) -> None:
        """Begin a new window now."""
        self._start = self._last = self._clock()
        self._pause_s = 0.0
        self._wait_s = 0.0
        self._images = 0
        self._latest: tuple[float, float] | None = None
        self._slowest: tuple[float, float] | None = None

    def step(self, images: int, wait_s: float, px: int) -> None:
        """Count a step of ``images`` over all processes that waited ``wait_s`` for its data.

        Args:
            images: Of the batch.
            wait_s: Seconds, part of the step.
            px: Side of the images.
        """
        now = self._clock()
        self._images += images
        self._wait_s += wait_s
        self._seen[px] += 1
        self._latest = None
        if self._seen[px] > WARM_UP_STEPS:
            self._latest = (now - self._last, wait_s)
            self._slowest = max(self._slowest or self._latest, self._latest)
        self._last = now

    def pause(self, seconds: float) -> None:
        """Leave out time for which training stood still to save a checkpoint."""
        self._pause_s += seconds
        self._last += seconds

    def timing(self) -> dict[str, Any]:
        """Return seconds, images per second, and what the time was spent on.

        ``seconds`` are those of training, ``saving_s`` come on top; ``data_wait`` is a share of the
        former. The slowest step, and its wait for data, are left out where all were warming up.
        """
        now = self._clock()
        seconds = max(1e-9, now - self._start - self._pause_s)
        timing = {
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 1),
            "data_wait": round(min(1.0, self._wait_s / seconds), 4),
            "saving_s": round(self._pause_s, 3),
        }
        steps = [self._slowest] if self._slowest else []
        if self._latest is not None:
            step_s, wait_s = self._latest
            steps.append((step_s + now - self._last, wait_s))
        if steps:
            slowest_s, wait_s = max(steps)
            timing |= {"slowest_s": round(slowest_s, 3), "slowest_wait_s": round(wait_s, 3)}
        return timing
