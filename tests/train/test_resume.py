import json
import shutil
from pathlib import Path

import pytest
import torch

from rn50 import config, remote_files
from rn50.distributed import Group
from rn50.errors import DataError, InterruptedRunError, UsageError
from rn50.observe import record
from rn50.recipes import recipe
from rn50.train import checkpoint, resume
from rn50.train.mirror import Mirror
from rn50.train.resume import AUTO, Place
from rn50.train.state import Snapshot


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.0)


@pytest.fixture
def mirror(tmp_path):
    return str(tmp_path / "mirror")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def save(place, step):
    tensors = {"w": torch.full((3,), float(step))}
    parts = {"average": None, "momentum": tensors, "scaler": {}, "window": (0, 0, 0)}
    parts |= {"epoch": (0, 0, 0)}
    if "swa" in Snapshot.__dataclass_fields__:
        parts["swa"] = None
    with (place / record.FILE_NAME).open("a") as file:
        file.write(json.dumps({"kind": "train", "step": step}) + "\n")
    return checkpoint.save(place, Snapshot(step=step, model=tensors, **parts), {})


def mirrored(place, mirror, *steps):
    """Save and mirror these steps, and lose the machine's folder."""
    sender = Mirror(place, mirror)
    for step in steps:
        sender.published(save(place, step))
        while sender.turn() == 0:
            pass
    (place / "train.log").write_text("what was said")
    (place / "config.json").write_text(json.dumps(config.to_dict(recipe("demo"))))
    sender._closing = True
    while sender.turn() == 0:
        pass
    assert not sender.is_behind
    shutil.rmtree(place)
    place.mkdir()


def choose(place, asked=AUTO, mirror=""):
    lines = []
    saved = resume.choose(place, asked, mirror, Group(), lines.append)
    return (None if saved is None else saved.snapshot.step), "\n".join(lines)


def damage(path):
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)


def steps(place):
    return [r["step"] for r in record.read(place / record.FILE_NAME)]


def test_a_run_without_checkpoints_anywhere_starts(place, mirror):
    assert choose(place)[0] is None
    step, told = choose(place, mirror=mirror)
    assert step is None
    assert "starting from the first step" in told


@pytest.mark.parametrize("how", ["mirror", "asked"])
def test_an_empty_machine_fetches_the_newest_with_its_record_and_its_files(place, mirror, how):
    mirrored(place, mirror, 4, 8)
    where = {"mirror": mirror} if how == "mirror" else {"asked": f"file://{mirror}"}
    step, told = choose(place, **where)
    assert step == 8
    assert "fetched the checkpoint of step 8 from" in told
    assert "it holds none" in told
    assert steps(place) == [4, 8]
    assert (place / "train.log").read_text() == "what was said"
    assert [p.name for p in place.rglob(".tmp-*")] == []
    assert (place / "checkpoints" / "LATEST").read_text() == "step-00000008\n"


def test_the_newer_one_is_taken_wherever_it_lies_and_it_is_said_why(place, mirror):
    mirrored(place, mirror, 4, 8)
    save(place, 6)
    step, told = choose(place, mirror=mirror)
    assert step == 8
    assert "it holds step 6" in told
    assert steps(place) == [4, 8]
    save(place, 10)
    step, told = choose(place, mirror=mirror)
    assert step == 10
    assert "has none that is newer" in told


@pytest.mark.parametrize("file", ["model.safetensors", "metrics.jsonl", "manifest.json"])
def test_a_damaged_one_at_the_mirror_is_passed_over(place, mirror, file):
    mirrored(place, mirror, 4, 8)
    damage(f"{mirror}/checkpoints/step-00000008/{file}")
    step, told = choose(place, mirror=mirror)
    assert step == 4
    assert "passed over" in told
    assert "step-00000008" in told


def test_a_damaged_one_here_is_replaced_by_the_mirrors(place, mirror):
    mirrored(place, mirror, 4, 8)
    save(place, 4)
    damage(save(place, 8) / "model.safetensors")
    step, _ = choose(place, mirror=mirror)
    assert step == 8


def test_damage_everywhere_is_an_error_and_nothing_is_started_anew(place, mirror):
    mirrored(place, mirror, 4)
    damage(f"{mirror}/checkpoints/step-00000004/model.safetensors")
    with pytest.raises(DataError, match=r"none of the checkpoints in .*mirror is whole"):
        choose(place, mirror=mirror)


def test_a_manifest_cannot_write_elsewhere(place, mirror):
    mirrored(place, mirror, 4)
    path = Path(mirror) / "checkpoints" / "step-00000004" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["../../../evil"] = manifest.pop("state.json")
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError):
        choose(place, mirror=mirror)
    assert not list(place.parent.rglob("*evil*"))


def test_an_unpublished_checkpoint_does_not_count(place, mirror):
    mirrored(place, mirror, 4, 8)
    (Path(mirror) / "checkpoints" / "step-00000008" / "manifest.json").unlink()
    assert choose(place, mirror=mirror)[0] == 4


def test_one_checkpoint_can_be_named_and_goes_on_in_another_folder(place, mirror, tmp_path):
    mirrored(place, mirror, 4, 8)
    step, _ = choose(place, asked=f"{mirror}/checkpoints/step-00000004")
    assert step == 4
    with pytest.raises(DataError, match=r"holds no checkpoint of step 5; it has 8, 4"):
        choose(tmp_path / "other", asked=f"{mirror}/checkpoints/step-00000005")


def test_an_older_one_of_the_same_folder_is_refused(place):
    for step in (4, 8):
        save(place, step)
    named = str(place / "checkpoints" / "step-00000004")
    with pytest.raises(UsageError, match=r"is of step 8, not 4; .* another --output-dir"):
        choose(place, asked=named)
    assert choose(place, asked=str(place / "checkpoints" / "step-00000008"))[0] == 8
    other = place.parent / "branch"
    assert choose(other, asked=named)[0] == 4
    assert steps(other)[:1] == [4]


def test_a_place_without_a_run_is_an_error_where_it_was_named(place, tmp_path):
    with pytest.raises(DataError, match=r"nothing holds no checkpoint; give .*--resume alone"):
        choose(place, asked=str(tmp_path / "nothing"))


def test_a_mirror_that_cannot_be_reached_does_not_lead_to_a_new_start(place):
    gone = "http://127.0.0.1:9/run"
    with pytest.raises(InterruptedRunError, match=r"cannot be read.*holds no checkpoint"):
        choose(place, mirror=gone)
    save(place, 4)
    step, told = choose(place, mirror=gone)
    assert step == 4
    assert "without asking there" in told


def test_a_new_run_is_not_mirrored_over_another(place, mirror):
    resume.refuse_taken(mirror)
    resume.refuse_taken("")
    mirrored(place, mirror, 4)
    with pytest.raises(UsageError, match="mirror already holds a run; add --resume"):
        resume.refuse_taken(mirror)


def test_the_settings_are_found_where_the_run_is(place, mirror):
    assert resume.settings(mirror) is None
    mirrored(place, mirror, 4)
    assert resume.settings(f"{mirror}/checkpoints/step-00000004") == recipe("demo")
    (Path(mirror) / "config.json").write_text("half")
    with pytest.raises(DataError, match="holds no settings"):
        resume.settings(mirror)


@pytest.mark.parametrize(
    ("asked", "run", "step"),
    [
        ("s3://b/runs/a", "s3://b/runs/a", None),
        ("s3://b/runs/a/", "s3://b/runs/a", None),
        ("s3://b/runs/a/checkpoints/step-00000004/", "s3://b/runs/a", 4),
        ("runs/a/checkpoints/step-00000004", "runs/a", 4),
        ("checkpoints/step-00000004", ".", 4),
        ("runs/step-00000004", "runs/step-00000004", None),
    ],
)
def test_what_follows_resume_names_a_run_or_a_checkpoint(asked, run, step):
    assert Place.of(asked) == (run, step)


def test_the_folder_is_the_one_given_else_it_is_named_after_the_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = recipe("demo")
    assert resume.run_folder(run, "s3://b/runs/a") == Path("runs/a")
    assert resume.run_folder(run, "elsewhere/a/checkpoints/step-00000004") == Path("elsewhere/a")
    assert resume.run_folder(run, AUTO) == resume.run_folder(run, "") == Path("runs/demo")
    given = config.from_dict({**config.to_dict(run), "storage": {"output_dir": "mine", "data": ""}})
    assert resume.run_folder(given, "s3://b/runs/a") == Path("mine")
