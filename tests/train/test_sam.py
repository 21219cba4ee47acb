import dataclasses
import math

import pytest
import torch
from torch import nn

from rn50.config import Loss, Model, Optim
from rn50.distributed import Group
from rn50.model import resnet
from rn50.train import sam
from rn50.train import state as states
from rn50.train.schedule import Knobs
from rn50.train.step import Engine, train_step
from train.test_step import COMPUTE, RUN, Plain, batch, start, weights

SAM = dataclasses.replace(
    RUN,
    optim=Optim(peak_lr=0.1, momentum=0.0, nesterov=False, weight_decay=0, sam_rho=0.5),
    loss=Loss(label_smoothing=0),
)
AT = Knobs(lr=0.1, average_keep=None, sam=True)


def test_every_kth_step_is_sharpness_aware_and_none_without_a_rho():
    due = [sam.is_due(step, Optim(peak_lr=1, sam_rho=0.1, sam_every=4)) for step in range(9)]
    assert due == [False, False, False, True, False, False, False, True, False]
    assert not any(sam.is_due(step, Optim(peak_lr=1, sam_every=1)) for step in range(9))


def test_a_sharpness_aware_step_is_the_formula_written_out():
    state, engine = start(SAM)
    torch.manual_seed(0)
    net = Plain()
    given = batch(0)
    images = engine.normalise(
        torch.where(given.flips[:, None, None, None], given.images.flip(3), given.images)
    )

    def gradient() -> list[torch.Tensor]:
        loss = nn.functional.cross_entropy(net(images), given.labels)
        return list(torch.autograd.grad(loss, list(net.parameters())))

    first = gradient()
    length = math.sqrt(sum((g**2).sum().item() for g in first))
    before = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p, g in zip(net.parameters(), first, strict=True):
            p += 0.5 * g / length
    second = gradient()
    train_step(state, engine, given, AT, SAM)
    expected = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(before, second, strict=True)])
    torch.testing.assert_close(weights(state), expected)
    plain = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(before, first, strict=True)])
    assert not torch.allclose(weights(state), plain, atol=1e-4)


@pytest.mark.parametrize("micro_batch", [3, 4])
def test_the_ascent_is_along_the_gradient_of_the_whole_batch_whatever_the_micro_batch(micro_batch):
    whole, engine = start(SAM)
    parts, parts_engine = start(SAM, micro_batch=micro_batch)
    for seed in range(2):
        train_step(whole, engine, batch(seed), AT, SAM)
        train_step(parts, parts_engine, batch(seed), AT, SAM)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    whole.meter.drain()
    assert whole.meter.epoch.images == 16


def test_a_loss_scale_changes_nothing():
    plain, engine = start(SAM)
    scaled, scaled_engine = start(SAM)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train_step(plain, engine, batch(0), AT, SAM)
    train_step(scaled, scaled_engine, batch(0), AT, SAM)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-5, atol=1e-6)


def test_an_infinite_gradient_leaves_the_weights_as_they_were():
    state, engine = start(SAM)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = weights(state)
    state.model.fc.weight.register_hook(lambda g: g * float("inf"))
    train_step(state, engine, batch(0), AT, SAM)
    assert torch.equal(weights(state), before)
    assert state.scaler.get_scale() == 2.0**15


def test_batch_norm_s_statistics_see_the_batch_once_at_the_weights_themselves():
    nets = []
    for knobs in (AT, dataclasses.replace(AT, sam=False)):
        net = resnet.build(Model(arch="resnet18", num_classes=4), seed=0)
        state = states.of_model(net, SAM, COMPUTE, Group())
        train_step(state, Engine.of(state, SAM, COMPUTE, Group()), batch(0), knobs, SAM)
        nets.append(net)
    for (name, one), (_, other) in zip(
        nets[0].named_buffers(), nets[1].named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name
    assert not torch.equal(nets[0].fc.weight, nets[1].fc.weight)
