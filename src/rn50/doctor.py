"""What this machine has for training, what is amiss, and what would help."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import rich.table
import rich.text
import torch

import rn50
from rn50 import hardware
from rn50.data import cache, decode
from rn50.errors import UsageError
from rn50.hardware import memory_bytes

Verdict = Literal["ok", "note", "problem"]

EXTRAS = {
    "devkit": ("scipy", "reading ImageNet's devkit (prepare from the ILSVRC2012 archives)"),
    "parquet": ("pyarrow", "reading parquet files (prepare from Hugging Face's imagenet-1k)"),
    "s3": ("s3fs", "data in object storage or on a web server: --data s3://… or https://…"),
    "track": ("tensorboard", "TensorBoard: --tensorboard"),
    "wandb": ("wandb", "Weights & Biases: --wandb online or offline"),
    "trackio": ("trackio", "trackio: --trackio"),
    "mlflow": ("mlflow", "MLflow: --mlflow http://…"),
}
"""For each optional extra, the module that tells whether it is there, and what it is for."""

_STYLE = {"ok": "green", "note": "yellow", "problem": "bold red"}
_GB = 1e9
_RUN_BYTES = 2 * _GB
"""What a run of ResNet-50 writes: two checkpoints of 0.4 GB, one more while it is written, and
the rest."""
_LEAST_MEMORY = 4 * _GB
_LEAST_SHM = 1 * _GB
_LEAST_FILES = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""
    """What to do, where the verdict is not ``"ok"``."""
    fatal: bool = False
    """Whether no training is possible as long as it is so."""


def examine() -> list[Finding]:
    """Look at everything, in the order in which it is shown. It takes a second and writes nothing.

    What cannot be found out is a note; nothing is raised.
    """
    looks: list[Callable[[], Iterable[Finding]]] = [
        lambda: [versions()],
        devices,
        lambda: [cores(hardware.available_cores(), os.cpu_count() or 1, cpu_limit())],
        lambda: [memory(*memory_bytes())],
        lambda: [shared_memory(Path("/dev/shm"), torch.cuda.device_count())],
        lambda: [open_files()],
        lambda: [place("working folder", Path.cwd(), "name another place with --output-dir")],
        lambda: [
            place("cache folder", cache.folder(), f"name another one with {cache.CACHE_VARIABLE}")
        ],
        lambda: [decoder()],
        extras,
    ]
    return [finding for look in looks for finding in look()]


def refuse_impossible(findings: Iterable[Finding]) -> None:
    """Raise ``UsageError`` where one of the findings makes training impossible."""
    if fatal := [finding for finding in findings if finding.fatal]:
        told = "; ".join(f"{f.subject}: {f.found}: {f.advice}" for f in fatal)
        raise UsageError(f"this machine cannot train as it is: {told}")


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as plain values."""
    return {
        "can_train": not any(finding.fatal for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def table(findings: Iterable[Finding]) -> rich.table.Table:
    """Return the findings as a table."""
    shown = rich.table.Table("", "verdict", "found, and what to do", box=None)
    for finding in findings:
        verdict = rich.text.Text(finding.verdict, _STYLE[finding.verdict])
        shown.add_row(finding.subject, verdict, rich.text.Text(finding.found))
        if finding.advice:
            shown.add_row("", "", rich.text.Text(f"-> {finding.advice}"))
    return shown


def versions() -> Finding:
    """Tell the versions that results depend on."""
    names = ("torch", "torchvision", "numpy", "pillow")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    python = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    return Finding("versions", f"rn50 {rn50.__version__}, Python {python}, {found}, {system}")


def devices() -> list[Finding]:
    """Tell each GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return [_gpu(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [Finding("device", "Apple GPU (mps)")]
    found = hardware.describe(torch.device("cpu"))
    if any(Path("/dev").glob("nvidia[0-9]*")):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        return [
            Finding(
                *("device", f"{found}; an NVIDIA GPU that torch does not see", "problem"),
                f"torch is built for {built}: run nvidia-smi, renew the driver, or install torch "
                "for that driver (https://pytorch.org)",
            )
        ]
    advice = "full ImageNet needs a GPU; small data sets and trials do not"
    return [Finding("device", found, "note", advice)]


def _gpu(device: torch.device) -> Finding:
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    precision = "bf16" if hardware.has_native_bf16(device) else "fp16"
    found = (
        f"{properties.name}, {properties.total_memory / _GB:.0f} GB, capability {capability}, "
        f"trains in {precision}"
    )
    subject = f"GPU {device.index}"
    if not runs_on((properties.major, properties.minor), torch.cuda.get_arch_list()):
        return Finding(
            *(subject, found, "problem"),
            f"this torch is built for {', '.join(torch.cuda.get_arch_list())}: install one that "
            "supports this GPU, or train with --device cpu",
            fatal=True,
        )
    return Finding(subject, found)


def runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Return whether a GPU runs a torch that was built for ``["sm_80", "compute_90", …]``.

    Machine code (``sm``) runs on the same major version with an equal or higher minor one;
    ``compute`` code is compiled for whatever is newer.
    """
    for name in built_for:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        if not digits.isdecimal():
            continue
        version = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and version <= capability:
            return True
        if kind == "sm" and version[0] == capability[0] and version[1] <= capability[1]:
            return True
    return False


def cores(usable: int, present: int, limit: float | None) -> Finding:
    """Tell the cores that decode.

    Args:
        usable: Cores that this process may run on.
        present: Cores of the machine.
        limit: Cores' worth of time that a container grants, or None.
    """
    found = f"{usable} usable of {present}"
    if limit is not None and limit < usable:
        threads = max(1, int(limit))
        return Finding(
            *("cores", f"{found}, of which a limit of the container grants {limit:g}", "note"),
            f"give --workers {threads}, or start the container with more (docker run --cpus)",
        )
    return Finding("cores", found)


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many cores' worth of time the control group below ``root`` grants, if limited."""
    try:
        if (unified := root / "cpu.max").is_file():
            quota, period = unified.read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", or no control group at all


def memory(free: int | None, total: int | None) -> Finding:
    """Tell the memory; what is free holds the network, the batches and, best, the shards' pages."""
    if total is None:
        return Finding("memory", "unknown", "note", f"{_LEAST_MEMORY / _GB:.0f} GB are needed")
    usable = total if free is None else free
    found = f"{usable / _GB:.1f} GB usable of {total / _GB:.1f} GB"
    if usable < _LEAST_MEMORY:
        advice = f"ResNet-50 needs {_LEAST_MEMORY / _GB:.0f} GB: end other programs, or raise the "
        return Finding("memory", found, "problem", advice + "limit of the container")
    return Finding("memory", found)


def shared_memory(folder: Path, num_gpus: int) -> Finding:
    """Tell the shared memory, which only several GPUs use: images are decoded by threads."""
    if not folder.is_dir():
        return Finding(str(folder), "none; not needed here")
    size = shutil.disk_usage(folder).total
    found = f"{size / _GB:.2f} GB"
    if num_gpus > 1 and size < _LEAST_SHM:
        advice = (
            "several GPUs exchange gradients through it: docker run --shm-size 1g, or --ipc host"
        )
        return Finding(str(folder), found, "problem", advice)
    return Finding(str(folder), found)


def open_files() -> Finding:
    """Tell how many files may be open: one for each shard, and the limit is raised as needed."""
    if sys.platform == "win32":
        return Finding("open files", "no limit to speak of")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    found = " of at most ".join("unlimited" if n == infinite else str(n) for n in (soft, hard))
    if hard != infinite and hard < _LEAST_FILES:
        advice = f"each shard is an open file: allow {_LEAST_FILES} (ulimit -Hn)"
        return Finding("open files", found, "problem", advice)
    return Finding("open files", found)


def place(subject: str, folder: Path, elsewhere: str) -> Finding:
    """Tell the room in ``folder``, or where it would be made, and whether it can be written.

    Args:
        subject: What the folder is.
        folder: It need not exist.
        elsewhere: How to use another folder.
    """
    absolute = folder.absolute()
    nearest = next(one for one in (absolute, *absolute.parents) if one.is_dir())
    free = shutil.disk_usage(nearest).free
    found = f"{folder}: {free / _GB:,.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        advice = f"change its permissions, or {elsewhere}"
        return Finding(subject, f"{found}, cannot be written: {error.strerror}", "problem", advice)
    if free < _RUN_BYTES:
        advice = f"a run of ResNet-50 writes about {_RUN_BYTES / _GB:.0f} GB: make room, or "
        return Finding(subject, found, "problem", advice + elsewhere)
    return Finding(subject, found)


def decoder() -> Finding:
    """Tell which decoder is in use, and what the other would gain."""
    name, advice = decode.decoder_name(), decode.advice()
    return Finding("decoder", name, "ok" if advice is None else "note", advice or "")


def extras() -> list[Finding]:
    """Tell which optional parts are installed, and what each is for."""
    findings = []
    for extra, (module, purpose) in EXTRAS.items():
        subject = f"extra {extra}"
        if importlib.util.find_spec(module) is not None:
            findings.append(Finding(subject, f"installed: {purpose}"))
        else:
            advice = f"pip install 'rn50[{extra}]' where that is wanted"
            findings.append(Finding(subject, f"not installed: {purpose}", "note", advice))
    return findings
