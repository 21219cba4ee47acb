"""Batches: decoded by threads into reused buffers, in the order of the requests.

Threads, not processes: decoding and resizing release the interpreter's lock, so that the batch
buffers, the open shards and the plan exist once, nothing is pickled, and nothing is left behind
by a killed run. What a thread writes is decided by the request alone, so any number of threads
gives the same bytes.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from rn50.data import native
from rn50.data.decode import Decoder, ImageDecodeError
from rn50.data.plan import Request
from rn50.data.shards import PackedSplit
from rn50.errors import DataError

_CHUNK = 16
"""Images a thread takes at once: small enough to share a batch evenly, large enough that the
queue costs under a microsecond an image."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images on the device, ready to be augmented; valid until the next batch is asked for."""

    request: Request
    images: UInt8[Tensor, "batch 3 px px"]
    """Channels-last in memory."""
    labels: Int64[Tensor, " batch"]
    flips: Bool[Tensor, " batch"]
    wait_s: float
    """Seconds that the caller waited for this batch."""


class _Slot:
    """One batch buffer, and what is being written into it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.images = self._buffer
        self.jobs: native.Jobs | None = None
        self.pending: list[Future[None]] = []
        self.copied: torch.cuda.Event | None = None

    def resize(self, count: int, px: int, *, pinned: bool) -> UInt8[Tensor, "count px px 3"]:
        needed = count * px * px * 3
        if needed > len(self._buffer):
            self._buffer = torch.empty(needed, dtype=torch.uint8, pin_memory=pinned)
        self.images = self._buffer[:needed].view(count, px, px, 3)
        return self.images


class Loader:
    """A pool of decoding threads that turns requests into batches on a device.

    Args:
        device: Where batches go; on CUDA through pinned memory and a stream of its own.
        workers: Decoding threads, at least 1.
        prefetch: Batches decoded ahead of the one in use, at least 1.
    """

    def __init__(self, device: torch.device, *, workers: int, prefetch: int) -> None:
        self._device = device
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rn50-decode")
        self._local = threading.local()
        self._native = native.libraries()
        self._stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; batches not yet decoded are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, split: PackedSplit, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield one batch for each request, in order, decoding ahead.

        Raises:
            DataError: An image cannot be decoded; the message names it and where it lies.
        """
        requests = iter(requests)
        free = deque(_Slot() for _ in range(self._prefetch + 1))
        ahead: deque[tuple[Request, _Slot]] = deque()
        try:
            while True:
                while free and (request := next(requests, None)) is not None:
                    slot = free.popleft()
                    self._submit(split, request, slot)
                    ahead.append((request, slot))
                if not ahead:
                    return
                request, slot = ahead.popleft()
                start = time.perf_counter()
                for future in slot.pending:
                    future.result()
                yield self._deliver(split, request, slot, time.perf_counter() - start)
                free.append(slot)
        finally:
            for _, slot in ahead:
                for future in slot.pending:
                    future.cancel()

    def _submit(self, split: PackedSplit, request: Request, slot: _Slot) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        out = slot.resize(len(request.ids), request.px, pinned=self._stream is not None)
        slot.pending = []
        if self._native is None:
            decode = partial(self._decode_rows, split, request, out)
        else:
            slot.jobs = native.make_jobs(split, request, out)
            slot.pending = [self._pool.submit(native.read_ahead, slot.jobs)]
            decode = partial(self._decode_jobs, split, request, out, slot.jobs)
        count = len(request.ids)
        slot.pending += [
            self._pool.submit(decode, range(start, min(start + _CHUNK, count)))
            for start in range(0, count, _CHUNK)
        ]

    def _decode_jobs(
        self,
        split: PackedSplit,
        request: Request,
        out: UInt8[Tensor, "b p p 3"],
        jobs: native.Jobs,
        rows: range,
    ) -> None:
        decoder = getattr(self._local, "native", None)
        if decoder is None:
            assert self._native is not None
            decoder = self._local.native = native.NativeDecoder(*self._native)
        refused = decoder.decode(jobs[rows.start : rows.stop], request.px)
        if refused:  # Pillow decides: it accepts harmless oddities and refuses cut-off files.
            self._decode_rows(split, request, out, [rows[i] for i in refused])

    def _decode_rows(
        self,
        split: PackedSplit,
        request: Request,
        out: UInt8[Tensor, "b p p 3"],
        rows: Iterable[int],
    ) -> None:
        decoder = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = Decoder()
        for row in rows:
            image = int(request.ids[row])
            try:
                if request.boxes is None:
                    decoder.center_resized(split.jpeg(image), request.resize_px, out[row])
                else:
                    decoder.crop_resized(split.jpeg(image), request.boxes[row], out[row])
            except ImageDecodeError as error:
                raise DataError(
                    f"cannot decode {split.describe(image)}: {error}; the shard was damaged after "
                    f"it was packed: run `rn50 verify {split.folder}`"
                ) from error

    def _deliver(self, split: PackedSplit, request: Request, slot: _Slot, wait_s: float) -> Batch:
        images = slot.images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(split.labels[request.ids])
        flips = torch.from_numpy(request.flips)
        if self._stream is None:
            images, labels, flips = (t.to(self._device) for t in (images, labels, flips))
        else:
            images, labels, flips = self._copy(slot, images, labels, flips)
        return Batch(request=request, images=images, labels=labels, flips=flips, wait_s=wait_s)

    def _copy(self, slot: _Slot, *tensors: Tensor) -> list[Tensor]:
        """Copy to the GPU beside its computation; the computation waits only for the copy."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copies = [
                (t if t.is_pinned() else t.pin_memory()).to(self._device, non_blocking=True)
                for t in tensors
            ]
            slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.copied.record(self._stream)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)
        return copies
