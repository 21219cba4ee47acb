"""What a resumed run may be given that differs from the run that it goes on with."""

import json
from pathlib import Path

import pytest

from contract import runs
from rn50.observe import record

HOOK = str(Path(__file__).with_name("noted_samples.py"))


def first_half(packed, place):
    words = runs.command(packed, place, "--epochs", "2", "--resume")
    runs.finish(words)
    return words


@pytest.mark.slow
def test_a_finished_run_is_extended_by_a_schedule_planned_anew(packed, tmp_path):
    words = first_half(packed, tmp_path / "run")
    assert "finished" in runs.finish(words)
    longer = [*words, "--extend-to", "3"]
    output = runs.finish(longer)
    assert "changed: epochs: 2 -> 3" in output
    assert "learning rate at step 12: " in output
    records = record.read(tmp_path / "run" / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [1, 2, 3]
    (resumed,) = [r for r in records if r["kind"] == "resume"]
    assert any(line == "changed: epochs: 2 -> 3" for line in resumed["changes"])
    assert any(line.startswith("learning rate at step 12: ") for line in resumed["changes"])
    assert record.read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 18
    assert "finished" in runs.finish(longer)
    refused = runs.finish([*words, "--extend-to", "1"], code=2)
    assert "--extend-to is 1, but the run is planned for 2 epochs" in refused


@pytest.mark.slow
def test_another_batch_size_is_refused_even_where_it_is_named(packed, tmp_path):
    place = tmp_path / "run"
    runs.kill_at(runs.command(packed, place, "--resume"), place, 8)
    options = ("--batch-size", "32", "--allow-change", "images.batch_size", "--resume")
    refused = runs.finish(runs.command(packed, place, *options), code=2)
    assert "images.batch_size was 16 and is 32" in refused


def test_extending_what_is_not_resumed_is_refused(packed, tmp_path):
    words = runs.command(packed, tmp_path / "run", "--extend-to", "5")
    assert "--extend-to goes with --resume" in runs.finish(words, code=2)


@pytest.mark.long
def test_a_run_of_a_release_with_other_mathematics_is_refused_unless_allowed(packed, tmp_path):
    words = first_half(packed, tmp_path / "run")
    for state in (tmp_path / "run" / "checkpoints").glob("step-*/state.json"):
        about = json.loads(state.read_text())
        about["about"]["versions"] |= {"mathematics": "0", "torch": "1.0"}
        state.write_text(json.dumps(about))
        manifest = state.with_name("manifest.json")
        from rn50 import durable

        told = json.loads(manifest.read_text())
        content = state.read_bytes()
        told["state.json"] = {"bytes": len(content), "blake2b": durable.digest(content)}
        manifest.write_text(json.dumps(told))
    output = runs.finish(words, code=2)
    assert "versions.mathematics: 0 -> 1" in output
    output = runs.finish([*words, "--allow-change", "versions.mathematics"])
    assert "other versions than before (" in output
    assert "torch 1.0 -> " in output


@pytest.mark.long
def test_more_or_fewer_processes_in_mid_epoch_leave_samples_and_learning_rates_alone(
    packed, tmp_path, monkeypatch
):
    """Two processes, then one, then two, each killed in the middle of an epoch."""

    def words(place, processes):
        monkeypatch.setenv("RN50_TEST_SAMPLES", str(place.parent / f"{place.name}-samples"))
        found = runs.command(packed, place, "--resume", processes=processes)
        at = len(found) - 1 - found[::-1].index("rn50")
        return [*found[: at - 1], HOOK, *found[at + 1 :]]

    runs.finish(words(tmp_path / "one", 1))
    place = tmp_path / "changing"
    runs.kill_at(words(place, 2), place, 5)
    runs.kill_at(words(place, 1), place, 10)
    runs.finish(words(place, 2))

    orders = []
    for name in ("one", "changing"):
        steps: dict[int, dict[int, list[int]]] = {}
        for line in (tmp_path / f"{name}-samples").read_text().splitlines():
            step, world, rank, ids = json.loads(line)
            shares = steps.setdefault(step, {})
            shares[(world, rank)] = ids
        order = {}
        for step, shares in steps.items():
            for world in {world for world, _ in shares}:
                if all((world, rank) in shares for rank in range(world)):
                    joined = [i for rank in range(world) for i in shares[(world, rank)]]
                    assert order.setdefault(step, joined) == joined
        orders.append(order)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(18))
    rates = [
        [(r["step"], r["lr"]) for r in record.read(tmp_path / name / "metrics.jsonl") if "lr" in r]
        for name in ("one", "changing")
    ]
    assert rates[0] == rates[1]
