from dataclasses import replace

import pytest
import torch

from rn50.config import Average, Storage
from rn50.recipes import recipe
from rn50.train import checkpoint
from rn50.train.exports import BEST, Exports
from rn50.train.saving import Saver
from rn50.train.schedule import Timeline
from rn50.train.state import Snapshot
from rn50.train.store import Store

RUN = replace(recipe("demo"), epochs=4, average=Average(ema_horizon=0.1))
SCORES = {10: 0.5, 20: 0.9, 30: 0.4, 40: 0.3}


def snapshot(step: int) -> Snapshot:
    model, average = ({"w": torch.tensor([float(step + more)])} for more in (0, 100))
    empty = {"scaler": {}, "window": (0, 0, 0), "epoch": (0, 0, 0)}
    return Snapshot(step=step, model=model, average=average, swa=None, momentum=model, **empty)


@pytest.fixture
def exports(dataset) -> Exports:
    run = replace(RUN, storage=Storage(keep_checkpoints=4))
    return Exports(run, tuple((c.id, c.name) for c in dataset.classes), Timeline(run, 10))


@pytest.fixture
def files(tmp_path, exports):
    """Save four epochs, and return the weights files as they were after each."""
    store = Store(tmp_path, sync=lambda: None, published=lambda path: None)
    saver, seen = Saver(exports, {}, store, None), {}
    for step, top1 in SCORES.items():
        score = {"top1": top1, "top5": 1.0, "loss": 1.0}
        saver.told(lambda record: None)({"kind": "epoch", "step": step, "val": {"model": score}})
        saver.save(snapshot(step))
        saver.finish(lambda record: None, step)
        seen[step] = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    store.close()
    return seen


@pytest.mark.parametrize("step", SCORES)
def test_whoever_goes_back_finds_the_weights_of_then(tmp_path, exports, files, step):
    saved = checkpoint.load(checkpoint.path(tmp_path, step))
    exports.mend(tmp_path, saved.about, step)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == files[step]


@pytest.mark.parametrize("left", ["nothing", "half a file", "another's"])
def test_what_a_kill_left_is_written_anew(tmp_path, exports, files, left):
    for name in files[20]:
        path = tmp_path / name
        if left == "nothing":
            path.unlink()
        elif left == "half a file":
            path.write_bytes(files[20][name][:50])
        else:
            path.write_bytes(files[10][name])
    saved = checkpoint.load(checkpoint.path(tmp_path, 20))
    exports.mend(tmp_path, saved.about, 20)
    assert {name: (tmp_path / name).read_bytes() for name in files[20]} == files[20]


def test_whole_files_are_left_alone(tmp_path, exports, files):
    before = {path: path.stat().st_ino for path in tmp_path.glob("*.safetensors")}
    saved = checkpoint.load(checkpoint.path(tmp_path, 40))
    exports.mend(tmp_path, saved.about, 40)
    assert {path: path.stat().st_ino for path in before} == before


def test_what_no_checkpoint_holds_stays_as_it_is(tmp_path, exports, files):
    saved = checkpoint.load(checkpoint.path(tmp_path, 40))
    checkpoint.prune(tmp_path, lambda steps: {40})
    (tmp_path / BEST).write_bytes(files[10][BEST])
    exports.mend(tmp_path, saved.about, 40)
    assert (tmp_path / BEST).read_bytes() == files[10][BEST]
