import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contract import runs
from rn50.observe import record


def without_batch_norm(words: list[str]) -> list[str]:
    at = len(words) - 1 - words[::-1].index("rn50")
    return [*words[: at - 1], str(Path(__file__).with_name("bn_free.py")), *words[at + 1 :]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "split"),
    [
        pytest.param(2, (), marks=pytest.mark.long),
        pytest.param(1, ("--micro-batch", "4"), marks=pytest.mark.long),
        (2, ("--micro-batch", "4")),
    ],
)
def test_two_processes_and_micro_batches_train_what_one_process_trains(
    processes, split, packed, tmp_path
):
    places = {}
    for name, count, more in (("one", 1, ()), ("other", processes, split)):
        places[name] = tmp_path / name
        sharpness = ("--optim.sam-rho", "0.05", "--optim.sam-every", "3")
        more = ("--epochs", "2", "--ema-horizon", "0.1", *sharpness, *more)
        words = runs.command(packed, places[name], *more, processes=count)
        runs.finish(without_batch_norm(words))
    weights = {
        name: safetensors.torch.load_file(place / "average.safetensors")
        for name, place in places.items()
    }
    histories = {name: record.read(place / "metrics.jsonl") for name, place in places.items()}
    told = {
        name: [(r["step"], r["lr"], r["loss"], r["top1"]) for r in records if r["kind"] == "train"]
        for name, records in histories.items()
    }
    scores = {
        name: [r["val"]["model"] for r in records if r["kind"] == "epoch"]
        for name, records in histories.items()
    }
    assert all(s["images"] == 36 for s in scores["one"])
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["other"][key], value, rtol=2e-4, atol=1e-6)
    for mine, theirs in zip(told["one"], told["other"], strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2:] == pytest.approx(theirs[2:], abs=2e-4)
    for mine, theirs in zip(scores["one"], scores["other"], strict=True):
        assert (mine["images"], mine["top1"]) == (theirs["images"], theirs["top1"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


@pytest.mark.long
def test_two_processes_killed_in_mid_epoch_resume_bit_identically(packed, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--epochs", "2", "--ema-horizon", "0.1")
    runs.finish(runs.command(packed, whole, *more, processes=2))
    words = runs.command(packed, killed, *more, "--resume", processes=2)
    runs.kill_at(words, killed, 5, signal.SIGKILL)
    runs.finish(words)
    runs.assert_same_end(whole, killed)


def test_a_batch_that_processes_cannot_share_is_refused(packed, tmp_path):
    words = runs.command(packed, tmp_path / "run", "--batch-size", "15", processes=2)
    output = runs.finish(words, code=1)
    assert "images.batch_size is 15, which 2 processes cannot share" in output


@pytest.mark.long
def test_workers_whose_torchrun_was_killed_save_and_end(packed, tmp_path):
    whole, place = tmp_path / "whole", tmp_path / "orphaned"
    more = ("--epochs", "2")
    runs.finish(runs.command(packed, whole, *more, processes=2))
    words = runs.command(packed, place, *more, "--resume", processes=2)
    launcher = runs.begin(words)
    while runs.steps_recorded(place) < 5 and launcher.poll() is None:
        time.sleep(0.01)
    workers = runs.descendants(launcher.pid)[1:]
    launcher.kill()
    launcher.wait()
    runs.finish(words)  # waits for them
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    records = record.read(place / "metrics.jsonl")
    assert "the end of torchrun" in next(r["source"] for r in records if r["kind"] == "notice")
    runs.assert_same_end(whole, place)


@pytest.mark.long
def test_machines_need_not_see_each_other_s_folders(packed, tmp_path):
    """The first process's folder is the run's; the others are given what they go on from."""
    whole = tmp_path / "whole"
    more = ("--epochs", "2", "--ema-horizon", "0.1", "--resume")
    runs.finish(runs.command(packed, whole, *more, processes=2))
    machines = [tmp_path / "machine-0", tmp_path / "machine-1"]
    words = runs.command(packed, Path("run"), *more)
    for machine in machines:
        machine.mkdir()
    pair = runs.begin_pair(words, folders=machines)
    while runs.steps_recorded(machines[0] / "run") < 8 and pair[0].poll() is None:
        time.sleep(0.01)
    for process in pair:
        process.kill()
        process.communicate()
    pair = runs.begin_pair(words, folders=machines)
    outputs = [process.communicate(timeout=200)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "resumed at step" in outputs[0]
    runs.assert_same_end(whole, machines[0] / "run")
    assert not (machines[1] / "run").exists()
