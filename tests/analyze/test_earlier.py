import json
import os

import pytest

from analyze.run_folders import write_run, write_weights
from rn50.analyze import earlier
from rn50.durable import file_digest


@pytest.fixture
def run(dataset, tmp_path):
    return write_run(tmp_path / "run", dataset, "model")


def of(run, **more):
    weights = {"model": {"step": 12, "blake2b": file_digest(run / "model.safetensors")}}
    return {"Summary": {"network": "model", "step": 12, "weights": weights, **more}}


def test_an_analysis_fits_weights_of_its_content_whatever_their_date(run):
    found = of(run)
    os.utime(run / "model.safetensors", (2e9, 2e9))
    assert earlier.misfit(found, run) == ""
    assert earlier.step(found, "model") == 12
    assert earlier.step(found, "average") is None


def test_an_analysis_of_other_weights_is_told(run, dataset):
    found = of(run)
    write_weights(run / "model.safetensors", dataset, seed=5, network="model")
    assert "of another model.safetensors than that which is there" in earlier.misfit(found, run)
    found["Summary"]["weights"]["model"]["step"] = 6
    assert "after step 6; that is of step 12 now" in earlier.misfit(found, run)
    (run / "model.safetensors").unlink()
    assert "not there or cannot be read" in earlier.misfit(found, run)


def test_of_an_analysis_that_tells_no_content_the_step_is_compared(run):
    assert earlier.misfit({"Summary": {"network": "model", "step": 12}}, run) == ""
    assert "after step 9" in earlier.misfit({"Summary": {"network": "model", "step": 9}}, run)


@pytest.mark.parametrize("text", ["", "[]", '{"sections": 3}', '{"sections": {"Summary": [1]}}'])
def test_a_damaged_analysis_has_no_scores(tmp_path, text):
    (tmp_path / "analysis.json").write_text(text)
    assert not earlier.has_scores(earlier.sections(tmp_path))


def test_scores_are_what_tells_a_whole_analysis(tmp_path):
    told = {"sections": {"Summary": {"scores": {"model": {"images": 3}}}}}
    (tmp_path / "analysis.json").write_text(json.dumps(told))
    assert earlier.has_scores(earlier.sections(tmp_path))
    assert not earlier.has_scores({"Summary": {"notes": []}})
