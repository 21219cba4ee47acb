import contextlib
import io
import json
import shlex
from dataclasses import replace

import pytest

from rn50 import config
from rn50.cli import main
from rn50.recipes import recipe
from rn50.report.command import differences, repeat


def understood(line: str) -> dict:
    """Return the settings that the command line makes of a command."""
    program, *words = shlex.split(line)
    assert program == "rn50"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*words, "--dry-run"])
    return json.loads(out.getvalue())


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("demo", "demo"),
        ("mosaic-hot", "mlperf-lars"),  # lists of pairs that are emptied, switches put off
        ("ladder-600", "ffcv-32"),
        ("ffcv-32", "ladder-600"),
        ("s4-medium", "rsb-a1"),
    ],
)
def test_the_command_makes_the_same_settings(made, named):
    storage = replace(recipe(made).storage, data="my data/packed")
    run = replace(recipe(made), recipe=named, seed=7, storage=storage)
    assert understood(repeat(run)) == config.to_dict(run)


def test_another_folder_is_no_difference():
    run = recipe("demo")
    moved = replace(run, storage=replace(run.storage, output_dir="elsewhere"))
    assert repeat(moved) == "rn50 train demo"
    assert differences(moved) == {}


def test_of_an_unknown_recipe_all_settings_are_given():
    run = replace(recipe("demo"), recipe="ablation")
    assert repeat(run) == "rn50 train --config config.json"
    assert differences(run) == {}
