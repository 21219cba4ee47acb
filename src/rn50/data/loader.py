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
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from rn50.data import native
from rn50.data.decode import Decoder, ImageDecodeError, check_digest
from rn50.data.plan import Request
from rn50.data.shards import PackedSplit
from rn50.data.substitutes import moved_box, substitutes
from rn50.errors import DataError

OnBad = Literal["error", "substitute", "blank"]
"""What becomes of an image that cannot be decoded: an error, another image of its class, or a
black square that the caller must not use."""

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
    bad: Int64[np.ndarray, " bad"] = field(default_factory=lambda: np.empty(0, np.int64))
    """Images that were met and could not be decoded, ascending: of the request, or tried in place
    of one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A batch to be decoded."""

    split: PackedSplit
    request: Request
    out: UInt8[Tensor, "batch px px 3"]
    on_bad: OnBad
    bad: list[int] = field(default_factory=list)
    """Appended to by any thread."""


class _Slot:
    """One batch buffer, and what is being written into it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.images = self._buffer
        self.bad: list[int] = []
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
        verify_reads: Compare every image with its hash, not only those that a decoder complains
            of: finds what was altered and still decodes.
    """

    def __init__(
        self, device: torch.device, *, workers: int, prefetch: int, verify_reads: bool = False
    ) -> None:
        self._device = device
        self._prefetch = prefetch
        self._verify_reads = verify_reads
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

    def read(
        self, split: PackedSplit, requests: Iterable[Request], *, on_bad: OnBad = "error"
    ) -> Iterator[Batch]:
        """Yield one batch for each request, in order, decoding ahead.

        Args:
            split: Whose images they are.
            requests: What to read.
            on_bad: What becomes of an image that cannot be decoded.

        Raises:
            DataError: An image cannot be decoded (the message names it and where it lies) and none
                may or can take its place; or a shard cannot be read, whatever ``on_bad`` is.
        """
        requests = iter(requests)
        free = deque(_Slot() for _ in range(self._prefetch + 1))
        ahead: deque[tuple[Request, _Slot]] = deque()
        try:
            while True:
                while free and (request := next(requests, None)) is not None:
                    slot = free.popleft()
                    self._submit(split, request, slot, on_bad)
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

    def _submit(self, split: PackedSplit, request: Request, slot: _Slot, on_bad: OnBad) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        out = slot.resize(len(request.ids), request.px, pinned=self._stream is not None)
        work = _Work(split, request, out, on_bad)
        slot.bad, slot.pending = work.bad, []
        if self._native is None:
            decode = partial(self._decode_rows, work)
        else:
            jobs = native.make_jobs(split, request, out)
            slot.pending = [self._pool.submit(native.read_ahead, jobs)]
            decode = partial(self._decode_jobs, work, jobs)
        count = len(request.ids)
        slot.pending += [
            self._pool.submit(decode, range(start, min(start + _CHUNK, count)))
            for start in range(0, count, _CHUNK)
        ]

    def _decode_jobs(self, work: _Work, jobs: native.Jobs, rows: range) -> None:
        decoder = getattr(self._local, "native", None)
        if decoder is None:
            assert self._native is not None
            decoder = self._local.native = native.NativeDecoder(*self._native)
        refused = set(decoder.decode(jobs[rows.start : rows.stop], work.request.px))
        if self._verify_reads:
            refused |= {i for i, row in enumerate(rows) if not self._is_as_packed(work, row)}
        # Pillow decides: it accepts harmless oddities and refuses cut-off files.
        self._decode_rows(work, [rows[i] for i in sorted(refused)])

    def _is_as_packed(self, work: _Work, row: int) -> bool:
        image = int(work.request.ids[row])
        try:
            check_digest(work.split.jpeg(image), work.split.expected(image))
        except ImageDecodeError:
            return False
        return True

    def _decode_rows(self, work: _Work, rows: Iterable[int]) -> None:
        for row in rows:
            image = int(work.request.ids[row])
            try:
                self._decode(work, row, image)
            except ImageDecodeError as error:
                work.bad.append(image)
                if work.on_bad == "error":
                    raise _undecodable(work.split, image, error) from error
                if work.on_bad == "blank":
                    work.out[row].zero_()
                else:
                    self._substitute(work, row, image, error)

    def _substitute(self, work: _Work, row: int, image: int, error: ImageDecodeError) -> None:
        for other in substitutes(work.split, image):
            try:
                return self._decode(work, row, other)
            except ImageDecodeError:
                work.bad.append(other)
        raise _undecodable(work.split, image, error, "nor any other image of its class")

    def _decode(self, work: _Work, row: int, image: int) -> None:
        """Decode an image into a row, cropped as the image that the row was meant for."""
        split, request, out = work.split, work.request, work.out[row]
        decoder = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = Decoder()
        jpeg, expected = split.jpeg(image), split.expected(image)
        if self._verify_reads:
            check_digest(jpeg, expected)
        if request.boxes is None:
            decoder.center_resized(jpeg, request.resize_px, out, expected)
            return
        box = request.boxes[row]
        if image != request.ids[row]:
            meant = split.expected(int(request.ids[row]))
            box = moved_box(box, (meant.width, meant.height), (expected.width, expected.height))
        decoder.crop_resized(jpeg, box, out, expected)

    def _deliver(self, split: PackedSplit, request: Request, slot: _Slot, wait_s: float) -> Batch:
        images = slot.images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(split.labels[request.ids])
        flips = torch.from_numpy(request.flips)
        if self._stream is None:
            images, labels, flips = (t.to(self._device) for t in (images, labels, flips))
        else:
            images, labels, flips = self._copy(slot, images, labels, flips)
        bad = np.unique(np.array(slot.bad, np.int64))
        return Batch(request, images, labels, flips, wait_s, bad)

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


def _undecodable(
    split: PackedSplit, image: int, error: ImageDecodeError, others: str = ""
) -> DataError:
    others = others and f", {others}"
    return DataError(
        f"cannot decode {split.describe(image)}{others}: {error}; the shard was damaged after it "
        f"was packed: run `rn50 verify {split.folder}` and copy the shard again, or train with "
        "other images in the place of bad ones: --resume --on-bad-image skip"
    )
