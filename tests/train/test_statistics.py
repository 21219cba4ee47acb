import numpy as np
import pytest
import torch

from rn50.config import Average, Images, Model, Optim, Run, Schedule
from rn50.data.loader import Batch
from rn50.data.plan import TrainPlan
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.train import state as states
from rn50.train import swa
from rn50.train.schedule import Timeline
from rn50.train.step import Engine

COMPUTE = Compute(device=torch.device("cpu"), precision="fp32", workers=1, micro_batch=4)
RUN = Run(
    recipe="test",
    epochs=2,
    model=Model(arch="resnet18", num_classes=4),
    images=Images(batch_size=8, train_px=32, test_px=32, test_resize_px=32),
    optim=Optim(peak_lr=0.1),
    schedule=Schedule(warmup_epochs=0, tail_epochs=1),
    average=Average(swa_epochs=1, swa_every_steps=2, swa_bn_images=24),
)
SIDES = np.full(32, 40)
PLAN = TrainPlan(images=RUN.images, seed=0, widths=SIDES, heights=SIDES)


def read(requests):
    """Yield a batch for each request whose pixels are a function of its images."""
    for request in requests:
        generator = torch.Generator().manual_seed(int(request.ids[0]))
        images = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
        flips = torch.from_numpy(request.flips)
        yield Batch(request, images, torch.zeros(8, dtype=torch.int64), flips, 0.0)


@pytest.fixture
def held():
    """A state whose SWA holds weights, and what its statistics are estimated with."""
    state = states.new(RUN, COMPUTE, Group())
    state.step = 8
    timeline = Timeline(RUN, PLAN.steps_per_epoch)
    return state, (state, Engine.of(state, RUN, COMPUTE, Group()), timeline, PLAN, read)


def statistics(state) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in state.swa.named_buffers()}


def test_a_pass_that_is_left_off_leaves_the_statistics_and_is_done_again_alike(held):
    state, estimate = held
    before = statistics(state)
    asked = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) == 2

    assert not swa.estimate_statistics(*estimate, stopping)
    assert len(asked) == 2
    left = statistics(state)
    assert all(torch.equal(before[name], left[name]) for name in before)
    assert not any(module.training for module in state.swa.modules())
    assert swa.estimate_statistics(*estimate, lambda: False)
    again = statistics(state)

    whole = states.new(RUN, COMPUTE, Group())
    whole.step = 8
    assert swa.estimate_statistics(whole, *estimate[1:])
    assert all(torch.equal(again[name], value) for name, value in statistics(whole).items())
    assert not all(torch.equal(before[name], again[name]) for name in before)


def test_it_is_asked_after_each_batch(held):
    asked = []
    assert swa.estimate_statistics(*held[1], lambda: bool(asked.append(1)))
    assert len(asked) == 3  # of 8 images each


def test_there_is_nothing_to_leave_off_before_the_swa_holds_weights(held):
    state, estimate = held
    state.step = 4
    assert swa.estimate_statistics(*estimate, lambda: True)
    state.swa = None
    assert swa.estimate_statistics(*estimate, lambda: True)
