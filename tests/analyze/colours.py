"""A network whose maps are known: it tells four colours apart, and looks at what has them."""

import torch
from torch import nn

from rn50.config import Images, Model
from rn50.model.resnet import ResNet, build
from rn50.model.weights import Weights

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
NAMES = ("red", "green", "blue", "yellow")


def weights(px: int) -> Weights:
    """Return the network with its classes; images are neither shifted nor scaled."""
    model = Model(arch="resnet18", num_classes=4, zero_init_residual=True)
    images = Images(
        batch_size=8, train_px=px, test_px=px, test_resize_px=px, mean=(0, 0, 0), std=(1, 1, 1)
    )
    net = _colour_blind_to_all_else(build(model, seed=0))
    return Weights(net, model, images, NAMES, NAMES, {})


def _colour_blind_to_all_else(net: ResNet) -> ResNet:
    """Make channel k the presence of colour k all the way up, and output k the sum of it."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
        # Red without green, green without red, blue, and red with green.
        wanted = torch.tensor([[1, -1, 0], [-1, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float32)
        net.conv1.weight[:4, :, 3, 3] = wanted
        net.bn1.bias[3] = -1.0
        for stage in (net.layer2, net.layer3, net.layer4):
            shortcut = stage[0].downsample[0]
            for channel in range(4):
                shortcut.weight[channel, channel] = 1.0
        net.fc.weight.zero_()
        net.fc.bias.zero_()
        for channel in range(4):
            net.fc.weight[channel, channel] = 100.0
    return net.eval()


def squares(px: int, places: list[tuple[int, int]], labels: list[int], side: int) -> torch.Tensor:
    """Return black images, each with a square of its class's colour."""
    images = torch.zeros(len(places), 3, px, px, dtype=torch.uint8)
    for image, (top, left), label in zip(images, places, labels, strict=True):
        image[:, top : top + side, left : left + side] = COLOURS[label][:, None, None]
    return images
