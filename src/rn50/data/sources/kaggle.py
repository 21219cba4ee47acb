"""ILSVRC's CLS-LOC as Kaggle distributes it: a folder ``ILSVRC``, and lists beside it.

The validation images lie in one folder; ``LOC_val_solution.csv``, whose rows are in no order, tells
their classes, or else the annotation of each, an XML file. ``train_cls.txt`` lists the training
images, so that a million names need not be gathered from the disk.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rn50.data.sources import published
from rn50.data.sources.base import BadImageError, Skipped, SourceImage, Split
from rn50.data.sources.container import LINK, Container, Folder, Listing
from rn50.data.sources.stored import Labelled, Part, StoredImages
from rn50.data.sources.wnids import WNID, class_names, imagenet_wnids
from rn50.errors import DataError

KIND = "Kaggle CLS-LOC"

_DATA = "Data/CLS-LOC/"
_TRAIN_LIST = "ImageSets/CLS-LOC/train_cls.txt"
_VAL_XML = "Annotations/CLS-LOC/val"
_VAL_LABELS = "LOC_val_solution.csv"
_NAMES = "LOC_synset_mapping.txt"
_MAX_DEPTH = 3


class ListedImages:
    """Training images in a folder, from a list of their names: the disk is not searched.

    Args:
        folder: The container.
        data: The folder in it that has a folder for each class, with a ``/`` at its end.
        names: Lines that begin with ``<wnid>/<image without suffix>``.
        place: Where the list lies, for messages.
    """

    def __init__(self, folder: Folder, data: str, names: str, place: str) -> None:
        self.skipped = Skipped()
        self._folder = folder
        self._data = data
        self._names = names
        self._place = place
        classes: dict[str, str] = {}
        self._count = 0
        for class_id, name in self._listed():
            classes.setdefault(class_id, name)
            self._count += 1
        self.classes = sorted(classes)
        for class_id, name in classes.items():
            if not (folder.path / data / class_id).is_dir():
                raise DataError(
                    f"{folder.path}/{data}{class_id} is missing, and {place} lists {name} in it; "
                    "the data set must be whole; unpack or download it again"
                )

    def count(self) -> int:
        """Return the number of lines."""
        return self._count

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the order of the list."""
        for class_id, name in self._listed():
            path = f"{self._data}{class_id}/{name}.JPEG"
            (member,) = self._folder.members([path])
            yield SourceImage("train", class_id, path, partial(self._read, path, member.read))

    def check(self) -> list[str]:
        """Return nothing: there is no archive."""
        return []

    def _listed(self) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(io.StringIO(self._names), 1):
            match = re.match(r"(n\d{8})/([\w-]+)(?:\s|$)", line)
            if match:
                yield match[1], match[2]
            elif line.strip():
                raise DataError(
                    f"{self._place} line {number} is {line[:40]!r}; it must begin with "
                    "<class>/<image>, such as n01440764/n01440764_18; download it again"
                )

    def _read(self, path: str, read: Callable[[], bytes]) -> bytes:
        if (self._folder.path / path).is_symlink():
            raise BadImageError(f"it is {LINK}")
        if not (self._folder.path / path).is_file():
            raise BadImageError(f"{self._place} lists it, and it is not there")
        return read()


def top(container: Container, listing: Listing | None) -> str | None:
    """Return the folder that holds ``Data/CLS-LOC``, ``""`` or with a ``/``; None if none.

    Args:
        container: What to look into.
        listing: All that is in it, or None for a folder, which is not searched through.
    """
    if listing is None:
        candidates: list[Path] = [container.path]
        for _ in range(_MAX_DEPTH):
            for path in candidates:
                if (path / _DATA / "train").is_dir():
                    below = path.relative_to(container.path).as_posix()
                    return "" if below == "." else f"{below}/"
            candidates = [
                inside
                for path in candidates
                for inside in _folders(path)
                if len(candidates) < 100  # no folders of classes
            ]
        return None
    for file in listing.files:
        before, found, _ = file.partition(f"{_DATA}train/")
        if found and before.count("/") <= _MAX_DEPTH and (not before or before.endswith("/")):
            return before
    return None


def read(container: Container, listing: Listing | None, top: str) -> StoredImages:
    """Return the labelled images of a folder or an archive whose layout lies in ``top``.

    Raises:
        DataError: Lists and images do not agree, or a list is missing.
    """
    if isinstance(container, Folder) and listing is None:
        skipped = Skipped()
        train, classes = _train_of_folder(container, top, skipped)
        parts: list[Part] = [train, Labelled(container, _val_of_folder(container, top, skipped))]
        if (container.path / top / _DATA / "test").is_dir():
            skipped.add("test images, which have no labels", f"{top}{_DATA}test/")
    else:
        listing = listing or container.listing()
        skipped = listing.skipped
        labels = _labels_of_archive(container, listing, top)
        classes = sorted({class_id for split, class_id in labels.values() if split == "train"})
        parts = [Labelled(container, labels)]
    texts = _texts(container, listing, [place + _NAMES for place in _beside(top)])
    lines = (line.partition(" ") for text in texts.values() for line in text.splitlines())
    names = {id_: words.strip() for id_, _, words in lines}
    _check_val(parts, set(classes), container.path)
    expected = published.ilsvrc2012() if set(classes) == set(imagenet_wnids()) else None
    return StoredImages(
        KIND, container.path, class_names(classes, names), parts, skipped, expected=expected
    )


def _train_of_folder(folder: Folder, top: str, skipped: Skipped) -> tuple[Part, list[str]]:
    data = f"{top}{_DATA}train/"
    texts = _texts(folder, None, [top + _TRAIN_LIST])
    for path, text in texts.items():
        listed = ListedImages(folder, data, text, f"{folder.path}/{path}")
        return listed, listed.classes
    listing = folder.listing(data.rstrip("/"))
    skipped.merge(listing.skipped)
    labels: dict[str, tuple[Split, str]] = {}
    for path in listing.files:
        if class_id := _class_folder(path, data):
            labels[path] = ("train", class_id)
        else:
            skipped.add("in no class folder", path)
    return Labelled(folder, labels), sorted({class_id for _, class_id in labels.values()})


def _val_of_folder(folder: Folder, top: str, skipped: Skipped) -> dict[str, tuple[Split, str]]:
    listing = folder.listing(f"{top}{_DATA}val")
    skipped.merge(listing.skipped)
    names = {path: _stem(path) for path in listing.files}
    solution = _solution(folder, None, top)
    if solution is None:
        annotations = f"{top}{_VAL_XML}/"
        wanted = [f"{annotations}{name}.xml" for name in names.values()]
        present = [path for path in wanted if (folder.path / path).is_file()]
        solution = _annotated(folder, present)
    return _val_labels(names, solution, f"{folder.path}/{top}", skipped)


def _labels_of_archive(
    container: Container, listing: Listing, top: str
) -> dict[str, tuple[Split, str]]:
    labels: dict[str, tuple[Split, str]] = {}
    val, annotations, tests = {}, [], 0
    for path in listing.files:
        if class_id := _class_folder(path, f"{top}{_DATA}train/"):
            labels[path] = ("train", class_id)
        elif path.startswith(f"{top}{_DATA}val/"):
            val[path] = _stem(path)
        elif path.startswith(f"{top}{_VAL_XML}/"):
            annotations.append(path)
        elif path.startswith(f"{top}{_DATA}test/"):
            tests += 1
    if tests:
        listing.skipped.add("test images, which have no labels", f"{top}{_DATA}test/ ({tests:,})")
    solution = _solution(container, listing, top)
    if solution is None:
        solution = _annotated(container, annotations)
    labels.update(_val_labels(val, solution, f"{container.path}/{top}", listing.skipped))
    return labels


def _solution(container: Container, listing: Listing | None, top: str) -> dict[str, str] | None:
    """Return the class of each validation image by its name, from the table; None without one."""
    for path, text in _texts(container, listing, [b + _VAL_LABELS for b in _beside(top)]).items():
        labels = {}
        for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
            match row:
                case ["ImageId", *_] | []:
                    continue
                case [name, boxes, *_] if WNID.fullmatch(boxes.split(" ")[0]):
                    labels[name.removesuffix(".JPEG")] = boxes.split(" ")[0]
                case _:
                    raise DataError(
                        f"{container.path}/{path} line {number} is {','.join(row)[:40]!r}; it must "
                        "be an image and its boxes, each of a class such as n01440764; download "
                        "it again"
                    )
        return labels
    return None


def _annotated(container: Container, paths: list[str]) -> dict[str, str]:
    """Return the class of each validation image by its name, from the annotation of its boxes."""
    labels = {}
    for member in container.members(paths):
        # The first object's class is the image's; nothing else of the XML is looked at.
        match = re.search(rb"<object>.*?<name>\s*(n\d{8})\s*</name>", member.read(), re.DOTALL)
        if match:
            labels[_stem(member.path)] = match[1].decode()
    return labels


def _val_labels(
    names: dict[str, str], classes: dict[str, str], place: str, skipped: Skipped
) -> dict[str, tuple[Split, str]]:
    labels: dict[str, tuple[Split, str]] = {}
    for path, name in names.items():
        above = path.split("/")[-2]
        if WNID.fullmatch(above):  # sorted into folders of classes since
            labels[path] = ("val", above)
        elif name in classes:
            labels[path] = ("val", classes[name])
        elif name.startswith("ILSVRC2012_val_"):
            raise DataError(
                f"{path} has no label: neither {_VAL_LABELS} nor {_VAL_XML} in {place} has one; "
                "every validation image needs its label; download the list again"
            )
        else:
            skipped.add("not a validation image", path)
    if lost := len(classes) - sum(name in classes for name in names.values()):
        missing = min(classes.keys() - set(names.values()))
        raise DataError(
            f"{lost} of the {len(classes)} labelled validation images are missing in {place}, "
            f"such as {missing}.JPEG; the data set must be whole; unpack or download it again"
        )
    return labels


def _check_val(parts: list[Part], classes: set[str], place: Path) -> None:
    for part in parts:
        if isinstance(part, Labelled):
            for path, (_, class_id) in part.labels.items():
                if class_id not in classes:
                    raise DataError(
                        f"{path} is of class {class_id}, which has no training images in {place}; "
                        "the data set must be whole; unpack or download it again"
                    )


def _texts(container: Container, listing: Listing | None, paths: list[str]) -> dict[str, str]:
    """Return the first of ``paths`` that exists, with its text."""
    for path in paths:
        if path in listing.files if listing else (container.path / path).is_file():
            (member,) = container.members([path])
            return {path: member.read().decode("utf-8", "replace")}
    return {}


def _beside(top: str) -> list[str]:
    """Return the places of the lists: beside the folder ``ILSVRC``, or else in it."""
    above = top.rstrip("/").rpartition("/")[0]
    return list(dict.fromkeys([f"{above}/" if above else "", top]))


def _class_folder(path: str, data: str) -> str | None:
    inside = path.removeprefix(data).split("/")
    return inside[0] if path.startswith(data) and len(inside) > 1 else None


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
