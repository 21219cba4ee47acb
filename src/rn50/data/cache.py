"""The demo data, made once and kept in the user's cache folder."""

import os
from collections.abc import Callable
from pathlib import Path

from rn50.data.demo import DemoSource
from rn50.data.pack import pack
from rn50.data.shards import MANIFEST

CACHE_VARIABLE = "RN50_CACHE"
"""Environment variable with the folder to use instead of ``~/.cache/rn50``."""


def folder() -> Path:
    """Return the cache folder: ``RN50_CACHE``, else ``rn50`` in ``XDG_CACHE_HOME``."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rn50"


def demo_data(say: Callable[[str], None]) -> Path:
    """Return the folder with the packed demo data, making it first where it is absent."""
    place = folder() / "demo-1"
    if not (place / MANIFEST).is_file():
        say(f"making the demo data in {place} …")
        place.parent.mkdir(parents=True, exist_ok=True)
        pack(DemoSource(), place)
    return place
