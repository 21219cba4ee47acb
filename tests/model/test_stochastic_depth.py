import numpy as np
import pytest
import torch

from rn50.config import Model
from rn50.errors import UsageError
from rn50.model import stochastic_depth
from rn50.model.resnet import build


def scales(rate=0.5, blocks=8, *, seed=0, step=0, places=range(16)):
    return stochastic_depth.scales(rate, blocks, seed=seed, step=step, places=places)


def test_the_rule_is_linear_from_never_to_the_full_rate():
    assert stochastic_depth.rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert stochastic_depth.rates(0.3, 1) == [0]


def test_residuals_are_dropped_at_their_rate_and_else_divided_by_what_is_kept():
    found = scales(0.4, 5, places=range(20_000)).double()
    for block, rate in enumerate(stochastic_depth.rates(0.4, 5)):
        kept = found[:, block] > 0
        error = 5 * np.sqrt(rate * (1 - rate) / 20_000)
        assert float((~kept).double().mean()) == pytest.approx(rate, abs=error + 1e-9)
        assert found[kept, block].tolist() == pytest.approx([1 / (1 - rate)] * int(kept.sum()))
        assert float(found[:, block].mean()) == pytest.approx(1, abs=2 * error + 1e-6)


def test_draws_differ_between_images_blocks_steps_and_seeds():
    found = scales(0.9, 12)
    assert len({tuple(row) for row in (found > 0).tolist()}) > 12
    assert not torch.equal(found, scales(0.9, 12, step=1))
    assert not torch.equal(found, scales(0.9, 12, seed=1))
    assert torch.equal(found, scales(0.9, 12))


def test_a_process_draws_its_part_of_the_whole_batch():
    assert torch.equal(scales()[4:12], scales(places=range(4, 12)))


def test_the_global_generator_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    scales()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_dropped_residual_leaves_the_shortcut_and_a_kept_one_is_scaled(arch):
    net = build(Model(arch=arch, num_classes=3, zero_init_residual=False), seed=0).double()
    block = net.layer2[1]
    x = torch.rand(3, 512 if arch == "resnet50" else 128, 8, 8, dtype=torch.float64)
    out = block(x, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    residual = []
    block.last_bn.register_forward_hook(lambda *call: residual.append(call[2].clone()))
    block(x)
    torch.testing.assert_close(out[0], x[0])
    torch.testing.assert_close(out[1], (x[1] + residual[0][1]).relu())
    torch.testing.assert_close(out[2], (x[2] + 2 * residual[0][2]).relu())


def test_scales_reach_the_blocks_in_their_order():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].tolist()))
    given = torch.arange(16.0).view(2, 8)
    net(torch.zeros(2, 3, 32, 32), given)
    assert seen == given.T.tolist()


def test_scales_of_1_and_none_give_the_same_network():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images, torch.ones(2, 8)), net(images))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UsageError, match=f"model.stochastic_depth is {rate}"):
        Model(stochastic_depth=rate)
