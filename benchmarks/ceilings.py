"""What the device can do at most: matrix products and copies, measured here."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from machine import Row

_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "GH200": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Part of a GPU's name -> TFLOP/s of 16-bit dense matrix products, as NVIDIA's data sheets say; the
first part that fits counts."""


def known_peak(device: torch.device) -> float | None:
    """Return the stated 16-bit TFLOP/s of the device, or None where it is not in our table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def measure(device: torch.device, *, small: bool = False) -> Iterator[Row]:
    """Yield the ceilings of ``device`` as rows of ``what``, ``unit``, median, least and greatest.

    Args:
        device: CUDA or the CPU.
        small: Sizes that take no time, to test the script.
    """
    on_gpu = device.type == "cuda"
    side = 128 if small else 8192 if on_gpu else 2048
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if on_gpu:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    for name, dtype in kinds.items():
        # Random values: on zeros the chip draws less power and clocks higher than it ever will.
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty(side, side, device=device, dtype=dtype)
        seconds = _times(device, lambda a=left, b=right, c=out: torch.mm(a, b, out=c), small)
        rates = [2 * side**3 / s / 1e12 for s in seconds]
        yield _row(f"{name} matmul {side}", "TFLOP/s", rates)
    size = 1 << (20 if small else 30 if on_gpu else 28)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = _times(device, lambda: target.copy_(source), small)
    yield _row("copy on the device, read + written", "GB/s", [2 * size / s / 1e9 for s in seconds])
    if on_gpu:
        host = torch.zeros(size // 4, dtype=torch.uint8, pin_memory=True)
        part = target[: size // 4]
        seconds = _times(device, lambda: part.copy_(host, non_blocking=True), small)
        yield _row("pinned host -> device", "GB/s", [size / 4 / s / 1e9 for s in seconds])


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times(device: torch.device, work: Callable[[], object], small: bool) -> list[float]:
    """Return seconds per call, in 7 samples after a warm-up of about a quarter of a second."""
    work()
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    calls = max(1, int((0.001 if small else 0.25) / (time.perf_counter() - start)))
    samples = []
    for _ in range(8):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        samples.append((time.perf_counter() - start) / calls)
    return samples[1:]


def _row(what: str, unit: str, rates: list[float]) -> Row:
    return {
        "what": what,
        "unit": unit,
        "median": round(statistics.median(rates), 3),
        "min": round(min(rates), 3),
        "max": round(max(rates), 3),
    }
