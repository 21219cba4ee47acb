import pytest

from rn50.train.pace import WARM_UP_STEPS, Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def steps(pace, clock, *seconds, px=64, wait_s=0.0):
    for s in seconds:
        clock.now += s
        pace.step(10, wait_s, px)


def warmed(clock, px=64):
    pace = Pace(clock)
    steps(pace, clock, *[1.0] * WARM_UP_STEPS, px=px)
    pace.restart()
    return pace


def test_a_window_tells_its_speed_its_wait_for_data_and_its_slowest_step(clock):
    pace = warmed(clock)
    steps(pace, clock, 0.5, wait_s=0.1)
    steps(pace, clock, 3.0, wait_s=2.5)
    steps(pace, clock, 0.5, wait_s=0.4)
    assert pace.timing() == {
        "seconds": 4.0,
        "images_per_second": 7.5,
        "data_wait": 0.75,
        "saving_s": 0.0,
        "slowest_s": 3.0,
        "slowest_wait_s": 2.5,
    }
    pace.restart()
    steps(pace, clock, 0.25)
    assert (pace.timing()["slowest_s"], pace.timing()["data_wait"]) == (0.25, 0.0)


def test_saving_is_told_apart_from_training_and_belongs_to_no_step(clock):
    pace = warmed(clock)
    steps(pace, clock, 0.5)
    clock.now += 7.0
    pace.pause(7.0)
    steps(pace, clock, 0.5)
    timing = pace.timing()
    assert (timing["seconds"], timing["saving_s"], timing["slowest_s"]) == (1.0, 7.0, 0.5)


def test_a_pause_after_the_last_step_of_a_window_belongs_to_no_step_either(clock):
    pace = warmed(clock)
    steps(pace, clock, 0.5)
    clock.now += 7.0
    pace.pause(7.0)
    assert pace.timing()["slowest_s"] == 0.5


def test_waiting_for_the_device_at_the_end_of_a_window_is_part_of_its_last_step(clock):
    pace = warmed(clock)
    steps(pace, clock, 0.5, 0.5)
    clock.now += 4.0
    timing = pace.timing()
    assert (timing["seconds"], timing["slowest_s"]) == (5.0, 4.5)


def test_the_first_steps_of_an_image_size_are_not_among_the_slowest(clock):
    pace = Pace(clock)
    steps(pace, clock, *[60.0] * WARM_UP_STEPS)
    clock.now += 5.0
    assert "slowest_s" not in pace.timing()
    pace.restart()
    steps(pace, clock, 0.5)
    steps(pace, clock, *[60.0] * WARM_UP_STEPS, px=96)
    assert pace.timing()["slowest_s"] == 0.5, "another size warms up again"
    steps(pace, clock, 0.75, px=96)
    assert pace.timing()["slowest_s"] == 0.75
    pace.restart()
    steps(pace, clock, 0.6)
    assert pace.timing()["slowest_s"] == 0.6, "a size that comes again is warm"
