import pytest

from rn50.observe.stalls import GAP_S, MOST, Stalls

START = {"kind": "start", "step": 0, "steps_per_epoch": 40, "device": "A100", "world_size": 1}


class Run:
    """A run whose steps take 0.5 s, in windows of ten, but where told otherwise."""

    def __init__(self, begun=START):
        self.told = []
        self.stalls = Stalls(self.told.append)
        self.step, self.elapsed_s = begun["step"], 0.0
        self.records = []
        self.write(begun)

    def write(self, record):
        self.records.append(record)
        self.stalls.write(record)

    def window(self, slowest_s=0.5, *, wait_s=0.0, seconds=None, steps=10, px=224, **timing):
        seconds = 0.5 * (steps - 1) + slowest_s if seconds is None else seconds
        self.step += steps
        self.elapsed_s += seconds
        timing = {"seconds": seconds, "data_wait": wait_s / seconds, "saving_s": 0.0, **timing}
        timing |= {"slowest_s": slowest_s, "slowest_wait_s": wait_s, "elapsed_s": self.elapsed_s}
        self.write({"kind": "train", "step": self.step, "px": px, "timing": timing})

    def windows(self, count, *args, **more):
        for _ in range(count):
            self.window(*args, **more)
        return self

    def epoch(self, seconds=20.0, *, px=224, wait_s=0.0, steps=40, **timing):
        self.step += steps
        timing = {"seconds": seconds, "saving_s": 1.0, "eval_seconds": 5.0, **timing}
        window = {"seconds": seconds, "data_wait": wait_s / seconds, "saving_s": 0.0}
        window |= {name: timing.pop(name) for name in tuple(timing) if name.startswith("gpu_")}
        self.write({"kind": "train", "step": self.step, "px": px, "timing": window})
        number = self.step // 40
        self.write(
            {"kind": "epoch", "step": self.step, "epoch": number, "px": px, "timing": timing}
        )

    def epochs(self, count, **more):
        for _ in range(count):
            self.epoch(**more)
        return self

    @property
    def causes(self):
        return [stall["cause"] for stall in self.told]


def test_a_step_that_waited_for_its_data_is_told_with_times_and_cause():
    run = Run().windows(5)
    run.window(14.0, wait_s=13.0)
    assert run.told == [
        {
            "kind": "stall",
            "step": 60,
            "of": "step",
            "cause": "waiting for data",
            "message": "one of the steps 51 to 60 took 14 s instead of the usual 0.5 s: "
            "waiting for data",
            "timing": {"seconds": 14.0, "usual_s": 0.5, "count": 1},
        }
    ]


def test_a_window_of_one_step_names_the_step_and_minutes_are_shown_as_such():
    run = Run().windows(5, steps=1)
    run.window(200.0, steps=1)
    assert run.told[0]["message"] == (
        "step 6 took 3:20 instead of the usual 0.5 s: the device or other work on the machine"
    )


@pytest.mark.parametrize(
    "slow",
    [
        {"slowest_s": 2.4},  # not five times the usual
        {"slowest_s": 2.4, "px": 32},  # nothing is known of that size
        # A host that runs ahead of its GPU and waits for it at the end of a window: all is well.
        {"slowest_s": 4.6, "seconds": 5.0},
    ],
)
def test_what_is_no_stall(slow):
    run = Run().windows(5)
    run.window(**slow)
    assert run.told == []


def test_fast_steps_stall_only_from_some_seconds_on():
    run = Run().windows(5, 0.01, seconds=0.1)
    run.window(1.9, seconds=2.0)
    assert run.told == []
    run.window(2.1, seconds=2.2)
    assert run.causes == ["the device or other work on the machine"]


def test_the_first_windows_of_a_run_and_of_an_image_size_are_no_stall():
    run = Run()
    # Compiling takes a minute, and is not among the slowest steps.
    run.window(0.5, seconds=65.0)
    run.windows(5)
    run.window(0.5, seconds=65.0, px=96)
    run.windows(2, px=96)
    run.window(0.5, seconds=65.0)
    assert run.told == []
    run.window(4.0, px=96)
    assert len(run.told) == 1, "a window or two of compiling do not spoil what is usual"


def test_a_size_is_compared_with_itself():
    run = Run().windows(5).windows(5, 4.0, seconds=40.0, px=448)
    assert run.told == []
    run.window(14.0)
    assert run.told[0]["timing"]["usual_s"] == 0.5


def test_a_run_that_stays_slow_gets_used_to_it():
    run = Run().windows(50)
    run.windows(120, 5.0, seconds=50.0)
    told = len(run.told)
    run.windows(100, 5.0, seconds=50.0)
    assert 0 < told == len(run.told)


def test_stalls_are_told_of_once_a_minute_and_so_often_and_all_are_counted():
    run = Run().windows(100)
    before = run.elapsed_s
    while run.elapsed_s < before + 3 * GAP_S:
        run.window(14.0)
    assert len(run.told) == 3
    assert run.told[-1]["timing"]["count"] > 3
    run = Run().windows(100)
    for _ in range(2 * MOST):
        run.windows(20)
        run.window(14.0)
    assert len(run.told) == MOST
    assert run.told[-1]["message"].endswith("(further slow steps are not told of)")
    assert not run.told[-2]["message"].endswith(")")


def test_a_save_that_holds_training_up_is_told():
    run = Run()
    run.windows(4, saving_s=0.6).windows(3)
    run.window(saving_s=31.0)
    assert run.told[0]["cause"] == "saving a checkpoint"
    assert run.told[0]["message"] == ("a save held training up for 31 s instead of the usual 0.6 s")
    run.windows(30, saving_s=2.5)
    assert len(run.told) == 1


def gpu(*, mhz=1400.0, busy=0.95, **throttled):
    names = {reason.replace("_", " "): share for reason, share in throttled.items()}
    values = {"gpu_clock_mhz": mhz, "gpu_utilisation": busy}
    return {**values, "gpu_throttled": names} if names else values


@pytest.mark.parametrize(
    ("usual", "then", "cause"),
    [
        (gpu(), gpu(heat=0.9), "the GPU was slowed down (heat)"),
        (gpu(), gpu(power_brake=0.6), "the GPU was slowed down (power brake)"),
        (gpu(), gpu(mhz=700.0), "the GPU's clock fell from 1,400 to 700 MHz"),
        # A T4 is held by its power limit all the time: that does not explain a stall.
        (gpu(power_limit=1.0), gpu(power_limit=1.0), None),
        # A GPU that waits for the host lowers its clock.
        (gpu(), gpu(mhz=300.0, busy=0.1), None),
        ({}, gpu(heat=1.0), None),
        (gpu(), {}, None),
    ],
)
def test_a_gpu_that_was_slowed_down_unlike_before_is_the_cause(usual, then, cause):
    cause = cause or "the device or other work on the machine"
    run = Run().windows(5, **usual)
    run.window(14.0, **then)
    assert run.causes == [cause]
    run = Run().epochs(3, **usual)
    run.epoch(60.0, **then)
    assert run.causes == [cause]


@pytest.mark.parametrize(
    ("slow", "cause"),
    [
        ({"seconds": 60.0, "wait_s": 35.0}, "waiting for data"),
        ({"seconds": 60.0, "wait_s": 10.0}, "the device or other work on the machine"),
        ({"saving_s": 41.0}, "saving a checkpoint"),
        ({"eval_seconds": 45.0}, "evaluation"),
    ],
)
def test_an_epoch_much_slower_than_the_others_is_told_with_the_part_that_grew(slow, cause):
    run = Run().epochs(3)
    run.epoch(**slow)
    (stall,) = run.told
    assert (stall["of"], stall["cause"], stall["timing"]["usual_s"]) == ("epoch", cause, 26.0)
    assert stall["message"].startswith("epoch 4 took 66 s instead of the usual 26 s: ")


def test_an_epoch_that_always_waits_for_data_stalls_for_another_reason():
    run = Run().epochs(3, wait_s=18.0)
    run.epoch(60.0, wait_s=18.0)
    assert run.causes == ["the device or other work on the machine"]


def test_an_epoch_without_evaluation_is_compared_without_it():
    run = Run()
    for _ in range(4):
        run.epoch(eval_seconds=None)
        run.epoch(eval_seconds=30.0)
    assert run.told == []


def test_an_epoch_that_is_only_a_little_slower_or_short_is_no_stall():
    run = Run().epochs(3)
    run.epoch(30.0)
    run = Run().epochs(3, seconds=1.0, eval_seconds=0.5)
    run.epoch(8.0, eval_seconds=0.5)
    assert run.told == []


def test_an_epoch_in_which_a_process_began_is_neither_judged_nor_learned_from():
    run = Run().epochs(3)
    run.write({**START, "kind": "resume", "step": 130})
    run.step = 130
    run.epoch(70.0, steps=30)
    run.epoch(60.0)
    assert [stall["message"][:7] for stall in run.told] == ["epoch 5"]
    begun = Run({**START, "kind": "resume", "step": 30})
    begun.epoch(1.0, steps=10)
    begun.epochs(4)
    assert begun.told == []


def test_a_resumed_run_knows_what_was_usual_on_the_same_machine():
    before = Run().epochs(3).windows(5)
    before.window(14.0)
    resumed = Run({**START, "step": 160})
    resumed.stalls.recall(before.records)
    assert resumed.told == []
    resumed.write({**START, "kind": "resume", "step": 160})
    resumed.window(14.0)
    assert [stall["timing"]["count"] for stall in resumed.told] == [1]
    other = Run({**START, "step": 160})
    other.stalls.recall(before.records)
    other.write({**START, "kind": "resume", "step": 160, "device": "T4"})
    other.window(14.0)
    assert other.told == []


def test_old_records_without_the_slowest_step_tell_of_slow_epochs_alone():
    run = Run()
    for seconds in (20.0, 20.0, 20.0, 90.0):
        run.step += 40
        place = {"step": run.step, "px": 224, "timing": {"seconds": seconds, "data_wait": 0.0}}
        run.write({"kind": "train", **place})
        run.write({"kind": "epoch", "epoch": run.step // 40, **place})
    assert [stall["of"] for stall in run.told] == ["epoch"]
