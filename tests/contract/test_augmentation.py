"""Runs with every augmentation on keep the promises of runs without."""

import pytest
import safetensors.torch
import torch

from contract import runs
from contract.test_processes import without_batch_norm
from rn50.observe import record

EVERYTHING = (
    *("--auto-augment", "randaugment-timm", "--augment.magnitude", "7"),
    *("--augment.color-jitter", "0.4", "0.4", "0.4", "0.1", "--augment.blur-prob", "0.3"),
    *("--random-erase", "0.5", "--augment.erase-mode", "pixel", "--augment.dropout-prob", "0.3"),
    *("--augment.repeats", "3", "--mixup-alpha", "0.2", "--cutmix-alpha", "1.0"),
    *("--mix.prob", "0.9", "--epochs", "2"),
    *("--train-px", "64", "--images.multi-scale", "32", "64"),
)


@pytest.mark.long
def test_a_run_with_every_augmentation_resumes_bit_identically(packed, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = (*EVERYTHING, *runs.AVERAGED_AND_ACCUMULATED)
    runs.finish(runs.command(packed, whole, *more))
    words = runs.command(packed, killed, *more, "--resume")
    runs.kill_at(words, killed, 5)
    runs.finish(words)
    runs.assert_same_end(whole, killed)
    steps = [r for r in record.read(killed / record.FILE_NAME) if r["kind"] == "train"]
    assert {r["px"] for r in steps} == {32, 64}


@pytest.mark.long
def test_processes_and_micro_batches_augment_and_mix_alike(packed, tmp_path):
    weights = []
    for processes, more in ((1, ()), (2, ("--micro-batch", "4"))):
        place = tmp_path / str(processes)
        words = runs.command(packed, place, *EVERYTHING, *more, processes=processes)
        runs.finish(without_batch_norm(words))
        weights.append(safetensors.torch.load_file(place / "model.safetensors"))
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=2e-5)
