import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from analyze.means import linear
from rn50.analyze.gradcam import default_layer, enlarged, grad_cam, jump_at, peaks, scaled
from rn50.config import Model
from rn50.errors import UsageError
from rn50.model.resnet import ResNet, build

PX = 96


def network(**settings) -> ResNet:
    """Return a network whose every layer does something: no scale or shift is what it begins as."""
    net = build(Model(num_classes=7, zero_init_residual=False, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.3, 1.2),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)
    nn.init.normal_(net.fc.weight, std=0.5, generator=generator)
    return net.eval()


def inputs(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, PX, PX, generator=torch.Generator().manual_seed(3))


LAYERS = ["layer4", "layer3", "layer1.0", "layer4.0.conv2", "layer4.1.conv1", "layer3.0.downsample"]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("layer", LAYERS)
def test_maps_are_those_of_the_library_grad_cam(arch, layer):
    net, images = network(arch=arch), inputs()
    targets = torch.tensor([[2, 5], [0, 6], [3, 1]])
    got = grad_cam(net, images, layer=layer, targets=targets)
    for column in range(2):
        with GradCAM(model=net, target_layers=[net.get_submodule(layer)]) as cam:
            wanted = [ClassifierOutputTarget(int(target)) for target in targets[:, column]]
            expected = cam(images, targets=wanted)
        ours = scaled(enlarged(got.maps[:, column], PX, jump=None)).numpy()
        assert expected.max() == pytest.approx(1.0, abs=1e-3)
        assert expected.std() > 0.01
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_the_class_explained_is_the_predicted_one_by_default():
    net, images = network(arch="resnet18"), inputs()
    with torch.no_grad():
        logits = net(images)
    got = grad_cam(net, images, layer="layer4")
    torch.testing.assert_close(got.logits, logits)
    assert got.targets.tolist() == logits.argmax(dim=1, keepdim=True).tolist()
    with GradCAM(model=net, target_layers=[net.layer4]) as cam:
        ours = scaled(enlarged(got.maps[:, 0], PX, jump=None)).numpy()
        np.testing.assert_allclose(ours, cam(images, targets=None), atol=2e-5)


def test_images_of_a_batch_do_not_touch_each_other():
    net, images = network(arch="resnet18"), inputs(4)
    together = grad_cam(net, images, layer="layer3")
    alone = [grad_cam(net, image[None], layer="layer3").maps[0] for image in images]
    torch.testing.assert_close(together.maps, torch.stack(alone), rtol=1e-4, atol=1e-6)


def test_the_map_is_by_hand_what_the_paper_says():
    net, images = network(arch="resnet18").double(), inputs(1).double()
    held = []
    hook = net.layer4.register_forward_hook(lambda *args: held.append(args[2]))
    score = net(images)[0, 4]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, held[0])
    by_hand = torch.zeros(3, 3, dtype=torch.float64)
    for channel in range(512):
        by_hand += gradient[0, channel].mean() * held[0][0, channel].detach()
    by_hand = by_hand.clamp(min=0)
    assert by_hand.max() > 0
    got = grad_cam(net, images, layer="layer4", targets=torch.tensor([[4]]))
    torch.testing.assert_close(got.maps[0, 0], by_hand)


def test_nothing_of_the_network_changes():
    net = network(arch="resnet18").train()
    for parameter in net.layer1.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    needed = [parameter.requires_grad for parameter in net.parameters()]
    grad_cam(net, inputs(), layer="layer2.1.bn1")
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert needed == [parameter.requires_grad for parameter in net.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.is_grad_enabled()


def test_what_comes_before_the_layer_is_not_differentiated():
    net, saved = network(arch="resnet18"), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        grad_cam(net, inputs(2), layer="layer4")
    images = [shape for shape in saved if len(shape) == 4 and shape[0] == 2]
    assert all(shape[2] <= PX // 32 for shape in images)


@pytest.mark.parametrize("layer", ["layer5", "", "layer4.7", "conv"])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(layer):
    net = network(arch="resnet18")
    told = rf"layer is '{layer}', which the network has not; give a stage \(layer1, layer2, "
    with pytest.raises(UsageError, match=told + r"layer3, layer4\), a block .* to layer4\.1\)"):
        grad_cam(net, inputs(), layer=layer)


def test_a_layer_without_places_is_refused_and_leaves_all_as_it_was():
    net = network(arch="resnet18").train()
    for layer in ("fc", "avgpool"):
        with pytest.raises(UsageError, match=f"layer is '{layer}', whose output has no places; g"):
            grad_cam(net, inputs(), layer=layer)
    assert net.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("settings", "px", "layer"),
    [
        ({}, 224, "layer4"),
        ({}, 128, "layer4"),
        ({}, 127, "layer3"),
        ({}, 64, "layer3"),
        ({}, 32, "layer2"),
        ({}, 8, "layer1"),
        ({"stem": "small"}, 32, "layer4"),
    ],
)
def test_the_default_is_the_last_stage_that_is_not_too_coarse(settings, px, layer):
    assert default_layer(build(Model(arch="resnet18", **settings), seed=0), px) == layer


def test_a_map_of_zeros_stays_zero_and_points_nowhere():
    maps = torch.zeros(2, 4, 4)
    maps[1, 2, 1] = 3.0
    large = scaled(enlarged(maps, 64, jump=16))
    assert not large[0].any()
    assert large[1].max() == 1.0
    places = peaks(maps, 16)
    assert places[0].isnan().all()
    assert places[1].tolist() == [2 * 16 + 0.5, 16 + 0.5]


@pytest.mark.parametrize("px", [224, 176, 161])
def test_the_peak_is_where_the_enlarged_map_is_largest(px):
    side = -(-px // 32)
    maps = torch.rand(20, side, side, generator=torch.Generator().manual_seed(0))
    maps[:, -1] = maps[:, :, -1] = 0  # beyond the last value the enlarged map is flat
    large = enlarged(maps, px, jump=32)
    assert large.shape == (20, px, px)
    for place, image in zip(peaks(maps, 32), large, strict=True):
        row, column = divmod(int(image.argmax()), px)
        assert place.tolist() == [row + 0.5, column + 0.5]


@pytest.mark.parametrize("settings", [{}, {"blurpool": "convs-and-max-pool"}, {"stem": "small"}])
@pytest.mark.parametrize("layer", ["layer1", "layer2.0.conv2", "layer3", "layer4.0.downsample.1"])
def test_a_value_is_put_where_its_gradient_is_centred(settings, layer):
    built = build(Model(arch="resnet18", num_classes=2, **settings), seed=0)
    jump, net = jump_at(built, layer), linear(built)
    held = []
    net.get_submodule(layer).register_forward_hook(lambda *args: held.append(args[2]))
    side = 1024 if jump > 8 else 320  # so that no edge cuts off what a value in the middle sees
    pixels = torch.ones(1, 3, 32, side, dtype=torch.float64, requires_grad=True)
    net(pixels)
    maps = torch.zeros(held[0].shape[2:])
    column = side // 2 // jump
    maps[0, column] = 1
    (gradient,) = torch.autograd.grad(held[0][..., column].sum(), pixels)
    weights = gradient.sum(dim=(0, 1, 2))
    centre = (weights * (torch.arange(side) + 0.5)).sum() / weights.sum()
    assert float(centre) == pytest.approx(float(peaks(maps, jump)[1]), abs=1e-6)
