"""Every recipe, in miniature and with all its methods on, trains and resumes to the bit."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import Pictures
from contract.miniatures import (
    BATCH,
    EPOCHS,
    IMAGES,
    SHRUNK,
    STEPS,
    NarrowResNet,
    Phase,
    miniature,
    phases,
)
from contract.runs import assert_same_end
from rn50 import config
from rn50.config import Hardware, Log, Run
from rn50.data.pack import pack
from rn50.data.subset import Subset
from rn50.errors import InterruptedRunError
from rn50.model import resnet
from rn50.observe import record
from rn50.recipes import RECIPES, recipe
from rn50.train import observing
from rn50.train import run as runs


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "packed"
    pack(Subset(Pictures(), per_class=IMAGES // len(Pictures.classes)), folder)
    return folder


class Watcher:
    """In the place of the reports: asks the process to stop after a step."""

    stop_after = 0

    def __init__(self, place: Path) -> None:
        pass

    def write(self, told: record.Record) -> None:
        if told["kind"] == "train" and told["step"] == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        pass


def in_folder(run: Run, data: Path, place: Path) -> Run:
    storage = replace(
        run.storage, data=str(data), output_dir=str(place), checkpoint_epochs=0, spot_notices="off"
    )
    return replace(
        run,
        hardware=Hardware(device="cpu", precision="fp32", workers=1),
        storage=storage,
        log=Log(every_steps=1, eval_epochs=run.epochs),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_all_methods_on_resumes_to_the_bit_from_the_middle_of_each_phase(
    name, few_images, tmp_path, monkeypatch
):
    monkeypatch.setattr(resnet, "ResNet", NarrowResNet)
    monkeypatch.setattr(observing, "Reports", Watcher)
    run = miniature(recipe(name))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    runs.start(in_folder(run, few_images, whole), say=lambda _: None)
    for phase in phases(run, STEPS):
        monkeypatch.setattr(Watcher, "stop_after", phase.middle)
        torch.manual_seed(phase.middle)  # a new process would not have the old one's generator
        with pytest.raises(InterruptedRunError, match=f"after step {phase.middle} of"):
            runs.start(in_folder(run, few_images, stopped), resume=True, say=lambda _: None)
    monkeypatch.setattr(Watcher, "stop_after", 0)
    runs.start(in_folder(run, few_images, stopped), resume=True, say=lambda _: None)

    assert_same_end(whole, stopped)
    trained = [r for r in record.read(whole / record.FILE_NAME) if r["kind"] == "train"]
    assert [r["px"] for r in trained] == [
        run.images.px_at(i // STEPS) for i in range(EPOCHS * STEPS)
    ]
    assert trained[-1]["loss"] < 2 * trained[0]["loss"]
    kept = {"model": True, "average": run.average.ema_horizon, "swa": run.average.swa_epochs}
    written = {path.stem for path in whole.glob("*.safetensors")} - {"best"}
    assert written == {net for net, on in kept.items() if on}


@pytest.mark.parametrize("name", RECIPES)
def test_a_miniature_has_every_method_and_phase_of_its_recipe(name):
    full, small = recipe(name), miniature(recipe(name))
    one, other = config.mathematics(full), config.mathematics(small)
    changed = {key for key in one if one[key] != other[key]}
    assert changed <= SHRUNK
    for key in changed:
        assert bool(one[key]) == bool(other[key]), key
    assert len(small.schedule.milestones) == len(full.schedule.milestones)
    assert len({px for _, px in small.images.sizes}) == len({px for _, px in full.images.sizes})
    assert small.optim.sam_every < EPOCHS * STEPS
    assert small.average.every_steps <= BATCH

    steps = 1_281_167 // full.images.batch_size
    there, here = phases(full, steps), phases(small, STEPS)
    assert len(here) == len(there)
    for phase in here:
        assert phase.start < phase.middle < phase.end


def test_phases_are_found_where_the_settings_change():
    found = phases(recipe("s1-cosine-swa"), 10)
    assert [(phase.name, phase.start) for phase in found] == [
        ("warm-up", 0),
        ("body", 50),
        ("tail SWA", 900),
    ]
    assert found[-1] == Phase("tail SWA", 900, 1000)
    assert found[-1].middle == 950
    grown = phases(recipe("s4-medium"), 10)
    assert [(phase.name, phase.start) for phase in grown] == [
        ("rise 128 px", 0),
        ("fall", 270),
        ("224 px", 350),
        ("288 px", 800),
    ]
