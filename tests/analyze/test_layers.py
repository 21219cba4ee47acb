import pytest
import torchvision

from rn50.analyze.layers import PARTS, layers, on_meta, parts
from rn50.config import Model
from rn50.model.blurpool import BlurConv2d, BlurMaxPool2d

ARCHS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_and_multiply_adds_are_those_of_torchvisions_metadata(arch):
    found = layers(on_meta(Model(arch=arch)), 224)
    meta = torchvision.models.get_model_weights(arch).DEFAULT.meta
    assert sum(layer.parameters for layer in found) == meta["num_params"]
    assert sum(layer.flops for layer in found) / 2e9 == pytest.approx(meta["_ops"], abs=5e-4)


def test_the_layers_of_resnet50_come_in_the_order_in_which_they_run():
    found = layers(on_meta(Model()), 224)
    names = [layer.name for layer in found]
    assert names[:2] == ["conv1", "maxpool"]
    assert names[2:5] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3"]
    assert names[5:7] == ["layer1.0.downsample.0", "layer1.1.conv1"]
    assert names[-2:] == ["avgpool", "fc"]
    assert len(names) == 53 + 2 + 1
    strided = {layer.name: layer.stride for layer in found if layer.stride > 1}
    assert strided == {"conv1": 2, "maxpool": 2} | {
        f"layer{i}.0.{name}": 2 for i in (2, 3, 4) for name in ("conv2", "downsample.0")
    }


def test_the_work_of_a_convolution_is_outputs_times_kernel_times_inputs():
    by_name = {layer.name: layer for layer in layers(on_meta(Model()), 160)}
    conv = by_name["layer3.0.conv2"]
    assert (conv.channels, conv.side, conv.kind) == (256, 10, "3×3 convolution")
    assert conv.flops == 2 * (256 * 10 * 10) * (3 * 3 * 256)
    assert conv.parameters == 256 * 3 * 3 * 256 + 2 * 256
    assert by_name["fc"].flops == 2 * 1000 * 2048


def test_blurs_are_counted_as_work_but_have_no_parameters():
    plain, blurred = on_meta(Model()), on_meta(Model(blurpool="convs-and-max-pool"))
    modules = dict(blurred.named_modules())
    for without, layer in zip(layers(plain, 64), layers(blurred, 64), strict=True):
        assert (layer.name, layer.parameters) == (without.name, without.parameters)
        is_blurred = isinstance(modules[layer.name], BlurConv2d | BlurMaxPool2d)
        assert ("blur" in layer.kind) == is_blurred == (layer.flops > without.flops)
        assert (layer.side, layer.stride) == (without.side, without.stride)


def test_the_small_stem_keeps_the_side_and_has_no_pool():
    found = layers(on_meta(Model(arch="resnet18", stem="small", num_classes=10)), 32)
    assert "maxpool" not in {layer.name for layer in found}
    assert [layer.side for layer in found[:3]] == [32, 32, 32]
    assert (found[-1].channels, found[-1].parameters) == (10, 5130)


def test_parts_add_up_to_the_whole():
    net = on_meta(Model(arch="resnet34"))
    found = layers(net, 96)
    sums = parts(net, found, dict.fromkeys(PARTS, 7))
    assert [part.name for part in sums] == list(PARTS)
    assert [part.blocks for part in sums] == [0, 3, 4, 6, 3, 0]
    assert sum(part.parameters for part in sums) == sum(layer.parameters for layer in found)
    assert sum(part.flops for part in sums) == sum(layer.flops for layer in found)
    assert [part.side for part in sums] == [24, 24, 12, 6, 3, 1]
    assert (sums[4].field_px, sums[4].jump, sums[5].field_px) == (899, 32, None)


def test_measuring_leaves_the_mode_and_no_hooks():
    net = on_meta(Model(arch="resnet18")).train()
    layers(net, 64)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
