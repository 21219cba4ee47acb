import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from rn50.config import Model
from rn50.model.blurpool import BlurConv2d, BlurMaxPool2d
from rn50.model.resnet import build


def blurred(images: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """The definition, pixel by pixel: 1 2 1 down and across, zeros around."""
    weights = {-1: 1 / 4, 0: 2 / 4, 1: 1 / 4}
    out = torch.zeros_like(images)
    height, width = images.shape[2:]
    for y in range(height):
        for x in range(width):
            for down, v in weights.items():
                for across, h in weights.items():
                    if 0 <= y + down < height and 0 <= x + across < width:
                        out[:, :, y, x] += v * h * images[:, :, y + down, x + across]
    return out[:, :, ::stride, ::stride]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [7, 8])
def test_a_strided_convolution_sees_the_blurred_images(kernel, side):
    plain = nn.Conv2d(16, 5, kernel, stride=2, padding=kernel // 2, bias=False).double()
    ours = BlurConv2d(plain).double()
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(2, 16, side, side, dtype=torch.float64)
    torch.testing.assert_close(ours(images), plain(blurred(images)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [7, 8])
def test_the_max_pool_takes_maxima_everywhere_and_drops_pixels_of_their_blur(side):
    images = torch.randn(2, 64, side, side, dtype=torch.float64)
    maxima = F.max_pool2d(images, 3, stride=1, padding=1)
    ours = BlurMaxPool2d(64).double()(images)
    torch.testing.assert_close(ours, blurred(maxima, 2), rtol=1e-12, atol=1e-12)
    assert ours.shape == nn.MaxPool2d(3, stride=2, padding=1)(images).shape


def test_a_constant_image_stays_constant_within_its_border():
    images = torch.full((1, 16, 8, 8), 3.0)
    conv = BlurConv2d(nn.Conv2d(16, 16, 1, stride=2, bias=False))
    with torch.no_grad():
        conv.weight.copy_(torch.eye(16)[:, :, None, None])
    assert (conv(images)[:, :, 1:, 1:] == 3).all()


@pytest.mark.parametrize(("kind", "pools"), [("convs", 0), ("convs-and-max-pool", 1)])
def test_resnet50_blurs_six_convolutions_and_never_the_stem(kind, pools):
    net = build(Model(num_classes=3, blurpool=kind), seed=0)
    names = {name for name, module in net.named_modules() if isinstance(module, BlurConv2d)}
    stages = ("layer2", "layer3", "layer4")
    assert names == {f"{s}.0.{c}" for s in stages for c in ("conv2", "downsample.0")}
    assert isinstance(net.maxpool, BlurMaxPool2d) == bool(pools)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_blur_changes_neither_initial_weights_nor_the_names_in_the_state_dict():
    plain = build(Model(arch="resnet18", num_classes=3), seed=4)
    ours = build(Model(arch="resnet18", num_classes=3, blurpool="convs-and-max-pool"), seed=4)
    assert list(ours.state_dict()) == list(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    torchvision.models.resnet18(num_classes=3).load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(ours(images), plain(images))


def test_a_shift_by_one_pixel_moves_the_features_less_with_blur():
    torch.manual_seed(3)
    images = torch.randn(4, 16, 33, 33)
    conv = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
    with_blur = BlurConv2d(conv)
    with_blur.load_state_dict(conv.state_dict())

    def moved(net: nn.Module) -> float:
        with torch.no_grad():
            one, two = net(images[..., 1:]), net(images[..., :-1])
        return float((one - two).norm() / one.norm())

    assert moved(with_blur) < 0.8 * moved(conv)


def test_layout_stays_channels_last():
    net = build(Model(arch="resnet18", num_classes=3, blurpool="convs"), seed=0)
    images = torch.randn(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    assert net.layer2(images).is_contiguous(memory_format=torch.channels_last)
