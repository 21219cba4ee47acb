import copy
import dataclasses
import json
import math
import shutil
from functools import partial
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contract import runs
from rn50 import hardware
from rn50.cli import main
from rn50.config import Average, Hardware, Images, Mix, Model, Optim, Run
from rn50.data.plan import TrainPlan
from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.hardware import Compute
from rn50.model import resnet
from rn50.train import probe
from rn50.train import state as states

COMPUTE = Compute(device=torch.device("cpu"), precision="fp32", workers=1)
RUN = Run(
    recipe="test",
    epochs=9,
    model=Model(arch="resnet18", num_classes=4),
    images=Images(
        batch_size=24, train_px=32, sizes=((2, 64), (4, 32)), test_px=32, test_resize_px=32
    ),
    optim=Optim(peak_lr=0.1, sam_rho=0.05, sam_every=3),
    average=Average(ema_horizon=0.1),
)


class Hungry(nn.Module):
    """A network on a device whose memory is full above so many pixels at once."""

    def __init__(self, pixels: float = math.inf) -> None:
        super().__init__()
        self.pixels = pixels
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def hungry(run: Run, compute: Compute, group: Group, *, pixels: float) -> states.TrainState:
    return states.of_model(Hungry(pixels), run, compute, group)


def plan(run: Run = RUN) -> TrainPlan:
    sides = np.full(100, 50)
    return TrainPlan(
        images=run.images,
        seed=run.seed,
        widths=sides,
        heights=sides,
        augment=run.augment,
        mix=run.mix,
    )


def tried(net: nn.Module, run: Run = RUN) -> probe.Fits:
    return probe.trying_steps(run, net, COMPUTE, Group(), plan(run))


def chosen(
    run: Run = RUN, *, micro_batch: int = 0, group: Group | None = None, begun_with: int = 0
) -> tuple[int, list[str]]:
    said: list[str] = []
    compute = dataclasses.replace(COMPUTE, micro_batch=micro_batch)
    net = resnet.build(run.model, seed=0)
    found = probe.micro_batch(
        run, net, compute, group or Group(), plan(run), begun_with=begun_with, say=said.append
    )
    return found, said


@pytest.fixture
def memory_for(monkeypatch):
    """Give the host memory for so many images at once, on each of so many processes."""

    def give(images: int, processes: int = 1) -> None:
        fixed, each = probe.step_bytes(RUN, resnet.build(RUN.model, seed=0), COMPUTE)
        total = math.ceil(processes * (fixed + (images + 0.5) * each) / 0.8)
        monkeypatch.setattr(hardware, "memory_bytes", lambda: (None, total))

    return give


@given(st.integers(1, 600), st.booleans(), st.integers(1, 600))
def test_candidates_divide_the_share_and_descend(share, pairs, at_most):
    share *= 2 if pairs else 1
    sizes = probe.candidates(share, pairs=pairs, at_most=at_most)
    first = min(share, at_most)
    expected = {n for n in range(2, first + 1) if share % n == 0 or n == first}
    expected = {n for n in expected if not (pairs and n % 2)} or {share}
    assert sizes == sorted(expected, reverse=True)


@given(st.sets(st.integers(1, 4096), min_size=1, max_size=60), st.integers(0, 5000))
def test_the_largest_that_fits_is_found_in_few_trials(numbers, room):
    sizes, asked = sorted(numbers, reverse=True), []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= room

    assert probe.largest(sizes, fits) == max((n for n in sizes if n <= room), default=0)
    assert asked[0] == sizes[0]
    assert len(asked) <= 1 + math.ceil(math.log2(len(sizes))) if len(sizes) > 1 else len(asked) == 1


@pytest.mark.parametrize("room", [24, 12, 11, 5, 2, 1])
def test_the_training_step_is_tried_at_the_largest_images_of_the_run(room):
    fits = tried(Hungry(room * 64 * 64))
    sizes = probe.candidates(24, pairs=False, at_most=24)
    assert [fits(n) for n in sizes] == [n <= room for n in sizes]
    assert probe.largest(sizes, fits) == max((n for n in sizes if n <= room), default=0)


def test_the_largest_of_several_scales_is_tried_whatever_the_first_step_draws():
    images = dataclasses.replace(RUN.images, train_px=64, sizes=(), multi_scale=(32, 64))
    run = next(
        run
        for run in (dataclasses.replace(RUN, images=images, seed=seed) for seed in range(50))
        if plan(run).px(0) == 32
    )
    fits = tried(Hungry(6 * 64 * 64), run)
    assert [fits(count) for count in (24, 8, 6)] == [False, False, True]


@pytest.mark.parametrize("room", [24, 6])
def test_a_trial_leaves_model_statistics_and_random_state_as_they_were(room):
    net = Hungry(room * 64 * 64)
    run = dataclasses.replace(RUN, mix=Mix(mixup_alpha=0.2, cutmix_alpha=1.0))
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert tried(net, run)(24) is (room == 24)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training


def test_a_trial_takes_two_whole_steps_so_that_gradients_and_momentum_are_there(monkeypatch):
    seen = []

    def watched(state, engine, batch, knobs, run):
        buffers = sum(len(kept) for kept in state.optimizer.state.values())
        seen.append((len(batch.labels), batch.images.shape[2], knobs.sam, buffers > 0))
        step(state, engine, batch, knobs, run)

    step = probe.train_step
    monkeypatch.setattr(probe, "train_step", watched)
    assert tried(Hungry())(6)
    assert seen == [(6, 64, True, False), (6, 64, True, True)]


def test_an_error_of_another_kind_is_not_taken_for_full_memory():
    class Broken(Hungry):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        tried(Broken())(6)


def test_what_a_step_keeps_is_counted_to_the_byte():
    # The convolution keeps its input, the ReLU its output, the linear layer its flattened copy.
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8192, 2))
    fixed, each = probe.step_bytes(
        dataclasses.replace(RUN, images=dataclasses.replace(RUN.images, sizes=())), net, COMPUTE
    )
    assert each == round(1.2 * 4 * (3 + 8 + 8) * 32 * 32)
    assert fixed == 10**9 + 8 * sum(p.nbytes for p in net.parameters())


def test_the_share_is_taken_whole_where_it_fits(memory_for):
    memory_for(24)
    assert chosen() == (24, [])


def test_a_host_with_little_memory_takes_the_largest_divisor_that_fits(memory_for):
    memory_for(15)
    found, said = chosen()
    assert found == 12
    assert said == [ANY, ANY]
    assert said[0].startswith("micro-batch: 12 of a process's 24 images of 64 px at once, so many")
    assert "statistics of 12 images are noisy" in said[1]
    assert chosen(dataclasses.replace(RUN, hardware=Hardware(recompute=True)))[0] == 24


def test_the_processes_of_a_host_share_its_memory(memory_for):
    memory_for(12, processes=2)
    assert chosen()[0] == 24
    assert chosen(group=Group(local_world_size=2))[0] == 12


def test_mixed_pairs_are_not_torn_apart(memory_for):
    memory_for(4)
    assert chosen()[0] == 4
    memory_for(3)
    assert chosen()[0] == 3
    assert chosen(dataclasses.replace(RUN, mix=Mix(mixup_alpha=0.2)))[0] == 2


def test_memory_too_small_for_the_least_is_refused_with_what_would_help(memory_for):
    memory_for(1)
    with pytest.raises(UsageError, match=r"not even 2 images of 64 px fit.*--hardware\.recompute"):
        chosen()


def test_a_resumed_run_keeps_its_micro_batch(memory_for):
    memory_for(24)
    found, said = chosen(begun_with=6)
    assert found == 6
    told = "micro-batch: 6 of a process's 24 images of 64 px at once, as the run was begun with"
    assert said == [told]
    assert chosen(begun_with=24) == (24, [])
    assert chosen(begun_with=10)[0] == 10


@pytest.mark.parametrize(
    ("room", "asked", "found", "why"),
    [(24, 8, 8, "as asked"), (24, 100, 24, "as asked"), (9, 0, 8, "more do not fit into")],
)
def test_a_resumed_run_that_takes_another_says_so(memory_for, room, asked, found, why):
    memory_for(room)
    took, (said,) = chosen(micro_batch=asked, begun_with=12)
    assert took == found
    assert said.startswith(f"micro-batch: {found} images at once ({why}")
    assert "12 when the run was begun; BatchNorm's statistics are now" in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_on_a_gpu_with_little_memory_part_of_a_batch_fits_and_the_memory_is_given_back(
    precision, monkeypatch
):
    room = 2 * 10**9
    monkeypatch.setattr(hardware, "device_memory_bytes", lambda device: room)
    compute = hardware.resolve(Hardware(device="cuda", precision=precision))
    run = dataclasses.replace(
        RUN, images=Images(batch_size=2048, train_px=224, test_px=224, test_resize_px=256)
    )
    sides = np.full(2048, 250)
    wide = TrainPlan(images=run.images, seed=0, widths=sides, heights=sides)
    net = resnet.build(run.model, seed=0).to(compute.device)
    before = copy.deepcopy(net.state_dict())
    total = torch.cuda.get_device_properties(compute.device).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        held, said = torch.cuda.memory_allocated(), []
        found = probe.micro_batch(run, net, compute, Group(), wide, say=said.append)
        assert 4 <= found < 512
        assert torch.cuda.memory_allocated() == held
        assert probe.trying_steps(run, net, compute, Group(), wide)(found)
        assert not probe.trying_steps(run, net, compute, Group(), wide)(2 * found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert said[0].startswith(f"micro-batch: {found} of a process's 2048 images of 224 px")


def test_the_micro_batch_is_recorded_and_kept_by_the_resumed_run(
    packed, tmp_path, monkeypatch, capsys
):
    place = tmp_path / "run"
    words = runs.command(packed, place, "--epochs", "2")[3:]
    probed = []
    monkeypatch.setattr(probe, "predicting", lambda *_: lambda n: probed.append(n) or n <= 5)
    monkeypatch.setattr(states, "new", partial(hungry, pixels=math.inf))
    main(words)
    assert "micro-batch: 4 of a process's 16 images of 32 px at once" in capsys.readouterr().out
    assert probed == [16, 4, 8]
    (newest,) = sorted((place / "checkpoints").glob("step-*"))[-1:]
    assert json.loads((newest / "state.json").read_text())["about"]["micro_batch"] == 4
    shutil.rmtree(newest)
    monkeypatch.setattr(probe, "predicting", lambda *_: lambda n: True)
    main([*words, "--resume"])
    assert "4 of a process's 16 images of 32 px at once, as the run was" in capsys.readouterr().out
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    told = [(r["profile"], r["micro_batch"]) for r in records if r["kind"] in ("start", "resume")]
    assert told == [("local", 4), ("local", 4)]


def test_memory_that_is_full_in_mid_training_names_the_micro_batch_to_take(
    packed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(states, "new", partial(hungry, pixels=8 * 32 * 32))
    with pytest.raises(SystemExit) as stopped:
        main(runs.command(packed, tmp_path / "run")[3:])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "is full with 16 images at once; give --micro-batch 8 or --hardware.recompute" in error
    main(runs.command(packed, tmp_path / "again", "--micro-batch", "8", "--epochs", "2")[3:])
