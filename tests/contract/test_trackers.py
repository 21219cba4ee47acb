"""Killed and resumed, a run has one history in every tracker: that of its record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract import runs

for library in ("tensorboard", "wandb", "trackio", "mlflow"):
    pytest.importorskip(library)

READER = Path(__file__).parents[1] / "observe" / "read_trackers.py"


def records_of(place, kind):
    lines = (place / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.slow
def test_a_run_killed_twice_has_every_step_once_in_every_tracker(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    place, store = tmp_path / "run", tmp_path / "mlruns"
    every = ("--tensorboard", "--wandb", "offline", "--trackio", "--mlflow", str(store))
    words = runs.command(
        packed, place, *every, "--log.project", "tests", "--log.histogram-epochs", "1", "--resume"
    )
    for step in (7, 15):
        runs.kill_at(words, place, step)
    runs.finish(words)

    done = subprocess.run(
        [sys.executable, "-W", "ignore", READER, place, store],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    windows, epochs = records_of(place, "train"), records_of(place, "epoch")
    assert [record["step"] for record in windows] == list(range(1, 19))
    assert len(records_of(place, "resume")) >= 1
    for name, shown in json.loads(done.stdout).items():
        assert len(shown) == 1, name
        values = shown[0]["values"]
        expected = [[r["step"], pytest.approx(r["loss"])] for r in windows]
        assert values["train/loss"] == expected, name
        expected = [[r["step"], pytest.approx(r["val"]["model"]["top1"])] for r in epochs]
        assert values["val_model/top1"] == expected, name
        assert [step for step, _ in values["schedule/lr"]] == list(range(1, 19)), name
        if name == "TensorBoard":
            assert shown[0]["pictures"] == {"augmented": [[0, 134, 134]]}
            histograms = shown[0]["histograms"]["weights/fc.weight"]
            assert [step for step, _ in histograms] == [6, 12, 18]
        if name == "W&B":
            assert values["augmented/_type"] == [[0, "image-file"]]
            assert shown[0]["artifacts"] == [["model", ["best", "latest"]]]
            assert [step for step, _ in values["weights/fc.weight/values"]] == [6, 12, 18]


@pytest.mark.long
def test_a_run_resumed_where_a_tracker_is_not_installed_goes_on_without(packed, tmp_path):
    place = tmp_path / "run"
    words = runs.command(packed, place, "--epochs", "2", "--tensorboard", "--resume")
    at = words.index("-m")
    there = [*words[:at], str(Path(__file__).with_name("without_tensorboard.py")), *words[at + 2 :]]
    refused = runs.finish(there, code=2)  # a new run
    assert "the package tensorboard is not installed" in refused
    runs.kill_at(words, place, 9)
    runs.finish(there)
    told = [record["message"] for record in records_of(place, "warning")]
    assert any("not installed" in text and "the run goes on without" in text for text in told)
    assert records_of(place, "train")[-1]["step"] == 12
