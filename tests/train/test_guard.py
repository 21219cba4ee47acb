import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from rn50.config import Average, Optim, Schedule
from rn50.distributed import Group
from rn50.errors import DivergedError
from rn50.train import guard, optim
from rn50.train import state as states
from rn50.train.schedule import Knobs
from rn50.train.step import Engine, train_step
from train.test_step import COMPUTE, RUN, batch

OPTIMIZERS = ("sgd", "sgdw", "lars", "lamb", "adamw")
AT = Knobs(lr=0.1, average_keep=0.5, swa_share=0.5)


class Normed(nn.Module):
    """A network with BatchNorm that can be told to answer with something else than numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)
        self.fault = 0.0

    def forward(self, x):
        x = self.bn(self.conv(x) + self.fault)
        return self.fc(torch.relu(x).mean((2, 3)))


def begin(
    name: str = "sgd", *, on_device: bool = False, clip: float = 0.0, **compute
) -> tuple[states.TrainState, Engine, object]:
    run = dataclasses.replace(
        RUN,
        optim=Optim(name=name, peak_lr=0.1, weight_decay=0.01, clip_grad_norm=clip),
        schedule=Schedule(name="constant", warmup_epochs=0),
        average=Average(ema_horizon=0.1, swa_epochs=8),
    )
    torch.manual_seed(0)
    with_compute = dataclasses.replace(COMPUTE, **compute)
    state = states.of_model(Normed(), run, with_compute, Group())
    state.optimizer = optim.build(state.model, run.optim, heeds_found_inf=on_device)
    return state, Engine.of(state, run, with_compute, Group()), run


def carried(state: states.TrainState) -> dict[str, torch.Tensor]:
    saved = states.snapshot(state)
    parts = {"model": saved.model, "ema": saved.average, "swa": saved.swa, "m": saved.momentum}
    return {f"{p}.{n}": t.clone() for p, tensors in parts.items() for n, t in tensors.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_bad_update_is_left_out_to_the_bit(name, on_device, fault):
    state, engine, run = begin(name, on_device=on_device, clip=0.5, micro_batch=4)
    other, other_engine, _ = begin(name, on_device=on_device, clip=0.5, micro_batch=4)
    for seed in range(4):
        if seed == 2:
            before = carried(state)
            state.model.fault = fault
            train_step(state, engine, batch(9), AT, run)
            assert_equal(carried(state), before)
            state.model.fault, other.step = 0.0, other.step + 1
        train_step(state, engine, batch(seed), AT, run)
        train_step(other, other_engine, batch(seed), AT, run)
    assert state.step == other.step == 5
    assert_equal(carried(state), carried(other))
    assert state.trouble.skipped == [3]
    assert not other.trouble.skipped


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
@pytest.mark.parametrize("on_device", [False, True])
def test_the_first_update_may_be_the_bad_one(name, on_device):
    state, engine, run = begin(name, on_device=on_device)
    other, other_engine, _ = begin(name, on_device=on_device)
    # Torch's AdamW counts its first update as the first, wherever the run is.
    state.model.fault, other.step = math.nan, 1
    train_step(state, engine, batch(9), AT, run)
    state.model.fault = 0.0
    for seed in range(2):
        train_step(state, engine, batch(seed), AT, run)
        train_step(other, other_engine, batch(seed), AT, run)
    # The first weights that an SWA takes are taken as they are; here they come with another share.
    one, two = (
        {n: t for n, t in carried(s).items() if not n.startswith("swa")} for s in (state, other)
    )
    assert_equal(one, two)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_the_device_decides_on_is_the_one_that_the_host_decides_on(name):
    state, engine, run = begin(name)
    other, other_engine, _ = begin(name, on_device=True)
    for seed in range(4):
        train_step(state, engine, batch(seed), AT, run)
        train_step(other, other_engine, batch(seed), AT, run)
    one, two = carried(state), carried(other)
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
def test_an_overflow_under_a_loss_scale_is_left_out_and_is_no_fault(on_device):
    state, engine, run = begin(on_device=on_device)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    train_step(state, engine, batch(0), AT, run)
    before = carried(state)
    overflow = state.model.fc.weight.register_hook(lambda g: g * math.inf)
    train_step(state, engine, batch(1), AT, run)
    overflow.remove()
    assert_equal(carried(state), before)
    assert state.scaler.get_scale() == 2.0**15
    assert (state.trouble.skipped, state.trouble.overflows) == ([], 1)
    state.model.fault = math.nan
    train_step(state, engine, batch(1), AT, run)
    assert_equal(carried(state), before)
    assert (state.trouble.skipped, state.trouble.overflows) == ([3], 1)


def test_a_loss_that_is_infinite_leaves_no_gradient_finite():
    value = torch.tensor([3.0], requires_grad=True)
    for loss, share in ((value.sum() + math.inf, 0.5), (value.sum() * math.nan, 1.0)):
        (gradient,) = torch.autograd.grad(loss * guard.weight(loss, share), value)
        assert gradient.isnan()
    loss = value.sum()
    assert torch.equal(loss * guard.weight(loss, 1 / 3), loss * (1 / 3))


def test_a_bad_ascent_of_sharpness_aware_minimisation_is_left_out():
    state, engine, run = begin()
    train_step(state, engine, batch(0), AT, run)
    before = carried(state)
    state.model.fault = math.nan
    train_step(state, engine, batch(1), dataclasses.replace(AT, sam=True), run)
    assert_equal(carried(state), before)
    assert state.trouble.skipped == [2]


def test_statistics_of_several_types_are_put_back_only_where_it_is_said():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5).double())
    kept = guard.Statistics(net)
    first = copy.deepcopy(net.state_dict())
    kept.keep()
    for layer in net:
        layer(torch.randn(4, layer.num_features, 2, 2, dtype=layer.weight.dtype))
    net[0].running_var[1] = math.nan
    second = copy.deepcopy(net.state_dict())
    kept.put_back(torch.zeros(()))
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0, equal_nan=True)
    kept.put_back(torch.ones(()))
    assert_equal(dict(net.state_dict()), dict(first))


def test_weights_that_are_not_finite_are_not_saved():
    state, engine, run = begin()
    train_step(state, engine, batch(0), AT, run)
    state.model.fc.weight.data[0, 0] = math.inf
    with pytest.raises(DivergedError, match="not finite after step 1 and are not saved"):
        states.snapshot(state)
