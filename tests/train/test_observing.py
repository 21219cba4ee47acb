import json
import sys

import pytest
import torch

from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.observe import record, system
from rn50.observe.cost import Meter
from rn50.recipes import recipe
from rn50.train import observing
from rn50.train.observing import Observing

FACTS = {
    "kind": "start",
    "step": 0,
    "recipe": "demo",
    "epochs": 2,
    "steps_per_epoch": 4,
    "total_steps": 8,
    "num_train": 64,
    "num_val": 16,
    "num_classes": 4,
    "world_size": 1,
    "device": "cpu",
    "precision": "fp32",
}


def window(step, seconds=1.0, **timing):
    timing = {"seconds": seconds, "images_per_second": 4.0, "data_wait": 0.0, **timing}
    train = {"kind": "train", "step": step, "epoch": step / 4, "loss": 1.0, "top1": 0.5}
    return {**train, "lr": 0.1, "px": 32, "timing": timing}


def of(place, group=None, *, device="cpu", meter=None):
    run, group = recipe("demo"), group or Group()
    return Observing(run, place, group, torch.device(device), meter or Meter())


def recorded(place):
    return record.read(place / "metrics.jsonl")


def test_each_record_that_has_a_time_tells_how_long_the_process_has_been_at_work(tmp_path):
    with of(tmp_path / "run").begun(FACTS) as observed:
        observed.write(window(1))
        observed.write({"kind": "warning", "step": 1, "message": "none"})
    begun, train, warning = recorded(tmp_path / "run")
    assert begun["price_per_hour"] == 0.0
    assert begun["timing"].keys() == {"time", "spent_s", "spent_dollars", "elapsed_s"}
    assert begun["timing"]["elapsed_s"] <= train["timing"]["elapsed_s"]
    assert "timing" not in warning


@pytest.mark.parametrize(
    ("group", "shows"),
    [
        (Group(rank=2, world_size=4, local_rank=0, local_world_size=2), "[node 1] "),
        (Group(rank=3, world_size=4, local_rank=1, local_world_size=2), ""),
        (Group(rank=1, world_size=4, local_rank=1, local_world_size=2), ""),
    ],
)
def test_only_the_first_process_of_a_machine_shows_and_of_the_run_records(
    tmp_path, capsys, group, shows
):
    with of(tmp_path / "run", group).begun(FACTS) as observed:
        observed.write(window(1))
        observed.sync()
    lines = capsys.readouterr().out.splitlines()
    assert [line[: len(shows)] for line in lines] == [shows] * (2 if shows else 0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_back_in_one_process_pays_for_what_it_lost(tmp_path):
    now_s = [50.0]
    run = of(tmp_path, meter=Meter(lambda: now_s[0]))
    with run.begun(FACTS) as observed:
        for step in range(1, 5):
            now_s[0] += 10
            observed.write(window(step))
    now_s[0] += 5
    with run.begun({**FACTS, "kind": "resume", "step": 2}) as observed:
        now_s[0] += 7
        observed.write(window(3))
    records = recorded(tmp_path)
    assert [(r["kind"], r["step"]) for r in records] == [
        *(("start", 0), ("train", 1), ("train", 2), ("resume", 2), ("train", 3))
    ]
    assert records[3]["timing"]["spent_s"] == 45.0
    assert [r["timing"]["elapsed_s"] for r in records] == [0.0, 10.0, 20.0, 0.0, 7.0]


def test_a_run_that_left_no_checkpoint_begins_again_and_has_paid_for_the_first_time(tmp_path):
    lost = [{**FACTS, "timing": {"spent_s": 5.0, "elapsed_s": 1.0}}, window(1, elapsed_s=100.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lost))
    with of(tmp_path).begun(FACTS):
        pass
    (begun,) = recorded(tmp_path)
    assert begun["timing"]["spent_s"] == 105.0


def test_a_stall_is_recorded_and_shown_and_what_was_usual_before_is_known(tmp_path, capsys):
    with of(tmp_path).begun(FACTS) as observed:
        for step in range(1, 5):
            observed.write(window(step))
    with of(tmp_path).begun({**FACTS, "kind": "resume", "step": 4}) as observed:
        observed.write(window(5, 30.0, slowest_s=30.0, slowest_wait_s=29.0))
    stall = recorded(tmp_path)[-1]
    assert (stall["kind"], stall["step"], stall["cause"]) == ("stall", 5, "waiting for data")
    assert "elapsed_s" in stall["timing"]
    shown = "stall: step 5 took 30 s instead of the usual 1 s: waiting for data"
    assert shown in capsys.readouterr().out
    assert shown in (tmp_path / "train.log").read_text()


class Told(system.Gpus):
    """GPUs that answer at once."""

    def __init__(self, uuids):
        self.of, self.closed = uuids(), False
        self._told = ["the GPU's utilisation, memory and power are not shown from here on (x)"]

    def take(self):
        return {"gpu_utilisation": 0.5}

    def news(self):
        told, self._told = self._told, []
        return told

    def close(self):
        self.closed = True


def test_gpus_are_sampled_by_the_first_process_of_a_machine_for_all_on_it(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(observing, "uuids", lambda count: [f"u{i}" for i in range(count)])
    monkeypatch.setattr(observing, "Gpus", lambda of: made.append(Told(of)) or made[-1])
    group = Group(rank=0, world_size=4, local_rank=0, local_world_size=2)
    with of(tmp_path, group, device="cuda").begun(FACTS) as observed:
        observed.write(window(1))
    begun, notice, train = recorded(tmp_path)
    assert (notice["kind"], notice["step"]) == ("notice", 0)
    assert "not shown from here on" in notice["message"]
    assert train["timing"]["gpu_utilisation"] == 0.5
    assert "gpu_utilisation" not in begun["timing"]
    assert [(one.of, one.closed) for one in made] == [(["u0", "u1"], True)]


def test_without_a_cuda_device_nothing_is_sampled_and_nothing_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for device in ("cpu", "mps"):
        with of(tmp_path / device, device=device).begun(FACTS) as observed:
            observed.write(window(1))
        assert [r["kind"] for r in recorded(tmp_path / device)] == ["start", "train"]
    assert "not shown" not in capsys.readouterr().out


def test_a_second_new_run_in_a_folder_leaves_the_settings_of_the_first(tmp_path, monkeypatch):
    place = tmp_path / "run"
    with of(place).begun(FACTS) as observed:
        observed.write(window(1))
    (place / "config.json").write_text("the first one's")
    monkeypatch.setattr(observing.folder, "discard_record", lambda place: None)  # it has saved
    with (
        pytest.raises(UsageError, match="already holds the record of a run"),
        of(place).begun(FACTS),
    ):
        pass
    assert (place / "config.json").read_text() == "the first one's"


@pytest.mark.parametrize("is_open", [True, False])
def test_the_record_of_an_epoch_is_kept_only_where_the_checkpoint_is_from_after_it(
    is_open, tmp_path
):
    with of(tmp_path).begun(FACTS) as observed:
        observed.write(window(4))
        observed.write({**window(4), "kind": "epoch"})
        observed.write(window(5))
    facts = {**FACTS, "kind": "resume", "step": 4, "epoch_is_open": is_open}
    with of(tmp_path).begun(facts):
        pass
    kinds = [r["kind"] for r in recorded(tmp_path) if r["kind"] != "warning"]
    assert kinds == ["start", "train", *([] if is_open else ["epoch"]), "resume"]
