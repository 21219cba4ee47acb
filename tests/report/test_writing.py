import dataclasses
import json
import os

import pytest

from observe.histories import folder_of, whole
from report.test_page import Outline
from rn50 import config
from rn50.analyze import analysis
from rn50.config import Images, Model
from rn50.durable import file_digest
from rn50.errors import UsageError
from rn50.model import resnet, weights
from rn50.recipes import recipe
from rn50.report.writing import write


@pytest.fixture
def run_dir(tmp_path, dataset):
    """A run that has exported a small network for the data that tests share."""
    model = Model(arch="resnet18", num_classes=len(dataset.classes))
    images = Images(batch_size=16, train_px=32, test_px=32, test_resize_px=36)
    storage = config.Storage(data=str(tmp_path / "gone"))
    run = dataclasses.replace(recipe("demo"), epochs=5, model=model, images=images, storage=storage)
    place = folder_of(tmp_path / "run", whole(), config.to_dict(run))
    header = weights.header(
        model=model,
        images=images,
        classes=[(one.id, one.name) for one in dataset.classes],
        about={"recipe": "demo", "step": 200, "network": "model"},
    )
    net = resnet.build(model, seed=0)
    weights.save(place / "model.safetensors", net.state_dict(), header)
    return place


def ask(run_dir, **options):
    """Write the report, and return its words, what was said and how far an analysis came."""
    said, done = [], []
    options = {"analyses": True, **options}
    page = write([run_dir], None, say=said.append, progress=lambda n, of: done.append(n), **options)
    assert page == run_dir / "report.html"
    return Outline(page.read_text()).words, said, done


@pytest.fixture
def asked(monkeypatch):
    """The data of each analysis that is asked for; what is written is an analysis with scores."""
    found = []

    def analyze(run_dir, place, folder, settings, **_):
        found.append(place)
        scored = {} if isinstance(place, analysis.NoData) else {"model": {"images": 600}}
        write_analysis(run_dir, scores=scored, notes=[] if scored else [place.why])

    monkeypatch.setattr(analysis, "analyze", analyze)
    return found


def write_analysis(run_dir, **more):
    weights = {"model": {"step": 200, "blake2b": file_digest(run_dir / "model.safetensors")}}
    summary = {"network": "model", "step": 200, "weights": weights, **more}
    folder = run_dir / "analysis"
    folder.mkdir(exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps({"sections": {"Summary": summary}}))
    (folder / "analysis.md").write_text("# Analysis\n\n## Confidence\n\nSure.\n")


def alter(run_dir, step):
    header = weights.told(run_dir / "model.safetensors")
    header["about"]["step"] = step
    net = resnet.build(Model(**header["model"]), seed=1)
    weights.save(run_dir / "model.safetensors", net.state_dict(), header)


@pytest.mark.long
def test_a_report_analyses_what_is_not_yet(run_dir, dataset):
    words, _, done = ask(run_dir, data=str(dataset.folder))
    assert "Confidence" in words
    assert "Architecture" in words
    assert done
    assert ask(run_dir)[2] == []


def test_a_report_analyses_once_and_again_after_training_went_on(run_dir, dataset, asked):
    settings = json.loads((run_dir / "config.json").read_text())
    settings["storage"]["data"] = str(dataset.folder)
    (run_dir / "config.json").write_text(json.dumps(settings))
    ask(run_dir)
    os.utime(run_dir / "model.safetensors", (4e9, 4e9))
    ask(run_dir)
    assert asked == [dataset.folder]
    alter(run_dir, 240)
    ask(run_dir)
    assert len(asked) == 2


def test_data_that_is_named_is_analysed_with_in_any_case(run_dir, dataset, asked):
    for _ in range(2):
        ask(run_dir, data=str(dataset.folder))
    assert asked == [dataset.folder, dataset.folder]


def test_where_only_the_architecture_is_known_it_is_said_each_time_until_there_is_data(
    run_dir, dataset, asked
):
    for options in ({}, {}, {"analyses": False}):
        words, said, _ = ask(run_dir, **options)
        assert "only the architecture was analysed" in words
        assert any("only the architecture was analysed" in one for one in said)
    words, said, _ = ask(run_dir, data=str(dataset.folder))
    assert "What is missing" not in words
    assert said == []


def test_without_the_data_an_earlier_analysis_with_scores_stays(run_dir, asked):
    write_analysis(run_dir, scores={"model": {"images": 600}})
    before = (run_dir / "analysis" / "analysis.json").read_text()
    alter(run_dir, 240)
    words, said, _ = ask(run_dir)
    assert asked == []
    assert (run_dir / "analysis" / "analysis.json").read_text() == before
    assert "Confidence Sure." in words
    for told in ("could not be made anew", "after step 200; that is of step 240 now"):
        assert told in words
        assert any(told in one for one in said)


def test_an_earlier_analysis_is_marked_where_none_is_made(run_dir):
    write_analysis(run_dir, scores={"model": {"images": 600}})
    assert "What is missing" not in ask(run_dir, analyses=False)[0]
    alter(run_dir, 200)
    assert "of another model.safetensors" in ask(run_dir, analyses=False)[0]


def test_what_is_missing_is_said_on_the_terminal_too(run_dir, tmp_path):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    _, said, _ = ask(run_dir, analyses=False)
    assert any("metrics.jsonl is torn" in one for one in said)
    said = []
    options = {"analyses": False, "say": said.append, "progress": lambda n, of: None}
    write([run_dir, run_dir], tmp_path / "two.html", **options)
    assert any("metrics.jsonl is torn" in one for one in said)


@pytest.mark.slow
def test_a_report_without_the_data_says_so_and_describes_the_architecture(run_dir):
    words, _, done = ask(run_dir, data=str(run_dir / "gone"))
    assert "only the architecture was analysed" in words
    assert "Architecture" in words
    assert "Confidence" not in words
    assert not done


def test_a_report_can_leave_the_analysis_out(run_dir):
    words, _, _ = ask(run_dir, analyses=False)
    assert not (run_dir / "analysis").exists()
    assert "Architecture" not in words
    assert "50.00%" in words


def test_a_page_goes_where_it_is_asked_for_or_says_why_not(run_dir, tmp_path):
    said = []
    options = {"analyses": False, "say": said.append, "progress": lambda n, of: None}
    page = write([run_dir], tmp_path / "deep" / "down.html", **options)
    assert page.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(UsageError, match="does not exist"):
        write([tmp_path / "none"], None, **options)
    several = write([run_dir, run_dir / "none"], tmp_path / "two.html", **options)
    assert "1 run beside" in several.read_text()
    assert said
