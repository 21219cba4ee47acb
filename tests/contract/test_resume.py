import json
import random
import signal
from pathlib import Path

import pytest

from contract import runs

SEED = random.SystemRandom().randrange(10**6)


@pytest.fixture(scope="module")
def uninterrupted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "whole"
    runs.finish(runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED))
    return place


@pytest.mark.slow
def test_a_run_killed_at_random_steps_ends_bit_identical_to_an_uninterrupted_one(
    packed, uninterrupted, tmp_path
):
    place = tmp_path / "killed"
    words = runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED, "--resume")
    steps = sorted(random.Random(SEED).sample(range(4, 18), 2))
    for step in steps:
        assert runs.kill_at(words, place, step) == -signal.SIGKILL, f"seed {SEED}: {steps}"
    runs.finish(words)
    runs.assert_same_end(uninterrupted, place)


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_exits_33_and_resumes_bit_identically(
    packed, uninterrupted, tmp_path
):
    place = tmp_path / "stopped"
    words = runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED, "--resume")
    assert runs.kill_at(words, place, 7, signal.SIGTERM) == 33
    reached = runs.steps_recorded(place)
    assert (place / "checkpoints" / f"step-{reached:08d}" / "manifest.json").exists()
    runs.finish(words)
    runs.assert_same_end(uninterrupted, place)


@pytest.mark.long
def test_lamb_sam_onecycle_and_growing_images_resume_bit_identically_between_their_phases(
    packed, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = (
        *("--epochs", "2", "--warmup-epochs", "0", "--optimizer", "lamb", "--lr", "0.005"),
        *("--loss", "bce", "--lr-schedule", "onecycle", "--schedule.cycle-momentum", "0.85"),
        *("0.95", "--optim.sam-rho", "0.05", "--optim.sam-every", "3", "--micro-batch", "12"),
        *("--train-px", "64", "--images.sizes", "0", "32", "1", "64"),
    )
    runs.finish(runs.command(packed, whole, *more))
    words = runs.command(packed, killed, *more, "--resume")
    assert runs.kill_at(words, killed, 5) == -signal.SIGKILL
    runs.finish(words)
    runs.assert_same_end(whole, killed)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [r["px"] for r in records if r["kind"] == "train"] == [32] * 6 + [64] * 6


@pytest.mark.long
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    packed, uninterrupted, tmp_path
):
    place = tmp_path / "damaged"
    words = runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED, "--resume")
    runs.kill_at(words, place, 11)  # of the saves at 4 and 8 both are through
    newest = sorted((place / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    output = runs.finish(words)
    assert "passed over" in output
    assert "was altered" in output
    runs.assert_same_end(uninterrupted, place)


@pytest.mark.slow
def test_workers_do_not_change_what_is_trained(packed, uninterrupted, tmp_path):
    place = tmp_path / "workers"
    runs.finish(runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED, "--workers", "5"))
    runs.assert_same_end(uninterrupted, place)


def test_a_finished_run_resumed_says_so(packed, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    words = runs.command(packed, uninterrupted, *runs.AVERAGED_AND_ACCUMULATED, "--resume")
    assert "finished" in runs.finish(words)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_changed_setting_is_refused_with_a_diff_unless_it_is_named(
    packed, uninterrupted, tmp_path
):
    more = (*runs.AVERAGED_AND_ACCUMULATED, "--resume", "--lr", "0.07")
    output = runs.finish(runs.command(packed, uninterrupted, *more), code=2)
    assert "optim.peak_lr: 0.05 -> 0.07" in output
    assert "--allow-change optim.peak_lr" in output
    allowed = (*more, "--allow-change", "optim.peak_lr")
    assert "finished" in runs.finish(runs.command(packed, uninterrupted, *allowed))


def test_the_history_tells_every_epoch_once(uninterrupted):
    history = json.loads((uninterrupted / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_tells_of_its_end_when_resumed(
    packed, uninterrupted, tmp_path
):
    place = tmp_path / "run"
    words = runs.command(packed, place, *runs.AVERAGED_AND_ACCUMULATED, "--resume")
    at = words.index("-m")
    hook = str(Path(__file__).with_name("killed_at_its_end.py"))
    runs.finish([*words[:at], hook, *words[at + 2 :]], code=-9)
    assert "nothing is left to do" not in runs.finish(words)
    runs.assert_same_end(uninterrupted, place)
    assert "nothing is left to do" in runs.finish(words)
    runs.assert_same_end(uninterrupted, place)
