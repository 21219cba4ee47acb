import pytest
import torch

from rn50.distributed import Group
from rn50.errors import DivergedError
from rn50.train.meter import Meter

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
def test_a_loss_that_is_not_finite_ends_the_run_when_it_is_read(loss):
    meter = Meter(CPU, Group())
    meter.add(torch.tensor(loss), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DivergedError, match="infinite or not a number"):
        meter.drain()
