import dataclasses

import pytest

from rn50.config import Average, Model, Schedule
from rn50.recipes import recipe
from rn50.train import health
from rn50.train.schedule import Timeline


def timeline(*, horizon: float = 0.1, classes: int = 1000) -> Timeline:
    """A run of 100 epochs of 10 steps, with an EMA and an SWA."""
    run = dataclasses.replace(
        recipe("imagenet-90"),
        epochs=100,
        model=Model(num_classes=classes),
        schedule=Schedule(tail_epochs=10),
        average=Average(ema_horizon=horizon, swa_epochs=10),
    )
    return Timeline(run, 10)


def scores(images: int = 50_000, **top1: float) -> dict[str, dict[str, float]]:
    return {name: {"loss": 1.0, "top1": value, "images": images} for name, value in top1.items()}


def test_averages_that_are_better_or_a_little_worse_are_not_warned_of():
    told = scores(model=0.70, average=0.74, swa=0.66)
    assert health.warnings(told, timeline(), 1000) == []
    assert health.warnings({}, timeline(), 1000) == []
    assert health.warnings(scores(model=0.001), timeline(), 1000) == []


def test_an_ema_at_chance_is_warned_of_with_what_to_do():
    (warning,) = health.warnings(scores(model=0.62, average=0.001), timeline(), 500)
    assert warning == (
        "the EMA is at chance: top-1 0.10%, and its model's is 62.00%; it reaches back over 10 "
        "epochs, too many here: resume with --ema-horizon 0.025 "
        "--allow-change average.ema_horizon; model.safetensors is not affected"
    )


def test_a_run_that_has_ended_is_not_advised_to_be_resumed():
    (warning,) = health.warnings(scores(model=0.62, average=0.3), timeline(), 1000)
    assert "the EMA is far worse: top-1 30.00%" in warning
    assert "in a new run, give --ema-horizon 0.025" in warning
    assert "resume" not in warning


def test_an_ema_may_lag_behind_until_its_horizon_has_passed():
    told = scores(model=0.30, average=0.10)
    assert health.warnings(told, timeline(), 99) == []
    assert len(health.warnings(told, timeline(), 100)) == 1
    # A horizon as long as the run is judged at its end.
    assert health.warnings(told, timeline(horizon=1), 999) == []
    assert len(health.warnings(told, timeline(horizon=1), 1000)) == 1


@pytest.mark.parametrize(("top1", "verdict"), [(0.0012, "at chance"), (0.55, "far worse")])
def test_an_swa_is_judged_from_its_first_weights_on(top1, verdict):
    (warning,) = health.warnings(scores(model=0.62, average=0.63, swa=top1), timeline(), 910)
    assert f"the SWA is {verdict}" in warning
    assert "lower --schedule.tail-lr" in warning
    assert "resume" not in warning


def test_both_averages_are_warned_of():
    told = scores(model=0.62, average=0.001, swa=0.001)
    assert [w[:7] for w in health.warnings(told, timeline(), 950)] == ["the EMA", "the SWA"]


def test_a_model_at_chance_itself_and_a_difference_of_chance_are_not_warned_of():
    assert health.warnings(scores(model=0.002, average=0.001), timeline(), 500) == []
    few = scores(images=36, model=0.5, average=0.4)
    assert health.warnings(few, timeline(classes=4), 500) == []
    many = scores(images=10_000, model=0.5, average=0.4)
    assert len(health.warnings(many, timeline(classes=4), 500)) == 1


def test_an_average_a_little_below_an_early_model_is_warned_of_only_where_it_is_at_chance():
    assert health.warnings(scores(model=0.05, average=0.03), timeline(), 500) == []
    assert len(health.warnings(scores(model=0.05, average=0.001), timeline(), 500)) == 1
