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
from torch.nn.modules.batchnorm import _BatchNorm

from rn50.config import Model
from rn50.model import blurpool
from rn50.model.recompute import recomputed

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
    def last_bn(self) -> _BatchNorm:
        """Return the BatchNorm before the sum."""
        return self.bn2

    def forward(
        self, x: Float[Tensor, "batch c h w"], scale: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the sum of the shortcut and the residual, which ``scale`` multiplies."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if scale is not None:
            y *= scale[:, None, None, None].to(y.dtype)
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
    def last_bn(self) -> _BatchNorm:
        """Return the BatchNorm before the sum."""
        return self.bn3

    def forward(
        self, x: Float[Tensor, "batch c h w"], scale: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the sum of the shortcut and the residual, which ``scale`` multiplies."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if scale is not None:
            y *= scale[:, None, None, None].to(y.dtype)
        shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut  # in place: BatchNorm does not need its output again, memory does
        return self.relu(y)


class Stage(nn.Sequential):
    """Residual blocks of one width.

    Args:
        blocks: ``BasicBlock`` or ``Bottleneck``.
    """

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.recomputes = False
        """Whether backward computes the insides of the blocks anew instead of keeping them."""

    def forward(
        self, x: Float[Tensor, "batch c h w"], scales: Float[Tensor, "batch blocks"] | None = None
    ) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the last block's output; ``scales`` multiplies each residual of each image."""
        for i, block in enumerate(self):
            scale = None if scales is None else scales[:, i]
            if self.recomputes and torch.is_grad_enabled():
                x = recomputed(block, x, scale)
            else:
                x = block(x, scale)
        return x


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
        self.layers = layers
        self.is_frozen = False
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    @property
    def num_blocks(self) -> int:
        """Return the number of residual blocks: 16 for ResNet-50."""
        return sum(self.layers)

    def forward(
        self,
        x: Float[Tensor, "batch 3 height width"],
        scales: Float[Tensor, "batch blocks"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return unnormalised class scores of normalised images.

        Args:
            x: The images.
            scales: What each residual of each image is multiplied by, in training with stochastic
                depth; None: 1.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        parts = [None] * 4 if scales is None else torch.split(scales, list(self.layers), dim=1)
        for stage, part in zip(self._stages(), parts, strict=True):
            x = stage(x, part)
        return self.fc(self.avgpool(x).flatten(1))

    def recompute(self, on: bool) -> None:
        """Keep only the blocks' inputs for backward, or (off) everything."""
        for stage in self._stages():
            stage.recomputes = on

    def freeze(self) -> None:
        """Train the classifier alone, while the last BatchNorm follows its statistics.

        The fine-tuning of FixRes (Touvron et al., 2019, arXiv:1906.06423), as its
        ``imnet_finetune/train.py`` does it: all other BatchNorm layers normalise by what they have,
        and no affine parameter moves. Tested: what moves in a step, and in a whole run.
        """
        self.requires_grad_(False)
        self.fc.requires_grad_(True)
        self.is_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "ResNet":
        """Set training or evaluation mode; of a frozen network only the last BatchNorm trains."""
        super().train(mode and not self.is_frozen)
        if self.is_frozen:
            self.training = mode
            last = self.layer4[-1]
            assert isinstance(last, BasicBlock | Bottleneck)
            last.last_bn.train(mode)
        return self

    def _stages(self) -> tuple[Stage, Stage, Stage, Stage]:
        return self.layer1, self.layer2, self.layer3, self.layer4


def build(model: Model, *, seed: int) -> ResNet:
    """Build the network of a model section, initialised from ``seed`` alone, channels-last."""
    block = BasicBlock if model.arch in ("resnet18", "resnet34") else Bottleneck
    with torch.random.fork_rng(devices=[]):  # the layers draw weights that are drawn anew below
        net = ResNet(block, _LAYERS[model.arch], num_classes=model.num_classes, stem=model.stem)
    if model.blurpool != "none":
        blurpool.add(net, max_pool=model.blurpool == "convs-and-max-pool")
    initialise(net, zero_init_residual=model.zero_init_residual, seed=seed)
    if model.train_only == "classifier-and-last-bn":
        net.freeze()
    return net.to(memory_format=torch.channels_last)


def initialise(net: ResNet, *, zero_init_residual: bool, seed: int) -> None:
    """Draw the weights; the process's global generator is neither used nor moved.

    Convolutions: He normal over the fan-out (He et al., 2015, arXiv:1502.01852). BatchNorm: scale 1
    and shift 0, but the last scale of each block 0 where ``zero_init_residual`` (Goyal et al.,
    2017, arXiv:1706.02677). Linear: N(0, 0.01) with bias 0 (same paper). Tested: the deviation of
    every layer's weights, and that blocks begin as the identity.
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
) -> Stage:
    outputs = width * getattr(block, "expansion", 1)
    return Stage(
        block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(blocks - 1))
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the projection of a shortcut whose shape changes, None where it does not."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
