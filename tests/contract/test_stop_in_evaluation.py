"""A stop in the middle of a pass at the end of an epoch, which may take longer than the notice."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from contract import runs
from rn50.observe import record

HOOK = str(Path(__file__).with_name("slow_evaluation.py"))
BUDGET_S = 25
PAUSE_S = 3
"""Before each of 36 validation images: no evaluation ends within the budget."""
SLOW_STATISTICS = str(Path(__file__).with_name("slow_statistics.py"))
STATISTICS_PAUSE_S = 2
"""Before each of 6 batches from which the SWA's statistics are estimated."""
SWA = (
    *("--swa-epochs", "1", "--average.swa-every-steps", "3", "--schedule.tail-epochs", "1"),
    *("--average.swa-bn-images", "96", "--warmup-epochs", "0"),
    *("--ema-horizon", "0", "--storage.checkpoint-steps", "0"),
)

pytestmark = pytest.mark.long


def command(packed: Path, place: Path, epochs: int, processes: int) -> list[str]:
    options = ("--ema-horizon", "0.1", "--epochs", str(epochs), "--warmup-epochs", "0", "--resume")
    return hooked(runs.command(packed, place, *options, processes=processes), HOOK)


def hooked(words: list[str], hook: str) -> list[str]:
    at = len(words) - words[::-1].index("rn50") - 2
    assert words[at : at + 2] == ["-m", "rn50"]
    return [*words[:at], hook, *words[at + 2 :]]


def environment(place: Path, pause_s: float) -> dict[str, str]:
    noted = {"RN50_TEST_EVALUATIONS": str(place), "RN50_TEST_PAUSE_S": str(pause_s)}
    return {**runs.environment(), **noted}


def finish(words: list[str], noted: Path) -> None:
    done = subprocess.run(
        words, env=environment(noted, 0), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


def stop_in_pass(words: list[str], noted: Path, pause_s: float = PAUSE_S) -> tuple[int, float]:
    """Signal a run in its first slow pass; return its exit code and the seconds it took to end."""
    before = len(noted.read_text().splitlines()) if noted.exists() else 0
    process = subprocess.Popen(
        words,
        env=environment(noted, pause_s),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not noted.exists() or len(noted.read_text().splitlines()) == before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=2 * BUDGET_S), time.monotonic() - start
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("epochs", "processes"),
    [
        (1, 1),
        (2, 1),
        (2, 2),
    ],
)
def test_a_stop_in_an_evaluation_is_in_time_and_the_evaluation_is_made_up_for(
    epochs, processes, packed, tmp_path
):
    whole, stopped, noted = tmp_path / "whole", tmp_path / "stopped", tmp_path / "noted"
    finish(command(packed, whole, epochs, processes), noted)
    words = command(packed, stopped, epochs, processes)
    for _ in range(epochs):  # the second time it begins with the evaluation that was left
        code, seconds = stop_in_pass(words, noted)
        # torchrun tells the end of its workers by a code of its own.
        assert code == (33 if processes == 1 else 1)
        assert seconds < BUDGET_S
        records = record.read(stopped / "metrics.jsonl")
        assert max(r["step"] for r in records) == 6
        assert not [r for r in records if r["kind"] == "epoch"]
        assert [p.name for p in (stopped / "checkpoints").glob("step-*6")] == ["step-00000006"]
    finish(words, noted)
    runs.assert_same_end(whole, stopped)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_in_the_swa_s_statistics_is_in_time_and_they_are_estimated_again(
    processes, packed, tmp_path
):
    whole, stopped, noted = tmp_path / "whole", tmp_path / "stopped", tmp_path / "noted"

    def words(place: Path) -> list[str]:
        options = (*SWA, "--epochs", "2", "--resume")
        return hooked(runs.command(packed, place, *options, processes=processes), SLOW_STATISTICS)

    finish(words(whole), noted)
    before = len(noted.read_text().splitlines())
    code, seconds = stop_in_pass(words(stopped), noted, STATISTICS_PAUSE_S)
    assert code == (33 if processes == 1 else 1)
    assert seconds < BUDGET_S
    batches = len(noted.read_text().splitlines()) - before
    assert batches <= 2 * processes < before
    records = record.read(stopped / "metrics.jsonl")
    assert max(r["step"] for r in records) == 12
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [1]
    finish(words(stopped), noted)
    runs.assert_same_end(whole, stopped)
