import dataclasses

import numpy as np
import pytest

from rn50.config import Guard
from rn50.distributed import Group
from rn50.errors import DivergedError
from rn50.observe.record import Recorder
from rn50.train import checkpoint, rollback
from rn50.train import state as states
from rn50.train.inputs import plan_of
from rn50.train.mirror import Mirror
from rn50.train.remote_run import open_run
from rn50.train.rollback import RollBack
from rn50.train.schedule import Knobs
from rn50.train.step import train_step
from rn50.train.trouble import TroubleError
from train.test_step import RUN, batch, start, weights

AT = Knobs(lr=0.1, average_keep=0.9)


def back(place, say=lambda line: None, forget=lambda step: None, **guard) -> RollBack:
    run = dataclasses.replace(RUN, guard=Guard(on_divergence="roll-back", **guard))
    return RollBack(run, place, Group(), forget, say)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of three steps of a run, and the weights of each."""
    state, engine = start(RUN)
    found = {}
    for step in (1, 2, 3):
        train_step(state, engine, batch(step), AT, RUN)
        checkpoint.save(tmp_path, states.snapshot(state), {"told": step})
        found[step] = weights(state)
    return tmp_path, found


def test_a_detour_has_other_draws_and_none_has_today_s(dataset):
    plan = plan_of(
        dataclasses.replace(RUN, images=dataclasses.replace(RUN.images, batch_size=16)),
        dataset.split("train"),
        Group(),
    )
    assert rollback.detoured(plan, 0) is plan
    plans = [plan, *(rollback.detoured(plan, number) for number in (1, 2))]
    requests = [p.request(3) for p in plans]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(requests[one].ids, requests[other].ids)
        assert not np.array_equal(requests[one].boxes, requests[other].boxes)
    again = rollback.detoured(plan, 2).request(3)
    assert np.array_equal(again.ids, requests[2].ids)
    assert np.array_equal(again.boxes, requests[2].boxes)


def test_it_goes_back_to_the_newest_from_before_and_what_is_later_is_void(saved):
    place, found = saved
    state, engine = start(RUN)
    for step in (1, 2, 3, 4):
        train_step(state, engine, batch(step), AT, RUN)
    attempts, voided = [], []

    def attempt(state, about, news):
        attempts.append((state.step, about, [r["message"] for r in news], state.trouble.detour))
        if len(attempts) == 1:
            raise TroubleError("it exploded", trusted=2)
        assert weights(state).equal(found[2])
        assert not state.meter.drain()

    back(place, forget=voided.append).until_through(attempt, state, {"told": 0})
    message = "rolled back to step 2 and going on with other draws, for time 1 of at most 2: "
    assert attempts == [
        (4, {"told": 0}, [], 0),
        (2, {"told": 2}, [f"{message}it exploded"], 1),
    ]
    assert voided == [2]
    assert checkpoint.steps(place) == [2, 1]
    assert (place / checkpoint.FOLDER / checkpoint.LATEST).read_text() == "step-00000002\n"


def test_a_state_that_went_back_goes_on_as_a_new_one_from_that_checkpoint(saved):
    place, _ = saved
    state, engine = start(RUN)
    for step in (1, 2, 3, 4):
        train_step(state, engine, batch(step), AT, RUN)
    fails = [True]

    def attempt(state, about, news):
        if fails.pop():
            fails.append(False)
            raise TroubleError("it exploded", trusted=1)
        for seed in (7, 8):
            train_step(state, engine, batch(seed), AT, RUN)

    back(place).until_through(attempt, state, None)
    new, new_engine = start(RUN)
    states.restore(new, checkpoint.load(checkpoint.path(place, 1)).snapshot)
    for seed in (7, 8):
        train_step(new, new_engine, batch(seed), AT, RUN)
    one, other = states.snapshot(state), states.snapshot(new)
    for name in ("model", "average", "momentum"):
        tensors, others = getattr(one, name), getattr(other, name)
        assert tensors.keys() == others.keys()
        assert all(tensor.equal(others[key]) for key, tensor in tensors.items())
    assert (one.step, one.window, one.epoch) == (other.step, other.window, other.epoch)


def test_a_damaged_checkpoint_is_passed_over(saved):
    place, found = saved
    (checkpoint.path(place, 2) / "model.safetensors").write_bytes(b"")
    state, _ = start(RUN)
    said, fails = [], [True]

    def attempt(state, about, news):
        if fails:
            fails.pop()
            raise TroubleError("it exploded", trusted=2)

    back(place, said.append).until_through(attempt, state, None)
    assert weights(state).equal(found[1])
    assert "is cut off" in said[0]


@pytest.mark.parametrize(
    ("guard", "trusted", "told"),
    [
        ({"max_rollbacks": 1}, 3, r"it exploded; .* \(it has rolled back 1 times; .* allows 1\)"),
        ({}, 0, r"no checkpoint of step 0 or before to roll back to"),
        ({"on_divergence": "stop"}, 3, r"it exploded; .* roll-back$"),
    ],
)
def test_where_it_cannot_go_back_it_stops_and_says_why(saved, guard, trusted, told):
    place, _ = saved

    def attempt(state, about, news):
        raise TroubleError("it exploded", trusted=trusted)

    state, _ = start(RUN)
    run = dataclasses.replace(RUN, guard=Guard(**({"on_divergence": "roll-back"} | guard)))
    with pytest.raises(DivergedError, match=told):
        RollBack(run, place, Group(), lambda step: None, lambda line: None).until_through(
            attempt, state, None
        )


def test_a_detour_is_known_from_the_record_before_any_checkpoint_knows_it(saved):
    place, _ = saved
    recorder = Recorder(place / "metrics.jsonl")
    for step, detour in ((1, 1), (2, 2), (3, 3)):
        recorder.write({"kind": "rollback", "step": step, "detour": detour})
    recorder.close()
    seen = []
    for step, known in ((2, 0), (2, 5), (0, 0)):
        state, _ = start(RUN)
        state.step, state.trouble.detour = step, known
        back(place).until_through(lambda s, *_: seen.append(s.trouble.detour), state, {})
    state, _ = start(RUN)
    back(place).until_through(lambda s, *_: seen.append(s.trouble.detour), state, None)
    assert seen == [2, 5, 0, 0]


def test_a_mirror_gives_up_what_is_void_before_it_sends_what_is_new(saved, tmp_path):
    place, _ = saved
    there = str(tmp_path / "there")
    mirror = Mirror(place, there)
    mirror.begin(b"{}")
    (place / "metrics.jsonl").write_text("")

    def drain():
        while mirror.turn() == 0:
            pass

    for step in (1, 2, 3):
        mirror.published(checkpoint.path(place, step))
        drain()
    assert open_run(there).steps() == [3, 2, 1]
    mirror.published(checkpoint.path(place, 3))
    checkpoint.forget_after(place, 2)
    mirror.forget_after(2)
    assert mirror.is_behind
    drain()
    assert open_run(there).steps() == [2, 1]
    checkpoint.save(place, checkpoint.load(checkpoint.path(place, 2)).snapshot, {"told": 9})
    mirror.published(checkpoint.path(place, 2))
    mirror.forget_after(2)
    drain()
    assert open_run(there).steps() == [2, 1]
    assert b'"told": 9' in open_run(there).folder.read("checkpoints/step-00000002/state.json")
