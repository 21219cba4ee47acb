"""What a run needs of a machine, and what it says of one that fails under it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract import runs
from rn50.data.shards import PackedDataset

ONE_EPOCH = ("--epochs", "1", "--warmup-epochs", "0")


def in_a_namespace(setup: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with mounts of its own; skip where the rights are lacking."""
    shell = ["unshare", "--mount", "sh", "-ec", f'{setup}; exec "$@"', "sh", *words]
    try:
        probe = subprocess.run([*shell[:4], f"{setup}"], capture_output=True)
    except FileNotFoundError:
        probe = None
    if probe is None or probe.returncode:
        pytest.skip("mounts of its own cannot be had here")
    return subprocess.run(
        shell, env=runs.environment(), capture_output=True, text=True, timeout=240
    )


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_no_shared_memory_is_needed(packed, tmp_path, processes):
    words = runs.command(packed, tmp_path / "run", *ONE_EPOCH, processes=processes)
    done = in_a_namespace("mount -t tmpfs -o size=4k,ro tmpfs /dev/shm", words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_data_and_cache_that_cannot_be_written_are_read(packed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(packed, data)
    (tmp_path / "cache").mkdir()
    locked = " && ".join(
        f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
        for place in (data, tmp_path / "cache")
    )
    words = runs.command(data, tmp_path / "run", *ONE_EPOCH)
    done = in_a_namespace(f"{locked} && export RN50_CACHE={tmp_path / 'cache'}", words)
    assert done.returncode == 0, done.stdout + done.stderr
    (start,) = (
        record
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["kind"] == "start"
    )
    assert start["decoder"] != "native", "it had to be compiled into the cache"


def test_demo_data_that_cannot_be_cached_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "rn50", "train", "--output-dir", str(tmp_path / "run")],
        env=runs.environment() | {"RN50_CACHE": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "name another in RN50_CACHE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_data_folder_on_a_disk_that_was_emptied_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "gone", tmp_path / "empty"):
        output = runs.finish(runs.command(place, tmp_path / "run"), code=3)
        assert "instance store) is empty after a stop" in output
        assert "mount it, or copy the folder there again" in output


@pytest.mark.long
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_shard_cut_short_under_a_run_ends_it_by_an_error_and_not_by_a_signal(
    packed, tmp_path, policy
):
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    place = tmp_path / "run"
    more = ("--epochs", "400", "--on-bad-image", policy, "--storage.max-bad-images", "1")
    process = subprocess.Popen(
        runs.command(data, place, *more),
        env=runs.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while runs.steps_recorded(place) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shard = PackedDataset.open(data).manifest["splits"]["train"]["shards"][0]["file"]
        os.truncate(data / shard, 5000)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3, told
    error = told.splitlines()[-1]
    assert f"{shard} now ends at byte 5000" in error
    assert "run the same command with --resume" in error


@pytest.mark.long
def test_a_data_folder_that_is_removed_under_a_run_is_read_to_the_end(packed, tmp_path):
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    place = tmp_path / "run"
    process = runs.begin(runs.command(data, place, *ONE_EPOCH))
    deadline = time.monotonic() + 120
    while runs.steps_recorded(place) < 1 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shutil.rmtree(data)
    assert process.wait(timeout=120) == 0
