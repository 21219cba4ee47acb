"""Residual networks, version 1.5, with torchvision's parameter names.

He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385). Version 1.5 puts
the stride of a bottleneck into its 3x3 convolution instead of the first 1x1. A ``state_dict`` loads
strictly into torchvision's network of the same name, and from it.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rn50.config import Model

_LAYERS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the block of ResNet-18 and -34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """Return the BatchNorm before the sum."""
        return self.bn2

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the sum of the shortcut and the residual."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut  # in place: BatchNorm does not need its output again, memory does
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution and a shortcut; from ResNet-50 up."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """Return the BatchNorm before the sum."""
        return self.bn3

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the sum of the shortcut and the residual."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut  # in place: BatchNorm does not need its output again, memory does
        return self.relu(y)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global average pooling and a linear classifier.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        layers: Blocks in each stage.
        num_classes: Outputs of the classifier.
        stem: ``"imagenet"`` (7x7 of stride 2, max-pool: 1/4 of the image's side) or ``"small"``
            (3x3 of stride 1: the whole side), for images of 32 to 64 px.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        *,
        num_classes: int,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = _conv(3, 64, 3) if small else _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        widths = (64, 128, 256, 512)
        inputs = (64, *(width * block.expansion for width in widths[:-1]))
        stages = [
            _stage(block, inputs[i], widths[i], blocks=layers[i], stride=1 if i == 0 else 2)
            for i in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return unnormalised class scores of normalised images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def build(model: Model, *, seed: int) -> ResNet:
    """Build the network of a model section, initialised from ``seed`` alone, channels-last."""
    block = BasicBlock if model.arch in ("resnet18", "resnet34") else Bottleneck
    with torch.random.fork_rng(devices=[]):  # the layers draw weights that are drawn anew below
        net = ResNet(block, _LAYERS[model.arch], num_classes=model.num_classes, stem=model.stem)
    initialise(net, zero_init_residual=model.zero_init_residual, seed=seed)
    return net.to(memory_format=torch.channels_last)


def initialise(net: ResNet, *, zero_init_residual: bool, seed: int) -> None:
    """Draw the weights; the process's global generator is neither used nor moved.

    Convolutions: He normal over the fan-out (He et al., 2015, arXiv:1502.01852). BatchNorm: scale 1
    and shift 0, but the last scale of each block 0 where ``zero_init_residual`` (Goyal et al.,
    2017, arXiv:1706.02677). Linear: N(0, 0.01) with bias 0 (same paper).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out), generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in net.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_bn.weight)


def _stage(
    block: Callable[[int, int, int], nn.Module],
    inputs: int,
    width: int,
    *,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    outputs = width * getattr(block, "expansion", 1)
    return nn.Sequential(
        block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(blocks - 1))
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the projection of a shortcut whose shape changes, None where it does not."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
