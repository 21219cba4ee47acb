import pytest
import torch

from analyze.means import linear
from rn50.analyze.layers import on_meta
from rn50.analyze.receptive_field import fields
from rn50.config import Model
from rn50.model.resnet import ResNet, build


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


def test_every_module_whose_output_is_a_map_has_a_field():
    net = build(Model(arch="resnet18", num_classes=2), seed=0).eval()
    sides: dict[str, int] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: (
                sides.update({name: output.shape[-1]}) if output.dim() == 4 else None
            )
        )
    net(torch.zeros(1, 3, 224, 224))
    del sides["avgpool"]
    assert {name: 224 // field.jump for name, field in fields(net).items()} == sides
