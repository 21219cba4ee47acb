import io
import json

import pytest
from PIL import Image

from rn50.errors import UsageError
from rn50.observe.files import Reports, write_reports
from rn50.observe.record import Recorder

PLOTS = ("loss.png", "accuracy.png", "lr.png", "throughput.png")


def start(**more):
    plan = {"recipe": "demo", "epochs": 5, "steps_per_epoch": 40, "total_steps": 200}
    data = {"num_train": 2500, "num_val": 600, "num_classes": 10}
    machine = {"world_size": 1, "device": "cpu", "precision": "bf16"}
    versions = {"versions": {"rn50": "0.1.0", "torch": "2.11"}}
    timing = {"timing": {"time": "2026-11-21T10:00:00Z"}}
    return {"kind": "start", "step": 0, **plan, **data, **machine, **versions, **timing, **more}


def window(step):
    timing = {"seconds": 12.0, "images_per_second": 104.0, "data_wait": 0.02}
    scores = {"loss": 200 / (step + 50), "top1": step / 400}
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 40,
        **scores,
        "lr": 0.05,
        "px": 64,
        "timing": timing,
    }


def epoch(number, *, top1, average=None, seconds=24.0, data_wait=0.02, **more):
    val = {"model": {"loss": 2.5 - top1, "top1": top1, "top5": min(1.0, 2 * top1), "images": 600}}
    if average is not None:
        val["average"] = {"loss": 2.4 - average, "top1": average, "top5": 0.9, "images": 600}
    return {
        "kind": "epoch",
        "step": 40 * number,
        "epoch": number,
        "train_loss": 2.0 / number,
        "train_top1": 0.1 * number,
        "lr": 0.05,
        "px": 64,
        "val": val,
        "timing": {
            "seconds": seconds,
            "images_per_second": 104.2,
            "data_wait": data_wait,
            "eval_seconds": 6.0,
        },
        **more,
    }


FIVE = [
    epoch(1, top1=0.20, average=0.10),
    epoch(2, top1=0.30, average=0.25, seconds=36.0),
    epoch(3, top1=0.40, average=0.45, data_wait=0.3),
    epoch(4, top1=0.35, average=0.50),
    epoch(5, top1=0.38, average=0.48),
]


def with_swa(record, *, top1):
    swa = {"loss": 2.3 - top1, "top1": top1, "top5": 0.95, "images": 600}
    return {**record, "val": {**record["val"], "swa": swa}}


def reported(folder, records):
    recorder = Recorder(folder / "metrics.jsonl")
    for record in records:
        recorder.write(record)
    recorder.close()
    write_reports(folder)
    return folder


def table(folder):
    lines = (folder / "training_log.md").read_text().splitlines()
    lines = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "the columns are not aligned"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_an_swa_has_a_column_and_lines_in_the_plots_from_its_first_epoch_on(tmp_path):
    plain = reported(tmp_path / "plain", [start(), *FIVE])
    tail = [with_swa(FIVE[3], top1=0.52), with_swa(FIVE[4], top1=0.55)]
    averaged = reported(tmp_path / "averaged", [start(), *FIVE[:3], *tail])
    assert [row["SWA top-1"] for row in table(averaged)] == ["-", "-", "-", "52.00%", "55.00%"]
    assert "SWA top-1" not in table(plain)[0]
    text = (averaged / "training_log.md").read_text()
    assert "- Best: top-1 55.00% after epoch 5 (swa)" in text
    for name in ("loss.png", "accuracy.png"):
        assert (plain / name).read_bytes() != (averaged / name).read_bytes()


def test_the_log_has_the_facts_and_a_row_for_each_epoch(tmp_path):
    windows = [window(step) for step in range(20, 201, 20)]
    reported(tmp_path, [start(), *windows, *FIVE, {"kind": "end", "step": 200, "timing": {}}])
    text = (tmp_path / "training_log.md").read_text()
    assert text.startswith("# Training log: demo\n")
    assert "2,500 training and 600 validation images of 10 classes" in text
    assert "- State: finished, after 2.5 minutes\n" in text
    assert "- Best: top-1 50.00% after epoch 4 (average)" in text
    rows = table(tmp_path)
    assert rows[0] == {
        "epoch": "1",
        "train loss": "2.0000",
        "val loss": "2.3000",
        "top-1": "20.00%",
        "top-5": "40.00%",
        "average top-1": "10.00%",
        "LR": "0.05",
        "px": "64",
        "seconds": "24.0",
        "img/s": "104",
        "data wait": "2%",
        "note": "-",
    }
    assert [row["note"] for row in rows] == ["-", "slow (1.5x)", "data-bound", "**best**", "-"]


def test_the_history_holds_the_epochs_and_the_facts(tmp_path):
    reported(tmp_path, [start(), *FIVE])
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["run"] == start()
    assert history["epochs"] == FIVE
    assert history["resumed_at"] == []
    assert history["finished"] is False


def test_the_plots_are_pictures_of_a_readable_size(tmp_path):
    reported(tmp_path, [start(), window(20), window(40), *FIVE])
    for name in PLOTS:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        picture = Image.open(io.BytesIO(data))
        assert picture.size[0] == 1200
        assert 700 <= picture.size[1] <= 1200
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.parametrize(
    "records",
    [
        [],
        [start()],
        [start(), window(20)],
        [start(), epoch(1, top1=0.0)],
        [start(), epoch(1, top1=0.5, val=None, train_loss=None, train_top1=None, lr=None)],
        [start(), window(20) | {"loss": None, "lr": None}, epoch(1, top1=0.5)],
    ],
)
def test_reports_can_be_written_of_a_run_that_has_hardly_begun_or_lacks_numbers(tmp_path, records):
    reported(tmp_path, records)
    assert all((tmp_path / name).stat().st_size > 5000 for name in PLOTS)


def test_columns_of_what_was_never_measured_are_left_out(tmp_path):
    reported(tmp_path, [start(), epoch(1, top1=0.2), epoch(2, top1=0.3, val=None)])
    rows = table(tmp_path)
    assert "average top-1" not in rows[0]
    assert rows[1]["top-1"] == "-"


def test_three_hundred_epochs_with_many_records_are_reported(tmp_path):
    epochs = [epoch(n, top1=n / 400) for n in range(1, 301)]
    reported(tmp_path, [start(epochs=300), *(window(s) for s in range(4, 12001, 4)), *epochs])
    assert len(table(tmp_path)) == 300


def test_epochs_of_larger_images_are_not_called_slow(tmp_path):
    small = [epoch(n, top1=0.1 * n) for n in (1, 2, 3)]
    large = [epoch(n, top1=0.1 * n, seconds=96.0, px=128) for n in (4, 5)]
    reported(tmp_path, [start(), *small, *large])
    assert not any("slow" in row["note"] for row in table(tmp_path))


def test_a_resumed_run_has_every_epoch_once_and_says_where_it_was_resumed(tmp_path):
    reported(tmp_path, [start(), *FIVE[:4]])
    recorder = Recorder(tmp_path / "metrics.jsonl", keep_through_step=100)
    for record in ({**start(), "kind": "resume", "step": 100}, *FIVE[2:]):
        recorder.write(record)
    recorder.close()
    write_reports(tmp_path)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert "- Resumed at step: 100" in (tmp_path / "training_log.md").read_text()
    assert json.loads((tmp_path / "history.json").read_text())["run"]["kind"] == "start"


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is not the folder of a run: neither metrics\.jsonl nor"):
        write_reports(tmp_path)


def test_a_damaged_record_is_reported_as_far_as_it_goes_and_the_log_says_what_is_missing(tmp_path):
    reported(tmp_path, [start(), *FIVE])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:40]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + '{"kind": "tr')
    write_reports(tmp_path)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "3", "4", "5"]
    log = (tmp_path / "training_log.md").read_text()
    assert "- Missing: the last line of metrics.jsonl is torn, as a crash leaves it" in log
    assert "- Missing: metrics.jsonl is damaged: line 3 is no record" in log
    assert "- Missing: the record lacks 1 epochs before the last (2)" in log
    assert "- State: not finished, 4 of 5 epochs done" in log
    assert len(json.loads((tmp_path / "history.json").read_text())["problems"]) == 4


def test_a_record_that_lost_its_facts_is_reported_without_them(tmp_path):
    bare = {"kind": "start", "step": 0, "recipe": "demo"}
    log = (reported(tmp_path, [bare, FIVE[0]]) / "training_log.md").read_text()
    assert "- Plan: - epochs of - steps, - steps in all\n" in log
    assert "- Machine: -, -, world size -\n" in log
    reported(tmp_path / "none", [FIVE[0]])
    assert "- Plan" not in (tmp_path / "none" / "training_log.md").read_text()


def test_the_log_lists_the_last_stalls_and_tells_the_cost(tmp_path):
    stalls = [
        {"kind": "stall", "step": n, "message": f"slow {n}", "cause": "", "timing": {}}
        for n in range(1, 14)
    ]
    paid = start(price_per_hour=3600.0)
    log = (reported(tmp_path, [paid, *stalls, *FIVE[:1]]) / "training_log.md").read_text()
    assert "- Step 3:" not in log
    assert "- Step 4: slow 4\n" in log
    assert "- Step 13: slow 13\n- Stalls before these 10: 3\n" in log
    assert "after 0.1 minutes and $6.00\n" in log


def test_reports_follow_the_epochs_and_are_complete_after_closing(tmp_path):
    recorder = Recorder(tmp_path / "metrics.jsonl")
    reports = Reports(tmp_path)
    for record in (start(), *FIVE):
        recorder.write(record)
        reports.write(record)
    reports.close()
    reports.close()
    recorder.close()
    assert len(table(tmp_path)) == 5


def test_reports_that_could_not_be_written_are_told_at_the_next_record_or_on_closing(tmp_path):
    reports = Reports(tmp_path)
    reports.write(FIVE[0])
    with pytest.raises(UsageError, match="is not the folder of a run"):
        reports.close()


def test_the_log_counts_bad_images_by_class(tmp_path):
    told = [("train", "bee"), ("val", "ant"), ("train", "bee")]
    bad = [{"kind": "bad_image", "step": 1, "split": s, "class": c} for s, c in told]
    reported(tmp_path, [start(), *bad, epoch(1, top1=0.5)])
    log = (tmp_path / "training_log.md").read_text()
    assert "- Images that could not be decoded: 2 train of bee, 1 val of ant\n" in log
