import json
import shutil
import threading
import time
from contextlib import suppress

import pytest
import torch

from rn50 import remote_files
from rn50.errors import DataError, UsageError
from rn50.observe import record
from rn50.train import checkpoint
from rn50.train.mirror import Mirror
from rn50.train.remote_run import Parcel, RemoteRun, open_run
from rn50.train.state import Snapshot
from servers import credentials, empty_bucket, s3_store, use_store, wired

BUCKET = "runs"
URL = f"s3://{BUCKET}/one"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def store():
    with s3_store() as url:
        yield url


@pytest.fixture
def wire(store, monkeypatch, tmp_path):
    """Return the connection to an empty bucket."""
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.0)
    with wired(store) as wire:
        use_store(monkeypatch, tmp_path, wire.url)
        empty_bucket(BUCKET)
        wire.requests.clear()
        yield wire


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / ".lock").write_text("")
    return folder


def snapshot(step, numbers=1000):
    tensors = {"w": torch.arange(float(numbers)) + step}
    parts = {"average": None, "momentum": tensors, "scaler": {}, "window": (0, 0, 0)}
    parts |= {"epoch": (0, 0, 0)}
    if "swa" in Snapshot.__dataclass_fields__:
        parts["swa"] = None
    return Snapshot(step=step, model=tensors, **parts)


def save(place, step, *, keep=2, numbers=1000):
    """Do what a run does: record, then publish."""
    with (place / record.FILE_NAME).open("a") as file:
        file.write(json.dumps({"kind": "train", "step": step}) + "\n")
    about = {"fingerprint": "f", "run": {}, "data": "d"}
    path = checkpoint.save(place, snapshot(step, numbers), about)
    checkpoint.prune(place, lambda steps: set(steps[-keep:]))
    return path


def new(place, clock=None, url=URL, source=None, keep=2):
    mirror = Mirror(place, url, source=source, clock=clock or Clock())
    mirror.keep_by(lambda steps: set(steps[-keep:]))
    return mirror


def drain(mirror):
    """Take turns until nothing is left to do at once."""
    while mirror.turn() == 0:
        pass


def messages(mirror, kind):
    return [n["message"] for n in mirror.notices() if n["kind"] == kind]


def there(url=URL):
    return open_run(url)


def content(name, url=URL):
    run = there(url)
    return run.folder.fs.cat_file(run.folder.of(name))


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_what_is_mirrored_is_a_run_that_verifies(wire, place, tmp_path, kind):
    url = URL if kind == "s3" else str(tmp_path / "other" / "disk")
    mirror = new(place, url=url)
    save(place, 4)
    (place / "plots").mkdir()
    (place / "plots" / "loss.png").write_bytes(b"png")
    mirror.published(save(place, 8))
    drain(mirror)
    assert (mirror.reason, mirror.is_behind) == ("", False)
    run = there(url)
    copy = tmp_path / "copy"
    run.folder.fs.get(run.folder.path, str(copy), recursive=True)
    saved, refused = checkpoint.newest(copy)
    assert (saved.snapshot.step, refused) == (8, [])
    assert torch.equal(saved.snapshot.model["w"], snapshot(8).model["w"])
    names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith("checkpoints/step")} == {
        *("config.json", "metrics.jsonl", "plots/loss.png", "checkpoints/LATEST")
    }
    assert (copy / "checkpoints" / "LATEST").read_text() == "step-00000008\n"
    kept = (saved.path / record.FILE_NAME).read_bytes()
    assert kept == (place / record.FILE_NAME).read_bytes()
    assert [p.name for p in place.rglob(".tmp-*")] == []


def test_the_manifest_is_sent_after_all_else_and_the_pointer_last(wire, place):
    mirror = new(place)
    mirror.published(save(place, 4))
    assert mirror.turn() == 0
    names = [path.removeprefix(f"/{BUCKET}/one/checkpoints/") for path in wire.sent]
    assert names[-2:] == ["step-00000004/manifest.json", "LATEST"]
    assert len(names) == len(set(names)) == 6


def test_a_large_file_goes_in_parts_and_survives_broken_connections(wire, place, monkeypatch):
    from rn50.train import remote_run

    monkeypatch.setattr(remote_run, "_PART_BYTES", 5 << 20)
    wire.cut = lambda method, path: "partNumber=2" in path
    clock = Clock()
    mirror = new(place, clock)
    mirror.published(save(place, 4, numbers=3_000_000))
    assert mirror.turn() > 0
    assert there().steps() == []
    wire.cut = lambda method, path: False
    clock.now += 1
    drain(mirror)
    assert there().steps() == [4]
    parts = [path for path in wire.sent if "model.safetensors?" in path]
    assert len(parts) >= 3


def test_as_many_checkpoints_stay_as_are_kept_here_and_the_source_of_the_resume(wire, place):
    mirror = new(place, source=4)
    for step in (4, 8, 12, 16, 20):
        mirror.published(save(place, step))
        drain(mirror)
    assert there().steps() == [20, 16, 4]


def test_checkpoints_of_later_steps_that_were_passed_over_are_left_alone(wire, place):
    first = new(place)
    for step in (8, 12):
        first.published(save(place, step))
        drain(first)
    shutil.rmtree(place / "checkpoints")
    again = new(place, source=8)
    again.published(save(place, 10))
    drain(again)
    assert there().steps() == [12, 10, 8]


def test_ten_minutes_of_503s_stop_nothing_and_lose_nothing(wire, place):
    clock = Clock()
    mirror = new(place, clock)
    mirror.published(save(place, 1))
    drain(mirror)
    mirror.notices()
    began = clock.now
    wire.refuse = lambda method, path: (503, "SlowDown") if clock.now < began + 600 else None
    told, sent_before = [], len(wire.sent)
    next_save, step = began + 60, 1
    while clock.now < began + 700:
        pause = mirror.turn()
        told += mirror.notices()
        clock.now += min(pause, next_save - clock.now)
        if clock.now >= next_save:  # a checkpoint every minute
            step, next_save = step + 1, clock.now + 60
            mirror.published(save(place, step))
            assert len([*place.rglob(".tmp-*mirror-step*")]) <= 1
        if clock.now < began + 600:
            assert len(told) <= 1
    while mirror.is_behind:
        clock.now += mirror.turn()
    told += mirror.notices()
    warnings = [n["message"] for n in told if n["kind"] == "warning"]
    assert len(warnings) == 1
    assert "training goes on" in warnings[0]
    back = [n["message"] for n in told if n["kind"] == "notice"]
    assert len(back) == 1
    assert 9 <= float(back[0].split("after ")[1].split()[0]) <= 11
    assert there().steps()[0] == step
    assert there().folder.read("metrics.jsonl") == (place / "metrics.jsonl").read_bytes()
    published = [path for path in wire.sent[sent_before:] if path.endswith("manifest.json")]
    assert len(published) <= 4 < step  # newer ones took the place of those that waited
    assert not mirror.is_behind


def test_a_short_failure_is_not_worth_a_line(wire, place):
    clock = Clock()
    refusals = iter([(500, "InternalError")] * 2)
    wire.refuse = lambda method, path: next(refusals, None)
    mirror = new(place, clock)
    mirror.published(save(place, 1))
    while mirror.is_behind:
        clock.now += mirror.turn()
    assert [n["kind"] for n in mirror.notices()] == ["mirror"]
    assert there().steps() == [1]


def test_a_server_that_is_gone_is_an_outage_too(store, place, monkeypatch, tmp_path):
    use_store(monkeypatch, tmp_path, "http://127.0.0.1:9")
    clock = Clock()
    mirror = new(place, clock)
    mirror.published(save(place, 1))
    for _ in range(6):
        pause = mirror.turn()
        assert pause > 0
        clock.now += pause
    (message,) = messages(mirror, "warning")
    assert "127.0.0.1:9" in message


def test_expired_credentials_are_taken_anew(wire, place, tmp_path):
    clock = Clock()
    mirror = new(place, clock)
    wire.key = "first"
    mirror.published(save(place, 1))
    drain(mirror)
    wire.key = "second"
    mirror.published(save(place, 2))
    for _ in range(6):
        clock.now += mirror.turn()
    (message,) = messages(mirror, "warning")
    assert "ExpiredToken" in message
    assert "credentials" in message
    (tmp_path / "credentials").write_text(credentials("second"))
    while mirror.is_behind:
        clock.now += mirror.turn()
    assert there().steps() == [2, 1]


def test_what_does_not_arrive_as_it_was_sent_is_never_published(wire, place):
    clock = Clock()
    mirror = new(place, clock)
    wire.lie = lambda method, path, body: (
        body[:-1] + bytes([body[-1] ^ 1]) if method == "PUT" and "momentum" in path else body
    )
    mirror.published(save(place, 1))
    for _ in range(3):
        pause = mirror.turn()
        assert pause > 0
        assert "another hash" in mirror.reason
        clock.now += pause
    assert not any("manifest" in path or "LATEST" in path for path in wire.sent)
    assert there().steps() == []
    wire.lie = lambda method, path, body: body
    drain(mirror)
    assert there().steps() == [1]


def test_a_checkpoint_is_sent_whole_though_it_is_removed_here_meanwhile(wire, place):
    mirror = new(place)
    mirror.published(save(place, 1))

    def remove(method, path):
        if method == "PUT" and "step-00000001" in path:
            shutil.rmtree(place / "checkpoints" / "step-00000001", ignore_errors=True)

    wire.refuse = remove
    assert mirror.turn() == 0
    assert there().steps() == [1]
    assert not (place / "checkpoints" / "step-00000001").exists()
    assert [p.name for p in place.rglob(".tmp-*")] == []


def test_one_that_was_removed_before_its_turn_is_passed_by(wire, place):
    mirror = new(place)
    path = save(place, 1)
    mirror.published(path)
    shutil.rmtree(path)
    drain(mirror)
    assert not mirror.is_behind
    assert mirror.reason == ""


def test_of_those_that_wait_the_newest_goes_first_and_those_that_are_kept_here_follow(wire, place):
    mirror = new(place)
    for step in (1, 2, 3):
        mirror.published(save(place, step))
    mirror.turn()
    assert there().steps() == [3]
    (place / "train.log").write_text("files come before older checkpoints")
    mirror.turn()
    assert there().steps() == [3]
    drain(mirror)
    assert there().steps() == [3, 2]


def test_the_runs_own_policy_decides_what_stays_and_until_it_is_known_all_stays(wire, place):
    mirror = new(place)
    mirror.keep_by(lambda steps: {4, *steps[-1:]})  # the best one and the newest
    for step in (4, 8, 12):
        mirror.published(save(place, step, keep=9))
        drain(mirror)
    assert there().steps() == [12, 4]
    shutil.rmtree(place / "checkpoints")
    again = Mirror(place, URL, source=12, clock=Clock())
    again.published(save(place, 16))
    drain(again)
    assert there().steps() == [16, 12, 4]
    again.keep_by(lambda steps: {4, *steps[-1:]})
    again.published(save(place, 20))
    drain(again)
    assert there().steps() == [20, 12, 4]  # the source of the resume stays too


def test_a_checkpoint_that_this_disk_has_damaged_is_told_and_not_published(wire, place):
    mirror = new(place)
    path = save(place, 1)
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    mirror.published(path)
    drain(mirror)
    (message,) = messages(mirror, "warning")
    assert "no longer whole on this disk" in message
    assert there().steps() == []


def test_another_checkpoint_of_the_same_step_takes_the_place_of_the_first(wire, place):
    mirror = new(place)
    mirror.published(save(place, 1))
    drain(mirror)
    mirror.published(save(place, 1, numbers=7))
    drain(mirror)
    manifest = json.loads(content("checkpoints/step-00000001/manifest.json"))
    here = json.loads((place / "checkpoints/step-00000001/manifest.json").read_text())
    assert manifest["model.safetensors"] == here["model.safetensors"]
    assert set(there().sizes("checkpoints/step-00000001")) == {
        f"checkpoints/step-00000001/{name}" for name in (*manifest, "manifest.json")
    }


def fetched(url, into):
    """Return the newest checkpoint at a URL as an empty machine gets it."""
    run = there(url)
    step = run.steps()[0]
    checkpoint.publish(into, step, lambda folder: run.fetch(step, folder, into))
    saved, refused = checkpoint.newest(into)
    assert refused == []
    return saved


def replace_with_outage(place, url, monkeypatch, lasts):
    """Mirror step 1, then another of its step of which so many writes arrive; return the latter."""
    mirror = new(place, url=url)
    mirror.published(save(place, 1))
    drain(mirror)
    left = lasts

    def failing(method):
        def through(self, *given):
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("an outage")
            return method(self, *given)

        return through

    path = save(place, 1, numbers=7)
    with monkeypatch.context() as patch:
        for name in ("put", "remove"):
            patch.setattr(RemoteRun, name, failing(getattr(RemoteRun, name)))
        with suppress(ConnectionError):
            there(url).send(Parcel(1, path, (place / record.FILE_NAME).read_bytes()))
    return path


@pytest.mark.parametrize("lasts", range(16))
def test_the_first_of_a_step_counts_until_the_second_is_whole(place, tmp_path, monkeypatch, lasts):
    url = str(tmp_path / "mirror")
    path = replace_with_outage(place, url, monkeypatch, lasts)
    old, later = 1000, 7
    assert len(fetched(url, tmp_path / "a").snapshot.model["w"]) in (old, later)
    there(url).clean()  # as the next start does
    assert len(fetched(url, tmp_path / "b").snapshot.model["w"]) in (old, later)
    mirror = new(place, url=url)
    mirror.published(path)
    drain(mirror)
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    saved, refused = checkpoint.newest(copy)
    assert (len(saved.snapshot.model["w"]), refused) == (later, [])
    names = {file.name for file in saved.path.iterdir()}
    assert names == {file.name for file in path.iterdir()} | {record.FILE_NAME}


def test_a_third_of_a_step_may_follow_a_second_that_was_half_sent(place, tmp_path, monkeypatch):
    for lasts in range(6, 10):
        url = str(tmp_path / f"mirror-{lasts}")
        replace_with_outage(place, url, monkeypatch, lasts)
        path = save(place, 1, numbers=9)
        parcel = Parcel(1, path, (place / record.FILE_NAME).read_bytes())
        for more in range(12):
            with monkeypatch.context() as patch:
                left = iter(range(more))
                put = RemoteRun.put

                def failing(self, *given, left=left, put=put):
                    if next(left, None) is None:
                        raise ConnectionError("an outage")
                    put(self, *given)

                patch.setattr(RemoteRun, "put", failing)
                with suppress(ConnectionError):
                    there(url).send(parcel)
            fetched(url, tmp_path / f"{lasts}-{more}")
        assert len(fetched(url, tmp_path / f"{lasts}").snapshot.model["w"]) == 9


def test_what_is_alike_in_two_of_a_step_is_sent_once(wire, place):
    mirror = new(place)
    mirror.published(save(place, 1))
    drain(mirror)
    about = {"fingerprint": "f", "run": {}, "data": "d", "best": {"step": 1}}
    mirror.published(checkpoint.save(place, snapshot(1), about))
    wire.requests.clear()
    drain(mirror)
    assert not any("safetensors" in path for path in wire.sent)
    assert json.loads(content("checkpoints/step-00000001/state.json"))["about"] == about


def test_what_a_run_goes_back_to_is_there_before_what_is_void_is_removed(wire, place):
    mirror = new(place)
    old = save(place, 4)
    mirror.published(save(place, 8))
    while there().steps() != [8]:
        mirror.turn()
    checkpoint.forget_after(place, 4)
    seen = []
    wire.refuse = lambda method, path: seen.append((method, path)) and None
    mirror.forget_after(4)
    drain(mirror)
    assert there().steps() == [4]
    sent = seen.index(("PUT", f"/{BUCKET}/one/checkpoints/{old.name}/manifest.json"))
    gone = ("DELETE", f"/{BUCKET}/one/checkpoints/step-00000008/manifest.json")
    assert sent < seen.index(gone)


def test_best_weights_that_are_taken_back_here_are_removed_there(wire, place):
    clock = Clock()
    mirror = new(place, clock)
    (place / "best.safetensors").write_bytes(b"w" * 100)
    drain(mirror)
    assert content("best.safetensors") == b"w" * 100
    (place / "best.safetensors").unlink()
    assert mirror.is_behind
    clock.now += 60
    drain(mirror)
    assert not mirror.is_behind
    assert "best.safetensors" not in there().sizes("")


def test_leftovers_of_interrupted_sendings_are_removed(wire, place):
    fs = there().folder.fs
    fs.pipe_file(f"{BUCKET}/one/checkpoints/step-00000099/model.safetensors", b"half")
    fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key="one/checkpoints/step-00000099/m")
    fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key="another/m")
    mirror = new(place)
    mirror.published(save(place, 1))
    drain(mirror)
    assert not any("99" in name for name in there().sizes())
    open_uploads = fs.call_s3("list_multipart_uploads", Bucket=BUCKET)["Uploads"]
    assert [upload["Key"] for upload in open_uploads] == ["another/m"]


def test_a_removal_that_is_interrupted_leaves_nothing_that_counts(wire, place):
    clock = Clock()
    mirror = new(place, clock, keep=1)
    mirror.published(save(place, 1))
    drain(mirror)
    wire.refuse = lambda method, path: (
        (503, "SlowDown") if method == "POST" and "delete" in path else None
    )
    mirror.published(save(place, 2, keep=1))
    while there().steps() != [2]:
        clock.now += mirror.turn()
    assert any("step-00000001" in name for name in there().sizes())
    wire.refuse = lambda method, path: None
    drain(new(place, keep=1))
    assert not any("step-00000001" in name for name in there().sizes())


def test_what_is_there_already_is_not_sent_again(wire, place):
    mirror = new(place)
    path = save(place, 1)
    mirror.published(path)
    drain(mirror)
    wire.requests.clear()
    again = new(place, source=1)
    again.published(path)
    drain(again)
    assert not any("safetensors" in sent for sent in wire.sent)
    assert there().steps() == [1]


def test_large_files_are_sent_when_they_change_and_not_again_after_a_restart(
    wire, place, monkeypatch
):
    from rn50.train import mirror as module

    monkeypatch.setattr(module, "_SMALL_BYTES", 10)
    (place / "model.safetensors").write_bytes(b"w" * 100)
    drain(new(place))
    assert content("model.safetensors") == b"w" * 100
    wire.requests.clear()
    drain(new(place))
    assert not any("model" in path for path in wire.sent)
    (place / "model.safetensors").write_bytes(b"v" * 100)
    drain(new(place))
    assert content("model.safetensors") == b"v" * 100
    assert [p.name for p in place.rglob(".tmp-*")] == []


def test_reports_are_sent_when_they_change_and_at_most_once_a_minute(wire, place):
    clock = Clock()
    mirror = new(place, clock)
    drain(mirror)
    wire.requests.clear()
    for second in range(100):
        (place / "train.log").write_text(f"{second}")
        clock.now += 1
        drain(mirror)
    assert len(wire.sent) == 1
    assert mirror.is_behind
    clock.now += 60
    drain(mirror)
    assert content("train.log") == b"99"
    assert not mirror.is_behind


def test_settings_that_cannot_be_written_are_told_before_training(wire, place):
    wire.refuse = lambda method, path: (403, "AccessDenied")
    with pytest.raises(DataError, match=r"config.json may not be read or written .*s3:PutObject"):
        new(place).begin(b"{}")
    wire.refuse = lambda method, path: None
    with pytest.raises(DataError, match=r"s3://nowhere/run/config.json is not there .*bucket"):
        new(place, url="s3://nowhere/run").begin(b"{}")
    with pytest.raises(UsageError, match="s4://x cannot be read or written"):
        new(place, url="s4://x").begin(b"{}")


def test_an_outage_at_the_start_is_survived(wire, place):
    wire.refuse = lambda method, path: (503, "SlowDown")
    clock = Clock()
    mirror = new(place, clock)
    mirror.begin(b"{}")
    assert "503" in mirror.reason or "SlowDown" in mirror.reason
    wire.refuse = lambda method, path: None
    mirror.published(save(place, 1))
    while mirror.is_behind:
        clock.now += mirror.turn()
    assert there().steps() == [1]


def test_the_end_waits_for_the_copy_but_not_for_ever(wire, place):
    mirror = new(place, time.monotonic)
    thread = threading.Thread(target=mirror.run, daemon=True)
    thread.start()
    mirror.published(save(place, 1))
    assert mirror.finish(20)
    wire.refuse = lambda method, path: (503, "SlowDown")
    mirror.published(save(place, 2))
    start = time.monotonic()
    assert not mirror.finish(0.3)
    assert time.monotonic() - start < 2
    assert mirror.reason
    mirror.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert [p.name for p in place.rglob(".tmp-*")] == []


def test_being_asked_to_stop_shortens_the_wait(wire, place, monkeypatch):
    from rn50.train import mirror as module

    monkeypatch.setattr(module, "STOP_LIMIT_S", 0.2)
    wire.refuse = lambda method, path: (503, "SlowDown")
    mirror = new(place, time.monotonic)
    mirror.published(save(place, 1))
    start = time.monotonic()
    assert not mirror.finish(600, lambda: True)
    assert time.monotonic() - start < 2
