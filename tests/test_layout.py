from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "rn50"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_a_module_stays_within_its_budget(path):
    budget = 150 if path.relative_to(SOURCE) == Path("train/loop.py") else 400
    assert len(path.read_text().splitlines()) <= budget


def test_no_module_is_named_for_what_it_is_not():
    names = {path.stem for path in SOURCE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "base_trainer", "trainer"}


def test_the_readme_fits_on_its_pages_and_names_what_exists():
    readme = SOURCE.parents[1] / "README.md"
    text = readme.read_text()
    assert len(text.splitlines()) < 150
    for name in ("data/", "augment/", "model/", "train/", "observe/", "recipes/"):
        assert f"  {name}" in text
        assert (SOURCE / name).is_dir()
