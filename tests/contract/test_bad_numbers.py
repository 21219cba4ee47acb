"""Point 8 of what a run promises: numbers that are not finite, and losses that explode."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contract import runs
from rn50.observe import record

ROLL_BACK = ("--on-divergence", "roll-back")
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_run_that_rolls_back_goes_on_with_other_draws_and_resumes_bit_identically(
    packed, tmp_path
):
    faults = {"kind": "nan", "steps": [8, 9, 10, 11]}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = finish(runs.command(packed, whole, *AVERAGED, *ROLL_BACK), faults)
    (back,) = told(whole, "rollback")
    # Found by the report after step 11, of a row of four: 8 is not from before that, 6 is.
    assert (back["step"], back["detour"]) == (6, 1)
    assert "rolled back to step 6 and going on with other draws, for time 1 of at most 2" in output
    records = told(whole, "train")
    assert [r["step"] for r in records] == list(range(1, 13))
    assert not any(r.get("skipped") for r in records)

    words = runs.command(packed, killed, *AVERAGED, *ROLL_BACK, "--resume")
    environment = {**runs.environment(), "FAULTS": json.dumps(faults)}
    for last in (7, 10):
        process = subprocess.Popen(faulty(words), env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not _is_back_at(killed, last):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finish(words, faults)
    runs.assert_same_end(whole, killed)

    clean = tmp_path / "clean"
    runs.finish(runs.command(packed, clean, *AVERAGED))
    losses = [[r["loss"] for r in told(place, "train")] for place in (whole, clean)]
    assert losses[0][:6] == losses[1][:6]
    assert not set(losses[0][6:]) & set(losses[1][6:])


def _is_back_at(place: Path, step: int) -> bool:
    if not (place / "metrics.jsonl").exists():
        return False
    records = record.read(place / "metrics.jsonl")
    kinds = {r["kind"] for r in records}
    return "rollback" in kinds and max(r["step"] for r in records) >= step


@pytest.mark.long
def test_processes_roll_back_together_and_stop_when_it_was_often_enough(packed, tmp_path):
    place = tmp_path / "run"
    faults = {"kind": "nan", "steps": [8, 9, 10, 11], "rank": 1, "detours": 2}
    finish(runs.command(packed, place, *AVERAGED, *ROLL_BACK, processes=2), faults)
    assert [(r["step"], r["detour"]) for r in told(place, "rollback")] == [(6, 1), (6, 2)]
    assert [r["step"] for r in told(place, "train")] == list(range(1, 13))
    place = tmp_path / "again"
    words = runs.command(packed, place, *AVERAGED, *ROLL_BACK, "--guard.max-rollbacks", "1")
    output = finish(words, faults | {"rank": None}, code=4)
    assert "(it has rolled back 1 times; guard.max_rollbacks allows 1)" in output
    assert max((place / "checkpoints").glob("step-*")).name == "step-00000008"


@pytest.mark.long
def test_a_loss_that_explodes_is_gone_back_from_and_never_saved(packed, tmp_path):
    place = tmp_path / "run"
    more = ("--epochs", "4", "--storage.keep-checkpoints", "9", *ROLL_BACK)
    faults = {"kind": "explode", "steps": [23]}
    output = finish(runs.command(packed, place, *more, "--mirror", str(tmp_path / "there")), faults)
    (back,) = told(place, "rollback")
    assert back["step"] == 12
    assert "the loss exploded to" in back["message"]
    assert "the loss exploded to" in output
    assert max(r["loss"] for r in told(place, "train")) < 10
    state = json.loads((place / "checkpoints" / "step-00000024" / "state.json").read_text())
    assert state["trouble"]["detour"] == 1


@pytest.mark.long
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
