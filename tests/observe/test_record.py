import json
import math
from pathlib import Path

import pytest

from rn50.errors import DataError, UsageError
from rn50.observe.record import Observers, Recorder, read, without_timing


def step(number, **more):
    return {"kind": "train", "step": number, **more}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def recorded(path, *records):
    recorder = Recorder(path)
    for record in records:
        recorder.write(record)
    recorder.close()


class Witness:
    """Remembers what it is shown, and breaks at the kinds it is told to."""

    def __init__(self, *, breaks_at=(), breaks_on_close=False):
        self.seen = []
        self.closed = 0
        self._breaks_at = breaks_at
        self._breaks_on_close = breaks_on_close

    def write(self, record):
        if record["kind"] in self._breaks_at:
            raise RuntimeError("out of\npaper")
        self.seen.append(record)

    def close(self):
        self.closed += 1
        if self._breaks_on_close:
            raise OSError("still out of paper")


def test_what_is_written_is_read_back_in_order(path):
    records = [step(1, loss=0.1 + 0.2), step(2, text="é\n"), {"kind": "end", "step": 2}]
    recorded(path, *records)
    assert read(path) == records


def test_a_record_can_be_read_before_the_file_is_closed(path):
    recorder = Recorder(path)
    recorder.write(step(1))
    assert read(path) == [step(1)]
    recorder.close()
    recorder.close()


def test_numbers_that_are_not_finite_become_null_at_any_depth(path):
    recorded(path, step(1, loss=math.nan, val={"a": [math.inf, 1.0]}, pair=(-math.inf, 2)))
    assert read(path) == [step(1, loss=None, val={"a": [None, 1.0]}, pair=[None, 2])]
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize("torn", [b'{"kind": "tra', b"\0\0\0\0", b'{"a": "\xc3'])
def test_a_torn_last_line_is_ignored(path, torn):
    recorded(path, step(1), step(2))
    path.write_bytes(path.read_bytes() + torn)
    assert read(path) == [step(1), step(2)]


def test_garbage_before_the_last_line_is_an_error_that_names_the_line(path):
    recorded(path, step(1), step(2))
    path.write_text(path.read_text().replace(json.dumps(step(1)), "garbage"))
    with pytest.raises(DataError, match=r"line 1 of .*metrics\.jsonl is not a record: b'garbage'"):
        read(path)


def test_a_record_that_does_not_exist_is_a_usage_error(path):
    with pytest.raises(UsageError, match="does not exist; name the folder of a run"):
        read(path)


def test_a_new_run_does_not_append_to_the_record_of_another(path):
    recorded(path, step(1))
    with pytest.raises(UsageError, match="already holds the record of a run; add --resume"):
        Recorder(path)


def test_an_empty_file_is_as_good_as_none(path):
    Recorder(path).close()
    recorded(path, step(1))
    assert read(path) == [step(1)]


def test_resuming_cuts_off_what_came_after_the_checkpoint_and_a_torn_line(path):
    recorded(path, step(0), step(20), step(40), step(60), {"kind": "warning", "step": 60})
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    path.write_bytes(path.read_bytes() + b'{"kind"')
    recorder = Recorder(path, keep_through_step=40)
    assert path.read_bytes() == b"".join(kept)
    recorder.write(step(60, again=True))
    recorder.close()
    assert read(path) == [step(0), step(20), step(40), step(60, again=True)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_last_line_that_lacks_only_its_line_end_is_kept_and_ended(path):
    recorded(path, step(1))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    recorder = Recorder(path, keep_through_step=1)
    recorder.write(step(2))
    recorder.close()
    assert read(path) == [step(1), step(2)]


def test_resuming_without_a_record_begins_one(path):
    recorder = Recorder(path, keep_through_step=40)
    recorder.write(step(60))
    recorder.close()
    assert read(path) == [step(60)]


def test_a_refused_write_leaves_no_part_of_a_line(path):
    resource = pytest.importorskip("resource")
    recorder = Recorder(path)
    recorder.write(step(1))
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a disk that fills up, the write is first cut short and then refused.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            recorder.write(step(2, text="x" * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.write(step(3))
    recorder.close()
    assert read(path) == [step(1), step(3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_full_disk_is_explained_and_stops_training(path):
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    observers = Observers(Recorder(path), [Witness()])
    with pytest.raises(UsageError, match=r"cannot write .*metrics\.jsonl: the disk is full"):
        observers.write(step(1))
    with pytest.raises(OSError, match="Invalid argument"):
        observers.close()  # devices cannot be flushed
    observers.close()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    try:
        (tmp_path / "locked" / "probe").touch()
    except PermissionError:
        with pytest.raises(UsageError, match="permission is denied"):
            Recorder(tmp_path / "locked" / "run" / "metrics.jsonl")
    else:
        pytest.skip("this user may write anywhere")


def test_without_timing_the_histories_of_a_resumed_and_an_uninterrupted_run_are_equal():
    whole = [{"kind": "start", "step": 0, "timing": {"time": "1"}}, step(20, timing={"seconds": 1})]
    resumed = [
        {"kind": "start", "step": 0, "timing": {"time": "2"}},
        {"kind": "checkpoint", "step": 10, "timing": {"seconds": 1}},
        {"kind": "resume", "step": 10},
        {"kind": "warning", "step": 10, "message": "slow"},
        step(20, timing={"seconds": 2}),
    ]
    assert (
        without_timing(resumed) == without_timing(whole) == [{"kind": "start", "step": 0}, step(20)]
    )
    assert "timing" in whole[0]


def test_a_broken_observer_is_dropped_with_a_warning_and_the_others_go_on(path):
    broken, healthy = Witness(breaks_at={"train"}), Witness()
    observers = Observers(Recorder(path), [broken, healthy])
    for record in ({"kind": "start", "step": 0}, step(1), step(2)):
        observers.write(record)
    observers.sync()
    observers.close()
    warning = {
        "kind": "warning",
        "step": 1,
        "message": "Witness failed and is switched off (RuntimeError: out of paper)",
    }
    assert read(path) == [{"kind": "start", "step": 0}, step(1), warning, step(2)]
    assert broken.seen == [{"kind": "start", "step": 0}]
    assert broken.closed == 1
    assert warning in healthy.seen
    assert step(2) in healthy.seen


def test_an_observer_that_breaks_at_the_warning_about_another_is_dropped_too(path):
    first, second = Witness(breaks_at={"train"}), Witness(breaks_at={"warning"})
    observers = Observers(Recorder(path), [first, second])
    observers.write(step(1))
    observers.write(step(2))
    observers.close()
    assert [record["kind"] for record in read(path)] == ["train", "warning", "warning", "train"]
    assert second.seen == []


def test_an_observer_that_breaks_on_closing_does_not_keep_the_others_open(path):
    first, broken = Witness(), Witness(breaks_on_close=True)
    observers = Observers(Recorder(path), [first, broken])
    observers.close()
    observers.close()
    assert first.closed == broken.closed == 1
    assert first.seen[0]["message"].endswith("(OSError: still out of paper)")
    assert read(path) == first.seen


def test_what_the_recorder_cannot_write_stops_training(path):
    observers = Observers(Recorder(path), [Witness()])
    with pytest.raises(TypeError, match="not JSON serializable"):
        observers.write(step(1, loss=object()))
    observers.close()
