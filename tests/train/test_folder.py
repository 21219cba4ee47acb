import json

import pytest

from rn50.data import cache
from rn50.errors import UsageError
from rn50.train.folder import data_of, fingerprint_of


def write_settings(place, **settings):
    (place / "config.json").write_text(json.dumps(settings))


def write_checkpoint(place, step, text):
    folder = place / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(text)


def test_the_data_of_a_run_without_checkpoints_are_those_of_its_settings(tmp_path):
    write_settings(tmp_path, recipe="imagenet-90", storage={"data": "s3://bucket/packed"})
    assert data_of(tmp_path) == "s3://bucket/packed"
    assert data_of(tmp_path / "model.safetensors") == "s3://bucket/packed"
    assert fingerprint_of(tmp_path) is None


def test_a_demo_run_was_trained_on_the_demo_data(tmp_path):
    write_settings(tmp_path, recipe="demo", storage={"data": ""})
    assert data_of(tmp_path) == str(cache.demo_folder())


def test_the_newest_checkpoint_that_can_be_read_comes_first(tmp_path):
    write_settings(tmp_path, recipe="demo", storage={"data": "old"})
    write_checkpoint(tmp_path, 5, json.dumps({"about": {"data": "new", "fingerprint": "abc"}}))
    write_checkpoint(tmp_path, 9, "{")
    assert data_of(tmp_path) == "new"
    assert fingerprint_of(tmp_path) == "abc"


@pytest.mark.parametrize("settings", [{}, {"storage": 3}, {"recipe": "x", "storage": {"data": ""}}])
def test_where_nothing_tells_the_data_it_is_asked_for(tmp_path, settings):
    write_settings(tmp_path, **settings)
    with pytest.raises(UsageError, match="does not tell what data it was trained on; give --data"):
        data_of(tmp_path)
