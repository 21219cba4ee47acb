from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from rn50.config import Average, Storage
from rn50.errors import UsageError
from rn50.recipes import recipe
from rn50.train import checkpoint, saving
from rn50.train.exports import Exports
from rn50.train.saving import Best, Saver
from rn50.train.schedule import Timeline
from rn50.train.state import Snapshot
from rn50.train.store import Store

RUN = replace(recipe("demo"), epochs=4, average=Average(ema_horizon=0.1))


def epoch(step: int, **top1: float) -> dict:
    val = {name: {"top1": value, "top5": 1.0, "loss": 1 - value} for name, value in top1.items()}
    return {"kind": "epoch", "step": step, "val": val}


def snapshot(step: int) -> Snapshot:
    tensors = {"w": torch.tensor([float(step)])}
    empty = {"scaler": {}, "window": (0, 0, 0), "epoch": (0, 0, 0)}
    return Snapshot(
        step=step, model=tensors, average=tensors, swa=tensors, momentum=tensors, **empty
    )


def test_the_best_is_of_the_network_and_metric_asked_for():
    one = epoch(3, model=0.5, average=0.7, swa=0.6)
    assert Best.of(one, Storage()) == Best(3, "average", 0.7)
    assert Best.of(one, Storage(best_of="model")) == Best(3, "model", 0.5)
    assert Best.of(one, Storage(best_metric="loss")).network == "average"
    assert Best.of({**one, "val": None}, Storage()) is None
    assert not Best(4, "model", 0.7).beats(Best(3, "average", 0.7), Storage())
    assert Best(4, "model", 0.2).beats(Best(3, "model", 0.3), Storage(best_metric="loss"))


@pytest.fixture
def make(tmp_path, dataset):
    stores = []

    def saver(resumed=None, **settings) -> Saver:
        run = replace(RUN, storage=Storage(**settings))
        stores.append(Store(tmp_path, sync=lambda: None, published=lambda path: None))
        classes = tuple((one.id, one.name) for one in dataset.classes)
        return Saver(Exports(run, classes, Timeline(run, 10)), {}, stores[-1], resumed)

    yield saver
    for store in stores:
        store.close()


def go(saver: Saver, *epochs: dict) -> None:
    write = saver.told(lambda record: None)
    for one in epochs:
        write(one)
        saver.save(snapshot(one["step"]))
        saver.finish(write, one["step"])


def kept(place) -> list[int]:
    return sorted(int(p.name[5:]) for p in (place / "checkpoints").glob("step-*"))


def test_the_newest_the_best_and_the_lasting_checkpoints_stay(tmp_path, make):
    scores = (0.4, 0.9, 0.3, 0.2)
    go(
        make(keep_checkpoints=1, keep_every_epochs=3),
        *(epoch(10 * n, model=score) for n, score in enumerate(scores, 1)),
    )
    assert kept(tmp_path) == [20, 30, 40]


def test_a_worse_model_after_resuming_does_not_replace_the_best(tmp_path, make):
    go(make(), epoch(10, model=0.9), epoch(20, model=0.5))
    best = (tmp_path / "best.safetensors").read_bytes()
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    go(make((saved.about, 20), keep_checkpoints=1), epoch(30, model=0.6), epoch(40, model=0.7))
    assert (tmp_path / "best.safetensors").read_bytes() == best
    assert kept(tmp_path) == [10, 20, 40]  # the best, the one resumed from, the newest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"best_metric": "loss"}),
        ({"best_metric": "loss"}, {"best_metric": "top1"}),
        ({"best_of": "average"}, {"best_of": "model"}),
    ],
)
def test_a_best_of_another_measure_is_forgotten_and_that_is_said(tmp_path, make, before, after):
    go(make(**before), epoch(10, model=0.45, average=0.6))
    saved, _ = checkpoint.newest(tmp_path)
    saver, said = make((saved.about, 10), **after), []
    saver.told(said.append)
    assert [(one["kind"], one["step"]) for one in said] == [("warning", 10)]
    assert "it is forgotten, and the next that is evaluated is the best" in said[0]["message"]
    go(saver, epoch(20, model=0.3, average=0.2), epoch(30, model=0.2, average=0.1))
    saved, _ = checkpoint.newest(tmp_path)
    assert saved.about["best"]["step"] == 20
    assert saved.about["best"]["network"] == "model"
    again, said = make((saved.about, 30), **after), []
    again.told(said.append)
    assert said == []
    go(again, epoch(40, model=0.25))
    saved, _ = checkpoint.newest(tmp_path)
    assert saved.about["best"]["step"] == 20


def test_save_best_only_writes_weights_when_they_are_best_and_at_the_end(tmp_path, make):
    saver = make(save_best_only=True)
    go(saver, epoch(10, model=0.2, average=0.1))
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["best.safetensors"]
    go(saver, epoch(20, model=0.1), epoch(30, model=0.1))
    assert kept(tmp_path) == [10, 30]
    go(saver, epoch(40, model=0.1))
    names = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert names == ["average.safetensors", "best.safetensors", "model.safetensors"]


def test_a_run_without_room_for_its_checkpoints_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage(9, 9, 499))
    saving.check_space(tmp_path, 99, Storage())
    with pytest.raises(UsageError, match="0 MB free; the checkpoints of this run need up to"):
        saving.check_space(tmp_path, 100, Storage())
    saving.check_space(tmp_path, 100, Storage(save_best_only=True))
    for step in range(2):
        checkpoint.path(tmp_path, step).mkdir(parents=True)
    saving.check_space(tmp_path, 100, Storage())
