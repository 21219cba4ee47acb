"""No outage stops a mirrored run, and an empty machine goes on from what is durable."""

import os
import shutil
import signal
import time

import pytest

from contract import runs
from rn50.observe import record
from rn50.train.remote_run import open_run
from servers import credentials, empty_bucket, s3_store, store_environment, wired

URL = "s3://runs/one"
SAVING = (
    "--storage.checkpoint-steps",
    "5",
    "--storage.checkpoint-epochs",
    "0",
    "--ema-horizon",
    "0",
)


@pytest.fixture
def wire(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_") or "_proxy" in name]:
        monkeypatch.delenv(name)
    with s3_store() as store, wired(store) as wire:
        for name, value in store_environment(tmp_path, wire.url).items():
            monkeypatch.setenv(name, value)
        (tmp_path / "credentials").write_text(credentials("first"))
        empty_bucket("runs")
        yield wire


def reaches(condition, process):
    """Wait until something holds while a run goes on."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_killed_in_an_outage_and_wiped_ends_bit_identical_on_an_empty_machine(
    packed, wire, tmp_path
):
    whole, place = tmp_path / "whole", tmp_path / "mirrored"
    runs.finish(runs.command(packed, whole, *SAVING))
    words = runs.command(packed, place, *SAVING, "--mirror", URL, "--resume")

    process = runs.begin(words)
    reaches(lambda: any("LATEST" in path for path in wire.sent), process)
    down = (503, "SlowDown")
    wire.refuse = lambda method, path: down
    reached = runs.steps_recorded(place)
    reaches(lambda: runs.steps_recorded(place) >= min(reached + 5, 18), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(place)

    told = runs.finish(words, code=33)
    assert "nothing is known yet of where to resume from" in told
    wire.refuse = lambda method, path: None
    durable = open_run(URL).steps()
    told = runs.finish(words)
    assert f"fetched the checkpoint of step {durable[0]} from {URL}" in told
    assert durable[0] < 18
    runs.assert_same_end(whole, place)

    shutil.rmtree(place)
    assert "is finished; nothing is left to do" in runs.finish(words)
    runs.assert_same_end(whole, place)
    names = {path.name for path in place.iterdir()}
    assert {"train.log", "training_log.md", "model.safetensors", "loss.png"} <= names


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_ends_in_an_outage_exits_33_and_sends_the_rest_when_it_is_run_again(
    packed, wire, tmp_path
):
    place = tmp_path / "run"
    words = runs.command(packed, place, "--epochs", "2", *SAVING, "--mirror", URL, "--resume")
    process = runs.begin(words)
    reaches(lambda: any("LATEST" in path for path in wire.sent), process)
    wire.refuse = lambda method, path: (503, "SlowDown")
    last = place / "checkpoints" / "step-00000012" / "manifest.json"
    reaches(last.exists, process)
    reaches(lambda: record.read(place / record.FILE_NAME)[-1]["kind"] == "end", process)
    process.send_signal(signal.SIGTERM)  # or it would wait ten minutes
    assert process.wait(timeout=60) == 33
    wire.refuse = lambda method, path: None
    assert "is finished" in runs.finish(words)
    assert open_run(URL).steps()[0] == 12
    assert open_run(URL).folder.read(record.FILE_NAME) == (place / record.FILE_NAME).read_bytes()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_processes_asked_to_stop_leave_their_last_checkpoint_at_the_mirror(packed, tmp_path):
    place, mirror = tmp_path / "run", tmp_path / "mirror"
    words = runs.command(packed, place, "--mirror", str(mirror), "--resume", processes=2)
    start = time.monotonic()
    assert runs.kill_at(words, place, 5, signal.SIGTERM) != 0
    assert time.monotonic() - start < 100
    reached = runs.steps_recorded(place)
    assert open_run(str(mirror)).steps()[0] == reached
    shutil.rmtree(place)
    runs.finish(words)
    assert open_run(str(mirror)).steps()[0] == 18
