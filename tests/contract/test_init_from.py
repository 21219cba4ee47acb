"""Runs that begin from the weights of another, and FixRes's fine-tuning of a finished run."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contract import runs
from rn50 import durable
from rn50.observe import record

FIRST = ("--epochs", "2", "--ema-horizon", "0.1")
FIXRES = (
    *("--model.train-only", "classifier-and-last-bn", "--warmup-epochs", "0", "--lr", "0.01"),
    *("--epochs", "2", "--train-px", "48", "--images.test-px", "48"),
    *("--images.test-resize-px", "48", "--images.crop-area", "1", "1"),
    *("--images.crop-ratio", "1", "1", "--micro-batch", "8"),
)
LAST_BN = {f"layer4.1.bn2.{name}" for name in ("running_mean", "running_var")}
CLASSIFIER = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def finished(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "first"
    runs.finish(runs.command(packed, place, *FIRST))
    return place


@pytest.fixture(scope="module")
def tuned(packed: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "tuned"
    words = runs.command(packed, place, *FIXRES, "--init-from", str(finished))
    assert f"beginning from {finished / 'average.safetensors'}" in runs.finish(words)
    return place


def changed(one: Path, other: Path) -> set[str]:
    ours, theirs = safetensors.torch.load_file(one), safetensors.torch.load_file(other)
    names = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    return {name for name in names if not name.endswith("num_batches_tracked")}


@pytest.mark.slow
def test_fixres_changes_the_classifier_and_the_last_batchnorm_s_statistics_alone(finished, tuned):
    began, ended = finished / "average.safetensors", tuned / "model.safetensors"
    assert changed(ended, began) == LAST_BN | CLASSIFIER


@pytest.mark.slow
def test_a_new_run_begins_at_step_0_and_tells_what_it_began_from(finished, tuned):
    (start,) = (r for r in record.read(tuned / "metrics.jsonl") if r["kind"] == "start")
    file = finished / "average.safetensors"
    assert start["step"] == 0
    assert start["init_from"] == {"file": str(file), "blake2b": durable.file_digest(file)}
    (last,) = sorted((tuned / "checkpoints").glob("step-*"))[-1:]
    about = json.loads((last / "state.json").read_text())["about"]
    assert about["init_from"] == start["init_from"]


@pytest.mark.long
def test_a_run_that_began_from_weights_resumes_bit_identically_from_a_moved_copy_or_without(
    packed, finished, tuned, tmp_path
):
    place, copy = tmp_path / "killed", tmp_path / "copy"
    words = runs.command(packed, place, *FIXRES, "--init-from", str(finished), "--resume")
    runs.kill_at(words, place, 7)
    shutil.copytree(finished, copy)
    more = ("--resume", "--storage.checkpoint-steps", "1")
    words = runs.command(packed, place, *FIXRES, *more, "--init-from", str(copy))
    runs.kill_at(words, place, 10)
    shutil.rmtree(copy)  # what it began from is in the checkpoint
    runs.finish(words)
    runs.assert_same_end(tuned, place)


@pytest.mark.long
def test_another_beginning_is_refused_on_resume(packed, finished, tuned):
    other = finished / "model.safetensors"
    words = runs.command(packed, tuned, *FIXRES, "--resume")
    output = runs.finish([*words, "--init-from", str(other)], code=2)
    assert f"init_from: {finished} (content " in output
    assert f"-> {other} (content " in output
    output = runs.finish(words, code=2)
    assert f"init_from: {finished} -> random weights" in output
    assert "--allow-change init_from" in output
    assert "finished" in runs.finish([*words, "--allow-change", "init_from"])


def test_weights_of_other_classes_are_refused_before_training(packed, finished, tmp_path):
    words = runs.command(
        packed, tmp_path / "run", "--init-from", str(finished), "--arch", "resnet34"
    )
    output = runs.finish(words, code=2)
    assert "is of a network with model.arch resnet18, and the run has resnet34" in output
    words = runs.command(packed, tmp_path / "other", "--init-from", str(tmp_path / "absent"))
    assert "which does not exist" in runs.finish(words, code=3)
