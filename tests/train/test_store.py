import threading
from pathlib import Path

import pytest
import torch

from rn50.errors import UsageError
from rn50.train import checkpoint
from rn50.train.state import Snapshot
from rn50.train.store import MOST_FAILURES, Order, Store

FULL = UsageError("cannot write: the disk is full")


def snapshot(step: int) -> Snapshot:
    weight = torch.full((4, 3, 2, 2), float(step)).contiguous(memory_format=torch.channels_last)
    return Snapshot(
        step=step,
        model={"w": weight, "n": torch.tensor(step)},
        average=None,
        swa=None,
        momentum={},
        scaler={},
        window=(0, 0, 0),
        epoch=(0, 0, 0),
    )


def order(*, newest: int = 9) -> Order:
    return Order(
        about={}, keep=lambda steps: {*steps[-newest:]}, keep_least=lambda steps: {*steps[-1:]}
    )


@pytest.fixture
def events():
    return []


@pytest.fixture
def store(tmp_path, events):
    one = Store(
        tmp_path,
        sync=lambda: events.append("sync"),
        published=lambda path: events.append(path.name),
    )
    yield one
    one.close()


def refusing(monkeypatch, times: int) -> list[int]:
    """Let so many attempts to save fail for want of room; return the steps of all attempts."""
    real, attempts = checkpoint.save, []

    def save(run_dir: Path, one: Snapshot, about: dict) -> Path:
        attempts.append(one.step)
        if len(attempts) <= times:
            raise FULL
        return real(run_dir, one, about)

    monkeypatch.setattr(checkpoint, "save", save)
    return attempts


def test_what_is_written_is_the_state_at_the_call_whatever_becomes_of_it(
    tmp_path, store, events, monkeypatch
):
    real, may_go_on = checkpoint.save, threading.Event()

    def slow(*arguments):
        assert may_go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    state = snapshot(1)
    store.save(state, order())
    state.model["w"].fill_(-1)
    assert store.news() == []
    may_go_on.set()
    store.wait()
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert torch.equal(saved.snapshot.model["w"], snapshot(1).model["w"])
    assert events == ["sync", "step-00000001"]
    (told,) = store.news()
    assert (told["kind"], told["step"]) == ("checkpoint", 1)
    assert told["timing"]["path"] == "checkpoints/step-00000001"


def test_each_save_has_its_own_state_though_buffers_are_used_again(tmp_path, store):
    for step in (1, 2, 3):
        store.save(snapshot(step), order())
    store.wait()
    for step in (1, 2, 3):
        saved = checkpoint.load(checkpoint.path(tmp_path, step))
        assert torch.equal(saved.snapshot.model["w"], snapshot(step).model["w"])


def test_on_a_full_disk_old_checkpoints_make_room(tmp_path, store, monkeypatch):
    for step in (1, 2):
        store.save(snapshot(step), order())
    store.wait()
    attempts = refusing(monkeypatch, 1)
    store.save(snapshot(3), order())
    store.wait()
    assert attempts == [3, 3]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == [
        "step-00000002",
        "step-00000003",
    ]


def test_failed_saves_are_told_and_the_run_stops_after_several_in_a_row(store, monkeypatch):
    refusing(monkeypatch, 2 * (MOST_FAILURES - 1))
    for step in range(1, MOST_FAILURES + 1):  # the last one succeeds
        store.save(snapshot(step), order())
    store.wait()
    kinds = [one["kind"] for one in store.news()]
    assert kinds == ["warning"] * (MOST_FAILURES - 1) + ["checkpoint"]

    refusing(monkeypatch, 99)
    for step in range(1, MOST_FAILURES + 1):
        store.save(snapshot(step), order())
    with pytest.raises(UsageError, match="the disk is full"):
        store.save(snapshot(9), order())


def test_a_failed_last_save_is_an_error(store, monkeypatch):
    refusing(monkeypatch, 99)
    store.save(snapshot(1), order())
    with pytest.raises(UsageError, match="the disk is full"):
        store.wait()
