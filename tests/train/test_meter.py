import math

import pytest
import torch

from rn50.distributed import Group
from rn50.train.meter import Meter, StepEnd

CPU = torch.device("cpu")


def feed(meter: Meter, drain_at: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        logits = torch.randn(8, 5, generator=generator)
        labels = torch.randint(0, 5, (8,), generator=generator)
        meter.add(torch.nn.functional.cross_entropy(logits, labels), logits, labels)
        if i in drain_at:
            meter.drain()
    meter.drain()


def test_sums_do_not_depend_on_when_they_are_read():
    totals = []
    for drain_at in (set(), {3, 4, 11}, set(range(20))):
        meter = Meter(CPU, Group())
        feed(meter, drain_at)
        totals.append((meter.epoch.images, meter.epoch.loss_units, meter.epoch.correct))
    assert totals[0] == totals[1] == totals[2]
    assert totals[0][0] == 160


def test_loss_and_accuracy_are_means_over_images_not_over_batches():
    meter = Meter(CPU, Group())
    right = torch.tensor([[9.0, 0.0]])
    wrong = torch.tensor([[0.0, 9.0]]).expand(3, 2)
    meter.add(torch.tensor(1.0), right, torch.zeros(1, dtype=torch.int64))
    meter.add(torch.tensor(2.0), wrong, torch.zeros(3, dtype=torch.int64))
    meter.drain()
    assert meter.window.loss == pytest.approx(7 / 4)
    assert meter.window.top1 == 0.25


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told_of_its_step_and_is_no_part_of_the_mean(loss):
    meter = Meter(CPU, Group())
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for step, (first, second) in enumerate([(1.0, 2.0), (loss, 4.0), (3.0, 3.0)]):
        meter.add(torch.tensor(first), logits, labels)
        meter.add(torch.tensor(second), logits, labels)
        meter.end_step(torch.tensor(float(step != 1)) if step else None)
    assert meter.drain() == [(False, False), (True, True), (False, False)]
    assert meter.window.images == 10
    assert meter.window.loss == pytest.approx((1 + 2 + 4 + 3 + 3) / 5)
    assert meter.drain() == []


def test_a_skipped_update_is_a_fault_unless_a_loss_scale_may_be_to_blame():
    for skipped, bad_loss, of_scaled, of_plain in (
        (False, False, False, False),
        (True, False, False, True),
        (True, True, True, True),
    ):
        end = StepEnd(skipped, bad_loss)
        assert (end.is_fault(scaled=True), end.is_fault(scaled=False)) == (of_scaled, of_plain)


def test_a_loss_beyond_all_bounds_does_not_overflow_the_sum():
    meter = Meter(CPU, Group())
    for _ in range(1000):
        meter.add(torch.tensor(1e38), torch.zeros(256, 3), torch.zeros(256, dtype=torch.int64))
    meter.drain()
    assert meter.window.loss == 2.0**20


def test_there_is_no_mean_of_no_images():
    assert math.isnan(Meter(CPU, Group()).window.loss)
