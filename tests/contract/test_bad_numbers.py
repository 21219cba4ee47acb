"""Point 8 of what a run promises: numbers that are not finite, and losses that explode."""

import json
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contract import runs
from rn50.observe import record

AVERAGED = (*runs.AVERAGED_AND_ACCUMULATED, "--epochs", "2")


def faulty(words: list[str]) -> list[str]:
    at = len(words) - 1 - words[::-1].index("rn50")
    script = str(Path(__file__).with_name("bad_numbers.py"))
    return [*words[: at - 1], script, *words[at + 1 :]]


def finish(words: list[str], faults: dict, *, code: int = 0) -> str:
    environment = {**runs.environment(), "FAULTS": json.dumps(faults)}
    done = subprocess.run(
        faulty(words), env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def tensors(place: Path, step: int) -> dict[str, torch.Tensor]:
    folder = place / "checkpoints" / f"step-{step:08d}"
    return {
        f"{path.stem}.{name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def told(place: Path, kind: str) -> list[record.Record]:
    return [r for r in record.read(place / "metrics.jsonl") if r["kind"] == kind]


@pytest.mark.slow
def test_up_to_three_bad_updates_in_a_row_are_as_if_they_had_been_left_out(packed, tmp_path):
    steps = [1, 4, 5, 6, 11]
    skipped, left_out = tmp_path / "skipped", tmp_path / "left_out"
    output = finish(runs.command(packed, skipped, *AVERAGED), {"kind": "nan", "steps": steps})
    finish(runs.command(packed, left_out, *AVERAGED), {"kind": "left-out", "steps": steps})
    one, other = tensors(skipped, 12), tensors(left_out, 12)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert [r["step"] for r in told(skipped, "train") if r.get("skipped")] == steps
    assert "warning: the loss or the gradient was not finite at step 11" in output


@pytest.mark.slow
def test_a_fourth_ends_the_run_with_a_good_checkpoint_to_go_on_from(packed, tmp_path):
    place, whole = tmp_path / "run", tmp_path / "whole"
    words = runs.command(packed, place, *AVERAGED)
    output = finish(words, {"kind": "nan", "steps": [6, 7, 8, 9]}, code=4)
    error = output.splitlines()[-1]
    assert "not finite in 4 updates in a row, by step 9" in error
    assert "--on-divergence roll-back" in error
    assert all(tensor.isfinite().all() for tensor in tensors(place, 8).values())
    assert not (place / "checkpoints" / "step-00000009").exists()
    # What was left out stays so: the run goes on as one in which it was never tried.
    runs.finish([*words, "--resume"])
    finish(runs.command(packed, whole, *AVERAGED), {"kind": "left-out", "steps": [6, 7, 8]})
    one, other = tensors(place, 12), tensors(whole, 12)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_two_processes_agree_although_one_alone_has_bad_numbers(packed, tmp_path):
    place = tmp_path / "run"
    words = runs.command(packed, place, *AVERAGED, processes=2)
    finish(words, {"kind": "nan", "steps": [3, 4], "rank": 1})
    assert [r["step"] for r in told(place, "train") if r.get("skipped")] == [3, 4]
    assert all(tensor.isfinite().all() for tensor in tensors(place, 12).values())
    place = tmp_path / "stopped"
    words = runs.command(packed, place, *AVERAGED, processes=2)
    output = finish(words, {"kind": "nan", "steps": [5, 6, 7, 8], "rank": 1}, code=1)
    assert "not finite in 4 updates in a row, by step 8" in output
    assert max((place / "checkpoints").glob("step-*")).name == "step-00000006"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_learning_rate_that_is_far_too_high_is_found_and_nothing_bad_is_saved(
    packed, tmp_path, processes
):
    place = tmp_path / "run"
    words = runs.command(
        *(packed, place, "--lr", "3000", "--warmup-epochs", "0", "--schedule.name", "constant"),
        *("--optim.weight-decay", "0", "--storage.checkpoint-steps", "1"),
        processes=processes,
    )
    output = runs.finish(words, code=4 if processes == 1 else 1)
    assert "the loss exploded" in output or "not finite" in output
    saved = sorted((place / "checkpoints").glob("step-*"))
    found = int(told(place, "train")[-1]["step"])
    assert all(int(path.name[5:]) < found for path in saved)
