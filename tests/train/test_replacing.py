"""A checkpoint that takes the place of one of its own step, as after an evaluation left off."""

import os
import shutil

import pytest
import torch
from test_checkpoint import ABOUT, snapshot

from rn50.train import checkpoint

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


def other(step):
    """Return a snapshot of a step with weights of its own."""
    found = snapshot(step)
    for tensor in found.model.values():
        tensor += 1
    return found


def save_failing_at(run_dir, number, fail):
    """Save step 1 anew, where the file system's call of this number fails; return the count."""
    calls = 0

    def failing(real):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == number:
                fail()
            return real(*arguments, **named)

        return call

    before = {name: getattr(os, name) for name in CALLS}
    try:
        for name, real in before.items():
            setattr(os, name, failing(real))
        checkpoint.save(run_dir, other(1), ABOUT)
    finally:
        for name, real in before.items():
            setattr(os, name, real)
    return calls


def is_one_of_both(run_dir):
    saved, refused = checkpoint.newest(run_dir)
    assert saved is not None
    assert refused == []
    assert saved.snapshot.step == 1
    ways = [
        all(torch.equal(saved.snapshot.model[name], way.model[name]) for name in way.model)
        for way in (snapshot(1), other(1))
    ]
    assert any(ways)
    return ways.index(True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_kill_at_any_call_leaves_the_old_or_the_new_one(tmp_path):
    found, code, number = [], 9, 0
    while code == 9:
        number += 1
        run_dir = tmp_path / str(number)
        checkpoint.save(run_dir, snapshot(1), ABOUT)
        if (pid := os.fork()) == 0:
            try:
                save_failing_at(run_dir, number, lambda: os._exit(9))
                os._exit(0)
            finally:
                os._exit(70)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        checkpoint.recover(run_dir)
        found.append(is_one_of_both(run_dir))
        checkpoint.clean(run_dir)
        is_one_of_both(run_dir)
        assert not list(run_dir.rglob(".tmp-*"))
        shutil.rmtree(run_dir)
    assert found == sorted(found)
    assert found.count(0) > 20
    assert found.count(1) > 3


def test_an_error_at_any_call_leaves_the_old_or_the_new_one(tmp_path):
    number, count = 0, 1
    while number < count:
        number += 1
        run_dir = tmp_path / str(number)
        checkpoint.save(run_dir, snapshot(1), ABOUT)

        def fail():
            raise OSError(5, "Input/output error")

        try:
            count = max(count, save_failing_at(run_dir, number, fail))
        except OSError:
            count = max(count, number + 1)
        is_one_of_both(run_dir)
        checkpoint.clean(run_dir)
        is_one_of_both(run_dir)
        shutil.rmtree(run_dir)
    assert number > 20
