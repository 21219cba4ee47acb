import io
import re

import pytest
from rich.console import Console

from rn50.observe.live import LEAST_COLUMNS, Panel, facts
from rn50.observe.standing import Standing

GIB = 2**30
GPU = {
    "gpu_utilisation": 0.97,
    "gpu_memory": 34 * GIB,
    "gpu_memory_total": 80 * GIB,
    "gpu_power_w": 2891.4,
    "gpu_clock_mhz": 1410.0,
}

WHOLE = [
    "epoch 12.41/90",
    "loss 2.341",
    "top-1 51.2%",
    "176 px",
    "2,841 img/s",
    "GPU-bound, waiting 3%",
    "GPU 97% 34.0 GiB 2,891 W",
    "lr 0.4213",
    "step 62,100/450,360",
    "$89.60",
    "39:28:34 left",
]
"""What one line tells of a run."""


def standing(*, price=12.8, averages=True, gpu=GPU, data_wait=0.03, spent=76.8, **more):
    stands = Standing()
    plan = {"epochs": 90, "steps_per_epoch": 5004, "total_steps": 450360, "step": 62000}
    begun = {"spent_s": 21600.0, "spent_dollars": spent, "elapsed_s": 10.0}
    stands.take(
        {"kind": "resume", **plan, "device_type": "cuda", "price_per_hour": price, "timing": begun}
    )
    score = {"loss": 1.9, "top1": 0.5821, "top5": 0.821}
    val = {"model": score, "average": {**score, "top1": 0.6003}} if averages else {"model": score}
    timing = {"seconds": 1800.0, "eval_seconds": 30.0, "elapsed_s": 3500.0}
    stands.take(
        {"kind": "epoch", "step": 60048, "epoch": 12, "px": 176, "val": val} | {"timing": timing}
    )
    timing = {"seconds": 36.0, "images_per_second": 2841.3, "data_wait": data_wait, "saving_s": 0.0}
    window = {"kind": "train", "step": 62100, "epoch": 62100 / 5004, "loss": 2.3412, "top1": 0.512}
    window |= {"lr": 0.42131, "px": 176, "timing": {**timing, **gpu, "elapsed_s": 3600.0}}
    stands.take({**window, **more})
    return stands


def drawn(stands, width, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(Panel(stands))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_wide_terminal_shows_all_there_is_to_know():
    lines = drawn(standing(), 100)
    bars, rest = lines[:2], lines[2:]
    assert [" ".join(re.sub("[━╸╺]", "", line).split()) for line in bars] == [
        "epoch 12.41/90 step 62,100/450,360",
        "run 39:28:34 left 13.8% 7:00:00 so far",
    ]
    assert rest == [
        "train loss 2.341  top-1 51.2%  176 px  lr 0.4213",
        "val   model 58.2/82.1  EMA 60.0/82.1  % top-1/5, epoch 12",
        "speed 2,841 img/s  GPU-bound  waiting for data 3%",
        "GPU   97% busy  34.0/80.0 GiB  2,891 W  1,410 MHz",
        "cost  $89.60 so far  $594.89 at the end",
    ]


def test_the_bars_tell_how_much_of_the_epoch_and_of_the_run_is_done():
    epoch, run = drawn(standing(), 100)[:2]
    assert epoch.index("12.41") == run.index("39:28")
    console = Console(
        file=io.StringIO(), width=100, height=24, force_terminal=True, color_system="standard"
    )
    console.print(Panel(standing()))
    bars = console.file.getvalue().splitlines()[:2]
    done = [line.split("\x1b[36m")[1].split("\x1b")[0].count("━") for line in bars]
    assert done == [16, 5], "of 40"


def test_a_narrow_terminal_shows_the_first_facts_of_each_row():
    assert drawn(standing(), 40)[2:] == [
        "train loss 2.341  top-1 51.2%  176 px",
        "val   model 58.2/82.1  EMA 60.0/82.1",
        "speed 2,841 img/s  GPU-bound",
        "GPU   97% busy  34.0/80.0 GiB  2,891 W",
        "cost  $89.60 so far  $594.89 at the end",
    ]


@pytest.mark.parametrize("width", [1, 2, 5, 12, 20, 30, 36, 37, 40, 47, 60, 80, 120, 300])
@pytest.mark.parametrize("height", [1, 5, 24])
def test_no_line_reaches_the_last_column_and_no_more_lines_than_the_terminal_has(width, height):
    lines = drawn(standing(), width, height)
    assert all(len(line) < max(2, width) for line in lines)
    assert len(lines) <= height
    assert (len(lines) > 1) == (width > LEAST_COLUMNS and height == 24)


def test_a_small_terminal_shows_one_line_that_keeps_the_epoch_and_the_time_left():
    assert drawn(standing(), 30) == ["epoch 12.41/90  39:28:34 left"]
    assert drawn(standing(), 15) == ["epoch 12.41/90"]
    assert drawn(standing(), 8) == ["epoch …"]
    (line,) = drawn(standing(), 180, height=6)
    assert line.endswith("  ".join(WHOLE))


def test_a_line_tells_what_the_panel_does_and_stays_readable():
    assert facts(standing()) == WHOLE
    assert len("  ".join(WHOLE)) <= 165
    stands = standing(top1=None, gpu={"gpu_clock_mhz": 1410.0}, price=0, spent=0.0, data_wait=0.5)
    assert facts(stands)[2:7] == [
        "top-1 -",
        "176 px",
        "2,841 img/s",
        "data-bound, waiting 50%",
        "lr 0.4213",
    ]
    more = {"kind": "train", "step": 62110, "epoch": 12.41, "loss": 2.0, "top1": 1.0, "px": 176}
    stands = standing()
    stands.take(more | {"lr": 0.4, "timing": {"seconds": 4.0}})
    assert facts(stands)[2] == f"top-1 {stands.top1:.1%}", "smoothed, not that of a few images"
    assert stands.top1 < 0.6


def test_rows_that_have_nothing_to_tell_are_left_out():
    without = standing(price=0, spent=0.0, gpu={})
    without.evaluated = {}
    assert [line.split()[0] for line in drawn(without, 80)] == ["epoch", "run", "train", "speed"]


def test_a_gpu_that_tells_little_shows_that():
    stands = standing(gpu={"gpu_memory": 12.5 * GIB})
    assert "GPU   12.5 GiB" in drawn(stands, 80)


def test_values_that_are_no_numbers_are_shown_as_a_dash():
    stands = standing(loss=None, top1=None)
    stands.evaluated["val"]["model"]["top1"] = None
    lines = drawn(stands, 80)
    assert "train loss -  top-1 -  176 px  lr 0.4213" in lines
    assert any("model -/82.1" in line for line in lines)


def test_a_verdict_that_asks_for_something_stands_out():
    console = Console(
        file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="standard"
    )
    console.print(Panel(standing(data_wait=0.5)))
    assert "\x1b[33mdata-bound" in console.file.getvalue()
