import pytest
import torch
from torch import nn

from rn50.config import Model
from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.model.resnet import build

TWO = Group(rank=0, world_size=2)


def test_synchronised_batchnorm_keeps_names_tensors_and_what_evaluation_computes():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    images = torch.randn(2, 3, 32, 32)
    before, parameters = net.state_dict(), list(net.parameters())
    expected = net.eval()(images)
    TWO.synchronised(net, torch.device("cuda"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in net.modules()) == 20
    assert list(net.state_dict()) == list(before)
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert torch.equal(net(images), expected)


def test_one_process_has_nothing_to_synchronise():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    Group().synchronised(net, torch.device("cpu"))
    assert isinstance(net.bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_synchronising_where_torch_cannot_is_refused(device):
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    with pytest.raises(UsageError, match=f"CUDA alone, not on {device}; leave it out"):
        TWO.synchronised(net, torch.device(device))
