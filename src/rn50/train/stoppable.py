"""Passes over data that can be left off: two minutes' notice is less than some of them take."""

from collections.abc import Callable, Iterable, Iterator

from rn50.data.loader import Batch, Loader, OnBad
from rn50.data.plan import Request
from rn50.data.shards import PackedSplit


class LeftOffError(Exception):
    """The processes agreed to stop in the middle of a pass."""


def until_stopped(
    batches: Iterator[Batch], num_batches: int, stopping: Callable[[], bool]
) -> Iterator[Batch]:
    """Yield ``batches``, and ask after each whether to leave off.

    Args:
        batches: Those of this process.
        num_batches: The most that any process has in the pass: each asks so often, also one that
            has fewer, because asking is communication.
        stopping: Whether to leave off; the same on every process.

    Raises:
        LeftOffError: A stop was asked for; every process raises it after as many batches.
    """
    for _ in range(num_batches):
        if (batch := next(batches, None)) is not None:
            yield batch
        if stopping():
            raise LeftOffError


class StoppableLoader:
    """Reads as a loader does, but for ``until_stopped``.

    Args:
        loader: What is read with.
        num_batches: As for ``until_stopped``, in each pass.
        stopping: As for ``until_stopped``.
    """

    def __init__(self, loader: Loader, num_batches: int, stopping: Callable[[], bool]) -> None:
        self._loader = loader
        self._num_batches = num_batches
        self._stopping = stopping

    def read(
        self, split: PackedSplit, requests: Iterable[Request], *, on_bad: OnBad = "error"
    ) -> Iterator[Batch]:
        """Yield what ``Loader.read`` does.

        Raises:
            LeftOffError: As ``until_stopped`` does.
        """
        batches = self._loader.read(split, requests, on_bad=on_bad)
        return until_stopped(batches, self._num_batches, self._stopping)
