import dataclasses
import os

import pytest

from observe.histories import folder_of, whole
from report.test_page import Outline
from rn50 import config
from rn50.config import Images, Model
from rn50.errors import UsageError
from rn50.model import resnet, weights
from rn50.recipes import recipe
from rn50.report.writing import write


@pytest.fixture
def run_dir(tmp_path, dataset):
    """A run that has exported a small network for the data that tests share."""
    model = Model(arch="resnet18", num_classes=len(dataset.classes))
    images = Images(batch_size=16, train_px=32, test_px=32, test_resize_px=36)
    run = dataclasses.replace(recipe("demo"), epochs=5, model=model, images=images)
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


def test_a_report_analyses_once_and_again_after_training_went_on(run_dir, dataset):
    words, _, done = ask(run_dir, data=str(dataset.folder))
    assert "Confidence" in words
    assert "Architecture" in words
    assert done
    assert ask(run_dir, data=str(dataset.folder))[2] == []
    newer = (run_dir / "analysis" / "analysis.json").stat().st_mtime + 60
    os.utime(run_dir / "model.safetensors", (newer, newer))
    assert ask(run_dir, data=str(dataset.folder))[2]


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
