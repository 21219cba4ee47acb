"""Hardware profiles: what each kind of machine leaves to be decided, and decides so.

A profile says only how a run is computed, never what (``config.MATHEMATICS``), and only where the
settings leave it open: what a user gives wins. Two things no profile differs in: images lie
channels-last everywhere, and activations are recomputed only where that is asked for.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rn50.config import Precision, ProfileName

Capability = tuple[int, int]

_AHEAD_S = 0.3
_SHARE = 128
_LEAST_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Profile:
    """How runs are computed on one kind of machine."""

    name: ProfileName
    machine: str
    """What has such a device, and how much memory it has."""
    capability: Capability | None
    """CUDA compute capability of its GPU; None: no CUDA."""
    precision: Precision
    """``"auto"``: bf16 where the device computes it natively, else fp32."""
    why: str
    """Why this precision, and what else to know."""
    images_per_second: int | None = None
    """Published speed of training at 224 px on one GPU; it decides how far to read ahead."""
    speed_source: str = ""
    compile: bool = False
    """Off everywhere until it is measured: no published training speed of a compiled ResNet-50 was
    found, and each image size costs about a minute of compiling."""

    @property
    def micro_batch(self) -> Literal["probed", "predicted"]:
        """Return how it is found whether a process's share of the batch fits into memory.

        A CUDA device refuses what does not fit, so that it can be tried; a host ends the process.
        """
        return "probed" if self.capability else "predicted"

    @property
    def prefetch_batches(self) -> int:
        """Return the batches decoded ahead: 0.3 s of training by batches of 128 images, at least 2.

        So long may a disk or a network stall unnoticed. It costs pinned memory of the host only,
        0.15 MB an image of 224 px.
        """
        seconds_per_batch = _SHARE / (self.images_per_second or 1)
        return max(_LEAST_AHEAD, math.ceil(_AHEAD_S / seconds_per_batch))

    def to_json(self) -> dict[str, Any]:
        """Return the profile and what it decides as plain values."""
        derived = {"micro_batch": self.micro_batch, "prefetch_batches": self.prefetch_batches}
        return {**asdict(self), **derived}


_EMULATED = "no native bf16 below capability 8.0 (huggingface/diffusers#14129)"
_NATIVE = "native bf16, which needs no loss scaler"
_NVIDIA = "NVIDIA DeepLearningExamples, mixed precision"
_LAMBDA = "Lambda's benchmark, mixed precision"

_ALL = (
    Profile(
        name="local",
        machine="CPU or Apple GPU, with the memory of the host",
        capability=None,
        precision="auto",
        why="bf16 where the CPU has AVX-512 BF16 or AMX, else fp32; fp32 on an Apple GPU",
    ),
    Profile(
        name="t4",
        machine="NVIDIA T4, 16 GB (AWS g4dn, Colab, Kaggle)",
        capability=(7, 5),
        precision="fp16",
        why=_EMULATED,
        images_per_second=400,
        speed_source="an estimate; no clean source was found",
    ),
    Profile(
        name="p3",
        machine="NVIDIA V100, 16 or 32 GB (AWS p3)",
        capability=(7, 0),
        precision="fp16",
        why=f"{_EMULATED}; torch 2.11 and above: CUDA 12.6 builds only (pytorch#172352)",
        images_per_second=1200,
        speed_source=_NVIDIA,
    ),
    Profile(
        name="g5",
        machine="NVIDIA A10G, 24 GB (AWS g5)",
        capability=(8, 6),
        precision="bf16",
        why=_NATIVE,
        images_per_second=640,
        speed_source=f"{_LAMBDA}, of the A10",
    ),
    Profile(
        name="p4d",
        machine="NVIDIA A100, 40 or 80 GB (AWS p4d, p4de)",
        capability=(8, 0),
        precision="bf16",
        why=_NATIVE,
        images_per_second=2470,
        speed_source=_NVIDIA,
    ),
    Profile(
        name="h100",
        machine="NVIDIA H100, 80 GB (AWS p5)",
        capability=(9, 0),
        precision="bf16",
        why=_NATIVE,
        images_per_second=2790,
        speed_source=f"{_LAMBDA} (MLPerf's fused code: 7,140)",
    ),
)

PROFILES: dict[ProfileName, Profile] = {profile.name: profile for profile in _ALL}


def nearest(capability: Capability | None) -> Profile:
    """Return the profile for a device.

    Args:
        capability: CUDA compute capability, or None for a CPU or an Apple GPU. The profile is that
            of the same capability, else of the highest below it (an L4, 8.9, is taken for an
            A10G), else, for GPUs older than all, the V100's, whose fp16 they compute too.
    """
    if capability is None:
        return PROFILES["local"]
    known = sorted((p.capability, p.name) for p in _ALL if p.capability is not None)
    below = [name for least, name in known if least <= capability]
    return PROFILES[below[-1] if below else known[0][1]]
