import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from rn50.config import Augment, Images, Mix, Model, Optim, Run, Schedule
from rn50.data.loader import Loader
from rn50.distributed import Group
from rn50.errors import DataError
from rn50.hardware import Compute
from rn50.train import first_batch
from rn50.train import state as states
from rn50.train.inputs import plan_of
from rn50.train.schedule import Timeline
from rn50.train.step import Engine, train_step

COMPUTE = Compute(device=torch.device("cpu"), precision="fp32", workers=2)
RUN = Run(
    recipe="test",
    epochs=3,
    model=Model(arch="resnet18", num_classes=4),
    images=Images(batch_size=80, train_px=32, test_px=32, test_resize_px=32),
    optim=Optim(peak_lr=0.1),
    schedule=Schedule(warmup_epochs=0),
)
STRONG = dataclasses.replace(
    RUN,
    augment=Augment(policy="randaugment", erase_prob=0.5, color_jitter=(0.2, 0.2, 0.2, 0.1)),
    mix=Mix(mixup_alpha=0.4, cutmix_alpha=1.0),
)


@pytest.fixture
def loader():
    with Loader(COMPUTE.device, workers=2, prefetch=2) as one:
        yield one


def begin(run):
    state = states.new(run, COMPUTE, Group())
    return state, Engine.of(state, run, COMPUTE, Group())


@pytest.mark.parametrize("run", [RUN, STRONG])
def test_the_picture_shows_what_the_network_is_given(dataset, loader, run, tmp_path):
    split = dataset.split("train")
    plan = plan_of(run, split, Group())
    state, engine = begin(run)
    before = copy.deepcopy(state.model.state_dict())
    written = []
    first_batch.show(
        tmp_path, run, engine, plan.request(0), partial(loader.read, split), written.append
    )
    assert written == [{"kind": "images", "step": 0, "file": "augmented.png"}]
    assert all(torch.equal(before[k], v) for k, v in state.model.state_dict().items())

    given = []
    hook = state.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
    (batch,) = loader.read(split, [plan.request(0)])
    train_step(state, engine, batch, Timeline(run, plan.steps_per_epoch).at(0), run)
    hook.remove()
    mean, std = (torch.tensor(v)[:, None, None] for v in (run.images.mean, run.images.std))
    expected = (given[0][:64] * std + mean).clamp(0, 1) * 255
    sheet = np.asarray(Image.open(tmp_path / "augmented.png"))
    assert sheet.shape == (8 * 34 - 2, 8 * 34 - 2, 3)
    for i in range(64):
        top, left = i // 8 * 34, i % 8 * 34
        shown = torch.from_numpy(sheet[top : top + 32, left : left + 32].copy()).permute(2, 0, 1)
        assert (shown - expected[i]).abs().max() <= 0.51
    assert (sheet[32:34] == 255).all()


@pytest.mark.parametrize(
    ("px", "count"), [(32, 64), (96, 64), (128, 48), (160, 36), (224, 16), (288, 8), (700, 4)]
)
def test_so_many_images_are_shown_as_fit_on_a_page_and_make_pairs(px, count):
    assert first_batch.num_shown(px) == count


@pytest.mark.parametrize(("count", "shape"), [(1, (4, 4)), (2, (4, 10)), (5, (10, 16))])
def test_a_few_images_make_a_sheet_that_is_nearly_square(count, shape):
    sheet = first_batch.grid(np.zeros((count, 4, 4, 3), np.uint8))
    assert sheet.shape == (*shape, 3)
    assert (sheet == 0).all(axis=2).sum() == 16 * count


@pytest.mark.parametrize("error", [DataError("cannot decode it"), RuntimeError("out\nof memory")])
def test_what_cannot_be_drawn_is_a_warning(tmp_path, dataset, error):
    def read(requests):
        raise error

    request = plan_of(RUN, dataset.split("train"), Group()).request(0)
    written = []
    first_batch.show(tmp_path, RUN, begin(RUN)[1], request, read, written.append)
    ((kind, message),) = [(one["kind"], one["message"]) for one in written]
    assert kind == "warning"
    assert "could not be drawn" in message
    assert "\n" not in message
