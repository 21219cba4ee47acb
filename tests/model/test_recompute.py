import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from rn50.config import Model
from rn50.model.recompute import recomputed
from rn50.model.resnet import build


def a_net(**options) -> nn.Module:
    settings = {"arch": "resnet18", "num_classes": 3, "zero_init_residual": False}
    return build(Model(**(settings | options)), seed=0)


def trained(net: nn.Module, *more) -> list[torch.Tensor]:
    """Outputs of two forward passes with backward, then gradients, statistics and counters."""
    outputs = []
    for seed in range(2):
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        outputs.append(net(images, *more))
        outputs[-1].square().mean().backward()
    grads = [p.grad for p in net.parameters()]
    return [*outputs, *grads, *net.buffers()]


@pytest.mark.parametrize("options", [{}, {"arch": "resnet50"}, {"blurpool": "convs"}])
@pytest.mark.parametrize("drops", [False, True])
def test_outputs_gradients_and_statistics_equal_those_without_it(options, drops):
    plain = a_net(**options)
    lean = copy.deepcopy(plain)
    lean.recompute(True)
    more = (torch.tensor([[0.0, 2.0]]).repeat(4, plain.num_blocks // 2),) if drops else ()
    for ours, theirs in zip(trained(lean, *more), trained(plain, *more), strict=True):
        assert torch.equal(ours, theirs)


def test_the_counter_of_batches_counts_each_once():
    net = a_net()
    net.recompute(True)
    trained(net)
    counters = {m.num_batches_tracked.item() for m in net.modules() if hasattr(m, "running_mean")}
    assert counters == {2}


def test_only_the_inputs_of_blocks_are_kept():
    def saved(net: nn.Module) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            net.layer1(torch.randn(4, 64, 16, 16, requires_grad=True))
        return total

    net = a_net(arch="resnet50")
    whole = saved(net)
    net.recompute(True)
    assert saved(net) < whole / 5


def test_layers_that_follow_statistics_go_on_doing_so():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    recomputed(block, torch.randn(4, 3, 2, 2)).sum().backward()
    assert block[1].momentum == 0.1
    assert block[1].num_batches_tracked == 1


def test_evaluation_is_the_same():
    net = a_net().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        net.recompute(True)
        assert torch.equal(net(images), expected)


COMPILED = """
import copy, torch
from rn50.config import Model
from rn50.model.resnet import build
plain = build(Model(arch="resnet18", num_classes=3, zero_init_residual=False), seed=0)
lean = copy.deepcopy(plain)
lean.recompute(True)
images, scales = torch.randn(4, 3, 32, 32), torch.tensor([[0.0, 2.0]]).repeat(4, 4)
for net in (plain, torch.compile(lean, backend="aot_eager")):
    net(images, scales).square().mean().backward()
for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
for ours, theirs in zip(lean.buffers(), plain.buffers(), strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
def test_a_compiled_network_recomputes_and_drops_too_and_counts_each_batch_once():
    # In a process of its own: the compiler cannot see through the run-time checks of the tests.
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
