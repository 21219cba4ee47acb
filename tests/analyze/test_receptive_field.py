import copy

import pytest
import torch
from torch import nn

from rn50.analyze.layers import on_meta
from rn50.analyze.receptive_field import fields
from rn50.config import Model
from rn50.model.blurpool import BlurMaxPool2d
from rn50.model.resnet import ResNet, build


class Mean(nn.Module):
    """In place of the blurred max-pool: the same windows, but every pixel in them counts."""

    def __init__(self, pool: BlurMaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        kernel = self.pool.blur
        return nn.functional.conv2d(blurred, kernel, stride=2, padding=1, groups=len(kernel))


def linear(net: ResNet) -> ResNet:
    """Make each value the mean of what it sees: positive weights, no normalisation, no maxima."""
    net = copy.deepcopy(net).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if isinstance(net.maxpool, nn.MaxPool2d):
        net.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    elif isinstance(net.maxpool, BlurMaxPool2d):
        net.maxpool = Mean(net.maxpool)
    return net


def seen(net: ResNet, layer: str, jump: int, width: int) -> tuple[int, int]:
    """Return the first and last column that a value in the middle of a layer depends on."""
    outputs: list[torch.Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[2]))
    pixels = torch.ones(1, 3, 32, width, dtype=torch.float64, requires_grad=True)
    net(pixels)
    hook.remove()
    (output,) = outputs
    (gradient,) = torch.autograd.grad(output[..., width // 2 // jump].sum(), pixels)
    columns = gradient.abs().sum(dim=(0, 1, 2)).nonzero()
    return int(columns[0]), int(columns[-1])


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"arch": "resnet50"}, 512),
        ({"arch": "resnet18"}, 512),
        ({"arch": "resnet50", "blurpool": "convs"}, 576),
        ({"arch": "resnet50", "blurpool": "convs-and-max-pool"}, 576),
        ({"arch": "resnet18", "stem": "small"}, 160),
        ({"arch": "resnet18", "stem": "small", "blurpool": "convs"}, 160),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_the_field_is_what_a_gradient_reaches(settings, width):
    built = build(Model(**settings, num_classes=2), seed=0)
    found, net = fields(built), linear(built)
    asked = ["conv1", "layer1.0", "layer2.0.conv2", "layer2.0.downsample.0", "layer2", "layer3"]
    for layer in [*asked, "layer4.0.conv1", "layer4"]:
        field = found[layer]
        first, last = seen(net, layer, field.jump, width)
        centre = width // 2 // field.jump * field.jump
        assert first > 0
        assert last < width - 1
        assert (first, last) == (centre - field.radius, centre + field.radius), layer


def test_resnet50_sees_427_pixels_32_apart_and_its_third_stage_267():
    found = fields(on_meta(Model()))
    assert (found["layer4"].px, found["layer4"].jump) == (427, 32)
    assert (found["layer3"].px, found["layer3"].jump) == (267, 16)
