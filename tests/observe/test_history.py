import json

import pytest
from histories import epoch, folder_of, start, whole, window

from rn50.errors import UsageError
from rn50.observe.history import History, scores
from rn50.observe.stalls import Stalls


def last(history):
    return history.epochs[-1]


def test_records_are_sorted_by_kind_and_a_sound_record_has_no_problems(tmp_path):
    extra = [
        {"kind": "warning", "step": 40, "message": "hot"},
        {"kind": "stall", "step": 60, "message": "slow", "cause": "saving", "timing": {}},
        {"kind": "rollback", "step": 80, "message": "went back", "detour": 1},
        {"kind": "bad_image", "step": 80, "split": "train", "class": "bee"},
        {"kind": "images", "step": 0, "file": "augmented.png"},
        start("resume", 80),
    ]
    records = whole()
    records[3]["skipped"] = 3
    records[4]["skipped"] = 2
    history = History.read(folder_of(tmp_path, [*records[:4], *extra, *records[4:]]))
    assert history.problems == ()
    assert history.facts == start()
    assert history.settings == {"recipe": "demo", "epochs": 5}
    assert [r["step"] for r in history.windows] == list(range(20, 201, 20))
    assert [r["epoch"] for r in history.epochs] == [1, 2, 3, 4, 5]
    kinds = ("warnings", "stalls", "rollbacks", "bad_images", "images", "resumes")
    assert [getattr(history, kind) for kind in kinds] == [[record] for record in extra]
    assert history.num_skipped == 2  # records[3] is an epoch's, which counts none
    assert history.finished
    assert history.state == "finished"
    assert history.title == "demo"


def test_the_best_epoch_is_the_earliest_of_the_highest_top1_of_any_network():
    history = History.of([epoch(1, top1=0.3), epoch(2, top1=0.3, swa=0.7), epoch(3, average=0.7)])
    record, network = history.best
    assert (record["epoch"], network) == (2, "swa")
    assert scores(record, "swa")["top1"] == 0.7
    assert scores(record, "average") == {}
    assert History.of([epoch(1, val=None)]).best is None


def test_a_run_that_goes_on_for_longer_is_planned_by_its_latest_process():
    history = History.of([start(epochs=5), start("resume", 40, epochs=9), epoch(1)])
    assert history.num_planned_epochs == 9
    assert history.state == "not finished, 1 of 9 epochs done"
    assert History.of([], {"epochs": 7}).state == "not finished, 0 of 7 epochs done"
    assert History.of([]).state == "not finished, 0 epochs done"


def test_hours_of_an_old_record_are_training_and_evaluation_added_up():
    history = History.of(whole(2))
    assert history.hours_at(history.windows[0]) * 3600 == pytest.approx(12)
    assert history.hours_at(history.epochs[0]) * 3600 == pytest.approx(30)
    assert history.hours_at(history.windows[2]) * 3600 == pytest.approx(42)
    assert history.hours_at(last(history)) * 3600 == pytest.approx(60)
    assert history.dollars_at(last(history)) is None
    assert history.dollars is None
    assert history.hours * 3600 == pytest.approx(60)


def test_hours_of_an_epoch_resumed_within_count_what_came_before():
    # The resumed process times the second half of the epoch only.
    resumed = [start(), window(20), start("resume", 20), window(40), epoch(1, seconds=12.0)]
    assert History.of(resumed).hours_at(resumed[-1]) * 3600 == pytest.approx(30)


def test_hours_and_dollars_count_what_earlier_processes_spent_at_their_price():
    records = [
        start(price_per_hour=2.0),
        window(20, elapsed_s=3600.0),
        epoch(1, elapsed_s=7200.0),
        # Half an hour was lost by the crash, and the next machine is dearer.
        start("resume", 40, price_per_hour=10.0, timing={"spent_s": 9000.0, "spent_dollars": 5.0}),
        window(60, elapsed_s=1800.0),
        epoch(2, elapsed_s=3600.0),
    ]
    history = History.of(records)
    at = [(history.hours_at(r), history.dollars_at(r)) for r in records if r["kind"] != "start"]
    assert at[0] == pytest.approx((1.0, 2.0))
    assert at[1] == pytest.approx((2.0, 4.0))
    assert at[3] == pytest.approx((3.0, 10.0))
    assert at[4] == pytest.approx((3.5, 15.0))
    assert (history.hours, history.dollars) == pytest.approx((3.5, 15.0))


def test_hours_never_fall_where_the_record_of_a_resume_is_lost_or_older():
    lost = [start(), window(20, elapsed_s=100.0), window(40, elapsed_s=50.0)]
    assert History.of(lost).hours_at(lost[-1]) * 3600 == pytest.approx(100)
    older = [start(), window(20), start("resume", 20), window(40, elapsed_s=50.0)]
    assert History.of(older).hours_at(older[-1]) * 3600 == pytest.approx(62)


def test_hours_before_the_first_known_price_count_at_it():
    records = [
        start(price_per_hour=0),
        window(20, seconds=3600.0),
        start("resume", 20, price_per_hour=4.0),
        window(40, seconds=3600.0),
    ]
    history = History.of(records)
    assert history.dollars_at(records[1]) == pytest.approx(4.0)
    assert history.dollars_at(records[3]) == pytest.approx(8.0)


@pytest.mark.parametrize(("number", "seconds", "ratio"), [(2, 36.0, 1.5), (4, 28.0, None)])
def test_an_epoch_is_slow_against_the_median_of_its_image_size(number, seconds, ratio):
    epochs = [epoch(n, seconds=seconds if n == number else 24.0) for n in range(1, 6)]
    larger = [epoch(n, seconds=96.0, px=128) for n in (6, 7)]
    slow = History.of([*epochs, *larger]).slow_epochs
    assert slow == ({number: pytest.approx(ratio)} if ratio else {})


def test_what_is_slow_is_decided_once_and_told_once():
    stalls = []
    found = Stalls(stalls.append)
    records = [start()]
    for n, seconds in ((1, 24.0), (2, 24.0), (3, 24.0), (4, 35.0), (5, 60.0)):
        windows = [window(40 * n - 20, seconds=seconds / 2), window(40 * n, seconds=seconds / 2)]
        records += [*windows, epoch(n, seconds=seconds)]
    for record in records:
        found.write(record)
    assert [(stall["of"], stall["step"]) for stall in stalls] == [("epoch", 200)]
    assert set(History.of(records).slow_epochs) == {5}
    assert History.of([*records, *stalls]).slow_epochs == {}


def test_a_step_is_placed_by_the_plan_or_else_by_what_was_trained():
    at = {"kind": "resume", "step": 50}
    assert History.of([start()]).epoch_at(at) == 50 / 40
    assert History.of([window(20)]).epoch_at(at) == 50 / 40
    assert History.of([]).epoch_at(at) is None
    assert History.of([start()]).epoch_at(window(20)) == 0.5


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    place = folder_of(tmp_path, whole()[:4])
    with (place / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    history = History.read(place)
    assert len(history.epochs) == 1
    assert history.problems == (
        "the last line of metrics.jsonl is torn, as a crash leaves it: left out",
    )


@pytest.mark.parametrize("garbage", [b"garbage", b"\0\0\0\0", b"[1, 2]", b"[" * 100_000, b""])
def test_damaged_lines_are_left_out_and_counted(tmp_path, garbage):
    place = folder_of(tmp_path, whole())
    lines = (place / "metrics.jsonl").read_bytes().splitlines()
    lines[4] = lines[7] = garbage
    (place / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    history = History.read(place)
    assert len(history.windows) + len(history.epochs) == 15 - 2
    assert "damaged: lines 5, 8 are no records and left out (2 of 17)" in history.problems[0]


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "epoch"},
        {"kind": "epoch", "step": 40, "epoch": "one"},
        {"kind": "train", "step": 40, "epoch": 1, "loss": "low"},
        {"kind": "train", "step": 40, "epoch": 1, "timing": [1]},
        {"kind": "train", "step": 40, "epoch": 1, "timing": {"seconds": "long"}},
        {"kind": "epoch", "step": 40, "epoch": 1, "val": 0.5},
        {"kind": "epoch", "step": 40, "epoch": 1, "val": {"model": 0.5}},
        {"kind": "epoch", "step": 40, "epoch": 1, "val": {"model": {"top1": [1]}}},
        {"kind": "start", "step": 0, "versions": "old"},
        {"kind": "warning", "step": 0},
        {"kind": "train", "step": 40, "epoch": 10**400},
        {"kind": "train", "step": True, "epoch": 1},
    ],
)
def test_a_record_that_lacks_what_belongs_in_it_is_left_out_and_said(tmp_path, record):
    history = History.read(folder_of(tmp_path, [start("resume"), record]))
    assert not history.windows + history.epochs + history.warnings
    (problem,) = history.problems
    assert f"records of kind '{record['kind']}' that lack what belongs in them" in problem


def test_a_number_that_is_none_counts_as_not_measured(tmp_path):
    place = folder_of(tmp_path, [start(), window(20)])
    text = (place / "metrics.jsonl").read_text().replace('"loss": 2.857142857142857', '"loss": NaN')
    (place / "metrics.jsonl").write_text(text)
    history = History.read(place)
    assert history.windows[0]["loss"] is None
    assert history.problems == ()


def test_lost_epochs_a_lost_start_and_lost_settings_are_said(tmp_path):
    place = folder_of(tmp_path, [epoch(1), epoch(4)])
    (place / "config.json").write_text("{")
    history = History.read(place)
    assert history.title == "unnamed run"
    assert history.problems == (
        "config.json is damaged: the run's settings are unknown",
        "the record of the run's start is missing: what was run, and where, is unknown",
        "the record lacks 2 epochs before the last (2, 3)",
    )
    (place / "config.json").unlink()
    assert "config.json is missing" in History.read(place).problems[0]


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), ("", "is empty")])
def test_a_run_that_did_not_begin_is_read_and_says_so(tmp_path, content, said):
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "imagenet-90", "epochs": 90}))
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    history = History.read(tmp_path)
    assert history.title == "imagenet-90"
    assert history.epochs == history.windows == []
    assert f"metrics.jsonl {said}: the run did not begin" in history.problems[0]


def test_what_is_no_run_is_refused_in_a_line(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere does not exist; name the folder of a run"):
        History.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"neither metrics\.jsonl nor config\.json is there"):
        History.read(tmp_path)
    file = folder_of(tmp_path, whole()) / "metrics.jsonl"
    with pytest.raises(UsageError, match=r"metrics\.jsonl is a file; name the folder of a run"):
        History.read(file)


def test_a_record_that_may_not_be_read_is_refused_in_a_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*metrics\.jsonl: .*; name a run that you"):
        History.read(tmp_path)
