"""An evaluation that can be left off: two minutes' notice is less than some evaluations take."""

from collections.abc import Callable, Iterable, Iterator

from rn50.data.loader import Batch, Loader, OnBad
from rn50.data.plan import Request
from rn50.data.shards import PackedSplit


class LeftOffError(Exception):
    """The processes agreed to stop in the middle of a pass."""


class StoppableLoader:
    """Reads as a loader does, and asks after each batch whether to leave off.

    Args:
        loader: What is read with.
        num_batches: The most that any process has in a pass: each asks so often, also one that has
            fewer, because asking is communication.
        stopping: Whether to leave off; the same on every process.
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
            LeftOffError: A stop was asked for; every process raises it after as many batches.
        """
        batches = self._loader.read(split, requests, on_bad=on_bad)
        for _ in range(self._num_batches):
            if (batch := next(batches, None)) is not None:
                yield batch
            if self._stopping():
                raise LeftOffError
