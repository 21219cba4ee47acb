"""The ablation runs in miniature, goes on where it was stopped, and refuses what it cannot do."""

import json
from pathlib import Path
from typing import Any

import pytest

from rn50.recipes import recipe
from rn50.recipes.scaling import at_length

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SETTINGS = (
    *("model.stem=imagenet", "images.batch_size=8", "optim.peak_lr=0.02"),
    *("hardware.device=cpu", "hardware.precision=fp32", "hardware.workers=1"),
)


@pytest.fixture
def ablation(packed, tmp_path, monkeypatch, capsys):
    """Return how to run the script, which gives what it says on the second stream."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ablation as script

    def run(*more: str, code: int = 0) -> str:
        words = ["--data", str(packed), "--out", str(tmp_path), "--limit-images", "16"]
        words += ["--epochs", "2", "--seeds", "1", "--px", "64", "--set", *SETTINGS, *more]
        ended = 0
        try:
            script.main(words)
        except SystemExit as end:
            ended = int(end.code or 0)
        told = capsys.readouterr().err
        assert ended == code, told
        return told

    return run


def rows(out: Path) -> dict[str, dict[str, Any]]:
    told = json.loads((out / "ablation.json").read_text())
    assert (told["train images"], told["val images"], told["chance"]) == (16, 36, 0.25)
    return {line["method"]: line for line in told["rows"]}


@pytest.mark.slow
def test_methods_are_added_to_a_table_whose_finished_runs_are_not_run_again(ablation, tmp_path):
    ablation("--methods", "EMA", "progressive sizes")
    first = rows(tmp_path)
    assert list(first) == ["baseline", "EMA", "progressive sizes"]
    assert first["EMA"]["average, top-1 %"]
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("metrics.jsonl")}

    ablation("--methods", "EMA", "progressive sizes", "recomputation")
    second = rows(tmp_path)
    assert second["recomputation"]["model, top-1 %"] == second["baseline"]["model, top-1 %"]
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    table = (tmp_path / "ablation.md").read_text()
    assert "| EMA | 1 |" in table
    assert "chance 25.0%" in table

    told = ablation("optim.peak_lr=0.5", "--methods", "EMA", code=2)
    assert "holds the result of other settings than those asked for; give another --out" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "magic"), "--methods has 'magic', which is none of: baseline, RandAugment,"),
        (("--px", "32", "--methods", "progressive sizes"), "which cannot be had here: no smaller"),
        (("optim.peak_lr",), "--set optim.peak_lr has no value; give NAME=VALUE"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(ablation, more, message):
    told = ablation(*more, code=2)
    assert told.startswith("ablation: error: ")
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", ["cifar10-resnet18", "tiny-imagenet-strong", "s1-cosine-swa"])
def test_every_method_changes_a_plain_run_and_nothing_refuses_it(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ablation as script

    base = script.plain(recipe(name))
    base = at_length(base, 8)
    had = {n: m for n, m in script.methods(base).items() if isinstance(m, dict)}
    assert len(had) >= 39
    for method, changes in had.items():
        run = script.changed(base, changes)
        assert (run == base) == (method == "baseline"), method
    off = ("augment", "mix", "average")
    assert all(getattr(base, part) == type(getattr(base, part))() for part in off)
