import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rn50.config import Model
from rn50.errors import UsageError
from rn50.model import average
from rn50.model.resnet import build

MODEL = Model(arch="resnet18", num_classes=3, train_only="classifier-and-last-bn")


def norms(net: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm)}


def test_only_the_classifier_takes_gradients():
    net = build(MODEL, seed=0).train()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}


def test_only_the_last_batchnorm_trains_also_after_an_evaluation():
    net = build(MODEL, seed=0).train()
    for _ in range(2):
        assert net.training
        training = [name for name, module in norms(net).items() if module.training]
        assert training == ["layer4.1.bn2"]
        net.eval()
        assert not any(module.training for module in net.modules())
        net.train()


def test_statistics_of_the_last_batchnorm_alone_move_and_no_other_tensor():
    net = build(MODEL, seed=0).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    moved = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    last = "layer4.1.bn2."
    assert moved == {last + n for n in ("running_mean", "running_var", "num_batches_tracked")}


def test_the_average_of_a_frozen_network_stays_in_evaluation_mode():
    net = build(MODEL, seed=0).train()
    assert not any(module.training for module in average.start(net).modules())


def test_a_network_that_is_not_frozen_trains_whole():
    net = build(Model(arch="resnet18", num_classes=3), seed=0).eval().train()
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_frozen_blocks_are_not_dropped():
    with pytest.raises(UsageError, match=r"give --model\.stochastic-depth 0"):
        Model(train_only="classifier-and-last-bn", stochastic_depth=0.1)
