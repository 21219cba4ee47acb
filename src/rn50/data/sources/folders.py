"""Class folders: ``train/<class>/…`` and ``val/<class>/…``, as torchvision's ImageFolder reads."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rn50.data.sources import flat_val
from rn50.data.sources.base import Skipped, Split
from rn50.data.sources.class_tars import CLASS_TAR
from rn50.data.sources.container import Container, Listing
from rn50.data.sources.stored import Labelled, StoredImages
from rn50.data.sources.wnids import WNID, class_names
from rn50.errors import DataError

KIND = "class folders"
VAL_NAMES = ("val", "valid", "validation", "test")
"""What the validation split's folder may be called; of several, the first in this order counts."""

_MAX_DEPTH = 4
"""Folders around ``train`` that are looked into."""
_LAYOUT = "train/<class>/<image> and val/<class>/<image>"


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder of class folders within a container."""

    container: Container
    listing: Listing
    folder: str
    """``""`` or with a ``/`` at its end."""

    def class_folders(self) -> dict[str, list[str]]:
        """Return each class folder's name and the paths below it."""
        inside: dict[str, list[str]] = {}
        for path in sorted(self.listing.folders):
            if path.startswith(self.folder):
                inside.setdefault(path.removeprefix(self.folder).split("/")[0], [])
        for path in self.files():
            name, slash, _ = path.removeprefix(self.folder).partition("/")
            if slash:
                inside.setdefault(name, []).append(path)
        return inside

    def loose_files(self) -> list[str]:
        """Return the paths that lie directly in the folder, in no class."""
        return [path for path in self.files() if "/" not in path.removeprefix(self.folder)]

    def files(self) -> Iterable[str]:
        """Return all paths below the folder."""
        return (path for path in self.listing.files if path.startswith(self.folder))

    def __str__(self) -> str:
        return f"{self.container.path}/{self.folder}".rstrip("/")


def read(container: Container, listing: Listing) -> StoredImages:
    """Return the labelled images of one container with a train and a val folder.

    Raises:
        DataError: The layout is another, or a class lacks images.
    """
    top = _top(container, listing)
    folders = _below(_all_folders(listing), top)
    train = Tree(container, listing, f"{top}{folders['train']}/")
    name = next((folders[name] for name in VAL_NAMES if name in folders), None)
    if name is None:
        raise DataError(
            f"{container.path} has no validation split: no {top}val folder; it may be called "
            f"{', '.join(VAL_NAMES)}; add it, or give its place with --val-source"
        )
    return combine(train, Tree(container, listing, f"{top}{name}/"))


def read_pair(train: tuple[Container, Listing], val: tuple[Container, Listing]) -> StoredImages:
    """Return the labelled images of two containers.

    Each holds class folders, at its top or in its folder ``train`` or ``val`` respectively.
    """
    return combine(_tree(*train, ("train",)), _tree(*val, VAL_NAMES))


def combine(train: Tree, val: Tree) -> StoredImages:
    """Return the images of both trees, their classes being the sorted folders of ``train``."""
    _refuse_class_tars(train)
    train_classes = _images_by_class(train, "train")
    if flat_val.is_flat(val.class_folders(), val.loose_files(), train_classes):
        val_classes = _flat_val_by_class(val, train_classes)
    else:
        val_classes = _images_by_class(val, "val")
    if foreign := sorted(val_classes.keys() - train_classes.keys()):
        raise DataError(
            f"{val} has class {foreign[0]!r}{_more(foreign)}, which {train} lacks; both must have "
            "the same class folders; remove or rename it, or add its training images"
        )
    trees: list[tuple[Tree, Split, dict[str, list[str]]]] = [
        (train, "train", train_classes),
        (val, "val", val_classes),
    ]
    parts: dict[int, tuple[Container, dict[str, tuple[Split, str]]]] = {}
    for tree, split, classes in trees:
        _, labels = parts.setdefault(id(tree.container), (tree.container, {}))
        labels.update((path, (split, name)) for name in classes for path in classes[name])
    skipped = _rest([train, val], {path for _, labels in parts.values() for path in labels})
    return StoredImages(
        KIND,
        train.container.path,
        class_names(train_classes),
        [Labelled(container, labels) for container, labels in parts.values()],
        skipped,
        notes=_notes(val_classes),
    )


def _flat_val_by_class(val: Tree, train_classes: dict[str, list[str]]) -> dict[str, list[str]]:
    images = [path for path in val.files() if not flat_val.is_list(path)]
    labels = flat_val.labels(val.container, val.listing, val.folder, images, train_classes)
    if labels is None:
        raise DataError(
            f"{val} is flat: it has {len(images)} files and no class folders, so that the "
            f"labels of {images[0]} and the others are unknown; {_LAYOUT} is needed, or a list "
            f"such as {flat_val.EXAMPLE} beside them; move the images into one folder per class, "
            "or prepare the data set as it was distributed"
        )
    classes: dict[str, list[str]] = {}
    for path, class_id in labels.items():
        classes.setdefault(class_id, []).append(path)
    return classes


def _notes(val_classes: dict[str, list[str]]) -> tuple[str, ...]:
    """Return a note if validation images are training images of ILSVRC2012, by their names."""
    total = sum(map(len, val_classes.values()))
    leaked = sum(
        re.match(rf"{name}_\d+\.", path.rpartition("/")[2]) is not None
        for name, paths in val_classes.items()
        if WNID.fullmatch(name)
        for path in paths
    )
    if leaked == 0:
        return ()
    return (
        f"{leaked:,} of the {total:,} validation images ({leaked / total:.0%}) have the names of "
        "training images of ILSVRC2012: a model that was trained on ImageNet has seen them, and "
        "its scores here are contaminated",
    )


def _refuse_class_tars(train: Tree) -> None:
    tars = [path for path in train.files() if CLASS_TAR.fullmatch(path.rpartition("/")[2])]
    if tars:
        raise DataError(
            f"{train} has {len(tars)} tars of classes, such as {tars[0]}, as an extraction that "
            "was interrupted leaves them; every class needs its images; extract and remove them, "
            "or prepare the folder of the archives as published"
        )


def _top(container: Container, listing: Listing) -> str:
    """Return the folder that holds ``train``: the container's top, or one some levels below it."""
    found: dict[int, set[str]] = {}
    for folder in _all_folders(listing):
        parts = folder.split("/")
        for depth, name in enumerate(parts[: _MAX_DEPTH + 1]):
            if name.lower() == "train":
                found.setdefault(depth, set()).add("".join(f"{part}/" for part in parts[:depth]))
    if not found:
        raise DataError(_no_train(container, listing))
    tops = sorted(found[min(found)])
    if len(tops) > 1:
        raise DataError(
            f"{container.path} holds several data sets: {', '.join(tops[:5])}; one is needed; "
            "give the folder of the one that is meant"
        )
    return tops[0]


def _tree(container: Container, listing: Listing, names: tuple[str, ...]) -> Tree:
    folders = _all_folders(listing)
    for top in _tops(folders):
        inside = _below(folders, top)
        for name in names:
            if name in inside:
                return Tree(container, listing, f"{top}{inside[name]}/")
    return Tree(container, listing, "")


def _all_folders(listing: Listing) -> set[str]:
    """Return the folders that are listed, and those that hold files."""
    return listing.folders | {path.rpartition("/")[0] for path in listing.files}


def _tops(folders: set[str]) -> list[str]:
    return ["", *(f"{name}/" for name in _below(folders, "").values())]


def _below(folders: set[str], top: str) -> dict[str, str]:
    """Return the folders directly in ``top``: name in lower case -> name as written."""
    inside = {path.removeprefix(top).split("/")[0] for path in folders if path.startswith(top)}
    return {name.lower(): name for name in sorted(inside) if name}


def _images_by_class(tree: Tree, split: Split) -> dict[str, list[str]]:
    classes = tree.class_folders()
    if not classes:
        if loose := tree.loose_files():
            raise DataError(
                f"{tree} is flat: it has {len(loose)} files and no class folders, so that the "
                f"labels of {loose[0]} and the others are unknown; {_LAYOUT} is needed; move the "
                "images into one folder per class, or prepare the data set as it was distributed"
            )
        raise DataError(f"{tree} is empty; {_LAYOUT} is needed; add the images")
    empty = sorted(name for name, paths in classes.items() if not paths)
    if empty and split == "train":
        raise DataError(
            f"{tree}/{empty[0]}{_more(empty)} has no images; every class needs at least one; "
            "add its images or remove the folder"
        )
    return {name: paths for name, paths in classes.items() if paths}


def _rest(trees: list[Tree], used: set[str]) -> Skipped:
    skipped = Skipped()
    loose = {path for tree in trees for path in tree.loose_files()}
    listings = {id(tree.listing): tree.listing for tree in trees}
    for listing in listings.values():
        skipped.merge(listing.skipped)
        for path in listing.files:
            if path not in used:
                reason = "in no class folder" if path in loose else "in neither train nor val"
                skipped.add(reason, path)
    return skipped


def _no_train(container: Container, listing: Listing) -> str:
    folders = list(_below(_all_folders(listing), "").values())
    if not listing.files:
        links = sum(len(paths) for paths in listing.skipped.paths.values())
        left_out = f" ({links} entries are links or hidden, and not read)" if links else ""
        return (
            f"{container.path} is empty{left_out}; {_LAYOUT} is needed; "
            "give the folder or archive of a data set"
        )
    if not folders:
        return (
            f"{container.path} has {len(listing.files)} files and no folders of classes; "
            f"{_LAYOUT} is needed; give the folder or archive of a data set"
        )
    return (
        f"{container.path} has no folder train, only {', '.join(folders[:5])}"
        f"{' …' if len(folders) > 5 else ''}; {_LAYOUT} is needed; move the class folders into "
        "train and val, or give the validation folder with --val-source"
    )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
