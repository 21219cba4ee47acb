import copy
import math

import pytest
import torch
from torch import nn

from rn50.model import average


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def test_the_decay_warms_up_from_a_tenth():
    keeps = [average.decay(n, horizon_updates=1000) for n in range(4)]
    assert keeps == pytest.approx([1 / 10, 2 / 11, 3 / 12, 4 / 13])


def test_the_final_decay_loses_all_but_one_part_in_e_over_the_horizon():
    keep = average.decay(10**6, horizon_updates=250)
    assert keep**250 == pytest.approx(math.exp(-1))


def test_the_decay_rises_to_its_end_and_stays():
    keeps = [average.decay(n, horizon_updates=50) for n in range(2000)]
    assert keeps == sorted(keeps)
    assert keeps[-1] == keeps[-2] == math.exp(-1 / 50)


def test_a_horizon_of_a_fraction_of_an_update_keeps_almost_nothing():
    assert average.decay(100, horizon_updates=0.1) == pytest.approx(math.exp(-10))


def test_weights_and_statistics_move_by_the_formula():
    model, other = small_net(0), small_net(1)
    other[1].running_mean.uniform_()
    other[1].running_var.uniform_(1, 2)
    mean = average.start(model)
    before, target = state(mean), state(other)
    average.update(mean, other, 0.75)
    for name, got in mean.state_dict().items():
        if got.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * target[name]
            torch.testing.assert_close(got, expected)
            changed = not torch.equal(before[name], target[name])
            assert changed == (not torch.equal(got, before[name]))


def test_the_statistics_of_batchnorm_are_averaged_with_the_weights():
    model = small_net()
    mean = average.start(model)
    images = 3 + 5 * torch.randn(64, 3, 4, 4)
    for n in range(200):
        model.train()(images)
        average.update(mean, model, average.decay(n, horizon_updates=10))
    assert float(model[1].running_var.max()) > 2
    torch.testing.assert_close(mean[1].running_mean, model[1].running_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean[1].running_var, model[1].running_var, rtol=1e-3, atol=1e-3)


def test_counters_are_copied():
    model = small_net()
    mean = average.start(model)
    model[1].num_batches_tracked.fill_(17)
    average.update(mean, model, 0.9)
    assert mean[1].num_batches_tracked == 17
    assert mean[1].num_batches_tracked.dtype == torch.int64


def test_the_model_is_not_touched():
    model = small_net()
    before, mode = state(model), model.training
    mean = average.start(model)
    average.update(mean, small_net(1), 0.5)
    average.update(mean, model, 0.5)
    assert model.training == mode
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_average_of_a_constant_model_stays_equal_to_it():
    model = small_net()
    mean = average.start(model)
    for n in range(50):
        average.update(mean, model, average.decay(n, horizon_updates=5))
    assert all(torch.equal(mean.state_dict()[name], t) for name, t in model.state_dict().items())


def test_the_average_is_a_second_model_in_evaluation_mode_without_gradients():
    model = small_net()
    mean = average.start(model)
    assert not mean.training
    assert not any(p.requires_grad for p in mean.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert mean[0].weight.any()


def test_layout_is_kept():
    model = small_net().to(memory_format=torch.channels_last)
    mean = average.start(model)
    average.update(mean, copy.deepcopy(model), 0.5)
    assert mean[0].weight.is_contiguous(memory_format=torch.channels_last)
