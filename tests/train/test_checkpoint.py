import io
import os
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
    path = checkpoint.save(tmp_path, snapshot(7), ABOUT, keep=2)
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
    path = checkpoint.save(tmp_path, snapshot(1, average=False), ABOUT, keep=2)
    assert checkpoint.load(path).snapshot.average is None
    assert checkpoint.load(path).snapshot.swa is None
    assert not list(path.glob("*a*e*.safetensors")) + list(path.glob("swa*"))


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, snapshot(step), ABOUT, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["LATEST", "step-00000003", "step-00000004"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "momentum.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, damage):
    checkpoint.save(tmp_path, snapshot(1), ABOUT, keep=3)
    victim = checkpoint.save(tmp_path, snapshot(2), ABOUT, keep=3) / file
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
    checkpoint.save(tmp_path, snapshot(1), ABOUT, keep=2)
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
                checkpoint.save(tmp_path, snapshot(2), ABOUT, keep=2)
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


def test_leftovers_of_killed_writers_are_cleaned(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / f"{durable.TEMPORARY_PREFIX}99-step-00000003").mkdir(parents=True)
    (tmp_path / f"{durable.TEMPORARY_PREFIX}99-model.safetensors").write_text("half")
    checkpoint.clean(tmp_path)
    assert [p for p in Path(tmp_path).rglob("*") if p.name.startswith(".tmp")] == []
