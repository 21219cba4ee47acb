"""Which distribution of which data set a folder or an archive is."""

import os
from pathlib import Path

from rn50.data.shards import MANIFEST
from rn50.data.sources import folders, tiny_imagenet
from rn50.data.sources.archives import open_container
from rn50.data.sources.base import Source
from rn50.errors import UsageError

DEMO = "demo"


def open_source(source: str | Path, *, val_source: str | Path | None = None) -> Source:
    """Return the labelled images of a folder, a zip or a tar, whatever its known layout.

    The layout is found from the content; archives are read through once, nothing is extracted.

    Args:
        source: Path, or ``"demo"`` for the images that are drawn instead of read.
        val_source: Where the validation images lie, if not in ``source``.

    Raises:
        DataError: The source does not exist, is damaged, or has no known layout.
        UsageError: The source is packed already, or takes no ``val_source``.
    """
    if str(source) == DEMO:
        from rn50.data.demo import DemoSource

        _refuse_val(val_source, "the demo")
        return DemoSource()
    container = open_container(_unpacked(Path(source)))
    listing = container.listing()
    if (top := tiny_imagenet.top(listing)) is not None:
        _refuse_val(val_source, tiny_imagenet.KIND)
        return tiny_imagenet.read(container, listing, top)
    if val_source is None:
        return folders.read(container, listing)
    val = open_container(_unpacked(Path(val_source)))
    return folders.read_pair((container, listing), (val, val.listing()))


def _unpacked(path: Path) -> Path:
    if os.path.isfile(path / MANIFEST):
        raise UsageError(
            f"source {path} is a packed data set already; a folder or archive of images is "
            f"needed; train on it with --data {path}"
        )
    return path


def _refuse_val(val_source: str | Path | None, kind: str) -> None:
    if val_source is not None:
        raise UsageError(
            f"--val-source is {val_source}; {kind} has its own validation images; "
            "leave --val-source out"
        )
