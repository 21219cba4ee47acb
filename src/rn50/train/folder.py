"""Which folder a run writes to."""

import json
import re
from pathlib import Path
from typing import Any

from rn50.config import Run
from rn50.data import cache
from rn50.errors import UsageError
from rn50.observe import history, record
from rn50.train import checkpoint

CONFIG = history.CONFIG
"""The run's settings, in the run's folder; accepted back by ``rn50 train --config``."""

_ROOT = Path("runs")
_STATE = "state.json"
"""What a checkpoint tells besides tensors, in its folder."""


def choose(run: Run, *, resume: bool) -> Path:
    """Return the folder of a run: the one asked for, or ``runs/<recipe>``, numbered if taken.

    Raises:
        UsageError: A new run is to be written where another one is.
    """
    if asked := run.storage.output_dir:
        place = Path(asked)
        if not resume and _holds_run(place):
            raise UsageError(
                f"{place} already holds a run; add --resume to go on with it, or give another "
                "--output-dir"
            )
        return place
    taken = _numbered(run.recipe)
    if resume:
        return taken[-1] if taken else _ROOT / run.recipe
    number = len(taken) + 1
    while (place := _name(run.recipe, number)).exists():
        number += 1
    return place


def newest(recipe: str) -> Path | None:
    """Return the folder of the latest run of a recipe that was given no folder of its own."""
    taken = _numbered(recipe)
    return taken[-1] if taken else None


def discard_record(place: Path) -> None:
    """Remove the record of a run that left no checkpoint: it begins again."""
    if checkpoint.newest(place)[0] is None:
        (place / record.FILE_NAME).unlink(missing_ok=True)


def has_ended(place: Path, step: int) -> bool:
    """Return whether a run's record tells of its end at a step."""
    path = place / record.FILE_NAME
    records = record.read(path) if path.exists() else []
    return any(one["kind"] == "end" and one["step"] == step for one in records)


def _holds_run(place: Path) -> bool:
    return (place / CONFIG).exists() or (place / record.FILE_NAME).exists()


def _numbered(recipe: str) -> list[Path]:
    pattern = re.compile(re.escape(recipe) + r"(?:-(\d+))?")
    found = []
    for place in _ROOT.iterdir() if _ROOT.is_dir() else ():
        if (match := pattern.fullmatch(place.name)) and _holds_run(place):
            found.append((int(match[1] or 1), place))
    return [place for _, place in sorted(found)]


def _name(recipe: str, number: int) -> Path:
    return _ROOT / (recipe if number == 1 else f"{recipe}-{number}")


def data_of(weights: Path) -> str:
    """Return what the run at ``weights`` (its folder, or a file in it) was trained on.

    It is told by the newest checkpoint that can be read, and where there is none by the settings.

    Returns:
        The data set's folder or URL.

    Raises:
        UsageError: It cannot be told.
    """
    place = weights if weights.is_dir() else weights.parent
    if told := _about(place).get("data"):
        return str(told)
    settings = _json(place / CONFIG)
    storage = settings.get("storage")
    if isinstance(storage, dict) and isinstance(data := storage.get("data"), str):
        if data:
            return data
        if settings.get("recipe") == "demo":
            return str(cache.demo_folder())
    raise UsageError(
        f"{place} does not tell what data it was trained on; give --data FOLDER, made by "
        "`rn50 prepare`"
    )


def fingerprint_of(place: Path) -> str | None:
    """Return the fingerprint of what a run was trained on, where a checkpoint of it tells it."""
    told = _about(place).get("fingerprint")
    return None if told is None else str(told)


def _about(place: Path) -> dict[str, Any]:
    """Return what the newest checkpoint that can be read tells besides the networks."""
    for step in checkpoint.steps(place):
        about = _json(checkpoint.path(place, step) / _STATE).get("about")
        if isinstance(about, dict):
            return about
    return {}


def _json(path: Path) -> dict[str, Any]:
    """Return what a file holds; empty where it cannot be read."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
