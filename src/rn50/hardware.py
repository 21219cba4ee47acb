"""What this machine can do: device, profile, native precision, threads, and memory."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rn50 import profiles
from rn50.config import Hardware, ProfileName
from rn50.errors import UsageError
from rn50.profiles import Profile


@dataclass(frozen=True, slots=True)
class Compute:
    """The resolved choices of a hardware section, for one process."""

    device: torch.device
    precision: str
    """``"fp32"``, ``"bf16"`` or ``"fp16"``."""
    workers: int
    micro_batch: int = 0
    """Images per forward pass; 0: the process's whole share of the batch."""
    prefetch_batches: int = 2
    compile: bool = False
    profile: ProfileName = "local"
    why: str = ""
    """Why this profile, for people."""
    note: str = ""
    """What the user should know about the choice; mostly empty."""

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype of autocast, or None where everything is fp32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    @property
    def scales_loss(self) -> bool:
        """Return whether gradients need a loss scaler: fp16 underflows, bf16 does not."""
        return self.precision == "fp16"

    def to_json(self) -> dict[str, Any]:
        """Return the choices as plain values."""
        return {**asdict(self), "device": str(self.device)}


def resolve(hardware: Hardware, *, local_rank: int = 0, local_world_size: int = 1) -> Compute:
    """Choose how this process computes, and set the global switches.

    What the section says holds; what it leaves open is as the profile says. The micro-batch stays
    open: whether the batch fits into memory, only training itself can tell.

    Raises:
        UsageError: The device or the precision asked for is not there, or the profile is for
            another machine.
    """
    device = _device(hardware, local_rank)
    profile, why, note = _profile(hardware, device)
    precision = _precision(hardware.precision, profile, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        matmul = "tf32" if hardware.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = matmul
        torch.backends.cudnn.conv.fp32_precision = matmul  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = not hardware.deterministic
    if hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Compute(
        device=device,
        precision=precision,
        workers=hardware.workers or max(1, available_cores() // local_world_size),
        micro_batch=hardware.micro_batch,
        prefetch_batches=hardware.prefetch_batches or profile.prefetch_batches,
        compile=profile.compile if hardware.compile is None else hardware.compile,
        profile=profile.name,
        why=why,
        note=note,
    )


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
    """Return ``"cuda"``, ``"mps"`` or ``"cpu"``: as asked, as the profile is for, or the best."""
    if hardware.device != "auto":
        return hardware.device
    for_cuda = hardware.profile not in ("auto", "local")
    if for_cuda or (hardware.profile == "auto" and torch.cuda.is_available()):
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def memory_bytes(
    root: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> tuple[int | None, int | None]:
    """Return the host's bytes of memory that are free to use, and those in all.

    Both heed the limit of a container (the control group below ``root``); None where they cannot
    be told.
    """
    free = total = None
    try:
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        total = int(fields["MemTotal"].split()[0]) * 1024
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((root / name).read_text())
        except (OSError, ValueError):
            continue
        total = min(limit, total) if total else limit
        free = min(limit, free) if free else limit
    return free, total


def device_memory_bytes(device: torch.device) -> int | None:
    """Return the bytes of memory in all that the device computes in, or None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return memory_bytes()[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device's, or the host's, memory is full.

    CUDA has a type for it, but cuDNN, cuBLAS, MPS and the CPU's allocator only a text.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _device(hardware: Hardware, local_rank: int) -> torch.device:
    asked = device_type(hardware)
    if asked == "cuda":
        if not torch.cuda.is_available():
            if hardware.device == "auto":
                machine = profiles.PROFILES[hardware.profile].machine
                raise UsageError(
                    f"profile {hardware.profile} is for {machine}, but torch finds no CUDA GPU; "
                    "use --profile auto"
                )
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


def _profile(hardware: Hardware, device: torch.device) -> tuple[Profile, str, str]:
    """Return the profile, why it was chosen, and what to tell the user of it (mostly nothing)."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    fitting = profiles.nearest(capability)
    found = describe(device)
    if capability is not None:
        found += f", compute capability {capability[0]}.{capability[1]}"
    if hardware.profile == "auto":
        return fitting, found, ""
    asked = profiles.PROFILES[hardware.profile]
    if (asked.capability is None) != (capability is None):
        raise UsageError(
            f"profile {asked.name} is for {asked.machine}, but the device is {device.type}; use "
            f"--profile {fitting.name} or auto"
        )
    note = ""
    if asked is not fitting:
        note = f"profile {asked.name} as asked; for this device ({found}) auto takes {fitting.name}"
    return asked, f"asked for; here is {found}", note


def _precision(asked: str, profile: Profile, device: torch.device) -> str:
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("precision is fp16, which a CPU does not train in; use bf16 or fp32")
    chosen = profile.precision if asked == "auto" else asked
    if chosen == "auto":
        return "bf16" if has_native_bf16(device) else "fp32"
    if chosen == "bf16" and device.type == "cuda" and not has_native_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        remedy = "--profile auto" if asked == "auto" else "--precision fp16"
        raise UsageError(
            f"precision is bf16, which {describe(device)} only emulates: its compute capability is "
            f"{major}.{minor}, and bf16 needs 8.0 or above; use {remedy}"
        )
    return chosen
