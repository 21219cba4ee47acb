import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from rn50.config import Average, Optim, Schedule
from rn50.errors import UsageError
from rn50.recipes import recipe
from rn50.train.schedule import Timeline, lr_share, momentum_at, onecycle_share, share_at


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


@pytest.mark.parametrize(
    ("every", "epochs", "taken_after"),
    [
        (0, 3, [80, 90, 100]),
        (0, 2.5, [80, 90, 100]),
        (4, 2, [84, 88, 92, 96, 100]),
        (7, 2, [87, 94]),
        (5, 1.5, [90, 95, 100]),
    ],
)
def test_swa_takes_weights_by_the_step_alone_and_gives_all_an_equal_share(
    every, epochs, taken_after
):
    run = dataclasses.replace(
        recipe("demo"),
        epochs=10,
        schedule=Schedule(name="constant", warmup_epochs=1),
        average=Average(swa_epochs=epochs, swa_every_steps=every),
    )
    timeline = Timeline(run, steps_per_epoch=10)
    shares = {step + 1: timeline.at(step).swa_share for step in range(100)}
    assert [done for done, share in shares.items() if share is not None] == taken_after
    for number, done in enumerate(taken_after, start=1):
        assert shares[done] == 1 / number
        assert (timeline.swa_count(done - 1), timeline.swa_count(done)) == (number - 1, number)


def test_a_run_without_swa_takes_no_weights():
    timeline = Timeline(dataclasses.replace(recipe("demo"), average=Average()), 10)
    assert timeline.at(timeline.total_steps - 1).swa_share is None
    assert timeline.swa_count(timeline.total_steps) == 0


def test_an_swa_that_would_take_fewer_than_two_weights_is_refused():
    run = dataclasses.replace(
        recipe("demo"),
        schedule=Schedule(name="constant", warmup_epochs=1),
        average=Average(swa_epochs=1, swa_every_steps=6),
    )
    with pytest.raises(UsageError, match="SWA lasts 10 steps, so it would average 1 weights"):
        Timeline(run, 10)
    assert Timeline(run, 12).swa_count(12 * run.epochs) == 2


def optimizer_at(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("rise", "total"), [(0.3, 100), (0.25, 37), (0.45, 1001), (0.0, 20)])
def test_onecycle_equals_torch_s_at_every_step_momentum_included(three_phase, anneal, rise, total):
    if three_phase and rise == 0:
        pytest.skip("torch's three phases need a rise")
    settings = Schedule(
        name="onecycle",
        warmup_epochs=0,
        rise=rise,
        start_div=20,
        final_div=500,
        anneal=anneal,
        three_phase=three_phase,
        cycle_momentum=(0.8, 0.93),
    )
    optimizer = optimizer_at(1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.7,
        total_steps=total,
        pct_start=rise,
        anneal_strategy=anneal,
        base_momentum=0.8,
        max_momentum=0.93,
        div_factor=20,
        final_div_factor=500,
        three_phase=three_phase,
    )
    for step in range(total):
        group = optimizer.param_groups[0]
        ours = 1.7 * onecycle_share(step, total, settings)
        assert ours == pytest.approx(group["lr"], rel=1e-12, abs=1e-15)
        assert momentum_at(step, total, settings) == pytest.approx(group["momentum"], rel=1e-12)
        optimizer.step()
        if step + 1 < total:
            theirs.step()


@pytest.mark.parametrize("warmup_inside", [False, True])
def test_polynomial_equals_torch_s(warmup_inside):
    settings = Schedule(name="polynomial", power=3.0, warmup_inside=warmup_inside)
    total, warmup = 60, 10
    begin = 0 if warmup_inside else warmup
    optimizer = optimizer_at(1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total - begin, power=3.0)
    for step in range(begin, total):
        if step >= warmup:
            ours = lr_share(step, warmup_steps=warmup, total_steps=total, schedule=settings)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_steps_equal_torch_s_milestones():
    settings = Schedule(name="step", milestones=(3, 6, 8.5), gamma=0.2, warmup_epochs=0)
    optimizer = optimizer_at(1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 85], gamma=0.2)
    for step in range(100):
        ours = share_at(step, settings, epochs=10, steps_per_epoch=10)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_triangular_is_ffcv_s_line_through_three_points_of_epochs_and_then_of_steps():
    settings = Schedule(name="triangular", warmup_epochs=2, warmup_start=1e-4)
    epochs, steps = 16, 25

    def at_epoch(epoch: int) -> float:
        return float(np.interp([epoch], [0, 2, epochs], [1e-4, 1, 0])[0])

    for epoch in range(epochs):
        theirs = np.interp(np.arange(steps), [0, steps], [at_epoch(epoch), at_epoch(epoch + 1)])
        for i in range(steps):
            ours = share_at(epoch * steps + i, settings, epochs, steps)
            assert ours == pytest.approx(theirs[i], abs=1e-12)


def test_a_warm_up_inside_leaves_the_cosine_s_clock_running_as_timm_does():
    settings = Schedule(warmup_inside=True, warmup_start=0.02, final=0.1)
    for step in range(100):
        ours = lr_share(step, warmup_steps=20, total_steps=100, schedule=settings)
        if step < 20:
            theirs = 0.02 + step * (1 - 0.02) / 20
        else:
            theirs = 0.1 + 0.5 * (1 - 0.1) * (1 + math.cos(math.pi * step / 100))
        assert ours == pytest.approx(theirs, abs=1e-12)
    outside = Schedule(warmup_start=0.02, final=0.1)
    assert lr_share(20, warmup_steps=20, total_steps=100, schedule=outside) == 1


def test_a_warm_up_inside_equals_timm_s_scheduler():
    settings = Schedule(warmup_inside=True, warmup_start=0.02, final=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = CosineLRScheduler(
        optimizer, t_initial=100, lr_min=0.1, warmup_t=20, warmup_lr_init=0.02, t_in_epochs=False
    )
    for step in range(100):
        theirs.step_update(step)
        ours = lr_share(step, warmup_steps=20, total_steps=100, schedule=settings)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


def test_an_annealed_tail_equals_torch_s_swalr():
    settings = Schedule(
        warmup_epochs=0, final=0.5, tail_epochs=4, tail_lr=0.05, tail_anneal_epochs=2.5
    )
    body_end = share_at(59, settings, epochs=10, steps_per_epoch=10)
    optimizer = optimizer_at(body_end)
    theirs = torch.optim.swa_utils.SWALR(optimizer, 0.05, anneal_epochs=25)
    for step in range(60, 100):
        ours = share_at(step, settings, epochs=10, steps_per_epoch=10)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_a_cyclic_tail_is_the_paper_s_and_the_body_ends_before_it():
    settings = Schedule(
        warmup_epochs=1, tail_epochs=4, tail_lr=0.1, tail_low=0.02, tail_cycle_epochs=2
    )
    shorter = Schedule(warmup_epochs=1)
    for step in range(100):
        ours = share_at(step, settings, epochs=10, steps_per_epoch=10)
        if step < 60:
            assert ours == share_at(step, shorter, epochs=6, steps_per_epoch=10)
        else:
            passed = ((step - 60) % 20) / 19
            assert ours == pytest.approx((1 - passed) * 0.1 + passed * 0.02)
    constant = dataclasses.replace(settings, tail_cycle_epochs=0)
    assert {share_at(s, constant, 10, 10) for s in range(60, 100)} == {0.1}


SHAPES = st.sampled_from(
    [
        Schedule(warmup_epochs=2),
        Schedule(warmup_epochs=1.5, final=0.2, tail_epochs=2, tail_anneal_epochs=1),
        Schedule(name="triangular", warmup_epochs=1),
        Schedule(name="polynomial", warmup_epochs=1, warmup_inside=True, tail_epochs=1),
        Schedule(name="constant", warmup_epochs=0),
        Schedule(name="step", milestones=(2, 4), warmup_epochs=1),
        Schedule(name="onecycle", warmup_epochs=0),
        Schedule(name="onecycle", warmup_epochs=0, three_phase=True, anneal="linear"),
    ]
)


@given(SHAPES, st.integers(1, 400))
def test_every_rate_lies_between_0_and_the_peak_and_is_computed_alone(schedule, steps_per_epoch):
    shares = [share_at(s, schedule, 6, steps_per_epoch) for s in range(6 * steps_per_epoch)]
    assert all(0 <= share <= 1 for share in shares)
    middle = 3 * steps_per_epoch
    assert share_at(middle, schedule, 6, steps_per_epoch) == shares[middle]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(warmup_epochs=2),
        Schedule(warmup_epochs=2, tail_epochs=2, final=0.3, tail_anneal_epochs=1),
        Schedule(name="triangular", warmup_epochs=1),
        Schedule(name="polynomial", warmup_epochs=1),
        Schedule(name="onecycle", warmup_epochs=0),
    ],
)
def test_no_step_jumps_where_continuity_is_promised(schedule):
    shares = np.array([share_at(s, schedule, 10, 1000) for s in range(10_000)])
    assert np.abs(np.diff(shares)).max() < 3e-3


def test_the_timeline_hands_out_momentum_and_sharpness_aware_steps():
    run = dataclasses.replace(
        recipe("demo"),
        schedule=Schedule(name="onecycle", warmup_epochs=0, cycle_momentum=(0.85, 0.95)),
        optim=Optim(peak_lr=2.0, sam_rho=0.1, sam_every=5),
    )
    timeline = Timeline(run, steps_per_epoch=10)
    assert timeline.at(0).momentum == 0.95
    assert timeline.at(11).momentum == 0.85
    assert timeline.at(11).lr == 2.0
    assert [step for step in range(20) if timeline.at(step).sam] == [4, 9, 14, 19]
    assert Timeline(recipe("demo"), 10).at(3).momentum is None


@pytest.mark.parametrize(
    ("average", "optim", "reason"),
    [
        ({"ema_horizon": 0.04, "every_steps": 41}, {}, r"only 40 steps.* updated 0 times; give"),
        (
            {"ema_horizon": 0.04, "every_steps": 9},
            {},
            r"updated 4 times;.*every-steps 8 or",
        ),
        ({"ema_horizon": 0.04, "every_steps": 8}, {}, None),
        ({"ema_horizon": 0.001, "every_steps": 1}, {}, None),
        ({"every_steps": 100}, {}, None),
        ({}, {"sam_rho": 0.1, "sam_every": 41}, r"only 40 steps, so none would be sharpness-aware"),
        ({}, {"sam_rho": 0.1, "sam_every": 40}, None),
        ({}, {"sam_every": 1000}, None),
    ],
)
def test_what_the_steps_of_a_run_are_too_few_for_is_refused(average, optim, reason):
    run = dataclasses.replace(
        recipe("demo"), average=Average(**average), optim=Optim(peak_lr=0.1, **optim)
    )
    if reason is None:
        timeline = Timeline(run, steps_per_epoch=10)
        updates = [timeline.at(step).average_keep for step in range(40)]
        assert any(keep is not None for keep in updates) == (run.average.ema_horizon > 0)
        return
    with pytest.raises(UsageError, match=reason):
        Timeline(run, steps_per_epoch=10)
