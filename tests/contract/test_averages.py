"""The averages of real runs: they score like their models, and resume anywhere.

Two runs that this project replaces had an EMA at chance (0.1% of 1000 classes: its weights were
averaged, its BatchNorm statistics never) and an SWA that went astray when the run was resumed.
"""

import dataclasses
import random
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from contract import runs
from rn50 import config
from rn50.config import Hardware
from rn50.data.loader import Loader
from rn50.data.shards import PackedDataset
from rn50.distributed import Group
from rn50.evaluate import score
from rn50.hardware import Compute
from rn50.model import weights
from rn50.observe import record
from rn50.train import state as states
from rn50.train.run import plan_of
from rn50.train.step import Engine, inputs_of

SEED = random.SystemRandom().randrange(10**6)
TAIL = (
    *("--epochs", "4", "--schedule.tail-epochs", "2", "--schedule.tail-lr", "0.2"),
    *("--swa-epochs", "2", "--average.swa-every-steps", "3", "--average.swa-bn-images", "40"),
    *("--mixup-alpha", "0.2", *runs.AVERAGED_AND_ACCUMULATED),
)
"""24 steps; weights are taken after 15, 18, 21 and 24 of them, and epochs end at 18 and 24."""
CPU = Hardware(device="cpu", precision="fp32", workers=2)


@pytest.fixture(scope="module")
def uninterrupted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "whole"
    runs.finish(runs.command(packed, place, *TAIL))
    return place


@pytest.fixture(scope="module")
def learned(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is long enough to have learned something."""
    place = tmp_path_factory.mktemp("runs") / "learned"
    more = (
        *("--epochs", "12", "--lr", "0.1", "--images.crop-area", "0.5", "1"),
        *("--schedule.tail-epochs", "3", "--schedule.tail-lr", "0.2"),
        *("--swa-epochs", "3", "--ema-horizon", "0.05"),
    )
    runs.finish(runs.command(packed, place, *more))
    return place


@pytest.mark.long
def test_a_run_killed_in_its_swa_tail_ends_bit_identical_to_an_uninterrupted_one(
    packed, uninterrupted, tmp_path
):
    place = tmp_path / "killed"
    words = runs.command(packed, place, *TAIL, "--resume")
    # The second time from a checkpoint whose SWA holds weights: those of steps 18 and 20 do.
    draws = random.Random(SEED)
    steps = [draws.randrange(13, 18), draws.randrange(20, 23)]
    for step in steps:
        assert runs.kill_at(words, place, step) == -signal.SIGKILL, f"seed {SEED}: {steps}"
    runs.finish(words)
    runs.assert_same_end(uninterrupted, place)
    for name in record.NETWORKS:
        ours, theirs = (
            safetensors.torch.load_file(at / f"{name}.safetensors") for at in (uninterrupted, place)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.long
def test_two_processes_killed_in_the_swa_tail_resume_bit_identically(packed, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.finish(runs.command(packed, whole, *TAIL, processes=2))
    words = runs.command(packed, killed, *TAIL, "--resume", processes=2)
    runs.kill_at(words, killed, 17)
    runs.finish(words)
    runs.assert_same_end(whole, killed)


@pytest.mark.long
def test_the_swa_does_not_change_what_is_trained(packed, uninterrupted, tmp_path):
    place = tmp_path / "without"
    runs.finish(runs.command(packed, place, *without_swa(TAIL)))
    for part in ("model", "average", "momentum"):
        name = Path("checkpoints", "step-00000024", f"{part}.safetensors")
        ours = safetensors.torch.load_file(uninterrupted / name)
        theirs = safetensors.torch.load_file(place / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part


def without_swa(words: tuple[str, ...]) -> list[str]:
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if "swa" not in pair[0] for word in pair]


def test_the_swa_is_recorded_once_it_holds_weights_and_written(uninterrupted):
    records = record.read(uninterrupted / "metrics.jsonl")
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [list(r["val"]) for r in epochs] == [["model", "average"]] * 2 + [
        ["model", "average", "swa"]
    ] * 2
    told = weights.load(uninterrupted / "swa.safetensors").about
    assert (told["network"], told["step"]) == ("swa", 24)
    assert "SWA top-1" in (uninterrupted / "training_log.md").read_text()


def test_the_swa_s_statistics_are_update_bn_s_over_the_last_batches(packed, uninterrupted):
    run = config.load(uninterrupted / "config.json")
    split = PackedDataset.open(packed).split("train")
    plan = plan_of(run, split, Group())
    compute = Compute(device=torch.device("cpu"), precision="fp32", workers=2)
    ours = weights.load(uninterrupted / "swa.safetensors").net
    theirs = weights.load(uninterrupted / "swa.safetensors").net
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(9)
    engine = Engine.of(states.new(run, compute, Group()), run, compute, Group())
    inputs = []
    with Loader(compute.device, workers=2, prefetch=1) as loader:
        # 40 images are three batches of 16: the last three of 24 steps, not mixed, in halves.
        requests = [dataclasses.replace(plan.request(step), mix=None) for step in (21, 22, 23)]
        for batch in loader.read(split, requests):
            for part in (slice(0, 8), slice(8, 16)):
                inputs.append(inputs_of(batch, part, run, engine.normalise))
    update_bn(inputs, theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_the_averages_score_like_their_model_and_would_not_without_their_statistics(
    packed, learned, tmp_path
):
    told = score(learned, packed, CPU)
    assert list(told) == ["model", "average", "swa"]
    model = told["model"]
    for scores in told.values():
        assert scores["top1"] > max(0.5, model["top1"] - 0.2)
        assert scores["loss"] < 1.5 * model["loss"]
    records = record.read(learned / "metrics.jsonl")
    assert not [r for r in records if r["kind"] == "warning"]
    for name in ("average", "swa"):
        file = learned / f"{name}.safetensors"
        broken = weights.load(file)
        for module in broken.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        header = weights.header(
            model=broken.model,
            images=broken.images,
            classes=list(zip(broken.class_ids, broken.class_names, strict=True)),
            about=broken.about,
        )
        weights.save(tmp_path / file.name, broken.net.state_dict(), header)
        fallen = score(tmp_path / file.name, packed, CPU)[name]
        assert fallen["top1"] < told[name]["top1"]
        assert fallen["loss"] > 5 * model["loss"]
