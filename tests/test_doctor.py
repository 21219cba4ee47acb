import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rn50 import doctor
from rn50.cli import main
from rn50.data import cache, decode
from rn50.doctor import Finding
from rn50.errors import UsageError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_the_command_tells_of_everything_in_a_table(capsys):
    main(["doctor"])
    told = capsys.readouterr().out
    subjects = ("versions", "cores", "memory", "/dev/shm", "open files", "working folder")
    for subject in (*subjects, "cache folder", "decoder", "extra s3"):
        assert f" {subject} " in told
    assert decode.decoder_name() in told


def test_the_command_tells_the_same_as_json(capsys):
    main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["can_train"] is True
    assert [one["subject"] for one in told["findings"]] == [f.subject for f in doctor.examine()]
    for one in told["findings"]:
        assert one["verdict"] in ("ok", "note", "problem")
        assert bool(one["advice"]) == (one["verdict"] != "ok")
        assert one["found"]


def test_what_makes_training_impossible_exits_2_and_what_does_not_exits_0():
    note = Finding("memory", "1 GB", "problem", "end other programs")
    doctor.refuse_impossible([note])
    fatal = Finding("GPU 0", "Tesla K80", "problem", "train with --device cpu", fatal=True)
    with pytest.raises(UsageError, match=r"GPU 0: Tesla K80: train with --device cpu") as refused:
        doctor.refuse_impossible([note, fatal])
    assert refused.value.exit_code == 2
    assert doctor.to_json([note, fatal])["can_train"] is False
    assert doctor.to_json([note])["can_train"] is True


def test_a_package_that_does_not_load_is_told_in_one_line(tmp_path):
    (tmp_path / "torch").mkdir()
    broken = "raise ImportError('libcudart.so: cannot open shared object file')"
    (tmp_path / "torch" / "__init__.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, "-m", "rn50", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rn50: error: this machine cannot train as it is: ")
    assert "libcudart.so" in done.stderr
    assert "pip install --force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_extra_of_the_package_is_told_of():
    assert set(doctor.EXTRAS) == set(PROJECT["optional-dependencies"])


def test_an_extra_that_is_missing_is_a_note_with_the_command(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "s3", ("no_such_module", "object storage"))
    found = {one.subject: one for one in doctor.extras()}
    assert found["extra s3"].verdict == "note"
    assert "pip install 'rn50[s3]'" in found["extra s3"].advice


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((3, 7), ["sm_50", "sm_60", "compute_90"], False),
        ((10, 0), ["sm_90", "sm_100"], True),
        ((12, 0), ["sm_90a", "sm_120"], True),
        ((7, 5), ["sm_75"], True),
    ],
)
def test_a_gpu_runs_what_torch_was_built_for(capability, built_for, runs):
    assert doctor.runs_on(capability, built_for) is runs


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container_on_cores_is_found(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor.cpu_limit(tmp_path) == limit


def test_a_limit_below_the_cores_is_a_note_with_the_number_of_workers():
    assert doctor.cores(8, 16, None).verdict == "ok"
    assert doctor.cores(8, 16, 8.0).verdict == "ok"
    found = doctor.cores(8, 16, 2.5)
    assert found.verdict == "note"
    assert "grants 2.5" in found.found
    assert "--workers 2" in found.advice


def test_the_limit_of_a_container_on_memory_is_found(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  64000000 kB\nMemFree:  1 kB\nMemAvailable:  48000000 kB\n")
    assert doctor.memory_bytes(tmp_path, meminfo) == (49_152_000_000, 65_536_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory_bytes(tmp_path, meminfo) == (49_152_000_000, 65_536_000_000)
    (tmp_path / "memory.max").write_text("2000000000\n")
    assert doctor.memory_bytes(tmp_path, meminfo) == (2_000_000_000, 2_000_000_000)


def test_too_little_memory_is_a_problem():
    assert doctor.memory(8 * 10**9, 16 * 10**9).verdict == "ok"
    assert doctor.memory(None, 16 * 10**9).verdict == "ok"
    assert doctor.memory(None, None).verdict == "note"
    found = doctor.memory(1 * 10**9, 16 * 10**9)
    assert (found.verdict, found.found) == ("problem", "1.0 GB usable of 16.0 GB")


def test_small_shared_memory_matters_only_to_several_gpus(tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        assert doctor.shared_memory(tmp_path, 0).verdict == "ok"
        assert doctor.shared_memory(tmp_path, 1).verdict == "ok"
        found = doctor.shared_memory(tmp_path, 8)
        assert (found.verdict, found.found) == ("problem", "0.07 GB")
        assert "--shm-size" in found.advice
        room = doctor.place("cache folder", tmp_path / "new", "name another one")
        assert room.verdict == "problem"
        assert "make room, or name another one" in room.advice
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_one_it_would_be_made_in(tmp_path):
    found = doctor.place("cache folder", tmp_path / "a" / "b", "name another one")
    assert found.verdict in ("ok", "problem")
    assert "GB free" in found.found
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_problem_with_a_way_out():
    if sys.platform != "linux":
        pytest.skip("needs a folder that nobody can write to")
    found = doctor.place("cache folder", Path("/proc/self/rn50"), "name another one")
    assert found.verdict == "problem"
    assert "cannot be written" in found.found
    assert "name another one" in found.advice


def test_the_cache_folder_is_the_one_that_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    found = {one.subject: one.found for one in doctor.examine()}
    assert str(tmp_path / "elsewhere") in found["cache folder"]
