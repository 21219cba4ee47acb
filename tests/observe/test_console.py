import io
import os
import subprocess
import sys

import pytest

from rn50.observe.console import Console

START = {
    "kind": "start",
    "step": 0,
    "recipe": "demo",
    "epochs": 8,
    "steps_per_epoch": 40,
    "total_steps": 320,
    "num_train": 2500,
    "num_val": 600,
    "num_classes": 10,
    "world_size": 1,
    "device": "cpu",
    "precision": "bf16",
    "versions": {"rn50": "0.1.0", "torch": "2.11"},
    "timing": {"time": "2026-11-21T10:00:00Z"},
}
END = {"kind": "end", "step": 320, "timing": {}}


def window(step, **more):
    timing = {"seconds": 20.0, "images_per_second": 104.0, "data_wait": 0.02}
    record = {"kind": "train", "step": step, "epoch": step / 40, "loss": 2.1, "top1": 0.23}
    return {**record, "lr": 0.05, "px": 64, "timing": timing, **more}


def epoch(number, *, data_wait=0.02, **more):
    record = {"kind": "epoch", "step": 40 * number, "epoch": number, "train_loss": 2.0}
    timing = {"seconds": 65.0, "images_per_second": 104.0, "data_wait": data_wait}
    return {
        **record,
        "train_top1": 0.25,
        "lr": 0.05,
        "px": 64,
        "val": {"model": {"loss": 1.9, "top1": 0.345, "top5": 0.8, "images": 600}},
        "timing": {**timing, "eval_seconds": 10.0},
        **more,
    }


def shown(*records, live=False, clock=lambda: 0.0):
    stream = io.StringIO()
    console = Console(stream, live=live, clock=clock)
    for record in records:
        console.write(record)
    console.close()
    return stream.getvalue()


def test_away_from_a_terminal_there_are_plain_lines():
    text = shown(START, window(20), epoch(1), END)
    assert text.splitlines() == [
        "demo: 8 epochs of 40 steps, 2,500 training and 600 validation images of 10 classes; "
        "cpu, bf16, 1 process",
        "epoch 0.50/8  loss 2.100  top-1 23.0%  64 px  104 img/s  compute-bound, waiting 2%  "
        "lr 0.05  step 20/320  5:00 left",
        "epoch 1/8  train loss 2.000  val loss 1.900  top-1 34.50% top-5 80.00%  lr 0.05  64 px  "
        "1:05 training + 0:10 evaluation  104 img/s",
        "finished at step 320 after 0:30",
    ]
    assert text.isascii()


def test_a_price_shows_what_the_run_has_cost_and_the_end_tells_time_and_money():
    priced = {**START, "price_per_hour": 36.0, "timing": {"spent_s": 0.0, "elapsed_s": 5.0}}
    after = {"seconds": 20.0, "images_per_second": 104.0, "data_wait": 0.02, "elapsed_s": 25.0}
    lines = shown(priced, window(20, timing=after), {**END, "timing": {"elapsed_s": 3723.0}})
    assert "  step 20/320  $0.25  5:00 left" in lines
    assert lines.splitlines()[-1] == "finished at step 320 after 1:02:03, $37.23"
    assert "$" not in shown(START, window(20), END)


def test_a_gpu_that_tells_of_itself_is_shown_in_plain_lines_too():
    timing = {"seconds": 20.0, "data_wait": 0.02, "gpu_utilisation": 0.974}
    assert ", waiting 2%  GPU 97%  lr 0.05" in shown(START, window(20, timing=timing))


def test_a_stall_is_told_like_a_warning():
    stall = {"kind": "stall", "step": 20, "message": "step 20 took 14 s", "cause": "", "timing": {}}
    assert shown(START, stall).splitlines()[-1] == "stall: step 20 took 14 s"
    assert "\x1b[33mstall: step 20 took 14 s" in shown(START, stall, live=True)


def test_the_other_machines_of_a_run_name_themselves_in_each_line():
    stream = io.StringIO()
    console = Console(stream, live=False, prefix="[node 1] ")
    console.write({**START, "kind": "resume", "step": 160})
    assert all(line.startswith("[node 1] ") for line in stream.getvalue().splitlines())
    assert stream.getvalue().count("\n") == 2


class NotebookStream:
    """As much of a stream as a notebook's kernel must have."""

    def __init__(self):
        self.written = []

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


def test_a_stream_that_is_hardly_one_gets_plain_lines():
    console = Console(NotebookStream())
    for record in (START, window(20), epoch(1), END):
        console.write(record)
    console.close()
    written = "".join(console._stream.written)
    assert written.count("\n") == 4
    assert "\x1b" not in written


def test_a_stream_that_is_no_terminal_gets_no_escape_codes_even_when_colour_is_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in shown(START, window(20), epoch(1, data_wait=0.5), END, live=None)


def test_plain_progress_comes_at_most_every_ten_seconds():
    times = iter([0.0, 4.0, 9.9, 10.1, 15.0, 21.0])
    text = shown(START, *(window(step) for step in range(1, 7)), clock=lambda: next(times))
    assert [line for line in ("step 1/", "step 2/", "step 4/", "step 6/") if line in text] == [
        "step 1/",
        "step 4/",
        "step 6/",
    ]
    assert text.count("loss") == 3


def test_an_epoch_that_waited_for_data_says_so():
    assert "data-bound: 35% of the time was spent waiting for data" in shown(
        START, epoch(1, data_wait=0.35)
    )
    assert "data-bound" not in shown(START, epoch(1, data_wait=0.2))


def test_an_epoch_shows_its_averages_and_needs_no_evaluation():
    average = {"loss": 1.5, "top1": 0.5, "top5": 0.9, "images": 600}
    with_average = epoch(1)
    with_average["val"]["average"] = average
    assert "average loss 1.500  top-1 50.00% top-5 90.00%" in shown(START, with_average)
    with_average["val"]["swa"] = average | {"loss": 1.4}
    assert "SWA loss 1.400  top-1 50.00% top-5 90.00%" in shown(START, with_average)
    without = shown(START, epoch(1, val=None))
    assert "train loss 2.000  lr 0.05" in without


def test_values_that_were_not_finite_are_shown_as_a_dash():
    assert "loss -  top-1 -" in shown(START, window(20, loss=None, top1=None))


def test_a_resumed_run_says_where_it_goes_on_and_estimates_from_there():
    text = shown({**START, "kind": "resume", "step": 160}, window(200))
    assert "resumed at step 160 (epoch 4.00)" in text
    assert "1:00 left" in text


def test_the_time_left_counts_evaluations_and_follows_the_image_size():
    larger = window(60, px=128, timing={"seconds": 40.0})
    text = shown(START, window(40), epoch(1), larger, clock=iter([0.0, 20.0]).__next__)
    # 260 steps of 2 s, and 7 evaluations of 10 s.
    assert "9:50 left" in text


def test_a_terminal_gets_a_panel_that_is_drawn_again_and_permanent_lines_for_epochs(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(START, window(20), epoch(1), window(60), END, live=True)
    assert "\x1b[2K" in text
    assert "━" in text
    assert "5:00 left" in text
    assert text.index("\x1b[?25l") < text.index("\x1b[?25h"), "the cursor is not shown again"
    assert text.count("epoch 1/8") == 1


def test_the_panel_is_drawn_a_few_times_a_second_at_most():
    times = iter([0.0, 0.05, 0.2, 0.3, 0.35, 0.6])
    text = shown(
        START, *(window(step) for step in range(1, 7)), live=True, clock=lambda: next(times)
    )
    drawn = [step for step in range(1, 7) if f"step {step}/320" in text]
    assert drawn == [1, 4, 6]


def test_messages_are_shown_as_they_are_without_markup():
    warning = {"kind": "warning", "step": 1, "message": "[bold]x[/bold] :smile: [/]"}
    for live in (False, True):
        assert "warning: [bold]x[/bold] :smile: [/]" in shown(warning, live=live)


def test_what_the_stream_cannot_encode_is_replaced():
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="ascii"), live=False)
    console.write({"kind": "warning", "step": 1, "message": "naïve"})
    assert raw.getvalue() == b"warning: na?ve\n"


@pytest.mark.parametrize("live", [False, True])
def test_a_closed_pipe_neither_ends_the_program_nor_changes_its_exit_code(tmp_path, live):
    program = f"""
import sys
from pathlib import Path
from rn50.observe.console import Console
from rn50.observe.record import Observers, Recorder

sys.stdin.readline()
out = sys.stdout
observers = Observers(Recorder(Path({str(tmp_path / "m.jsonl")!r})), [Console(live={live})])
observers.write({START!r})
observers.write({window(20)!r})
observers.close()
assert sys.stdout is out
print("to nobody")
"""
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    os.close(reader)
    _, errors = child.communicate("go\n", timeout=60)
    assert (child.returncode, errors) == (0, "")
    assert (
        "Console failed and is switched off (BrokenPipeError" in (tmp_path / "m.jsonl").read_text()
    )


def bad_image(count: int, split: str = "train"):
    return {
        "kind": "bad_image",
        "step": 1,
        "split": split,
        "image": count,
        "key": f"bee/{count}",
        "shard": "train-000000.tar",
        "offset": 512,
        "class": "bee",
        "class_count": count,
        "count": count,
    }


def test_bad_images_are_shown_once_each_and_only_so_many():
    lines = shown(*(bad_image(i) for i in range(1, 30))).splitlines()
    assert lines[0] == (
        "warning: cannot decode bee/1 (train-000000.tar at byte 512): "
        "trained on another of its class"
    )
    assert len(lines) == 11
    assert lines[-1] == "warning: further bad images are told in the record only"
    assert "scored as wrong" in shown(bad_image(1, "val"))
