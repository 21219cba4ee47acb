"""Exported weights: one safetensors file that says what network it is for.

Checkpoints (to resume) and weights (to evaluate, to serve) are different files. A weights file
holds the bare network's ``state_dict``, loadable by torchvision and timm, and a header with the
model's settings, the classes and how images must be prepared.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rn50 import durable
from rn50.config import Images, Model, from_plain
from rn50.errors import DataError, UsageError
from rn50.model import resnet

HEADER = "rn50"
"""The key of a file's metadata under which its header lies."""
_MISFITS = (KeyError, TypeError, ValueError, RuntimeError)
"""What a header raises that lacks a part, has another form, or tells of another network."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A network and what it takes to use it."""

    net: resnet.ResNet
    model: Model
    images: Images
    class_ids: tuple[str, ...]
    """In the order of the outputs; a data set must have the same to be scored."""
    class_names: tuple[str, ...]
    about: dict[str, Any]
    """Recipe, step, and whether it is the model or its average."""


def save(path: Path, state_dict: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write the ``state_dict`` of a bare network with its header, atomically.

    Args:
        path: The file, conventionally ``*.safetensors``.
        state_dict: Of the network itself, not of its DDP or compiled wrapper.
        header: Made by ``header``.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_dict.items()}
    metadata = {HEADER: json.dumps(header)}  # one key: of several, the order in the file varies
    durable.write_bytes(path, safetensors.torch.save(tensors, metadata=metadata))


def header(
    *,
    model: Model,
    images: Images,
    classes: Sequence[tuple[str, str]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Return what a weights file says of itself; ``classes`` are (id, name) by output."""
    told = {
        "model": dataclasses.asdict(model),
        "images": dataclasses.asdict(images),
        "class_ids": [class_id for class_id, _ in classes],
        "class_names": [name for _, name in classes],
        "about": about,
    }
    return dict(json.loads(json.dumps(told)))  # as it is read back


def told(path: Path) -> dict[str, Any] | None:
    """Return the header of a weights file, or None where there is no such file or header."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {})[HEADER]))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def load(path: Path) -> Weights:
    """Read a weights file that ``save`` wrote.

    Raises:
        DataError: The file is missing, damaged, or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if HEADER not in metadata:
            raise DataError(
                f"{path} does not say which network it is for; give a weights file or the folder "
                "of a run that rn50 wrote"
            )
        told = json.loads(metadata[HEADER])
        tensors = safetensors.torch.load_file(path)
        model = from_plain(Model, told["model"])
        _check_outputs(model, told, len(tensors["fc.bias"]))
        net = resnet.build(model, seed=0)
        net.load_state_dict(tensors)
        return Weights(
            net=net.eval(),
            model=model,
            images=from_plain(Images, told["images"]),
            class_ids=tuple(told["class_ids"]),
            class_names=tuple(told["class_names"]),
            about=dict(told["about"]),
        )
    except FileNotFoundError as error:
        raise DataError(f"there is no weights file {path}; give the folder of a run") from error
    except (safetensors.SafetensorError, UsageError, OSError, *_MISFITS) as error:
        raise DataError(
            f"{path} is not a whole weights file ({str(error).splitlines()[0]}); "
            "give one that rn50 wrote"
        ) from error


def _check_outputs(model: Model, told: dict[str, Any], outputs: int) -> None:
    """Refuse a header at odds with its tensors, before it has a network of any size made."""
    ids, names = told["class_ids"], told["class_names"]
    if not all(isinstance(text, str) for text in (*ids, *names)):
        raise ValueError("a class has a name that is no text")
    if not model.num_classes == outputs == len(ids) == len(names):
        raise ValueError(
            f"it has {outputs} outputs and tells of {model.num_classes}, with {len(ids)} ids and "
            f"{len(names)} names of classes"
        )


def parameters(net: nn.Module) -> int:
    """Return the number of trained values: 25,557,032 for ResNet-50 with 1000 classes."""
    return sum(p.numel() for p in net.parameters())


def all_finite(net: nn.Module) -> bool:
    """Return whether every weight and statistic is a finite number; waits for the device."""
    return all(bool(torch.isfinite(t).all()) for t in net.state_dict().values())
