import dataclasses
import json
import math

import numpy as np
import pytest

from rn50.config import Guard, Log
from rn50.train.meter import StepEnd, Totals
from rn50.train.trouble import MOST_OVERFLOWS, Course, Trouble, TroubleError
from train.test_step import RUN

GOOD, FAULT, OVERFLOW = StepEnd(False, False), StepEnd(True, True), StepEnd(True, False)
BATCH = RUN.images.batch_size


def run_with(every_steps: int = 20, **guard):
    return dataclasses.replace(RUN, guard=Guard(**guard), log=Log(every_steps=every_steps))


def window(loss: float, steps: int = 1) -> Totals:
    images = steps * BATCH
    return Totals(images=images, loss_units=round(loss * images * 2**16), correct=0)


def report(trouble: Trouble, ends: list[StepEnd], step: int, run=None, *, scaled=False) -> None:
    """Go through a report of steps that end at ``step``."""
    trouble.take(ends, step, scaled=scaled)
    trouble.judge(run or run_with(), Totals(), step)


def test_three_bad_updates_in_a_row_are_left_out_and_a_fourth_is_too_many():
    trouble = Trouble()
    report(trouble, [GOOD, *[FAULT] * 3, GOOD, *[FAULT] * 3], 8)
    with pytest.raises(TroubleError, match=r"4 updates in a row, by step 10; none .* allows 3"):
        report(trouble, [FAULT, GOOD], 10)


def test_a_row_counts_wherever_it_is_read():
    for cut in range(1, 6):
        trouble = Trouble()
        ends = [GOOD, *[FAULT] * 4, GOOD]
        trouble.take(ends[:cut], cut, scaled=False)
        trouble = Trouble.from_dict(json.loads(json.dumps(trouble.to_dict())))
        trouble.take(ends[cut:], 6, scaled=False)
        assert trouble.skipped == [2, 3, 4, 5]
        with pytest.raises(TroubleError, match="4 updates in a row"):
            trouble.judge(run_with(), Totals(), 6)


def test_none_may_be_left_out_where_none_is_allowed():
    with pytest.raises(TroubleError, match="1 updates in a row"):
        report(Trouble(), [FAULT], 1, run_with(skip_updates=0))


def test_what_is_told_is_of_the_steps_since_the_last_report_and_names_them():
    trouble = Trouble()
    trouble.take([GOOD, FAULT, GOOD, GOOD, FAULT], 1205, scaled=False)
    assert trouble.counts() == {"skipped": 2}
    assert trouble.warnings() == [
        "the loss or the gradient was not finite at steps 1,202, 1,205: the updates were left out"
    ]
    trouble.judge(run_with(), Totals(), 1205)
    assert (trouble.counts(), trouble.warnings(), trouble.row) == ({}, [], 1)
    trouble.take([FAULT, GOOD] * 12, 1229, scaled=False)
    assert trouble.counts() == {"skipped": 12}
    assert "and 2 more" in trouble.warnings()[0]


def test_overflows_of_fp16_are_counted_but_are_no_faults_until_no_scale_can_help():
    trouble = Trouble()
    report(trouble, [OVERFLOW] * 10, 10, scaled=True)
    trouble.take([OVERFLOW] * (MOST_OVERFLOWS - 10), MOST_OVERFLOWS, scaled=True)
    assert trouble.counts() == {"overflows": MOST_OVERFLOWS - 10}
    assert trouble.warnings() == []
    trouble.judge(run_with(), Totals(), MOST_OVERFLOWS)
    with pytest.raises(TroubleError, match="overflowed fp16 in 31 updates in a row, by step 31"):
        report(trouble, [OVERFLOW], 31, scaled=True)
    with pytest.raises(TroubleError, match="4 updates in a row"):
        report(Trouble(), [FAULT, OVERFLOW, FAULT, FAULT, FAULT], 5, scaled=True)


def test_what_is_trusted_is_from_a_report_before():
    for every, row, trusted in ((20, 4, 76), (1, 4, 95), (1, 30, 69)):
        with pytest.raises(TroubleError) as error:
            report(Trouble(), [FAULT] * row, 100, run_with(every))
        assert error.value.trusted == trusted
        assert error.value.exit_code == 4


def alarm(losses, *, steps: int = 20, classes: int = 1000, factor: float = 3.0) -> int | None:
    """Return the step after which a course of losses is taken for an explosion."""
    trouble = Trouble(Course.from_ignorance(math.log(classes)))
    run = run_with(steps, explosion=factor)
    for i, loss in enumerate(losses, 1):
        try:
            trouble.judge(run, window(loss, steps), i * steps)
        except TroubleError:
            return i * steps
    return None


def noisy(losses: np.ndarray, spread: float) -> np.ndarray:
    draws = np.random.default_rng(0).lognormal(0.0, spread, len(losses))
    return losses * draws


def falling(start: float, end: float, count: int) -> np.ndarray:
    return np.geomspace(start, end, count)


HEALTHY = {
    "a rise in warm-up": [*np.linspace(6.9, 9.0, 20), *falling(9, 2, 400)],
    "a wild start without warm-up": [40.0, 20.0, 9.0, *falling(7, 2, 100)],
    "other sizes and mixing": [*falling(6.9, 1.0, 500), *[2.4] * 50, *falling(2.4, 1.5, 100)],
    "a restart late in training": [*falling(6.9, 0.01, 3000), *[0.3] * 20, *falling(0.3, 0.02, 99)],
    "noise of small losses": [*falling(6.9, 0.3, 500), *noisy(falling(0.3, 0.002, 3000), 0.8)],
    "a failure that is no explosion": [*falling(6.9, 4.0, 50), *[6.9] * 100],
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("steps", [20, 100])
def test_a_course_that_may_be_healthy_raises_no_alarm(name, steps):
    assert alarm(HEALTHY[name], steps=steps) is None


def test_noise_of_small_batches_reported_step_by_step_raises_no_alarm():
    losses = noisy(np.concatenate([np.full(50, 1.4), falling(1.4, 0.05, 2000)]), 0.7)
    assert losses[:50].max() > 3 * 1.4
    assert alarm(losses, steps=1, classes=4) is None


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([300.0], 20),
        ([6.9, 6.8, 500.0], 60),
        ([*falling(6.9, 2.0, 500), 30.0], 501 * 20),
        ([*falling(6.9, 1.9, 500), *[7.2] * 3], 502 * 20),
        ([*falling(6.9, 0.05, 3000), *[6.9] * 3], 3001 * 20),
    ],
)
def test_an_explosion_is_found_in_its_first_windows(losses, found):
    assert alarm(losses) == found
    assert alarm(losses, factor=0) is None


def test_an_explosion_is_found_as_soon_by_the_step_and_by_the_window():
    by_window = [*falling(6.9, 2.0, 100), *[40.0] * 20]
    found = alarm(np.repeat(by_window, 20), steps=1)
    assert 2000 < found <= 2004
    assert alarm(by_window, steps=20) == 2020


def test_what_is_to_be_saved_is_judged_by_the_part_of_a_window_there_is():
    trouble = Trouble(Course.from_ignorance(math.log(1000)))
    before = trouble.to_dict()
    trouble.judge_loss(run_with(), window(8.0, 7), 7)
    trouble.judge_loss(run_with(), Totals(), 7)
    with pytest.raises(
        TroubleError, match=r"exploded to 400 in the 7 steps up to 7; the mean before was 6.908"
    ):
        trouble.judge_loss(run_with(), window(400.0, 7), 7)
    assert trouble.to_dict() == before


def test_a_window_without_a_loss_changes_no_mean():
    trouble = Trouble(Course.from_ignorance(2.0))
    report(trouble, [FAULT] * 3, 3)
    assert trouble.course == Course.from_ignorance(2.0)


def test_trouble_comes_back_from_json_to_the_bit():
    trouble = Trouble(Course.from_ignorance(math.log(7)), detour=2)
    for i in range(50):
        trouble.judge(run_with(), window(1.0 + math.sin(i), 3), 3 * i)
    trouble.take([FAULT, GOOD, FAULT, FAULT], 200, scaled=False)
    assert Trouble.from_dict(json.loads(json.dumps(trouble.to_dict()))) == trouble
