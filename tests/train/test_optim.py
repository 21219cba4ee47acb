import pytest
import torch
from torch import nn

from rn50.config import Model, Optim
from rn50.model import resnet
from rn50.train import optim

NET = Model(arch="resnet18", num_classes=4)


def test_only_convolution_and_linear_weights_decay_also_those_of_shortcuts():
    net = resnet.build(NET, seed=0)
    built = optim.build(net, Optim(peak_lr=0.1, weight_decay=0.5))
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in built.param_groups)
    assert [group["weight_decay"] for group in built.param_groups] == [0.5, 0.0]
    assert "layer2.0.downsample.0.weight" in decayed
    assert "fc.weight" in decayed
    assert {"fc.bias", "bn1.weight", "layer2.0.downsample.1.weight"} <= others
    assert decayed | others == set(dict(net.named_parameters()))
    shapes = dict(net.named_parameters())
    assert all(shapes[name].ndim > 1 for name in decayed)
    assert all(shapes[name].ndim == 1 for name in others)


def trained_once(net: nn.Module) -> torch.optim.SGD:
    built = optim.build(net, Optim(peak_lr=0.1))
    net(torch.ones(2, 3, 32, 32)).sum().backward()
    built.step()
    return built


def test_momentum_is_saved_by_name_and_put_back_in_the_weights_layout():
    net = resnet.build(NET, seed=0)
    buffers = optim.momentum_buffers(net, trained_once(net))
    assert buffers.keys() == dict(net.named_parameters()).keys()
    fresh = resnet.build(NET, seed=0)
    other = optim.build(fresh, Optim(peak_lr=0.1))
    assert optim.momentum_buffers(fresh, other) == {}
    optim.load_momentum_buffers(fresh, other, {k: b.contiguous() for k, b in buffers.items()})
    for name, loaded in optim.momentum_buffers(fresh, other).items():
        assert torch.equal(loaded, buffers[name])
        assert loaded.stride() == dict(fresh.named_parameters())[name].stride()


def test_momentum_of_another_network_is_refused():
    net = resnet.build(NET, seed=0)
    built = trained_once(net)
    buffers = optim.momentum_buffers(net, built)
    del buffers["fc.bias"]
    with pytest.raises(ValueError, match=r"other parameters than the model's: \['fc.bias'\]"):
        optim.load_momentum_buffers(net, built, buffers)
