"""Weights to begin a run from: files of ours, of torchvision or of timm."""

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rn50 import durable
from rn50.config import Model, from_plain
from rn50.errors import DataError, UsageError
from rn50.model.weights import HEADER
from rn50.observe.record import NETWORKS

_SHAPES = ("arch", "stem", "blurpool")
"""Settings of a network that its weights depend on; of the blur, no tensor tells."""
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Weights as they were read, at one moment."""

    file: Path
    digest: str
    """Of the file's bytes, by ``durable.digest``."""
    tensors: dict[str, Tensor]
    model: Model | None
    """The network they are for; None where the file does not tell."""
    class_ids: tuple[str, ...]
    """In the order of the outputs; empty where the file does not tell."""


def file_of(path: Path) -> Path:
    """Return the file meant by ``path``: itself, or of a run's folder its best guess.

    That is the SWA, where there is one, else the EMA, else the model: an average generalises better
    than the weights it is an average of. To begin from another, name the file.

    Raises:
        DataError: There is no such file, or the folder holds no weights.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise DataError(
            f"--init-from names {path}, which does not exist; give a weights file or the folder of "
            "a run"
        )
    for name in reversed(NETWORKS):
        if (file := path / f"{name}.safetensors").exists():
            return file
    raise DataError(
        f"--init-from names {path}, a folder without weights; a run writes model.safetensors when "
        "its first epoch ends: give the folder of such a run, or a weights file"
    )


def read(path: Path) -> Pretrained:
    """Read weights for ``init_from``: safetensors, or a ``state_dict`` saved by ``torch.save``.

    Of the latter only tensors are accepted, no objects (``weights_only``). A training checkpoint of
    torchvision or timm is taken by its ``model`` or ``state_dict``.

    Raises:
        DataError: The file is missing, damaged, or holds something else.
    """
    file = file_of(path)
    try:
        data = file.read_bytes()
        if file.suffix == ".safetensors":
            told = json.loads(_metadata(data).get(HEADER, "{}"))
            tensors = safetensors.torch.load(data)
        else:
            told, tensors = {}, _state_dict(data)
        model = from_plain(Model, told["model"]) if told else None
        class_ids = tuple(told.get("class_ids", ()))
    except (
        *(OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, UsageError),
        *(safetensors.SafetensorError, pickle.UnpicklingError, AttributeError),
    ) as error:
        raise DataError(
            f"{file} holds no weights to begin from ({_reason(error)}); give a weights file that "
            "rn50 wrote, or a state_dict of torchvision or timm"
        ) from error
    return Pretrained(file, durable.digest(data), tensors, model, class_ids)


def begin(net: nn.Module, found: Pretrained, model: Model, class_ids: tuple[str, ...] = ()) -> None:
    """Overwrite all weights and statistics of a network, strictly.

    Args:
        net: The bare network of a run.
        found: What ``read`` returned.
        model: What ``net`` was built from.
        class_ids: The classes of the run's data in the order of its outputs; empty: not compared.

    Raises:
        UsageError: They are of another network or of other classes.
    """
    file, own = found.file, net.state_dict()
    outputs = len(found.tensors.get("fc.bias", ()))
    if outputs not in (0, model.num_classes):
        raise UsageError(
            f"{file} tells {outputs} classes apart, and the run has {model.num_classes}; a run "
            "begins from weights of the same classes: give such a file, or leave --init-from out"
        )
    if found.model is not None:
        for name in _SHAPES:
            theirs, ours = getattr(found.model, name), getattr(model, name)
            if theirs != ours:
                raise UsageError(
                    f"{file} is of a network with model.{name} {theirs}, and the run has {ours}; "
                    f"give --model.{name} {theirs}, or leave --init-from out"
                )
    if found.class_ids and class_ids and found.class_ids != class_ids:
        raise UsageError(
            f"{file} is of other classes ({', '.join(found.class_ids[:3])} …) than the data "
            f"({', '.join(class_ids[:3])} …), or of the same in another order; give weights of the "
            "data's classes"
        )
    # Files older than PyTorch 0.4.1's counters lack them; nothing but their absence is forgiven.
    missing = [n for n in own if n not in found.tensors and not n.endswith(_COUNTER)]
    extra = [n for n in found.tensors if n not in own]
    other = [n for n, t in found.tensors.items() if n in own and t.shape != own[n].shape]
    for what, names in (
        ("lacks", missing),
        ("has besides", extra),
        ("has another shape of", other),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"{file} is of another network than the run's {model.arch}: it {what} "
                f"{', '.join(names[:3])}{more}; give weights of the same network, or its --arch"
            )
    if not all(bool(torch.isfinite(t).all()) for t in found.tensors.values()):
        raise DataError(f"{file} holds weights that are not finite numbers; its run diverged")
    net.load_state_dict(found.tensors, strict=False)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _state_dict(data: bytes) -> dict[str, Tensor]:
    held: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise ValueError("it is not a state_dict")
    # Saved from within DistributedDataParallel.
    return {str(name).removeprefix("module."): tensor for name, tensor in held.items()}
