"""The layers of a network as they run: shapes, parameters, work and receptive fields."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from rn50 import config
from rn50.analyze.receptive_field import Field, fields
from rn50.model import resnet
from rn50.model.blurpool import BlurConv2d, BlurMaxPool2d
from rn50.model.resnet import ResNet
from rn50.model.weights import parameters as _parameters

PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with the BatchNorm behind it, a pool, or the classifier."""

    name: str
    """Of the module, by which Grad-CAM takes it too."""
    part: str
    """``stem``, ``layer1`` to ``layer4``, or ``head``."""
    kind: str
    """Kernel and operation in words, such as ``3×3 convolution``."""
    stride: int
    channels: int
    """Of the output."""
    side: int
    """Of the output, in values."""
    parameters: int
    """Of the layer and its BatchNorm."""
    flops: int
    """Of one image, a multiplication and an addition counting as two; see ``count``."""
    field: Field | None
    """What a value of its output sees; None: the whole image."""


@dataclass(frozen=True, slots=True)
class Part:
    """The stem, a stage or the head, in sums over its layers."""

    name: str
    blocks: int
    channels: int
    side: int
    parameters: int
    flops: int
    field_px: int | None
    """None: the whole image."""
    jump: int | None
    kept: int
    """Bytes of an image's activations that backward needs, in fp32."""


def on_meta(model: config.Model) -> ResNet:
    """Return the network with shapes and no values: it costs no memory, and running it no time."""
    with torch.device("meta"):
        return resnet.build(model, seed=0)


def layers(net: ResNet, px: int) -> list[Layer]:
    """Return the layers of a network in the order in which they run.

    Work is what torch's ``FlopCounterMode`` counts: convolutions (blurs among them) and matrix
    products, a multiplication and an addition being two. The "FLOPs" of papers and of torchvision's
    tables are multiply-adds, half of it. BatchNorm, ReLU, sums and pools are not counted.

    Args:
        net: On the meta device; its mode is restored.
        px: Side of the images.
    """
    calls: list[tuple[str, nn.Module, Tensor]] = []
    inputs = torch.empty(1, 3, px, px, device="meta")
    counter = FlopCounterMode(display=False)
    with _evaluating(net), _noted(net, calls), torch.no_grad(), counter:
        net(inputs)
    counts = counter.get_flop_counts()
    seen = fields(net)
    found: list[Layer] = []
    for name, module, output in calls:
        if isinstance(module, _BatchNorm):
            found[-1] = replace(found[-1], parameters=found[-1].parameters + _parameters(module))
        elif (kind := _kind(module)) is not None:
            found.append(
                Layer(
                    name=name,
                    part=_part(name),
                    kind=kind,
                    stride=_stride(module),
                    channels=output.shape[1],
                    side=output.shape[2] if output.dim() == 4 else 1,
                    parameters=_parameters(module),
                    flops=sum(counts.get(f"{type(net).__name__}.{name}", {}).values()),
                    field=seen.get(name),
                )
            )
    return found


def parts(net: ResNet, found: Sequence[Layer], kept: Mapping[str, int]) -> list[Part]:
    """Return the sums of ``layers`` over the stem, each stage and the head.

    Args:
        net: The network.
        found: Its layers.
        kept: Bytes that backward needs of an image, by part.
    """
    sums = []
    for name in PARTS:
        inside = [layer for layer in found if layer.part == name]
        blocks = net.get_submodule(name).children() if name.startswith("layer") else ()
        last = inside[-1] if name != "head" else inside[0]
        fields = [layer.field for layer in inside if layer.field is not None]
        widest = max(fields, key=lambda field: field.radius, default=None)
        sums.append(
            Part(
                name=name,
                blocks=len([*blocks]),
                channels=last.channels,
                side=last.side,
                parameters=sum(layer.parameters for layer in inside),
                flops=sum(layer.flops for layer in inside),
                field_px=None if widest is None else widest.px,
                jump=None if widest is None else widest.jump,
                kept=kept[name],
            )
        )
    return sums


@contextmanager
def _noted(net: nn.Module, calls: list[tuple[str, nn.Module, Tensor]]) -> Iterator[None]:
    """Append each leaf that runs to ``calls``: its name, itself and its output."""
    hooks = [
        module.register_forward_hook(
            lambda module, _, output, name=name: calls.append((name, module, output))
        )
        for name, module in net.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def _part(name: str) -> str:
    if name.startswith("layer"):
        return name.split(".")[0]
    return "stem" if name in ("conv1", "maxpool") else "head"


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        blurred = " of the blurred map" if isinstance(module, BlurConv2d) else ""
        return f"{height}×{width} convolution{blurred}"
    if isinstance(module, BlurMaxPool2d):
        return "3×3 max-pool and blur"
    if isinstance(module, nn.MaxPool2d):
        return f"{module.kernel_size}×{module.kernel_size} max-pool"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return "global average"
    return "linear" if isinstance(module, nn.Linear) else None


def _stride(module: nn.Module) -> int:
    if isinstance(module, BlurMaxPool2d):
        return 2
    stride = getattr(module, "stride", 1)
    return int(stride[0] if isinstance(stride, tuple) else stride)
