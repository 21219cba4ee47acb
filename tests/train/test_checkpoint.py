import contextlib
import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from rn50 import durable
from rn50.errors import DataError, UserError
from rn50.train import checkpoint
from rn50.train.state import Snapshot

ABOUT = {"run": {"recipe": "test"}, "fingerprint": "f"}


def snapshot(step: int, *, average: bool = True) -> Snapshot:
    tensors = {"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}
    return Snapshot(
        step=step,
        model=tensors,
        average={"w": torch.full((2, 3), step + 0.5)} if average else None,
        swa={"w": torch.full((2, 3), step + 0.25)} if average else None,
        momentum={"w": torch.full((2, 3), -1.0)},
        scaler={"scale": 65536.0, "growth_tracker": 3},
        window=(1, 2, 3),
        epoch=(4, 5, 6),
    )


def test_what_is_saved_is_what_is_read(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(7), ABOUT)
    assert path == tmp_path / "checkpoints" / "step-00000007"
    saved = checkpoint.load(path)
    assert saved.about == ABOUT
    assert saved.snapshot.window == (1, 2, 3)
    assert saved.snapshot.scaler == {"scale": 65536.0, "growth_tracker": 3}
    for part in ("model", "average", "swa", "momentum"):
        mine, theirs = getattr(snapshot(7), part), getattr(saved.snapshot, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step-00000007\n"


def test_a_run_without_averages_saves_none(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(1, average=False), ABOUT)
    assert checkpoint.load(path).snapshot.average is None
    assert checkpoint.load(path).snapshot.swa is None
    assert not list(path.glob("*a*e*.safetensors")) + list(path.glob("swa*"))


def test_what_is_not_to_be_kept_is_removed(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, snapshot(step), ABOUT)
        checkpoint.prune(tmp_path, lambda steps: {1, *steps[-2:]})
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["LATEST", "step-00000001", "step-00000003", "step-00000004"]


def test_the_newest_whole_one_is_never_removed(tmp_path):
    for step in (1, 2, 3):
        path = checkpoint.save(tmp_path, snapshot(step), ABOUT)
    (path / "model.safetensors").write_bytes(b"damaged")
    checkpoint.prune(tmp_path, lambda steps: {3})
    saved, refused = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.snapshot.step == 2
    assert len(refused) == 1


@pytest.mark.parametrize(
    "file", ["model.safetensors", "momentum.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, damage):
    checkpoint.save(tmp_path, snapshot(1), ABOUT)
    victim = checkpoint.save(tmp_path, snapshot(2), ABOUT) / file
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[:-5])
    else:
        victim.unlink()
    saved, refused = checkpoint.newest(tmp_path)
    assert saved is not None
    assert saved.snapshot.step == 1
    assert len(refused) == 1
    assert "step-00000002" in refused[0]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    with pytest.raises(DataError, match="is not a whole checkpoint"):
        checkpoint.load(tmp_path / "checkpoints" / "step-00000001")


@pytest.mark.parametrize("name", ["fsync", "replace", "rename", "mkdir", "open"])
def test_a_system_call_that_fails_at_any_point_leaves_a_verified_checkpoint(
    tmp_path, monkeypatch, name
):
    """Fail the first, second, third … call of each kind until a save gets through."""
    checkpoint.save(tmp_path, snapshot(1), ABOUT)
    owner = io if name == "open" else os
    real = getattr(owner, name)
    told = ""
    for fail_at in range(100):
        calls = 0

        def failing(*arguments, fail_at=fail_at, **named):
            nonlocal calls
            calls += 1
            if calls == fail_at + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            try:
                checkpoint.save(tmp_path, snapshot(2), ABOUT)
            except UserError as error:
                told = str(error)
        saved, refused = checkpoint.newest(tmp_path)
        assert saved is not None
        assert refused == []
        checkpoint.clean(tmp_path)
        assert not list(tmp_path.rglob(".tmp-*"))
        if calls <= fail_at:
            break
    assert saved.snapshot.step == 2
    assert "the disk is full" in told


class _Failing:
    """A file whose write or read at the fatal moment fails, after half of what was asked for."""

    def __init__(self, file, moment, call, error):
        self._file, self._moment, self._call, self._error = file, moment, call, error

    def _go(self, call, half):
        if call == self._call and self._moment():
            half()
            self._file.flush()
            if self._error:
                raise OSError(self._error, os.strerror(self._error))
            return True
        return False

    def write(self, data):
        if self._go("write", lambda: self._file.write(data[: len(data) // 2])):
            return len(data)  # lost, and nobody is told
        return self._file.write(data)

    def read(self, *size):
        got = self._file.read(*size)
        return got[: len(got) // 2] if self._go("read", lambda: None) else got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, 0], ids=["ENOSPC", "EIO", "silent"])
@pytest.mark.parametrize("call", ["write", "read"])
def test_a_write_or_read_that_fails_or_is_torn_leaves_a_verified_checkpoint(
    tmp_path, monkeypatch, call, error
):
    """Fail the first, second, third … call of a save and of removing the old, until none fails."""
    checkpoint.save(tmp_path, snapshot(1), ABOUT)
    really_open = io.open
    faults = 0
    for fatal in range(1, 100):
        calls = 0

        def moment(fatal=fatal):
            nonlocal calls
            calls += 1
            return calls == fatal

        def opened(file, mode="r", *arguments, moment=moment, **named):
            it = really_open(file, mode, *arguments, **named)
            return _Failing(it, moment, call, error) if "b" in mode else it

        with monkeypatch.context() as patch:
            patch.setattr(io, "open", opened)
            with contextlib.suppress(UserError, OSError):
                checkpoint.save(tmp_path, snapshot(2), ABOUT)
                checkpoint.prune(tmp_path, lambda steps: {2})
        saved, refused = checkpoint.newest(tmp_path)
        assert saved is not None, fatal
        assert refused == []
        checkpoint.clean(tmp_path)
        assert not list(tmp_path.rglob(".tmp-*"))
        if calls < fatal:
            break
        faults += 1
        if saved.snapshot.step == 2:  # failed late: begin again with the first alone
            checkpoint.save(tmp_path, snapshot(1), ABOUT)
            checkpoint.prune(tmp_path, lambda steps: {1})
            shutil.rmtree(checkpoint.path(tmp_path, 2))
    assert saved.snapshot.step == 2
    assert checkpoint.steps(tmp_path) == [2]
    assert faults >= (7 if call == "write" else 12)


class _Torn:
    """A file whose write at the fatal moment puts down half of it and ends the process."""

    def __init__(self, file, moment):
        self._file, self._moment = file, moment

    def write(self, data):
        if self._moment():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os._exit(9)
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def _save_and_die(run_dir: Path, fatal: int) -> None:
    """Save step 2 and remove step 1, and end at the call of the file system with this number."""
    calls = 0

    def moment() -> bool:
        nonlocal calls
        calls += 1
        return calls == fatal

    def deadly(real):
        def call(*arguments, **named):
            if moment():
                os._exit(9)
            return real(*arguments, **named)

        return call

    for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    really_open = io.open

    def opened(file, mode="r", *arguments, **named):
        it = really_open(file, mode, *arguments, **named)
        return _Torn(it, moment) if "w" in mode else it

    io.open = opened
    checkpoint.save(run_dir, snapshot(2), ABOUT)
    checkpoint.prune(run_dir, lambda steps: {2})
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_kill_at_any_system_call_or_in_mid_write_leaves_a_verified_checkpoint(tmp_path):
    fatal, steps = 0, []
    while True:
        fatal += 1
        run_dir = tmp_path / str(fatal)
        checkpoint.save(run_dir, snapshot(1), ABOUT)
        pid = os.fork()
        if pid == 0:
            try:
                _save_and_die(run_dir, fatal)
            finally:
                os._exit(70)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        saved, refused = checkpoint.newest(run_dir)
        assert saved is not None, fatal
        assert refused == []
        steps.append(saved.snapshot.step)
        checkpoint.clean(run_dir)
        assert not list(run_dir.rglob(".tmp-*"))
        if code == 0:
            break
    assert steps == sorted(steps)
    assert steps.count(1) > 20
    assert steps.count(2) > 3


def test_leftovers_of_killed_writers_are_cleaned(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / f"{durable.TEMPORARY_PREFIX}99-step-00000003").mkdir(parents=True)
    (tmp_path / f"{durable.TEMPORARY_PREFIX}99-model.safetensors").write_text("half")
    checkpoint.clean(tmp_path)
    assert [p for p in Path(tmp_path).rglob("*") if p.name.startswith(".tmp")] == []
