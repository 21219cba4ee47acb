"""What is told of a run that was killed, or that spans machines."""

import signal
import socket
import subprocess
import time

import pytest

from contract import runs
from rn50.observe import record
from rn50.observe.cost import Cost

SHORT = ("--epochs", "2", "--price-per-hour")


@pytest.mark.slow
def test_a_killed_run_pays_for_its_lost_steps_once_and_each_hour_at_its_price(packed, tmp_path):
    place, began = tmp_path / "killed", time.monotonic()
    words = runs.command(packed, place, *SHORT, "360", "--resume")
    assert runs.kill_at(words, place, 7) == -signal.SIGKILL
    lost = record.read(place / "metrics.jsonl")
    runs.finish(runs.command(packed, place, *SHORT, "720", "--resume"))
    most_s = time.monotonic() - began

    records = record.read(place / "metrics.jsonl")
    (resumed,) = (r for r in records if r["kind"] == "resume")
    before_s = max(r["timing"]["elapsed_s"] for r in lost if "timing" in r)
    last_s = max(
        r["timing"]["elapsed_s"] for r in records[records.index(resumed) :] if "timing" in r
    )
    assert resumed["timing"]["spent_s"] == before_s
    assert max(r["step"] for r in lost) >= resumed["step"]
    cost = Cost.of(records)
    assert cost.seconds == pytest.approx(before_s + last_s)
    assert cost.dollars == pytest.approx((before_s * 360 + last_s * 720) / 3600, abs=1e-4)
    worked_s = sum(r["timing"]["seconds"] for r in records if r["kind"] == "train")
    assert worked_s < cost.seconds < most_s
    steps = [r["step"] for r in records if r["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert (
        f"finished at step 12 after {record.duration(cost.seconds)}, $"
        in (place / "train.log").read_text().splitlines()[-1]
    )


@pytest.mark.long
def test_the_first_process_of_every_machine_shows_the_run_and_one_records_it(packed, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = runs.command(packed, tmp_path / "run", "--epochs", "1", "--warmup-epochs", "0")
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    one_process = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    machines = [
        subprocess.Popen(
            words,
            env={**runs.environment(), **group, **one_process, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert "epoch 1/1" in told[0]
    assert "[node" not in told[0]
    lines = told[1].splitlines()
    assert all(line.startswith("[node 1] ") for line in lines)
    for what in ("demo: 1 epochs of 6 steps", "epoch 1/1  train loss", "finished at step 6"):
        assert sum(what in line for line in lines) == 1
    records = record.read(tmp_path / "run" / "metrics.jsonl")
    assert [r["kind"] for r in records].count("epoch") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
