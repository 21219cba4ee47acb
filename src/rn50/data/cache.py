"""The demo data, made once and kept in the user's cache folder."""

import os
from collections.abc import Callable
from pathlib import Path

from rn50 import durable
from rn50.data.demo import DemoSource
from rn50.data.pack import pack
from rn50.data.shards import MANIFEST
from rn50.errors import UsageError

CACHE_VARIABLE = "RN50_CACHE"
"""Environment variable with the folder to use instead of ``~/.cache/rn50``."""


def folder() -> Path:
    """Return the cache folder: ``RN50_CACHE``, else ``rn50`` in ``XDG_CACHE_HOME``."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rn50"


def demo_folder() -> Path:
    """Return where the packed demo data lies once it is made."""
    return folder() / "demo-1"


def demo_data(say: Callable[[str], None]) -> Path:
    """Return the folder with the packed demo data, making it first where it is absent.

    Raises:
        UsageError: It cannot be made in the cache folder.
    """
    place = demo_folder()
    if not (place / MANIFEST).is_file():
        say(f"making the demo data in {place} …")
        try:
            with durable.explained(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            pack(DemoSource(), place)
        except (UsageError, FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{error}; the cache folder must be one that can be written: name another in "
                f"{CACHE_VARIABLE}"
            ) from error
    return place
