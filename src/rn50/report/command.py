"""The command that repeats a run, made from its settings."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rn50 import config
from rn50.config import Run
from rn50.observe.history import CONFIG
from rn50.recipes import RECIPES, recipe

_SHORT = {
    "storage.data": "--data",
    "storage.output_dir": "--output-dir",
    "optim.peak_lr": "--lr",
    "images.batch_size": "--batch-size",
    "images.train_px": "--train-px",
    "hardware.workers": "--workers",
}
"""The everyday names of settings; every other is its section's and its own."""

_ELSEWHERE = ("storage.output_dir", "recipe")
"""Settings that a repetition does not take over: it is another run."""


def repeat(run: Run | None, run_dir: Path = Path()) -> str:
    """Return the command line that trains the same again: the recipe, and what differs from it.

    Of a run whose recipe this version does not have, or of unknown settings (None), the command
    takes all settings from the ``config.json`` of the run's folder.
    """
    if run is None or run.recipe not in RECIPES:
        return shlex.join(["rn50", "train", "--config", str(run_dir / CONFIG)])
    words = ["rn50", "train", run.recipe]
    for name, (planned, value) in differences(run).items():
        words += _said(name, planned, value)
    return shlex.join(words)


def differences(run: Run | None) -> Mapping[str, tuple[Any, Any]]:
    """Return the settings that differ from the recipe's: its value, and the run's."""
    if run is None or run.recipe not in RECIPES:
        return {}
    planned, made = (config.flat(config.to_dict(one)) for one in (recipe(run.recipe), run))
    return {
        name: (planned[name], value)
        for name, value in made.items()
        if value != planned[name] and name not in _ELSEWHERE
    }


def _said(name: str, planned: Any, value: Any) -> list[str]:
    option = _SHORT.get(name, "--" + name.replace("_", "-"))
    if isinstance(value, bool) and isinstance(planned, bool):
        section, _, last = option.rpartition(".")
        return [option] if value else [f"{section}.no-{last}"]
    return [option, *_words(value)]


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for one in value for word in _words(one)]
    return [str(value)]
