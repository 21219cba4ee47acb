"""Saving beside the training: a copy between two steps, and a thread that writes it.

The training waits while the state is copied to buffers in the host's memory, which are made once,
and for an earlier save that is still being written. Hashing, writing, flushing, reading back and
removing what is old happen meanwhile.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rn50 import durable
from rn50.errors import DataError, UsageError, UserError
from rn50.model import weights
from rn50.observe.record import Record
from rn50.train import checkpoint
from rn50.train.state import Snapshot

MOST_FAILURES = 3
"""Saves that may fail in a row before the run stops: what is not saved could be lost."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written, and what may be removed."""

    about: dict[str, Any]
    """Told in the checkpoint: settings, data, versions."""
    keep: Callable[[list[int]], set[int]]
    """Given the steps of all checkpoints, those to keep."""
    keep_least: Callable[[list[int]], set[int]]
    """The same where the disk is full."""
    exports: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    """Weights files to write too: name of the file, which of ``checkpoint.parts``, header."""


class Store:
    """Writes the checkpoints of one run; the first process's alone.

    Args:
        place: The run's folder.
        sync: Flushes the record; called before a checkpoint is published.
        published: Called with the folder of each checkpoint that was published.
    """

    def __init__(
        self, place: Path, *, sync: Callable[[], None], published: Callable[[Path], None]
    ) -> None:
        self._place = place
        self._sync = sync
        self._published = published
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rn50-save")
        self._pending: Future[tuple[Path, Record]] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._failures = 0
        self._news: list[Record] = []

    def save(self, snapshot: Snapshot, order: Order) -> None:
        """Copy a state and have it written.

        Raises:
            UserError: Saves have failed so often in a row that the run had better stop.
        """
        start = time.perf_counter()
        self._finish()
        copy = self._copied(snapshot)
        stall_s = time.perf_counter() - start
        self._pending = self._thread.submit(self._write, copy, order, stall_s)

    def news(self) -> list[Record]:
        """Return records of what became of the saves since the last call.

        A warning has no step yet.

        Raises:
            UserError: As ``save`` does.
        """
        if self._pending is not None and self._pending.done():
            self._finish()
        news, self._news = self._news, []
        return news

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            UserError: It failed; the checkpoints from before are untouched.
        """
        self._finish(is_last=True)

    def close(self) -> None:
        """Let what is being written come to its end, and the thread with it."""
        self._thread.shutdown(wait=True)

    def _finish(self, *, is_last: bool = False) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            path, told = pending.result()
        except UserError as error:
            self._failures += 1
            if is_last or self._failures >= MOST_FAILURES:
                raise
            message = f"a checkpoint could not be saved; training goes on: {error}"
            self._news.append({"kind": "warning", "message": message})
            return
        self._failures = 0
        self._news.append(told)
        self._published(path)

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot in the host's memory, in the buffers of the copy before."""
        copies: dict[str, dict[str, Tensor]] = {}
        buffers, self._buffers = self._buffers, {}
        waits = False
        for part, tensors in checkpoint.parts(snapshot).items():
            copies[part] = {}
            for name, tensor in tensors.items():
                on_gpu = tensor.device.type == "cuda"
                waits |= on_gpu
                buffer = buffers.get((part, name))
                if buffer is None or buffer.shape != tensor.shape:
                    # Of the same layout, so that to copy is to move bytes.
                    buffer = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
                buffer.copy_(tensor.detach(), non_blocking=on_gpu)
                self._buffers[part, name] = copies[part][name] = buffer
        if waits:
            torch.cuda.current_stream().synchronize()
        return replace(snapshot, **copies)  # type: ignore[arg-type]

    def _write(self, snapshot: Snapshot, order: Order, stall_s: float) -> tuple[Path, Record]:
        start = time.perf_counter()
        try:
            try:
                path = self._publish(snapshot, order)
            except UsageError:
                # The disk may be full: give up what only convenience keeps, and try again.
                checkpoint.prune(self._place, order.keep_least)
                path = self._publish(snapshot, order)
        except OSError as error:
            raise DataError(
                f"cannot write a checkpoint to {self._place}: {error}; look at that disk, or "
                "resume into another --output-dir"
            ) from error
        timing = {
            "path": f"{path.parent.name}/{path.name}",
            "seconds": round(time.perf_counter() - start, 3),
            "stall_seconds": round(stall_s, 3),
        }
        return path, {"kind": "checkpoint", "step": snapshot.step, "timing": timing}

    def _publish(self, snapshot: Snapshot, order: Order) -> Path:
        self._sync()
        path = checkpoint.save(self._place, snapshot, order.about)
        checkpoint.prune(self._place, order.keep)
        networks = checkpoint.parts(snapshot)
        with durable.explained(self._place):
            for name, network, header in order.exports:
                weights.save(self._place / name, networks[network], header)
        return path
