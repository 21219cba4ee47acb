import copy
import math

import pytest
import torch
import torchvision
from torch import nn

from rn50.config import Model
from rn50.model.resnet import BasicBlock, Bottleneck, build
from rn50.model.weights import parameters

ARCHS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def reference(arch: str, **options) -> nn.Module:
    return getattr(torchvision.models, arch)(weights=None, **options)


def meta(arch: str) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's, without memory for their weights."""
    with torch.device("meta"):
        return build(Model(arch=arch), seed=0), reference(arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_names_and_shapes_are_torchvisions(arch):
    ours, theirs = (net.state_dict() for net in meta(arch))
    assert list(ours) == list(theirs)
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("arch", ARCHS)
def test_strides_paddings_and_biases_are_torchvisions(arch):
    ours, theirs = (
        {name: str(m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        for net in meta(arch)
    )
    assert ours == theirs


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_outputs_and_statistics_equal_torchvisions(arch):
    theirs = reference(arch, num_classes=7).double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 0.6)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    ours = build(Model(arch=arch, num_classes=7), seed=0).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    for train in (True, False):
        expected = theirs.train(train)(images)
        got = ours.train(train)(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-10, atol=1e-10)
    theirs.load_state_dict(ours.state_dict())


def test_gradients_equal_torchvisions():
    theirs = reference("resnet18", num_classes=7).double()
    ours = build(Model(arch="resnet18", num_classes=7), seed=0).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 48, 48, dtype=torch.float64)
    for net in (ours, theirs):
        net(images).square().sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name).grad, parameter.grad, rtol=1e-7, atol=1e-9
        )


def test_resnet50_has_25557032_parameters():
    with torch.device("meta"):
        assert parameters(build(Model(), seed=0)) == 25_557_032


def test_convolutions_are_drawn_with_the_deviation_of_he_over_the_fan_out():
    net = build(Model(), seed=3)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            count = weight.numel()
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            # Five standard errors of a deviation and of a mean.
            assert float(weight.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
            assert abs(float(weight.mean())) < 5 * expected / math.sqrt(count)


def test_the_classifier_begins_small_and_without_bias():
    net = build(Model(), seed=3)
    weight = net.fc.weight.detach()
    error = 5 / math.sqrt(2 * weight.numel())
    assert float(weight.std()) == pytest.approx(0.01, rel=error)
    assert not net.fc.bias.any()


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("zero", [True, False])
def test_blocks_begin_as_the_identity_where_that_is_asked_for(arch, zero):
    net = build(Model(arch=arch, zero_init_residual=zero), seed=0)
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    last = {id(block.last_bn) for block in blocks}
    last_names = {"bn2"} if arch == "resnet18" else {"bn3"}
    assert last == {id(getattr(block, name)) for block in blocks for name in last_names}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = 0.0 if zero and id(module) in last else 1.0
            assert (module.weight == scale).all()
            assert not module.bias.any()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    model = Model(arch="resnet18")
    first, again, other = (build(model, seed=s).state_dict() for s in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if ".conv" in name or name == "fc.weight"]
    assert len(drawn) > 10
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_the_weights_do_not_depend_on_the_global_generator():
    model = Model(arch="resnet18", num_classes=3)
    torch.manual_seed(1)
    first = build(model, seed=5).state_dict()
    torch.manual_seed(2)
    second = build(model, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_leaves_the_global_generator_where_it_was():
    before = torch.get_rng_state()
    build(Model(arch="resnet18", num_classes=3), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("small", 32)])
def test_the_small_stem_keeps_the_resolution(stem, side):
    net = build(Model(arch="resnet18", num_classes=3, stem=stem), seed=0).eval()
    sides = []
    net.layer1.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[2:]))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert sides == [(side, side)]


def test_the_small_stem_has_no_max_pool_and_one_convolution_of_3x3():
    net = build(Model(arch="resnet18", stem="small"), seed=0)
    assert not any(isinstance(module, nn.MaxPool2d) for module in net.modules())
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))


def test_weights_and_activations_are_channels_last():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    layouts = []
    net.layer4.register_forward_hook(
        lambda _, __, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    net(images)
    assert layouts == [True]


def test_a_copy_trains_by_itself():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.fc.weight.zero_()
    assert net.fc.weight.any()
