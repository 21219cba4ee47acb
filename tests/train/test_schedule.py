import dataclasses
import math

import pytest
import torch

from rn50.config import Average, Schedule
from rn50.recipes import recipe
from rn50.train.schedule import Timeline, lr_share


@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (1, 50), (7, 50), (49, 50)])
def test_the_learning_rate_equals_torch_s_warm_up_and_cosine_at_every_step(warmup, total):
    settings = Schedule(warmup_start=0.01, final=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup)
    theirs = cosine
    if warmup:
        linear = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
        theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warmup])
    for step in range(total):
        ours = lr_share(step, warmup_steps=warmup, total_steps=total, schedule=settings)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_final_share_is_reached_after_the_last_step():
    settings = Schedule(final=0.1)
    at = lr_share(100, warmup_steps=10, total_steps=100, schedule=settings)
    assert at == pytest.approx(0.1)
    assert lr_share(10, warmup_steps=10, total_steps=100, schedule=settings) == 1


def test_knobs_are_scaled_by_the_peak_and_the_average_is_left_alone_between_its_steps():
    run = dataclasses.replace(recipe("demo"), average=Average(ema_horizon=0.1, every_steps=4))
    timeline = Timeline(run, steps_per_epoch=10)
    assert timeline.total_steps == 10 * run.epochs
    warmup = round(run.schedule.warmup_epochs * 10)
    assert timeline.at(warmup).lr == pytest.approx(run.optim.peak_lr)
    keeps = [timeline.at(step).average_keep for step in range(8)]
    assert [k is None for k in keeps] == [True, True, True, False] * 2
    assert keeps[3] == pytest.approx(1 / 10)


def test_the_average_s_horizon_is_a_fraction_of_the_run_whatever_its_interval():
    decays = []
    for every in (1, 5):
        run = dataclasses.replace(
            recipe("demo"), average=Average(ema_horizon=0.1, every_steps=every)
        )
        timeline = Timeline(run, steps_per_epoch=10_000)
        keep = timeline.at(timeline.total_steps - 1).average_keep
        assert keep is not None
        decays.append(-math.log(keep) / every * timeline.total_steps)
    assert decays == pytest.approx([10, 10])


def test_a_run_without_an_average_updates_none():
    run = dataclasses.replace(recipe("demo"), average=Average())
    assert Timeline(run, 10).at(5).average_keep is None
