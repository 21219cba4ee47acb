"""The tests that docs/promises.md names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "promises.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_promise_names_a_test(file, name):
    assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text()


def test_every_promise_is_named_once_at_least():
    text = (ROOT / "docs" / "promises.md").read_text()
    assert {int(n) for n in re.findall(r"^\| (\d+)\.", text, re.M)} == set(range(1, 15))
