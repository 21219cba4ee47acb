"""What the GPUs of this machine do meanwhile, as NVIDIA's management library (NVML) tells it."""

import importlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

INTERVAL_S = 1.0

_THROTTLES = (
    ("heat", ("SwThermalSlowdown", "HwThermalSlowdown")),
    ("power brake", ("HwPowerBrakeSlowdown",)),
    ("power limit", ("SwPowerCap",)),
)


@dataclass
class _Window:
    """Sums of samples."""

    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    throttled: dict[str, int] = field(default_factory=dict)


class Gpus:
    """Samples GPUs about once a second, in a thread that never stops or fails the run.

    Where the library, the driver or the GPU does not tell, that is said once. A single thing that
    it does not tell, such as the utilisation of a part of a GPU (MIG), is left out. With several
    processes, the first one of each machine samples the GPUs that its machine's processes train on;
    since only the run's first process records, a record is about its machine alone.

    Args:
        uuids: Tells those of the GPUs, without the prefix ``GPU-``; see ``uuids``. Called in the
            thread, where it may fail.
        interval_s: Seconds between two samples.
    """

    def __init__(
        self, uuids: Callable[[], Sequence[str]], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._uuids = uuids
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._window = _Window()
        self._news: list[str] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rn50-gpus", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, Any]:
        """Return the window's values since the last call; empty where there is no sample.

        Returns:
            ``gpu_utilisation``: share of the time in which a kernel ran, 0 to 1, the mean over the
            GPUs. ``gpu_memory`` and ``gpu_memory_total``: bytes of the fullest GPU, by all
            programs. ``gpu_power_w``: watts of all GPUs together. ``gpu_clock_mhz``: of the
            slowest GPU's cores. ``gpu_throttled``: share of the samples for each reason that held
            a clock down: heat, power brake (the server's), power limit (the GPU's own; usual for
            some at full load). What is not told is left out.
        """
        with self._lock:
            window, self._window = self._window, _Window()
        if not window.samples:
            return {}
        values: dict[str, Any] = {
            name: round(total / window.samples, 4 if name == "gpu_utilisation" else 1)
            for name, total in window.sums.items()
        }
        values |= {name: int(value) for name, value in window.most.items()}
        if window.throttled:
            values["gpu_throttled"] = {
                reason: round(count / window.samples, 2)
                for reason, count in window.throttled.items()
            }
        return values

    def news(self) -> list[str]:
        """Return what is to be said and has not been returned before."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def close(self) -> None:
        """End the thread; not waited for long, for a driver may hang."""
        self._closing.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        try:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            try:
                gpus = [_Gpu(nvml, uuid) for uuid in self._uuids()]
                while not self._closing.wait(self._interval_s):
                    self._add([gpu.sample() for gpu in gpus])
            finally:
                with suppress(Exception):
                    nvml.nvmlShutdown()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            with self._lock:
                self._news.append(
                    f"the GPU's utilisation, memory and power are not shown from here on ({reason})"
                )

    def _add(self, samples: list[dict[str, float]]) -> None:
        told: dict[str, list[float]] = {}
        for sample in samples:
            for name, value in sample.items():
                told.setdefault(name, []).append(value)
        with self._lock:
            window = self._window
            window.samples += 1
            for name, combined in (
                ("gpu_utilisation", lambda values: sum(values) / len(values)),
                ("gpu_power_w", sum),
                ("gpu_clock_mhz", min),
            ):
                if values := told.get(name):
                    window.sums[name] = window.sums.get(name, 0.0) + combined(values)
            for name in ("gpu_memory", "gpu_memory_total"):
                if values := told.get(name):
                    window.most[name] = max(window.most.get(name, 0.0), *values)
            for reason, _ in _THROTTLES:
                if any(told.get(reason, ())):
                    window.throttled[reason] = window.throttled.get(reason, 0) + 1


class _Gpu:
    """One GPU, and what of it can be told."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml = nvml
        self._handle = _handle(nvml, uuid)
        self._probes: list[Callable[[], dict[str, float]]] = [
            lambda: {"gpu_utilisation": self._ask("UtilizationRates").gpu / 100},
            lambda: {"gpu_power_w": self._ask("PowerUsage") / 1000},
            lambda: {"gpu_clock_mhz": self._ask("ClockInfo", nvml.NVML_CLOCK_SM)},
            self._memory,
            self._throttles,
        ]

    def sample(self) -> dict[str, float]:
        """Return what can be told now; what this GPU never tells is asked only once.

        Raises:
            NVMLError: The driver or the GPU has failed.
        """
        values: dict[str, float] = {}
        for probe in tuple(self._probes):
            try:
                values |= probe()
            except (
                self._nvml.NVMLError_NotSupported,
                self._nvml.NVMLError_NoPermission,
                self._nvml.NVMLError_FunctionNotFound,
            ):
                self._probes.remove(probe)
        if not self._probes:
            raise RuntimeError("this GPU tells nothing of itself")
        return values

    def _ask(self, what: str, *more: Any) -> Any:
        return getattr(self._nvml, f"nvmlDeviceGet{what}")(self._handle, *more)

    def _memory(self) -> dict[str, float]:
        memory = self._ask("MemoryInfo")
        return {"gpu_memory": memory.used, "gpu_memory_total": memory.total}

    def _throttles(self) -> dict[str, float]:
        nvml = self._nvml
        try:
            bits = self._ask("CurrentClocksEventReasons")
        except nvml.NVMLError_FunctionNotFound:  # drivers before 535 know it by its older name
            bits = self._ask("CurrentClocksThrottleReasons")
        return {
            reason: any(bits & getattr(nvml, f"nvmlClocksEventReason{name}") for name in names)
            for reason, names in _THROTTLES
        }


def uuids(count: int) -> list[str]:
    """Return the UUIDs of this process's first ``count`` CUDA devices, without a prefix.

    By them NVML finds the same GPUs, whatever order or selection ``CUDA_VISIBLE_DEVICES`` gives.
    """
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]


def _handle(nvml: Any, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
