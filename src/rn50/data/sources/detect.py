"""Which distribution of which data set a folder or an archive is."""

import os
from pathlib import Path

from rn50.data.shards import MANIFEST
from rn50.data.sources import (
    folders,
    ilsvrc2012,
    imagenet_mini,
    imagenette,
    kaggle,
    parquet,
    splits,
    tiny_imagenet,
    webdataset,
)
from rn50.data.sources.archives import open_container
from rn50.data.sources.base import Layout, Source
from rn50.data.sources.container import Container, Listing
from rn50.data.sources.stored import StoredImages
from rn50.errors import DataError, UsageError

DEMO = "demo"

_NEEDS: dict[Layout, str] = {
    "ilsvrc2012": ilsvrc2012.NEEDED,
    "kaggle": "ILSVRC/Data/CLS-LOC/train and LOC_val_solution.csv",
    "folders": "train/<class>/<image> and val/<class>/<image>",
    "tiny-imagenet": "wnids.txt and val/val_annotations.txt",
    "imagenette": "class folders of the ten classes of imagenette or imagewoof",
    "imagenet-mini": "class folders of the 1,000 classes of ImageNet, few images of each",
    "parquet": parquet.EXAMPLE,
    "webdataset": webdataset.EXAMPLE,
}


def open_source(
    source: str | Path, *, val_source: str | Path | None = None, layout: Layout = "auto"
) -> Source:
    """Return the labelled images of a folder or an archive, whatever its known layout.

    The layout is found from the content; archives are read through once, nothing is extracted.

    Args:
        source: Path, or ``"demo"`` for the images that are drawn instead of read.
        val_source: Where the validation images lie, if not in ``source``.
        layout: Refuse any other.

    Raises:
        DataError: The source does not exist, is damaged, or has no known layout.
        UsageError: The source is packed already, takes no ``val_source``, or is of another layout.
    """
    if str(source) == DEMO:
        from rn50.data.demo import DemoSource

        _refuse_val(val_source, "the demo")
        return DemoSource()
    path = _unpacked(Path(source))
    found = _of_folder(path, layout) if path.is_dir() else None
    if found is None:
        found = _of_container(path, layout, val_source)
    elif val_source is not None:
        _refuse_val(val_source, found.kind)
    return found


def _of_folder(path: Path, layout: Layout) -> StoredImages | None:
    """Return the source if it is told by the names in a few folders, without a search of all."""
    if layout in ("auto", "ilsvrc2012") and (parts := ilsvrc2012.find(path)) is not None:
        return ilsvrc2012.read(path, parts)
    if layout in ("auto", "kaggle"):
        container = open_container(path)
        if (top := kaggle.top(container, None)) is not None:
            return kaggle.read(container, None, top)
    if layout in ("auto", "parquet", "webdataset"):
        files = splits.files_of(path)
        if layout in ("auto", "parquet") and parquet.find(files):
            return parquet.read(path, files)
        if layout in ("auto", "webdataset") and webdataset.find(path, files):
            return webdataset.read(path, files)
    if layout in ("ilsvrc2012", "kaggle", "parquet", "webdataset"):
        raise _misfit(path, layout)
    return None


def _of_container(path: Path, layout: Layout, val_source: str | Path | None) -> StoredImages:
    """Return the source if it is told by the list of all its files."""
    container = open_container(path)
    listing = container.listing()
    if layout in ("auto", "kaggle") and (top := kaggle.top(container, listing)) is not None:
        _refuse_val(val_source, kaggle.KIND)
        return kaggle.read(container, listing, top)
    if layout in ("auto", "tiny-imagenet") and (top := tiny_imagenet.top(listing)) is not None:
        _refuse_val(val_source, tiny_imagenet.KIND)
        return tiny_imagenet.read(container, listing, top)
    if layout not in ("auto", "folders", "imagenette", "imagenet-mini"):
        raise _misfit(path, layout)
    if path.is_file():
        ilsvrc2012.refuse_train_tar(path, listing)
    return _class_folders((container, listing), layout, val_source)


def _class_folders(
    train: tuple[Container, Listing], layout: Layout, val_source: str | Path | None
) -> StoredImages:
    if val_source is None:
        found = folders.read(*train)
    else:
        val = open_container(_unpacked(Path(val_source)))
        found = folders.read_pair(train, (val, val.listing()))
    if layout == "folders":
        return found
    known = {"imagenette": imagenette.recognise, "imagenet-mini": imagenet_mini.recognise}
    recognised = [name for name, recognise in known.items() if recognise(found)]
    if layout != "auto" and layout not in recognised:
        raise _misfit(found.origin, layout)
    return found


def _misfit(path: Path, layout: Layout) -> DataError:
    return DataError(
        f"{path} is not of the form {layout}; that needs {_NEEDS[layout]}; leave --format out to "
        "have the form found, or check the path"
    )


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
