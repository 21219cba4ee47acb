"""Grad-CAM: which places of a feature map speak for a class.

Selvaraju et al.: Grad-CAM (ICCV 2017, arXiv:1610.02391). A layer's channels are added up, each
times the mean of the class score's gradient over its places; what is negative becomes 0. The score
is the class's logit. Checked against the library ``grad-cam`` in ``tests/analyze/test_gradcam.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from rn50.analyze.receptive_field import fields
from rn50.errors import UsageError
from rn50.model.resnet import ResNet

COARSEST = 4
"""Cells to a side below which a map is too coarse to be the default: it could only say left or
right."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What a network says of images, and why."""

    logits: Float[Tensor, "batch classes"]
    targets: Int64[Tensor, "batch targets"]
    """The classes explained."""
    maps: Float[Tensor, "batch targets rows columns"]
    """One value for each place of the layer's map, 0 or more, in units of the logit times the
    number of places."""
    jump: int
    """Pixels from one place to the next; the first is at the image's corner."""


def grad_cam(
    net: ResNet,
    inputs: Float[Tensor, "batch 3 height width"],
    *,
    layer: str,
    targets: Int64[Tensor, "batch targets"] | None = None,
) -> Maps:
    """Return Grad-CAM's maps of a batch, in one forward pass.

    Only what comes after the layer is differentiated, so that the memory is that of inference for
    a late layer, whatever the batch.

    Args:
        net: Its mode is restored; parameters and their gradients stay as they are.
        inputs: Normalised images on the network's device.
        layer: Name of the module whose output is explained, such as ``layer4`` or
            ``layer3.5.conv2``; of a module that runs several times, such as a block's ReLU, the
            last run counts.
        targets: Classes to explain of each image; None: the predicted one.

    Raises:
        UsageError: The network has no such layer, or its output is no map.
    """
    jump = jump_at(net, layer)
    with _leaf_at(net, layer) as leaf:
        logits = net(inputs)
        if targets is None:
            targets = logits.argmax(dim=1, keepdim=True)
        activations = leaf[-1]
        maps = []
        for column in targets.T:
            score = logits.gather(1, column[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, activations, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            maps.append(F.relu((weights * activations).sum(dim=1)).detach())
    return Maps(logits.detach(), targets, torch.stack(maps, dim=1), jump)


def enlarged(
    maps: Float[Tensor, "*batch rows columns"], px: int, *, jump: int | None
) -> Float[Tensor, "*batch {px} {px}"]:
    """Return maps at the images' size, bilinear.

    Args:
        maps: With any values.
        px: Side of the images.
        jump: Each value is put where it sees, at the centre of its receptive field: ``jump`` pixels
            apart from the corner on. None: as if the map's cells divided the image evenly, which
            is what libraries do; it shows all ``(jump - 1) / 2`` pixels too far down and right.
    """
    rows, columns = maps.shape[-2:]
    flat = maps.reshape(-1, 1, rows, columns)
    if jump is None:
        large = F.interpolate(flat, (px, px), mode="bilinear", align_corners=False)
    else:
        height, width = ((count - 1) * jump + 1 for count in (rows, columns))
        large = F.interpolate(flat, (height, width), mode="bilinear", align_corners=True)
        large = F.pad(large, (0, px - width, 0, px - height), mode="replicate")
    return large.reshape(*maps.shape[:-2], px, px)


def scaled(maps: Float[Tensor, "*batch px px"]) -> Float[Tensor, "*batch px px"]:
    """Return maps from 0 to 1, each by its own range; a map without one becomes 0."""
    low, high = (fn(maps, dim=(-2, -1), keepdim=True) for fn in (torch.amin, torch.amax))
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def peaks(maps: Float[Tensor, "*batch rows columns"], jump: int) -> Float[Tensor, "*batch 2"]:
    """Return the place of each map's maximum, in pixels from the top and from the left.

    It is the centre of what the largest value sees, as for ``enlarged``; of several the first. A
    map of zeros has none: NaN.
    """
    flat = maps.flatten(-2)
    best = flat.argmax(dim=-1)
    cells = torch.stack([best // maps.shape[-1], best % maps.shape[-1]], dim=-1)
    return torch.where((flat.amax(dim=-1) > 0)[..., None], centres(cells, jump), torch.nan)


def centres(cells: Int64[Tensor, "*batch 2"], jump: int) -> Float[Tensor, "*batch 2"]:
    """Return where the rows and columns of a map lie in the image, in pixels from its corner."""
    return cells * float(jump) + 0.5


def jump_at(net: ResNet, layer: str) -> int:
    """Return the pixels from one value of a layer's output to the next.

    Raises:
        UsageError: The network has no such layer, or its output is no map.
    """
    if (field := fields(net).get(layer)) is not None:
        return field.jump
    known = layer and layer in dict(net.named_modules())
    wrong = "whose output has no places" if known else "which the network has not"
    blocks = len([*net.layer4.children()])
    raise UsageError(
        f"layer is {layer!r}, {wrong}; give a stage (layer1, layer2, layer3, layer4), a block of "
        f"one (layer4.0 to layer4.{blocks - 1}), or a part of a block (layer4.0.conv2)"
    )


def default_layer(net: ResNet, px: int) -> str:
    """Return the last stage whose map of an image of ``px`` has ``COARSEST`` cells to a side."""
    seen = fields(net)
    stages = [name for name in ("layer4", "layer3", "layer2") if px >= COARSEST * seen[name].jump]
    return stages[0] if stages else "layer1"


@contextmanager
def _leaf_at(net: ResNet, layer: str) -> Iterator[list[Tensor]]:
    """Let the network compute without gradients up to a layer, and with them from there on.

    Gives the list to which the layer's output is appended. What follows gets a copy, since it may
    be added to in place.
    """
    found: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # until the block below ends
        return found[-1].clone()

    was_training = net.training
    hook = net.get_submodule(layer).register_forward_hook(cut)
    try:
        with torch.no_grad():
            net.eval()
            yield found
    finally:
        hook.remove()
        net.train(was_training)
