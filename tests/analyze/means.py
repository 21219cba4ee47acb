"""Networks whose every value is a mean of the pixels that it sees."""

import copy

import torch
from torch import nn

from rn50.model.blurpool import BlurMaxPool2d
from rn50.model.resnet import ResNet


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
