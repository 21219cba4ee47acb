"""Named runs: functions that return a ``Run``, each with its source and its results."""

import difflib
import inspect
import re
from collections.abc import Callable

from rn50.config import Run
from rn50.errors import UsageError
from rn50.recipes import ladder, seeds, small
from rn50.recipes import published as publications
from rn50.recipes.published import ffcv, mosaic, nvidia, rsb, torchvision

GROUPS: dict[str, dict[str, Callable[[], Run]]] = {
    "small data": {
        "demo": small.demo,
        "cifar10-resnet18": small.cifar10_resnet18,
        "cifar10-resnet50": small.cifar10_resnet50,
        "tiny-imagenet-resnet50": small.tiny_imagenet_resnet50,
        "tiny-imagenet-strong": small.tiny_imagenet_strong,
        "tiny-imagenet-v1": small.tiny_imagenet_v1,
        "tiny-imagenet-v2": small.tiny_imagenet_v2,
    },
    "ImageNet, ours": {
        "ladder-16": ladder.ladder_16,
        "ladder-30": ladder.ladder_30,
        "ladder-50": ladder.ladder_50,
        "ladder-90": ladder.ladder_90,
        "ladder-300": ladder.ladder_300,
        "ladder-600": ladder.ladder_600,
        "imagenet-90": ladder.imagenet_90,
    },
    "ImageNet, published": {
        "torchvision-v1": torchvision.torchvision_v1,
        "torchvision-v2": torchvision.torchvision_v2,
        "ffcv-16": ffcv.ffcv_16,
        "ffcv-24": ffcv.ffcv_24,
        "ffcv-32": ffcv.ffcv_32,
        "ffcv-40": ffcv.ffcv_40,
        "ffcv-56": ffcv.ffcv_56,
        "ffcv-88": ffcv.ffcv_88,
        "mosaic-mild": mosaic.mosaic_mild,
        "mosaic-medium": mosaic.mosaic_medium,
        "mosaic-hot": mosaic.mosaic_hot,
        "rsb-a1": rsb.rsb_a1,
        "rsb-a2": rsb.rsb_a2,
        "rsb-a3": rsb.rsb_a3,
        "nvidia-90": nvidia.nvidia_90,
        "nvidia-250": nvidia.nvidia_250,
        "mlperf-lars": nvidia.mlperf_lars,
    },
    "the seeds' own": {
        "s0-kaggle": seeds.s0_kaggle,
        "s0-ec2-sample": seeds.s0_ec2_sample,
        "s0-production": seeds.s0_production,
        "s1-cosine-swa": seeds.s1_cosine_swa,
        "s3-onecycle-50": seeds.s3_onecycle_50,
        "s3-onecycle-120": seeds.s3_onecycle_120,
        "s4-medium": seeds.s4_medium,
    },
}
"""Recipes by name, in the groups that `rn50 recipes` shows."""

RECIPES: dict[str, Callable[[], Run]] = {
    name: make for group in GROUPS.values() for name, make in group.items()
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


def notes(name: str) -> str:
    """Return what holds for all recipes of a recipe's kind, such as how they differ.

    That is what its module says, after what its package says where these are published ones.
    """
    module = inspect.getmodule(RECIPES[name])
    told = [module.__doc__ if module else None]
    if module and module.__package__ == publications.__name__:
        told.insert(0, publications.__doc__)
    return "\n\n".join(inspect.cleandoc(text) for text in told if text)


def published(name: str) -> str:
    """Return the published top-1 accuracy, or a dash where there is none of this very recipe."""
    told = description(name).partition("Published:")[2].partition("Measured:")[0].strip()
    if told.startswith("none"):
        return "–"
    found = re.search(r"(\d+\.\d+)%(?: to (\d+\.\d+)%)?", told)
    return "–".join(filter(None, found.groups())) + "%" if found else "–"


def summary(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]


def equivalent_epochs(run: Run) -> float:
    """Return the cost of a run in 224 px epochs: the sum of (training side / 224) squared.

    Where steps draw their sides, the mean over these counts. The stem for small images keeps four
    times the side and so costs 16 times as much (15.6 by multiply-adds of ResNet-50).
    """
    sides = (run.images.sides_at(epoch) for epoch in range(run.epochs))
    cost = sum(sum(px**2 for px in drawn) / len(drawn) for drawn in sides) / 224**2
    return cost * 16 if run.model.stem == "small" else cost


def train_sides(run: Run) -> str:
    """Return the sides of the training crop from the first epoch's to the last's: ``"96-176"``."""
    sides = (run.images.sides_at(0)[0], run.images.sides_at(run.epochs - 1)[-1])
    return "-".join(str(side) for side in dict.fromkeys(sides))
