"""Which folder a run writes to."""

import re
from pathlib import Path

from rn50.config import Run
from rn50.errors import UsageError
from rn50.observe import history, record
from rn50.train import checkpoint

CONFIG = history.CONFIG
"""The run's settings, in the run's folder; accepted back by ``rn50 train --config``."""

_ROOT = Path("runs")


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

    Returns:
        The data set's folder or URL.

    Raises:
        UsageError: It cannot be told.
    """
    place = weights if weights.is_dir() else weights.parent
    saved, _ = checkpoint.newest(place)
    if saved is None:
        raise UsageError(
            f"{place} does not tell what data it was trained on; give --data FOLDER, made by "
            "`rn50 prepare`"
        )
    return str(saved.about["data"])
