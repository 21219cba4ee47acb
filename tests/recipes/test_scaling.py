import dataclasses
import math

import numpy as np
import pytest
import torch

from rn50.config import Average, Images, Model, Schedule
from rn50.errors import UsageError
from rn50.recipes import equivalent_epochs, recipe, train_sides
from rn50.recipes.scaling import (
    at_length,
    composer_sizes,
    coupled_decay,
    decoupled_decay,
    ffcv_sizes,
    half_life_horizon,
    scaled_lr,
)
from rn50.train.layerwise import SGDW


def test_the_learning_rate_grows_with_the_batch_or_its_root():
    assert scaled_lr(0.1, 256) == 0.1
    assert scaled_lr(0.1, 1024) == pytest.approx(0.4)
    assert scaled_lr(0.1, 64, 128) == pytest.approx(0.05)
    assert scaled_lr(5e-3, 512, 2048, rule="sqrt") == pytest.approx(2.5e-3)


def test_mosaic_s_decoupled_decay_is_nvidia_s_coupled_one():
    converted = decoupled_decay(3.0518e-5, peak_lr=2.048, momentum=0.875)
    assert converted == pytest.approx(5.0e-4, rel=2e-5)  # 3.0518e-5 is rounded
    back = coupled_decay(5.0e-4, peak_lr=2.048, momentum=0.875)
    assert back == pytest.approx(3.0518e-5, rel=1e-4)


def test_weights_without_a_gradient_shrink_alike_under_both_decays():
    """The momentum of coupled decay begins at 0, so its course lags by a few steps."""
    coupled, lr, momentum, steps = 1e-3, 0.5, 0.9, 400
    shares = []
    for decoupled in (False, True):
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        if decoupled:
            decay = decoupled_decay(coupled, peak_lr=lr, momentum=momentum)
            groups = [{"params": [weight], "weight_decay": decay}]
            optimizer = SGDW(groups, lr=lr, peak_lr=lr, momentum=momentum, nesterov=False)
        else:
            optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum, weight_decay=coupled)
        for _ in range(steps):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        shares.append(-math.log(weight.item()))
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    assert shares[1] == pytest.approx(steps * 5e-3, rel=0.01)


def px_at(sizes, epoch: int, train_px: int = 999) -> int:
    return Images(batch_size=8, train_px=train_px, sizes=sizes).px_at(epoch)


@pytest.mark.parametrize(
    ("low", "high", "start", "end"),
    [(160, 192, 11, 13), (160, 192, 65, 76), (128, 224, 0, 10), (128, 256, 3, 3), (96, 176, 2, 9)],
)
def test_ffcv_s_ramp_is_its_formula_at_every_epoch(low, high, start, end):
    sizes = ffcv_sizes(low, high, start=start, end=end)
    for epoch in range(end + 5):
        if epoch <= start:
            theirs = low
        elif epoch >= end:
            theirs = high
        else:
            between = np.interp([epoch], [start, end], [low, high])
            theirs = int(np.round(between[0] / 32)) * 32
        assert px_at(sizes, epoch) == theirs


def test_a_ramp_of_more_than_five_sizes_is_refused():
    with pytest.raises(UsageError, match="the ramp from 64 to 256 px has 7 sizes; at most 5"):
        ffcv_sizes(64, 256, start=0, end=40)


@pytest.mark.parametrize(
    ("px", "epochs", "initial", "delay", "finetune"),
    [(176, 36, 0.5, 0.4, 0.2), (176, 270, 0.6, 0.2, 0.2), (224, 90, 0.5, 0.4, 0.2)],
)
def test_composer_s_ramp_is_followed_to_half_a_multiple_of_32(px, epochs, initial, delay, finetune):
    sizes = composer_sizes(
        px, epochs, initial_scale=initial, delay_fraction=delay, finetune_fraction=finetune
    )
    for epoch in range(epochs):
        passed = ((epoch + 0.5) / epochs - delay) / (1 - finetune - delay)
        theirs = px * (initial + (1 - initial) * np.clip(passed, 0, 1))
        assert abs(px_at(sizes, epoch, px) - theirs) <= 16
    assert px_at(sizes, epochs - 1, px) == px


def test_a_wide_ramp_of_composer_s_takes_coarser_steps_and_every_ramp_is_a_valid_setting():
    sizes = composer_sizes(512, 60, initial_scale=0.25)
    assert len({side for _, side in sizes}) <= 5
    run = recipe("imagenet-90")
    for px in (128, 160, 176, 192, 224, 288):
        images = dataclasses.replace(run.images, train_px=px, sizes=composer_sizes(px, 90))
        dataclasses.replace(run, images=images)
    images = dataclasses.replace(
        run.images, train_px=192, sizes=ffcv_sizes(160, 192, start=65, end=76)
    )
    assert dataclasses.replace(run, images=images).images.px_at(0) == 160


def test_equivalent_epochs_follow_the_sizes():
    """FFCV's 16 epochs (160 px up to epoch 11, 192 px from 13) count 9.06 such epochs."""
    run = recipe("imagenet-90")
    images = dataclasses.replace(
        run.images, train_px=192, sizes=ffcv_sizes(160, 192, start=11, end=13)
    )
    schedule = dataclasses.replace(run.schedule, warmup_epochs=2)
    short = dataclasses.replace(run, epochs=16, images=images, schedule=schedule)
    assert equivalent_epochs(short) == pytest.approx(9.06, abs=0.01)
    assert train_sides(short) == "160-192"
    assert train_sides(run) == "224"


def test_drawn_sides_count_with_their_mean():
    run = recipe("imagenet-90")
    images = dataclasses.replace(run.images, multi_scale=(128, 224), sizes=((60, 224),))
    scaled = dataclasses.replace(run, images=images)
    assert equivalent_epochs(scaled) == pytest.approx(60 * (128**2 / 224**2 + 1) / 2 + 30)
    assert train_sides(scaled) == "128-224"


def test_the_small_stem_takes_smaller_steps():
    run = recipe("tiny-imagenet-resnet50")
    images = dataclasses.replace(run.images, sizes=((0, 40), (30, 64)))
    assert dataclasses.replace(run, images=images).images.px_at(29) == 40
    with pytest.raises(UsageError, match="must be divisible by 32"):
        dataclasses.replace(run, images=images, model=Model(num_classes=200))


def test_a_run_of_another_length_keeps_the_share_of_every_phase():
    run = recipe("imagenet-90")
    run = dataclasses.replace(
        run,
        images=dataclasses.replace(run.images, sizes=((0, 128), (30, 160), (89, 224))),
        schedule=Schedule(
            name="step",
            warmup_epochs=9,
            milestones=(30, 60),
            tail_epochs=18,
            tail_anneal_epochs=3,
        ),
        average=Average(swa_epochs=18),
    )
    short = at_length(run, 10)
    assert short.epochs == 10
    assert short.images.sizes == ((0, 128), (3, 160), (9, 224))
    assert short.schedule.warmup_epochs == pytest.approx(1)
    assert short.schedule.milestones == pytest.approx((30 / 9, 60 / 9))
    assert short.schedule.tail_epochs == pytest.approx(2)
    assert short.schedule.tail_anneal_epochs == pytest.approx(1 / 3)
    assert short.average.swa_epochs == pytest.approx(2)
    assert at_length(run, 90) == run
    assert at_length(recipe("ladder-30"), 2).images.sizes == ((0, 96), (1, 176))


def test_composer_s_half_life_becomes_a_share_of_the_run():
    share = half_life_horizon(100, batch_size=2048, epochs=36)
    assert share == pytest.approx(0.0064, abs=1e-4)
    steps = 36 * 1_281_167 / 2048
    assert math.exp(-20 / (share * steps)) == pytest.approx(2 ** (-20 / 100))
