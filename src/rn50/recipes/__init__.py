"""Named runs: functions that return a ``Run``, each with its source and its results."""

import difflib
import inspect
import re
from collections.abc import Callable

from rn50.config import Run
from rn50.errors import UsageError
from rn50.recipes.imagenet import imagenet_90
from rn50.recipes.small import cifar10_resnet18, cifar10_resnet50, demo, tiny_imagenet_resnet50

RECIPES: dict[str, Callable[[], Run]] = {
    "demo": demo,
    "cifar10-resnet18": cifar10_resnet18,
    "cifar10-resnet50": cifar10_resnet50,
    "tiny-imagenet-resnet50": tiny_imagenet_resnet50,
    "imagenet-90": imagenet_90,
}


def recipe(name: str) -> Run:
    """Return the run of a recipe.

    Raises:
        UsageError: There is no such recipe; the message offers the nearest names.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"there is no recipe '{name}'{hint} Known are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def description(name: str) -> str:
    """Return a recipe's docstring: source, command, published and measured result."""
    return inspect.cleandoc(RECIPES[name].__doc__ or "")


def published(name: str) -> str:
    """Return the published top-1 accuracy, or a dash where there is none."""
    told = description(name).partition("Published:")[2].partition("Measured:")[0]
    found = re.search(r"\d+\.\d+%(?: to \d+\.\d+%)?", told)
    return found[0] if found else "–"


def summary(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]


def equivalent_epochs(run: Run) -> float:
    """Return the cost of a run in 224 px epochs: the sum of (training side / 224) squared."""
    return sum(run.images.px_at(epoch) ** 2 for epoch in range(run.epochs)) / 224**2


def train_sides(run: Run) -> str:
    """Return the sides of the training crop from the first epoch's to the last's: ``"96-176"``."""
    sides = (run.images.px_at(0), run.images.px_at(run.epochs - 1))
    return "-".join(str(side) for side in dict.fromkeys(sides))
