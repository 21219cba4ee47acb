"""Which run of a tracker a run is: a small file in its folder.

A run that goes on as it was goes on in the same run of each tracker. One that does steps again with
other settings or draws, after a roll-back or by ``--allow-change``, becomes a new run there, with
all of its history: trackers take a step only once.
"""

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rn50 import durable

FILE_NAME = "trackers.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """Of a run in trackers."""

    id: str
    number: int
    """How many runs in trackers it was before."""
    course: str
    """What the values of its steps depend on."""
    name: str

    @classmethod
    def read(cls, place: Path) -> "Identity":
        """Return that of the run in a folder.

        Raises:
            OSError, ValueError, TypeError: There is none, or it cannot be read.
        """
        return cls(**json.loads((place / FILE_NAME).read_text()))


def choose(
    place: Path, mathematics: dict[str, Any], detour: int, *, resumed_at: int | None, known: int
) -> Identity:
    """Return which run of a tracker the run in a folder is from now on, and write it there.

    Args:
        place: The run's folder.
        mathematics: The settings that decide what is trained.
        detour: How often it has rolled back.
        resumed_at: The step that it goes on from; None: a new run.
        known: The last step that was recorded before.
    """
    plain = json.dumps([mathematics, detour], sort_keys=True)
    course = hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
    before = None
    if resumed_at is not None:
        try:
            before = Identity.read(place)
        except (OSError, ValueError, TypeError):
            before = None
    name = place.resolve().name
    if before is None:
        found = Identity(secrets.token_hex(4), 0, course, name)
    elif before.course == course or resumed_at is None or known <= resumed_at:
        found = Identity(before.id, before.number, course, before.name)
    else:
        number = before.number + 1
        found = Identity(secrets.token_hex(4), number, course, f"{name} ({number + 1})")
    durable.write_json(place / FILE_NAME, asdict(found))
    return found
