import pytest

from rn50.observe.cost import Cost, Meter


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def start(kind="start", price=None, **timing):
    record = {"kind": kind, "step": 0, "timing": timing}
    return record if price is None else {**record, "price_per_hour": price}


def at(elapsed_s, kind="train"):
    return {"kind": kind, "step": 1, "timing": {"seconds": 5.0, "elapsed_s": elapsed_s}}


def test_a_run_costs_the_time_since_it_began_at_its_price():
    cost = Cost.of([start(price=3.6, spent_s=0.0), at(100.0), at(250.0, "epoch")])
    assert (cost.seconds, cost.dollars) == (250.0, pytest.approx(0.25))


def test_records_of_saves_and_stops_count_on_and_an_older_one_does_not_count_back():
    records = [start(price=0, spent_s=0.0), at(250.0), at(260.0, "checkpoint"), at(255.0, "notice")]
    assert Cost.of(records).seconds == 260.0
    assert Cost.of(records).dollars == 0.0


def test_a_resumed_run_adds_what_earlier_processes_cost_at_their_price():
    records = [
        *(start(price=3.6, spent_s=0.0), at(1000.0)),
        # The first process went on to 1500 s; those records were cut off.
        start("resume", 7.2, spent_s=1500.0, spent_dollars=1.5, elapsed_s=30.0),
    ]
    assert (Cost.of(records).seconds, Cost.of(records).dollars) == (1530.0, pytest.approx(1.56))
    records.append(at(500.0))
    assert (Cost.of(records).seconds, Cost.of(records).dollars) == (2000.0, pytest.approx(2.5))


def test_old_records_count_by_what_training_and_evaluation_took():
    window = {"kind": "train", "step": 1, "timing": {"seconds": 40.0}}
    epoch = {"kind": "epoch", "step": 2, "timing": {"seconds": 80.0, "eval_seconds": 7.0}}
    warning = {"kind": "warning", "step": 2, "message": "none"}
    records = [start(), window, warning, window, epoch, start("resume"), window]
    assert Cost.of(records).seconds == 127.0
    assert Cost.of([*records, start("resume", price=36.0, spent_s=500.0)]).dollars == 5.0
    assert Cost.of([]).seconds == 0.0


def test_hours_of_an_unknown_price_count_at_the_first_that_is_known():
    records = [start(price=0, spent_s=0.0), at(1000.0), start("resume", 3.6, spent_s=1000.0)]
    assert Cost.of(records).dollars == pytest.approx(1.0)
    records += [at(100.0), start("resume", 36.0)]
    assert Cost.of(records).dollars == pytest.approx(1.1), "and then no more"


def test_a_process_that_is_told_no_price_goes_by_that_of_the_one_before():
    records = [start(price=3.6), at(1000.0), start("resume", 0.0), at(500.0)]
    assert Cost.of(records).price_per_hour == 3.6
    assert Cost.of(records).dollars == pytest.approx(1.5)


def test_a_process_counts_from_its_beginning_and_after_those_before_it():
    clock = Clock()
    meter = Meter(clock)
    clock.now += 20
    begun = meter.begin([start(price=3.6), at(1000.0)], 7.2)
    assert begun == {"spent_s": 1000.0, "spent_dollars": 1.0, "elapsed_s": 20.0}
    clock.now += 30
    assert meter.elapsed_s() == 50.0


def test_a_run_that_goes_back_pays_for_what_it_lost_once():
    clock = Clock()
    meter = Meter(clock)
    records = [start(price=3.6) | {"timing": meter.begin([], 3.6)}]
    clock.now += 600
    records += [at(meter.elapsed_s())]
    clock.now += 300
    begun = meter.begin(records, 3.6)
    assert begun == {"spent_s": 900.0, "spent_dollars": 0.9, "elapsed_s": 0.0}
    records += [start("resume", 3.6) | {"timing": begun}]
    clock.now += 100
    records += [at(meter.elapsed_s())]
    assert (Cost.of(records).seconds, Cost.of(records).dollars) == (1000.0, pytest.approx(1.0))
    assert meter.begin(records, 3.6)["spent_s"] == 1000.0
