import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from rn50.augment.device import flip
from rn50.augment.draws import MixDraws
from rn50.augment.mixing import mix
from rn50.config import Average, Images, Loss, Model, Optim, Run, Schedule
from rn50.data.loader import Batch
from rn50.data.plan import Request
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.model import resnet
from rn50.train import state as states
from rn50.train.schedule import Knobs
from rn50.train.step import Engine, train_step

COMPUTE = Compute(device=torch.device("cpu"), precision="fp32", workers=1)
RUN = Run(
    recipe="test",
    epochs=9,
    model=Model(arch="resnet18", num_classes=4),
    images=Images(batch_size=8, train_px=32, test_px=32, test_resize_px=32),
    optim=Optim(peak_lr=0.1, weight_decay=0.01),
    average=Average(ema_horizon=0.1),
)


class Plain(nn.Module):
    """A network whose gradient does not depend on how the batch is split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (8, 32, 32, 3), generator=generator, dtype=torch.uint8)
    flips = torch.rand(8, generator=generator) < 0.5
    return Batch(
        request=Request(ids=np.arange(8), px=32, boxes=None, resize_px=32, flips=flips.numpy()),
        images=images.permute(0, 3, 1, 2),
        labels=torch.randint(0, 4, (8,), generator=generator),
        flips=flips,
        wait_s=0.0,
    )


def start(run: Run, *, micro_batch: int = 0) -> tuple[states.TrainState, Engine]:
    torch.manual_seed(0)
    compute = dataclasses.replace(COMPUTE, micro_batch=micro_batch)
    state = states.of_model(Plain(), run, compute, Group())
    return state, Engine.of(state, run, compute, Group())


def weights(state: states.TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


def test_a_step_equals_the_textbook_loop():
    state, engine = start(RUN)
    torch.manual_seed(0)
    net = Plain()
    decayed = [net.conv.weight, net.fc.weight]
    others = [net.conv.bias, net.fc.bias]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (RUN.images.mean, RUN.images.std))
    for seed in range(3):
        given = batch(seed)
        train_step(state, engine, given, Knobs(lr=0.1, average_keep=None), RUN)
        images = given.images.float() / 255
        images[given.flips] = images[given.flips].flip(3)
        logits = net((images - mean) / std)
        loss = nn.functional.cross_entropy(logits, given.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs = torch.cat([p.detach().flatten() for p in net.parameters()])
        torch.testing.assert_close(weights(state), theirs, rtol=1e-5, atol=1e-6)
    assert state.step == 3


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8])
def test_accumulation_gives_the_update_of_the_whole_batch_also_with_a_smaller_last_part(
    micro_batch,
):
    whole, engine = start(RUN)
    parts, parts_engine = start(RUN, micro_batch=micro_batch)
    for seed in range(2):
        train_step(whole, engine, batch(seed), Knobs(lr=0.1, average_keep=0.5), RUN)
        train_step(parts, parts_engine, batch(seed), Knobs(lr=0.1, average_keep=0.5), RUN)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    whole.meter.drain()
    parts.meter.drain()
    assert parts.meter.epoch.correct == whole.meter.epoch.correct
    assert parts.meter.epoch.loss == pytest.approx(whole.meter.epoch.loss, abs=1e-4)


def test_the_gradient_is_clipped_to_its_norm():
    run = dataclasses.replace(
        RUN,
        optim=Optim(peak_lr=1, momentum=0.0, nesterov=False, weight_decay=0, clip_grad_norm=0.01),
    )
    state, engine = start(run)
    before = weights(state)
    train_step(state, engine, batch(0), Knobs(lr=1.0, average_keep=None), run)
    assert (weights(state) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_average_moves_after_the_step_by_its_share():
    state, engine = start(RUN)
    before = weights(state)
    train_step(state, engine, batch(0), Knobs(lr=0.1, average_keep=0.75), RUN)
    average = torch.cat([p.flatten() for p in state.average.parameters()])
    torch.testing.assert_close(average, 0.75 * before + 0.25 * weights(state))


def test_an_infinite_gradient_is_skipped_by_the_scaler_and_the_scale_halved():
    state, engine = start(RUN)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = weights(state)
    given = batch(0)
    state.model.fc.weight.register_hook(lambda g: g * float("inf"))
    train_step(state, engine, given, Knobs(lr=0.1, average_keep=None), RUN)
    assert torch.equal(weights(state), before)
    assert state.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "adamw"])
def test_every_optimizer_steps_alike_under_a_loss_scale_and_skips_what_overflows(name):
    run = dataclasses.replace(
        RUN, optim=Optim(name=name, peak_lr=0.1, weight_decay=0.01, clip_grad_norm=0.5)
    )
    plain, engine = start(run)
    scaled, scaled_engine = start(run)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for seed in range(3):
        train_step(plain, engine, batch(seed), Knobs(lr=0.1, average_keep=None), run)
        train_step(scaled, scaled_engine, batch(seed), Knobs(lr=0.1, average_keep=None), run)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-5)
    before = weights(scaled)
    scaled.model.fc.weight.register_hook(lambda g: g * float("inf"))
    train_step(scaled, scaled_engine, batch(3), Knobs(lr=0.1, average_keep=None), run)
    assert torch.equal(weights(scaled), before)
    assert scaled.step == 4


def test_the_averages_move_on_real_steps_only():
    run = dataclasses.replace(
        RUN,
        schedule=Schedule(name="constant", warmup_epochs=0),
        average=Average(ema_horizon=0.1, swa_epochs=8),
    )
    at = Knobs(lr=0.1, average_keep=0.5, swa_share=0.5)
    state, engine = start(run)
    plain, plain_engine = start(run)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for seed in range(2):
        train_step(plain, plain_engine, batch(seed), at, run)
        train_step(state, engine, batch(seed), at, run)
    for one, other in ((state.average, plain.average), (state.swa, plain.swa)):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)
        assert not torch.equal(one.fc.weight, state.model.fc.weight)
    held = copy.deepcopy((state.model, state.average, state.swa))
    overflow = state.model.fc.weight.register_hook(lambda g: g * float("inf"))
    train_step(state, engine, batch(3), at, run)
    for one, before in zip((state.model, state.average, state.swa), held, strict=True):
        assert all(map(torch.equal, one.parameters(), before.parameters()))
    overflow.remove()
    train_step(state, engine, batch(4), at, run)
    for one, before in zip((state.model, state.average, state.swa), held, strict=True):
        assert not any(map(torch.equal, one.parameters(), before.parameters()))


def test_binary_cross_entropy_and_momentum_reach_the_step():
    run = dataclasses.replace(RUN, loss=Loss(name="bce", label_smoothing=0.1))
    state, engine = start(run)
    given = batch(0)
    with torch.no_grad():
        logits = state.model(engine.normalise(flip(given.images, given.flips)))
    target = nn.functional.one_hot(given.labels, 4) * 0.9 + 0.1 / 4
    each = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    train_step(state, engine, given, Knobs(lr=0.1, average_keep=None, momentum=0.75), run)
    state.meter.drain()
    assert state.meter.epoch.loss == pytest.approx(each.sum(1).mean().item(), abs=1e-4)
    assert {group["momentum"] for group in state.optimizer.param_groups} == {0.75}


def test_a_state_restored_from_its_snapshot_goes_on_bit_identically():
    whole, engine = start(RUN)
    for seed in range(3):
        train_step(whole, engine, batch(seed), Knobs(lr=0.1, average_keep=0.9), RUN)
    saved = states.snapshot(whole)
    saved = dataclasses.replace(
        saved,
        model={k: v.clone() for k, v in saved.model.items()},
        average={k: v.clone() for k, v in saved.average.items()},
        momentum={k: v.clone() for k, v in saved.momentum.items()},
    )
    torch.manual_seed(999)
    resumed = states.of_model(Plain(), RUN, COMPUTE, Group())
    states.restore(resumed, saved)
    other = Engine.of(resumed, RUN, COMPUTE, Group())
    for seed in range(3, 6):
        train_step(whole, engine, batch(seed), Knobs(lr=0.1, average_keep=0.9), RUN)
        train_step(resumed, other, batch(seed), Knobs(lr=0.1, average_keep=0.9), RUN)
    first, second = states.snapshot(whole), states.snapshot(resumed)
    assert first.step == second.step == 6
    assert (first.epoch, first.window) == (second.epoch, second.window)
    for one, two in ((first.model, second.model), (first.average, second.average)):
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert all(torch.equal(first.momentum[k], second.momentum[k]) for k in first.momentum)


def test_a_snapshot_with_other_averages_than_the_run_s_is_refused():
    state, _ = start(RUN)
    saved = dataclasses.replace(states.snapshot(state), average=None)
    with pytest.raises(ValueError, match="the checkpoint has no average, the run keeps one"):
        states.restore(state, saved)
    saved = dataclasses.replace(states.snapshot(state), swa=saved.model)
    with pytest.raises(ValueError, match="the checkpoint has an SWA, the run keeps none"):
        states.restore(state, saved)


def test_a_snapshot_of_another_network_is_refused():
    state, _ = start(RUN)
    saved = states.snapshot(state)
    del saved.model["fc.bias"]
    with pytest.raises(ValueError, match="of another network"):
        states.restore(state, saved)


class Dropping(resnet.ResNet):
    """A network without BatchNorm, whose gradient does not depend on how the batch is split."""

    def __init__(self) -> None:
        super().__init__(resnet.BasicBlock, (1, 1, 1, 1), num_classes=4)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
        for parameter in self.parameters():
            parameter.data *= 0.5


def dropping(rate: float, *, step: int = 0, micro_batch: int = 0, seed: int = 0) -> torch.Tensor:
    """The weights after one step from ``step`` on, of one process."""
    run = dataclasses.replace(
        RUN,
        seed=seed,
        model=Model(arch="resnet18", num_classes=4, stochastic_depth=rate),
    )
    compute = dataclasses.replace(COMPUTE, micro_batch=micro_batch)
    torch.manual_seed(0)
    state = states.of_model(Dropping(), run, compute, Group())
    state.step = step
    engine = Engine.of(state, run, compute, Group())
    train_step(state, engine, batch(0), Knobs(lr=0.1, average_keep=None), run)
    return weights(state)


def test_stochastic_depth_is_a_function_of_seed_and_step_and_not_of_the_micro_batch():
    found = dropping(0.6)
    assert torch.equal(dropping(0.6), found)
    torch.testing.assert_close(dropping(0.6, micro_batch=3), found, rtol=1e-4, atol=1e-6)
    for other in (dropping(0.6, step=1), dropping(0.6, seed=1), dropping(0.0)):
        assert not torch.allclose(other, found, rtol=1e-4, atol=1e-6)


def test_a_frozen_network_moves_its_classifier_alone_and_is_restored():
    run = dataclasses.replace(
        RUN, model=Model(arch="resnet18", num_classes=4, train_only="classifier-and-last-bn")
    )
    state = states.new(run, COMPUTE, Group())
    engine = Engine.of(state, run, COMPUTE, Group())
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    train_step(state, engine, batch(0), Knobs(lr=0.1, average_keep=None), run)
    moved = {n for n, p in state.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"fc.weight", "fc.bias"}
    saved = states.snapshot(state)
    assert saved.momentum.keys() == moved
    states.restore(states.new(run, COMPUTE, Group()), saved)


@pytest.mark.parametrize(
    "draws", [MixDraws(share=0.7, box=None), MixDraws(share=1 - 16 / 1024, box=(3, 5, 4, 4))]
)
def test_a_mixed_step_is_that_of_the_dense_target_smoothed_once(draws):
    state, engine = start(RUN)
    torch.manual_seed(0)
    net = Plain()
    given = batch(0)
    given = dataclasses.replace(given, request=dataclasses.replace(given.request, mix=draws))
    train_step(state, engine, given, Knobs(lr=0.1, average_keep=None), RUN)
    inputs, targets = mix(engine.normalise(flip(given.images, given.flips)), given.labels, draws)
    assert targets.dense(4).min() == 0
    assert ((targets.dense(4) > 0).sum(1) == 2).any()
    logits = net(inputs)
    nn.functional.cross_entropy(logits, targets.dense(4), label_smoothing=0.1).backward()
    for ours, theirs in zip(state.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
