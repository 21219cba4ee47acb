"""Machines that are taken away: nothing that was trained is lost, and every process says so."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from contract import runs
from rn50.observe import record
from rn50.train import checkpoint
from servers import Metadata, metadata

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
INTERRUPTION = '{"action": "terminate", "time": "2031-11-21T16:20:00Z"}'
EC2 = ("--storage.spot-notices", "ec2")
BUDGET_S = 25
"""Google Cloud and Azure give 30 s."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "whole"
    runs.finish(runs.command(packed, place))
    return place


@pytest.fixture(scope="module")
def uninterrupted_pair(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "pair"
    runs.finish(runs.command(packed, place, processes=2))
    return place


def ends(processes: list[subprocess.Popen[str]], timeout_s: float) -> list[tuple[int, str]]:
    deadline = time.monotonic() + timeout_s
    try:
        outputs = [
            p.communicate(timeout=max(0.1, deadline - time.monotonic()))[0] for p in processes
        ]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


def wait_for_step(place: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while runs.steps_recorded(place) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def notices(place: Path) -> list[record.Record]:
    return [r for r in record.read(place / "metrics.jsonl") if r["kind"] == "notice"]


def assert_saved_at_the_notice(place: Path) -> None:
    saved, refused = checkpoint.newest(place)
    assert saved is not None
    assert not refused
    assert saved.snapshot.step == runs.steps_recorded(place) == notices(place)[-1]["step"]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_sigterm_to_one_of_two_processes_ends_both_with_33_in_time_and_loses_nothing(
    rank, packed, uninterrupted_pair, tmp_path
):
    words = runs.command(packed, tmp_path / "run", "--resume")
    processes = runs.begin_pair(words)
    wait_for_step(tmp_path / "run", 5)
    processes[rank].terminate()
    (first, output), (second, _) = ends(processes, BUDGET_S)
    assert (first, second) == (33, 33)
    assert re.search(r"notice: SIGTERM; saving after step \d+ and stopping with", output)
    assert notices(tmp_path / "run")[-1]["ranks"] == [rank]
    assert_saved_at_the_notice(tmp_path / "run")
    assert [code for code, _ in ends(runs.begin_pair(words), 200)] == [0, 0]
    runs.assert_same_end(uninterrupted_pair, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_an_interruption_told_to_one_of_two_machines_ends_both_with_33_in_time(
    rank, packed, uninterrupted_pair, tmp_path
):
    words = runs.command(packed, tmp_path / "run", *EC2, "--resume")
    with ExitStack() as stack:
        clouds: list[Metadata] = [stack.enter_context(metadata()) for _ in range(2)]
        urls = (clouds[0].url, clouds[1].url)
        clouds[rank].answers[ACTION] = INTERRUPTION
        processes = runs.begin_pair(words, urls)
        wait_for_step(tmp_path / "run", 1)
        (first, output), (second, other) = ends(processes, BUDGET_S)
        assert (first, second) == (33, 33)
        host = re.escape(socket.gethostname())
        assert re.search(
            rf"notice: EC2 will terminate {host} at 16:20:00 UTC, in \d+ s; sav", output
        )
        assert notices(tmp_path / "run")[-1]["ranks"] == [rank]
        assert_saved_at_the_notice(tmp_path / "run")
        assert clouds[rank].tokens
        assert not any(token in output + other for cloud in clouds for token in cloud.tokens)
        assert "secret" not in (tmp_path / "run" / "metrics.jsonl").read_text()
        del clouds[rank].answers[ACTION]
        assert [code for code, _ in ends(runs.begin_pair(words, urls), 200)] == [0, 0]
    runs.assert_same_end(uninterrupted_pair, tmp_path / "run")


def finish_beside(cloud: Metadata, words: list[str]) -> str:
    environment = {**runs.environment(), "RN50_METADATA_URL": cloud.url}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.long
def test_a_rebalance_recommendation_saves_and_the_run_goes_on_as_if_nothing_were(
    packed, uninterrupted, tmp_path
):
    words = runs.command(packed, tmp_path / "run", *EC2)
    with metadata({REBALANCE: '{"noticeTime": "2026-11-21T16:20:00Z"}'}) as cloud:
        output = finish_beside(cloud, words)
    assert re.search(r"raised risk of interruption since \S+; saving after step \d+ and g", output)
    (notice,) = notices(tmp_path / "run")
    records = record.read(tmp_path / "run" / "metrics.jsonl")
    assert notice["step"] in [r["step"] for r in records if r["kind"] == "checkpoint"]
    runs.assert_same_end(uninterrupted, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("fault", ["500", "garbage", "silent"])
def test_a_metadata_service_that_fails_disturbs_nothing(fault, packed, uninterrupted, tmp_path):
    words = runs.command(packed, tmp_path / "run", *EC2)
    with metadata() as cloud:
        match fault:
            case "500":
                cloud.statuses[ACTION] = 500
            case "garbage":
                cloud.answers[ACTION] = "<html>"
            case _:
                cloud.silent.add("/latest/api/token")
        finish_beside(cloud, words)
        assert cloud.requests
    assert notices(tmp_path / "run") == []
    runs.assert_same_end(uninterrupted, tmp_path / "run")


SIGNALS_WHILE_SAVING = """
import os, signal, sys, time
from rn50 import durable
from rn50.cli import main
from rn50.train.preempt import AGAIN_AFTER_S
write, saves = durable.write_bytes, 0
def signalled(path, data):
    global saves
    saves += path.name == "momentum.safetensors"
    if path.name == "momentum.safetensors" and saves == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(AGAIN_AFTER_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    write(path, data)
durable.write_bytes = signalled
main()
"""


@pytest.mark.long
def test_a_second_signal_in_the_middle_of_a_save_ends_at_once_and_harms_nothing(
    packed, uninterrupted, tmp_path
):
    words = runs.command(packed, tmp_path / "run", "--resume")
    at = words.index("-m")
    hurried = [*words[:at], "-c", SIGNALS_WHILE_SAVING, *words[at + 2 :]]
    start = time.monotonic()
    runs.finish(hurried, code=128 + signal.SIGTERM)
    assert time.monotonic() - start < 60
    saved, refused = checkpoint.newest(tmp_path / "run")
    assert saved is not None
    assert saved.snapshot.step == 4
    assert not refused
    runs.finish(words)
    runs.assert_same_end(uninterrupted, tmp_path / "run")


def workers(launcher: int) -> dict[int, int]:
    """Return the processes that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        rank = next((v for v in environment if v.startswith(b"RANK=")), None)
        if parent == launcher and rank is not None:
            found[int(rank[5:])] = int(folder.name)
    return found


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_run_again_whose_worker_was_killed_and_it_loses_nothing(
    rank, packed, uninterrupted_pair, tmp_path
):
    words = runs.command(packed, tmp_path / "run", "--resume", processes=2)
    words.insert(words.index("--standalone"), "--max-restarts=2")
    launcher = runs.begin(words)
    wait_for_step(tmp_path / "run", 10)  # the save at step 4 is through
    os.kill(workers(launcher.pid)[rank], signal.SIGKILL)
    assert launcher.wait(timeout=240) == 0
    kinds = [r["kind"] for r in record.read(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("resume") == 1
    runs.assert_same_end(uninterrupted_pair, tmp_path / "run")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_signalled_all_at_once_under_torchrun_a_run_saves_and_a_supervisor_is_told_33(
    packed, uninterrupted_pair, tmp_path
):
    words = runs.command(packed, tmp_path / "run", "--resume", processes=2)
    supervisor = runs.begin([sys.executable, "-m", "rn50", "supervise", "--", *words])
    wait_for_step(tmp_path / "run", 5)
    (launcher,) = children(supervisor.pid)
    for pid in (supervisor.pid, launcher, *workers(launcher).values()):
        os.kill(pid, signal.SIGTERM)
    assert supervisor.wait(timeout=60) == 33
    assert_saved_at_the_notice(tmp_path / "run")
    runs.finish(words)
    runs.assert_same_end(uninterrupted_pair, tmp_path / "run")


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
