"""The real libraries are fed by the real process, and read with the libraries' own readers."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from rn50 import config
from rn50.config import Log, Storage
from rn50.errors import UsageError
from rn50.observe import trackers
from rn50.observe.record import Observers, Recorder
from rn50.observe.trackers import feed, identity, sink
from rn50.observe.trackers.rows import Row, Rows, scalars
from rn50.recipes import recipe

for library in ("tensorboard", "wandb", "trackio", "mlflow"):
    pytest.importorskip(library)

READER = Path(__file__).with_name("read_trackers.py")
PROJECT = "tests"
PER_EPOCH = 3


def train(step, loss=None):
    timing = {"seconds": 1.0, "images_per_second": 104.0, "data_wait": 0.02, "slowest_s": 0.5}
    scores = {"loss": 1 / step if loss is None else loss, "top1": None}
    record = {"kind": "train", "step": step, "epoch": step / PER_EPOCH, **scores}
    return {**record, "lr": 0.05, "px": 64, "timing": timing}


def epoch(step):
    scores = {"loss": 1.5, "top1": step / 100, "top5": 0.75, "images": 600}
    record = {"kind": "epoch", "step": step, "epoch": step // PER_EPOCH, "train_loss": 2.0}
    timing = {"seconds": 12.0, "images_per_second": 104.0, "data_wait": 0.0, "eval_seconds": 2.0}
    return {**record, "lr": 0.05, "px": 64, "val": {"model": scores}, "timing": timing}


def weights_of(step):
    counts = {"low": -1.0, "high": 1.0, "counts": [1, 2, 3, 4]}
    return {"kind": "histograms", "step": step, "weights": {"fc.weight": counts}}


def told(first, last, loss=None):
    """What a run records from one step to another."""
    for step in range(first, last + 1):
        yield train(step, loss)
        if step % PER_EPOCH == 0:
            yield weights_of(step)
            yield epoch(step)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Where MLflow and trackio keep what they are given."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(place / "trackio"))
        yield place


def settings(stores, **more):
    every = {"tensorboard": True, "wandb": "offline", "trackio": True}
    return Log(**{**every, "mlflow": str(stores / "mlruns"), "project": PROJECT, **more})


def begin(place, log, *, resumed_at=None, detour=0, lr=0.1):
    """Begin as a training does, and return who is to be told, and who feeds the trackers."""
    place.mkdir(exist_ok=True)
    run = recipe("demo")
    run = dataclasses.replace(run, log=log, optim=dataclasses.replace(run.optim, peak_lr=lr))
    (place / "config.json").write_text(json.dumps(config.to_dict(run)))
    path = place / "metrics.jsonl"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if resumed_at else []
    observers = Observers(Recorder(path, keep_through_step=resumed_at))
    first = {"kind": "resume" if resumed_at else "start", "step": resumed_at or 0, "detour": detour}
    fed = trackers.begin(place, run, first, earlier, observers.write)
    if fed is not None:
        observers.add(fed)
    observers.write(first)
    return observers, fed


def killed(fed):
    """Kill -9 the process and all that it began, as when a machine dies."""
    os.killpg(fed._process.pid, signal.SIGKILL)
    fed._process.wait()


def read(place, stores):
    words = [sys.executable, "-W", "ignore", READER, place, stores / "mlruns"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until_delivered(place, step):
    """Wait until TensorBoard has a step; the others have something by then, or not."""
    position = place / "tensorboard" / "last-step"
    deadline = time.monotonic() + 60
    while not (position.exists() and position.read_text() == f"{step}\n"):
        assert time.monotonic() < deadline, (place / "trackers.log").read_text()
        time.sleep(0.05)


def warnings_of(place):
    lines = (place / "metrics.jsonl").read_text().splitlines()
    return [r["message"] for r in map(json.loads, lines) if r["kind"] == "warning"]


@pytest.mark.slow
def test_every_tracker_shows_values_settings_pictures_histograms_and_the_best_weights(
    tmp_path, stores
):
    place = tmp_path / "run-a"
    observers, _ = begin(place, settings(stores))
    Image.effect_noise((40, 30), 50).convert("RGB").save(place / "augmented.png")
    (place / "model.safetensors").write_bytes(b"worse")
    (place / "average.safetensors").write_bytes(b"better")
    observers.write({"kind": "images", "step": 0, "file": "augmented.png"})
    for record in told(1, 7):
        observers.write(record)
    observers.write({"kind": "end", "step": 7})
    observers.close()
    assert warnings_of(place) == []
    found = read(place, stores)
    for name, runs in found.items():
        (run,) = runs
        values = run["values"]
        losses = [[step, pytest.approx(1 / step)] for step in range(1, 8)]
        assert values["train/loss"] == losses, name
        assert values["val_model/top1"] == [[3, pytest.approx(0.03)], [6, pytest.approx(0.06)]]
        assert values["speed/slowest_step_seconds"][0] == [1, 0.5]
        assert "train/top1" not in values
        assert str(run["hparams"]["model.arch"]) == "resnet50"
    board, wandb, trackio, mlflow = (runs[0] for runs in found.values())
    assert board["pictures"] == {"augmented": [[0, 40, 30]]}
    assert board["histograms"] == {"weights/fc.weight": [[3, 10.0], [6, 10.0]]}
    assert board["hparams"]["optim.peak_lr"] == 0.1
    assert wandb["values"]["augmented/_type"] == [[0, "image-file"]]
    assert wandb["values"]["weights/fc.weight/values"] == [[3, [1, 2, 3, 4]], [6, [1, 2, 3, 4]]]
    assert wandb["artifacts"] == [["model", ["best", "latest"]]]
    assert (wandb["name"], wandb["project"], wandb["exits"]) == ("run-a", PROJECT, 1)
    assert trackio["values"]["augmented"][0][1]["_type"] == "trackio.image"
    assert trackio["values"]["weights/fc.weight"][0][1]["values"] == [1, 2, 3, 4]
    assert mlflow["pictures"] == ["augmented.png"]
    assert (mlflow["name"], mlflow["status"]) == ("run-a", "FINISHED")


@pytest.mark.slow
def test_killed_and_resumed_each_tracker_has_every_step_once(tmp_path, stores):
    place = tmp_path / "run-b"
    observers, fed = begin(place, settings(stores))
    for record in told(1, 5):
        observers.write(record)
    until_delivered(place, 5)
    killed(fed)
    observers.close()
    assert "ended with code -9" in warnings_of(place)[0]
    # What is done again, of which some was delivered, and some was still on its way.
    observers, fed = begin(place, settings(stores), resumed_at=3)
    for record in told(4, 8):
        observers.write(record)
    until_delivered(place, 8)
    time.sleep(1)
    killed(fed)
    observers.close()
    observers, fed = begin(place, settings(stores), resumed_at=8)
    for record in (*told(9, 9), {"kind": "end", "step": 9}):
        observers.write(record)
    observers.close()
    for name, runs in read(place, stores).items():
        assert len(runs) == 1, name
        steps = [step for step, _ in runs[0]["values"]["train/loss"]]
        assert steps == list(range(1, 10)), name
        assert [step for step, _ in runs[0]["values"]["val_model/top1"]] == [3, 6, 9], name


@pytest.mark.slow
def test_a_resumed_run_waits_for_the_process_that_a_killed_one_left_behind(tmp_path, stores):
    place = tmp_path / "run-f"
    before, abandoned = begin(place, settings(stores))
    for record in told(1, 5):
        before.write(record)
    until_delivered(place, 5)
    observers, _ = begin(place, settings(stores), resumed_at=3)
    for record in told(4, 6):
        observers.write(record)
    time.sleep(3)
    assert len(list((place / "tensorboard").glob("events*"))) == 1
    abandoned._process.stdin.close()  # as if only now the training had died
    observers.write({"kind": "end", "step": 6})
    observers.close()
    for name, (run,) in read(place, stores).items():
        assert [step for step, _ in run["values"]["train/loss"]] == [1, 2, 3, 4, 5, 6], name
    before.close()


@pytest.mark.slow
def test_after_a_roll_back_the_history_is_that_of_the_run(tmp_path, stores):
    place = tmp_path / "run-c"
    observers, _ = begin(place, settings(stores))
    for record in told(1, 5):
        observers.write(record)
    until_delivered(place, 5)
    observers.close()
    observers, _ = begin(place, settings(stores), resumed_at=3, detour=1)
    for record in told(4, 6, loss=9.0):
        observers.write(record)
    observers.write({"kind": "end", "step": 6})
    observers.close()
    expected = [[step, pytest.approx(1 / step)] for step in (1, 2, 3)]
    expected += [[step, 9.0] for step in (4, 5, 6)]
    for name, runs in read(place, stores).items():
        # The newest run; the one that was given up stays beside it.
        assert len(runs) == (1 if name == "TensorBoard" else 2), name
        assert runs[-1]["values"]["train/loss"] == expected, name
        assert runs[-1].get("name", "run-c (2)").startswith("run-c (2)"), name


@pytest.mark.slow
def test_a_tracker_that_comes_later_gets_the_history_from_the_beginning(tmp_path, stores):
    place = tmp_path / "run-d"
    observers, fed = begin(place, Log())
    assert fed is None
    for record in told(1, 4):
        observers.write(record)
    observers.close()
    assert not (place / "trackers.json").exists()
    observers, _ = begin(place, settings(stores), resumed_at=4)
    for record in (*told(5, 6), {"kind": "end", "step": 6}):
        observers.write(record)
    observers.close()
    for name, (run,) in read(place, stores).items():
        assert [step for step, _ in run["values"]["train/loss"]] == [1, 2, 3, 4, 5, 6], name


@pytest.mark.slow
def test_a_server_that_is_down_is_told_of_once_and_holds_up_no_end(tmp_path, monkeypatch):
    place = tmp_path / "run-e"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    log = Log(tensorboard=True, wandb="online", mlflow="http://127.0.0.1:9")
    with closing(begin(place, log)[0]) as observers:
        for record in told(1, 4):
            observers.write(record)
        until_delivered(place, 4)
        deadline = time.monotonic() + 60
        while not warnings_of(place):
            assert time.monotonic() < deadline
            observers.write({"kind": "notice", "step": 4, "message": "later"})
            time.sleep(0.5)
    messages = warnings_of(place)
    failed = [m for m in messages if m.startswith("MLflow failed")]
    assert len(failed) == 1
    assert "training goes on" in failed[0]
    assert any("MLflow did not take all within 10 s: 4 steps" in m for m in messages)
    assert any("W&B did not take all within 10 s: 4 steps" in m for m in messages)
    assert not any(m.startswith("TensorBoard") for m in messages)


class Moody:
    """A tracker that refuses some calls; what it takes it keeps."""

    name, closing_s = "Moody", 30.0

    def __init__(self, refusals):
        self.refusals = refusals
        self.steps, self.end = [], None

    def open(self, run):
        self._refuse("open")
        return 1

    def log(self, row):
        self._refuse(row.step)
        self.steps.append(row.step)

    def close(self, end):
        self._refuse("close")
        self.end = end

    def _refuse(self, when):
        if self.refusals.get(when, 0):
            self.refusals[when] -= 1
            raise ConnectionError(f"no network at {when}\nat all")


def test_what_a_tracker_refuses_is_tried_again_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "_PAUSE_AT_END_S", 0.01)
    records = [*told(1, 5), {"kind": "end", "step": 5}]
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"kind": "train", "st')
    messages, ending = [], threading.Event()
    ending.set()
    tracked = sink.Tracked("id", "name", PROJECT, tmp_path, {}, None, print)
    moody = Moody({"open": 1, 2: 3, 3: 1, "close": 2})
    one = feed.Feed(moody, tracked, Storage(), ending, lambda *told: messages.append(told))
    one.start()
    one.join(20)
    assert moody.steps == [2, 3, 4, 5]  # 1 it had
    assert moody.end is not None
    assert one.undelivered() == 0
    warnings = [text for kind, text in messages if kind == "warning"]
    assert len(warnings) == 4
    assert warnings[1].startswith("Moody failed (ConnectionError: no network at 2 at all); it is")
    assert [kind for kind, _ in messages].count("notice") == 4


def test_what_a_dead_tracker_lacks_is_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told(1, 5)))
    ending = threading.Event()
    ending.set()
    tracked = sink.Tracked("id", "name", PROJECT, tmp_path, {}, None, print)
    one = feed.Feed(Moody({4: 10**9}), tracked, Storage(), ending, lambda *told: None)
    one.start()
    one.join(0.5)
    assert one.is_alive()
    assert one.undelivered() == 2


def test_the_last_step_of_an_epoch_is_one_row_whenever_it_is_told():
    rows = Rows()
    assert [row.step for record in told(1, 2) for row in rows.take(record)] == [1, 2]
    assert list(rows.take(train(3))) == []
    assert list(rows.take(weights_of(3))) == []
    (row,) = rows.take(epoch(3))
    assert (row.step, row.scalars["train/loss"], row.scalars["epoch/train_loss"]) == (3, 1 / 3, 2.0)
    assert row.scalars["val_model/top5"] == 0.75
    assert row.histograms["weights/fc.weight"].edges() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert list(rows.take({"kind": "warning", "step": 3, "message": "x"})) == []


def test_a_save_of_an_earlier_step_does_not_part_the_last_step_of_an_epoch():
    rows = Rows()
    assert list(rows.take(train(3))) == []
    assert list(rows.take({"kind": "checkpoint", "step": 2, "timing": {}})) == []
    (row,) = rows.take(epoch(3))
    assert row.scalars.keys() >= {"train/loss", "epoch/train_loss"}
    assert list(rows.take(train(6))) == []
    assert [row.step for row in rows.take({"kind": "end", "step": 9})] == [6]


def test_what_is_null_or_absent_is_no_scalar():
    assert "train/loss" not in scalars({**train(1), "loss": None})
    old = scalars({"kind": "train", "step": 1, "epoch": 0.1, "loss": 2.0})
    assert old == {"train/loss": 2.0, "schedule/epoch": 0.1}
    assert not [name for name in scalars({**epoch(3), "val": None}) if name.startswith("val")]


def test_the_last_step_of_an_epoch_waits_for_the_rest_of_it_or_for_the_next_step():
    rows = Rows()
    assert list(rows.take(train(3))) == []
    assert list(rows.take(train(4))) == [
        Row(3, scalars(train(3))),
        Row(4, scalars(train(4))),
    ]


@pytest.mark.parametrize(
    ("resumed_at", "known", "lr", "detour", "same"),
    [
        (40, 60, 0.1, 0, True),
        (None, 60, 0.1, 0, False),
        (40, 60, 0.1, 1, False),
        (40, 60, 0.2, 0, False),
        (60, 60, 0.2, 0, True),
    ],
)
def test_a_run_is_the_same_in_a_tracker_unless_it_does_steps_again_in_another_way(
    tmp_path, resumed_at, known, lr, detour, same
):
    first = identity.choose(tmp_path, {"lr": 0.1}, 0, resumed_at=None, known=0)
    second = identity.choose(tmp_path, {"lr": lr}, detour, resumed_at=resumed_at, known=known)
    assert (second.id == first.id) == same
    assert identity.Identity.read(tmp_path) == second
    again = identity.choose(tmp_path, {"lr": lr}, detour, resumed_at=40, known=99)
    assert again.id == second.id


@pytest.mark.parametrize("damage", ["{", "[]", '{"id": 1}', ""])
def test_a_damaged_identity_is_replaced(tmp_path, damage):
    (tmp_path / "trackers.json").write_text(damage)
    found = identity.choose(tmp_path, {}, 0, resumed_at=3, known=9)
    assert identity.Identity.read(tmp_path) == found


@pytest.mark.parametrize(
    ("log", "extra"),
    [
        (Log(tensorboard=True), "track"),
        (Log(wandb="offline"), "wandb"),
        (Log(trackio=True), "trackio"),
        (Log(mlflow="mlruns"), "mlflow"),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, log, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"pip install 'rn50\[{extra}\]'"):
        trackers.check(log)


def test_a_folder_of_the_name_of_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb_of_old").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("wandb_of_old") is not None
    with pytest.raises(UsageError, match="the package wandb_of_old is not installed"):
        sink.require("wandb_of_old", "W&B", "wandb")


def test_a_database_without_the_whole_of_mlflow_is_refused(monkeypatch):
    monkeypatch.setattr(sink, "require", lambda *_: None)
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "sqlalchemy" else installed(n)
    )
    with pytest.raises(UsageError, match=r"log\.mlflow is sqlite:///a\.db, but databases need"):
        trackers.check(Log(mlflow="sqlite:///a.db"))


def test_the_best_weights_are_those_kept_else_of_the_best_exported_network(tmp_path):
    last = epoch(3)
    last["val"]["average"] = {"loss": 1.0, "top1": 0.02, "top5": 0.9}
    assert feed.best_weights(tmp_path, Storage(), last).weights is None
    for name in ("model", "average"):
        (tmp_path / f"{name}.safetensors").touch()
    assert feed.best_weights(tmp_path, Storage(), last).about["network"] == "model"
    by_loss = feed.best_weights(tmp_path, Storage(best_metric="loss"), last)
    assert by_loss.weights == tmp_path / "average.safetensors"
    (tmp_path / "best.safetensors").touch()
    assert feed.best_weights(tmp_path, Storage(), None).weights == tmp_path / "best.safetensors"
