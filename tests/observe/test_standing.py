import pytest

from rn50.observe.standing import Standing

START = {
    "kind": "start",
    "step": 0,
    "epochs": 4,
    "steps_per_epoch": 100,
    "total_steps": 400,
    "device_type": "cuda",
    "timing": {},
}


def window(step, seconds=10.0, *, px=64, top1=0.5, **timing):
    timing = {"seconds": seconds, "data_wait": 0.0, "saving_s": 0.0, **timing}
    return {"kind": "train", "step": step, "epoch": step / 100, "px": px, "top1": top1} | {
        "timing": timing
    }


def after(*records, **more):
    stands = Standing()
    for record in ({**START, **more}, *records):
        stands.take(record)
    return stands


@pytest.mark.parametrize(
    ("device", "timing", "verdict"),
    [
        ("cuda", {}, "GPU-bound"),
        ("mps", {}, "GPU-bound"),
        ("cpu", {}, "compute-bound"),
        ("cuda", {"data_wait": 0.3}, "data-bound"),
        ("cpu", {"data_wait": 0.3}, "data-bound"),
        ("cuda", {"saving_s": 5.0}, "saving"),
        ("cuda", {"saving_s": 5.0, "data_wait": 0.9}, "data-bound"),
        ("cuda", {"gpu_utilisation": 0.95}, "GPU-bound"),
        ("cuda", {"gpu_utilisation": 0.3}, "host-bound"),
        ("cuda", {"gpu_utilisation": 0.3, "data_wait": 0.3}, "data-bound"),
    ],
)
def test_the_verdict_names_what_the_run_spends_its_time_on(device, timing, verdict):
    assert after(window(20, **timing), device_type=device).verdict == verdict


def test_nothing_is_judged_before_the_first_window():
    stands = after()
    assert (stands.verdict, stands.remaining_s(), stands.top1) == ("", None, None)


def test_old_records_without_the_device_give_a_verdict_too():
    stands = Standing()
    old = {name: value for name, value in START.items() if name != "device_type"}
    stands.take(old)
    stands.take({"kind": "train", "step": 20, "epoch": 0.2, "timing": {"seconds": 5.0}})
    assert stands.verdict == "compute-bound"


def test_one_window_with_a_save_does_not_make_a_run_saving_for_long():
    stands = after(window(20, saving_s=5.0))
    for step in range(40, 140, 20):
        stands.take(window(step))
    assert stands.verdict == "GPU-bound"


def test_the_training_accuracy_is_smoothed_by_steps_whatever_the_windows():
    plan = {"steps_per_epoch": 5000, "total_steps": 20000}
    steps = (window(step, top1=0.2) for step in range(5, 205, 5))
    fine = after(*steps, window(300, top1=0.8), **plan)
    coarse = after(window(200, top1=0.2), window(300, top1=0.8), **plan)
    assert fine.top1 == pytest.approx(coarse.top1)
    # Of the weights, 200 steps have 3/4 of which half is left, and 100 steps 1/2.
    assert coarse.top1 == pytest.approx((0.75 * 0.5 * 0.2 + 0.5 * 0.8) / 0.875)
    assert after(window(20, top1=0.2)).top1 == pytest.approx(0.2), "no bias towards 0"
    assert after(window(20, top1=0.2), window(40, top1=None)).top1 == pytest.approx(0.2)


def test_in_short_epochs_the_accuracy_is_smoothed_over_a_part_of_one():
    stands = after(window(100, top1=0.2), window(110, top1=0.8))
    assert stands.top1 == pytest.approx(0.5, abs=0.001)


def test_the_time_left_counts_evaluations_and_follows_the_image_size():
    scores = {"model": {"loss": 1.0, "top1": 0.5, "top5": 0.9}}
    epoch = {
        "kind": "epoch",
        "step": 100,
        "epoch": 1,
        "val": scores,
        "timing": {"eval_seconds": 7.0},
    }
    stands = after(window(100, 50.0), epoch)
    assert stands.remaining_s() == 300 * 0.5 + 3 * 7.0
    stands.take(window(200, 200.0, px=128))
    assert stands.remaining_s() == 200 * 2.0 + 2 * 7.0
    stands.take(window(300, 100.0, px=128))
    assert stands.remaining_s() == pytest.approx(100 * 1.7 + 7.0)


def test_what_the_run_will_have_cost_is_what_it_has_and_what_is_left():
    stands = after(window(100, 50.0, elapsed_s=60.0), price_per_hour=36.0)
    assert stands.cost.dollars == pytest.approx(0.6)
    assert stands.dollars_at_end() == pytest.approx(0.6 + 1.5)
    assert after(window(100, 50.0)).dollars_at_end() is None


def test_what_a_gpu_told_last_stays_until_it_tells_again():
    stands = after(window(20, gpu_utilisation=0.9, gpu_power_w=70.0), window(40))
    assert stands.gpu == {"gpu_utilisation": 0.9, "gpu_power_w": 70.0}
