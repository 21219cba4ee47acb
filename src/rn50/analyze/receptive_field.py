"""Which part of the image a value of a feature map is computed from, in closed form.

Araujo, Norris and Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill, 2019).
A window of ``kernel`` positions that lie ``jump`` pixels apart widens the field by ``(kernel - 1) *
jump``; a stride multiplies the jump. Where two branches meet, the field is the wider of theirs,
since all windows here are odd and centred. Blurs are windows like others.

What is computed is the field's extent, the image's border disregarded: inside it, pixels at the rim
count for far less than those at the centre (Luo et al., 2016, arXiv:1701.04128). Checked against a
gradient, pixel by pixel, in ``tests/analyze/test_receptive_field.py``: 427 px for ResNet-50 v1.5.
"""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rn50.model.blurpool import BlurConv2d, BlurMaxPool2d
from rn50.model.resnet import BasicBlock, Bottleneck, ResNet


@dataclass(frozen=True, slots=True)
class Field:
    """The square of pixels behind one value of a map."""

    radius: int = 0
    """Pixels on each side of its centre."""
    jump: int = 1
    """Pixels from its centre to that of the next value of the map."""

    @property
    def px(self) -> int:
        """Return its side in pixels."""
        return 2 * self.radius + 1


def fields(net: ResNet) -> dict[str, Field]:
    """Return the field of every module's output, by its name.

    The global average pool and what comes after see the whole image and are not in it. Of a block's
    ReLU, which runs several times, it is that of the last.
    """
    field = behind(net.conv1, Field())
    found = dict.fromkeys(("conv1", "bn1", "relu"), field)
    field = found["maxpool"] = behind(net.maxpool, field)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for place, block in net.get_submodule(stage).named_children():
            assert isinstance(block, BasicBlock | Bottleneck)
            name = f"{stage}.{place}"
            field = found[name] = _behind_block(block, name, field, found)
        found[stage] = field
    return found


def behind(module: nn.Module, field: Field) -> Field:
    """Return the field of a layer's output, given that of its input."""
    for kernel, stride in _windows(module):
        field = Field(field.radius + kernel // 2 * field.jump, field.jump * stride)
    return field


def _behind_block(
    block: BasicBlock | Bottleneck, name: str, field: Field, found: dict[str, Field]
) -> Field:
    main = shortcut = field
    for child, module in block.named_children():
        if isinstance(module, nn.Conv2d | _BatchNorm):
            main = found[f"{name}.{child}"] = behind(module, main)
    if block.downsample is not None:
        shortcut = behind(block.downsample[0], field)
        found |= {f"{name}.downsample{part}": shortcut for part in ("", ".0", ".1")}
    assert main.jump == shortcut.jump
    found[f"{name}.relu"] = max(main, shortcut, key=lambda branch: branch.radius)
    return found[f"{name}.relu"]


def _windows(module: nn.Module) -> list[tuple[int, int]]:
    """Return the sides and strides of the windows that a layer slides, one after the other."""
    if isinstance(module, BlurMaxPool2d):
        return [(3, 1), (3, 2)]
    if isinstance(module, nn.MaxPool2d):
        return [_odd(module.kernel_size, module.stride)]
    if isinstance(module, nn.Conv2d):
        blur = [(3, 1)] if isinstance(module, BlurConv2d) else []
        return [*blur, _odd(module.kernel_size, module.stride)]
    return []


def _odd(kernel: int | tuple[int, ...], stride: int | tuple[int, ...]) -> tuple[int, int]:
    side, step = (value[0] if isinstance(value, tuple) else value for value in (kernel, stride))
    assert side % 2
    return side, step
