"""What this machine can do: device, native precision, and threads."""

import os
from dataclasses import dataclass

import torch

from rn50.config import Hardware
from rn50.errors import UsageError


@dataclass(frozen=True, slots=True)
class Compute:
    """The resolved choices of a hardware section, for one process."""

    device: torch.device
    precision: str
    """``"fp32"``, ``"bf16"`` or ``"fp16"``."""
    workers: int

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype of autocast, or None where everything is fp32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    @property
    def scales_loss(self) -> bool:
        """Return whether gradients need a loss scaler: fp16 underflows, bf16 does not."""
        return self.precision == "fp16"


def resolve(hardware: Hardware, *, local_rank: int = 0, local_world_size: int = 1) -> Compute:
    """Choose device, precision and threads of this process, and set the global switches.

    Raises:
        UsageError: The device or the precision asked for is not there.
    """
    device = _device(device_type(hardware), local_rank)
    precision = _precision(hardware.precision, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        matmul = "tf32" if hardware.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = matmul
        torch.backends.cudnn.conv.fp32_precision = matmul  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = not hardware.deterministic
    if hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    workers = hardware.workers or max(1, available_cores() // local_world_size)
    return Compute(device=device, precision=precision, workers=workers)


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 itself instead of emulating it.

    CUDA: compute capability 8.0 and above (T4 and V100 only emulate it). CPU: AVX-512 BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)
    return False


def describe(device: torch.device) -> str:
    """Return the device's name as its maker writes it, with the number of cores for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{_cpu_name()}, {available_cores()} cores"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "CPU"


def device_type(hardware: Hardware) -> str:
    """Return ``"cuda"``, ``"mps"`` or ``"cpu"``: as the section asks, or the best there is."""
    if hardware.device != "auto":
        return hardware.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device(asked: str, local_rank: int) -> torch.device:
    if asked == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("device is cuda, but torch finds no CUDA GPU; use --device auto")
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} has no GPU of its own: there are "
                f"{torch.cuda.device_count()}; start torchrun with that --nproc-per-node"
            )
        return torch.device("cuda", local_rank)
    if asked == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device is mps, but torch finds no Apple GPU; use --device auto")
    return torch.device(asked)


def _precision(asked: str, device: torch.device) -> str:
    if asked == "auto":
        if has_native_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("precision is fp16, which a CPU does not train in; use bf16 or fp32")
    return asked
