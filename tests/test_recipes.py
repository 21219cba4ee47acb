"""Recipes are compared with tests/golden/recipes.json; a change that is meant is written by

uv run python tests/test_recipes.py > tests/golden/recipes.json
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from rn50 import cli, config
from rn50.errors import UsageError
from rn50.model import resnet
from rn50.recipes import RECIPES, equivalent_epochs, published, recipe, summary
from rn50.recipes.published.torchvision import ema_horizon

GOLDEN = Path(__file__).parent / "golden" / "recipes.json"


def resolved() -> str:
    runs = {name: config.to_dict(recipe(name)) for name in RECIPES}
    return json.dumps(runs, indent=1) + "\n"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_one_that_was_committed(name):
    assert config.to_dict(recipe(name)) == json.loads(GOLDEN.read_text())[name]


def test_no_committed_recipe_is_lost_and_the_file_is_as_it_would_be_written():
    assert GOLDEN.read_text() == resolved()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_name_and_survives_json(name):
    run = recipe(name)
    assert run.recipe == name
    assert config.from_dict(config.to_dict(run)) == run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_what_it_reached(name):
    told = RECIPES[name].__doc__ or ""
    assert summary(name).endswith(".")
    assert f"rn50 train {name} " in told or name == "demo"
    for part in ("Source:", "Command: ``rn50 train", "Published:", "Measured:"):
        assert part in told


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_of_a_recipe_takes_its_images(name):
    run = recipe(name)
    with torch.device("meta"):
        net = resnet.build(run.model, seed=run.seed)
        for px in (run.images.train_px, run.images.test_px):
            assert net(torch.empty(2, 3, px, px)).shape == (2, run.model.num_classes)


def test_an_unknown_recipe_is_refused_with_the_one_that_was_meant():
    with pytest.raises(UsageError, match="no recipe 'imagenet90'; did you mean 'imagenet-90'") as e:
        recipe("imagenet90")
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError) as caught:
        recipe("xyzzy")
    assert "did you mean" not in str(caught.value)
    for name in RECIPES:
        assert name in str(caught.value)


def test_equivalent_epochs_grow_with_the_square_of_the_training_side():
    run = recipe("imagenet-90")
    assert equivalent_epochs(run) == 90
    half = dataclasses.replace(run, images=dataclasses.replace(run.images, train_px=112))
    assert equivalent_epochs(half) == 22.5


def test_the_table_has_a_line_for_each_recipe_in_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for name in RECIPES:
        (line,) = [one for one in lines if one.split()[:1] == [name]]
        assert line.rstrip().endswith(summary(name))
        assert published(name) in line


def test_what_holds_for_all_recipes_of_a_kind_is_shown_with_each(capsys):
    cli.main(["recipes", "show", "ffcv-16"])
    told = capsys.readouterr().out
    assert "73.76% top-1" in told
    assert "Scores here are of one crop" in told


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        *[("ffcv-16", 9.06), ("ffcv-24", 13.4), ("ffcv-32", 17.9), ("ffcv-40", 22.2)],
        *[("ffcv-56", 31.0), ("ffcv-88", 48.7), ("rsb-a3", 51.0), ("torchvision-v2", 370.4)],
        *[("mosaic-hot", 110), ("rsb-a1", 600), ("ladder-300", 185)],
    ],
)
def test_the_cost_of_a_recipe_is_that_of_its_source(name, epochs):
    """Mosaic's grows by 4 px and not by 32: 2% lie between."""
    assert equivalent_epochs(recipe(name)) == pytest.approx(epochs, rel=0.025)


def test_torchvision_s_average_reaches_over_4_percent_of_imagenet_and_too_far_elsewhere():
    """Its script's arithmetic, with 8 GPUs, 128 images each and an update every 32 steps."""
    alpha = (1 - 0.99998) * (8 * 128 * 32 / 600)
    steps = 600 * 1_281_167 / 1024
    assert ema_horizon(1_281_167) == pytest.approx(32 / alpha / steps, rel=1e-6)
    assert recipe("torchvision-v2").average.ema_horizon == pytest.approx(0.039, abs=1e-4)
    assert ema_horizon(100_000) == pytest.approx(0.5)


def test_the_guide_s_own_recipe_is_a_run_and_its_table_has_the_costs(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[1] / "docs/guide/recipes.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", guide, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "guide", "exec"), {})
    run = config.load(tmp_path / "mine.json")
    assert (run.recipe, run.epochs, run.schedule.warmup_epochs) == ("mine", 45, 2.5)
    rows = re.findall(r"^\| `(ladder-\d+)` \| (\d+) \| ([\d.]+) \|", guide, re.M)
    assert [name for name, _, _ in rows] == [n for n in RECIPES if n.startswith("ladder-")]
    for name, epochs, cost in rows:
        assert recipe(name).epochs == int(epochs)
        assert equivalent_epochs(recipe(name)) == pytest.approx(float(cost), rel=0.01)


if __name__ == "__main__":
    print(resolved(), end="")  # noqa: T201
