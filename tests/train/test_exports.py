import shutil
from dataclasses import replace

import pytest
import torch

from rn50.config import Average, Storage
from rn50.model import weights
from rn50.recipes import recipe
from rn50.train import checkpoint
from rn50.train.exports import BEST, Export, Exports
from rn50.train.remote_run import Parcel, open_run
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


def heard(exports, place, saved, step):
    lines = []
    exports.mend(place, saved.about, step, say=lines.append)
    return lines


def test_best_weights_of_a_step_that_was_given_up_are_removed(tmp_path, exports, files):
    saved = checkpoint.load(checkpoint.path(tmp_path, 30))
    checkpoint.prune(tmp_path, lambda steps: {30})
    (tmp_path / BEST).write_bytes(files[10][BEST])
    (line,) = heard(exports, tmp_path, saved, 30)
    assert not (tmp_path / BEST).exists()
    assert "it is of step 10 (model); the best so far is step 20 (model)" in line


def test_weights_of_later_steps_are_removed_where_there_are_none_to_write(tmp_path, exports, files):
    for name, data in files[10].items():
        (tmp_path / name).write_bytes(data)
    shutil.copytree(checkpoint.path(tmp_path, 20), checkpoint.path(tmp_path, 5))
    saved = replace(checkpoint.load(checkpoint.path(tmp_path, 10)), about={"best": None})
    lines = heard(exports, tmp_path, saved, 5)  # of an epoch's middle, when nothing is written
    assert [*tmp_path.glob("*.safetensors")] == []
    assert len(lines) == 3
    assert f"removed {tmp_path / BEST}: it is of step 10 (model), and no step" in lines[-1]


def test_right_weights_that_no_checkpoint_holds_stay(tmp_path, exports, files):
    saved = checkpoint.load(checkpoint.path(tmp_path, 30))
    checkpoint.prune(tmp_path, lambda steps: {30})
    for name in files[30]:
        (tmp_path / name).write_bytes(files[30][name])
    assert heard(exports, tmp_path, saved, 30) == []
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == files[30]


@pytest.mark.parametrize("lies", ["there", "elsewhere"])
def test_best_weights_are_restored_from_the_mirror_if_it_can_be_asked(
    tmp_path, exports, files, lies
):
    mirror = tmp_path / "mirror"
    path = checkpoint.path(tmp_path, 20)
    open_run(str(mirror)).send(Parcel(20, path, b""))
    saved = checkpoint.load(checkpoint.path(tmp_path, 40))
    checkpoint.prune(tmp_path, lambda steps: {40})
    (tmp_path / BEST).write_bytes(files[10][BEST])
    url = str(mirror if lies == "there" else tmp_path / "nothing")
    run = replace(exports.run, storage=replace(exports.run.storage, mirror=url))
    lines = heard(replace(exports, run=run), tmp_path, saved, 40)
    if lies == "there":
        assert ((tmp_path / BEST).read_bytes(), lines) == (files[20][BEST], [])
    else:
        assert not (tmp_path / BEST).exists()
        assert len(lines) == 1
    assert [*tmp_path.glob(".tmp-*")] == []


def test_a_run_that_goes_on_from_another_runs_checkpoint_has_no_best_of_the_other(
    tmp_path, exports, files
):
    checkpoint.prune(tmp_path, lambda steps: {30, 40})
    later = exports.header(Export(BEST, "model", 40))
    weights.save(tmp_path / BEST, snapshot(40).model, later)
    other = tmp_path / "other"
    other.mkdir()
    source = open_run(str(tmp_path))
    checkpoint.publish(other, 30, lambda into: source.fetch(30, into, other))
    source.fetch_files(other)
    assert weights.told(other / BEST)["about"]["step"] == 40
    exports.mend(other, checkpoint.load(checkpoint.path(other, 30)).about, 30)
    assert not (other / BEST).exists()
