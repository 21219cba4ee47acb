"""What a tracker is asked to do, and what it is told of the run."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rn50.errors import UsageError
from rn50.observe.trackers.rows import Row


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run, as trackers are to know it."""

    id: str
    """Of the run in trackers, the same for all processes that work on it."""
    name: str
    project: str
    place: Path
    """The run's folder."""
    hparams: dict[str, Any]
    """The settings that decide what is trained, flat."""
    resumed_at: int | None
    """The step that this process goes on from; None: a new run."""
    say: Callable[[str], None]
    """Tells the user something, such as where to look."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run has come to at its end."""

    weights: Path | None
    """Its best network."""
    about: dict[str, Any]
    """Which network that is, and its scores."""


class Sink(Protocol):
    """One tracker, called from one thread. Whatever it raises is told, and tried again.

    Attributes:
        name: As users know it.
        closing_s: How many seconds it may take to deliver what is left when the run ends.
    """

    name: str
    closing_s: float

    def open(self, run: Tracked) -> int:
        """Begin, or go on with, the run; return the last step whose row the tracker has, or -1."""

    def log(self, row: Row) -> None:
        """Show a row, of a step after all that it has."""

    def close(self, end: Ended | None) -> None:
        """Finish; ``end`` is None where the run has not come to its end."""


def require(module: str, tracker: str, extra: str) -> None:
    """Refuse to go on without a library; it is not imported, which may take seconds.

    Raises:
        UsageError: It is not installed.
    """
    found = importlib.util.find_spec(module)
    # A folder of that name, such as W&B leaves where it is used, is not the library.
    if found is None or found.origin is None:
        raise UsageError(
            f"{tracker} cannot be used: the package {module} is not installed; install it with: "
            f"pip install 'rn50[{extra}]', or switch {tracker} off"
        )
