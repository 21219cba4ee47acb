"""Recipes are compared with tests/golden/recipes.json; a change that is meant is written by

uv run python tests/test_recipes.py > tests/golden/recipes.json
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rn50 import config
from rn50.errors import UsageError
from rn50.model import resnet
from rn50.recipes import RECIPES, equivalent_epochs, recipe, summary

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


if __name__ == "__main__":
    print(resolved(), end="")  # noqa: T201
