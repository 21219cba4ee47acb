"""Validation images in one folder, whose classes a list beside them tells."""

import csv
import io
from collections.abc import Collection, Mapping

from rn50.data.sources import devkit
from rn50.data.sources.container import Container, Listing
from rn50.errors import DataError

EXAMPLE = "val_annotations.txt (<image>, a tab or a comma, <class>)"

_LISTS = (".txt", ".csv", ".tsv")
_IMAGES = "images"


def is_list(path: str) -> bool:
    """Tell whether the file might be a list of labels, by its suffix."""
    return path.lower().endswith(_LISTS)


def is_flat(
    folders: Mapping[str, list[str]], loose: list[str], train_classes: Collection[str]
) -> bool:
    """Tell whether a validation split is not sorted into folders of classes.

    Args:
        folders: The folders in it, and the files below each.
        loose: The files in it that are in no folder.
        train_classes: The classes of the training split.
    """
    if any(name in train_classes for name in folders):
        return False
    inside = [name for name, paths in folders.items() if paths]
    if inside == [_IMAGES]:
        return True
    return not inside and any(not is_list(path) for path in loose)


def labels(
    container: Container,
    listing: Listing,
    folder: str,
    images: list[str],
    classes: Collection[str],
) -> dict[str, str] | None:
    """Return the class of each image, by its path, from a list in the container; None without one.

    Args:
        container: Where the images and the list are.
        listing: All that is in it.
        folder: The validation folder, with a ``/`` at its end, or ``""``.
        images: The paths of the images.
        classes: The classes there are.

    Raises:
        DataError: The list lacks an image, or has numbers instead of classes.
    """
    if devkit.top(listing) is not None:
        kit = devkit.read(container, listing)
        return {path: kit.label(path.rpartition("/")[2]) for path in images}
    above = folder.rstrip("/").rpartition("/")[0]
    places = {folder.rstrip("/"), above, f"{folder}{_IMAGES}"}
    candidates = [
        path for path in listing.files if is_list(path) and path.rpartition("/")[0] in places
    ]
    best: dict[str, str] = {}
    source, numbers = "", ""
    for member in container.members(candidates):
        text = member.read().decode("utf-8", "replace")
        found = _parse(text, classes)
        found = {path: found[stem] for path in images if (stem := _stem(path)) in found}
        if len(found) > len(best):
            best, source = found, member.path
        elif not found and _are_numbers(text, images):
            numbers = member.path
    if not best:
        if numbers:
            raise DataError(
                f"{container.path}/{numbers} has numbers for labels, and nothing says which class "
                f"has which number; a list such as {EXAMPLE} is needed, or the development kit of "
                "ILSVRC2012 with its data/meta.mat beside the images; add it"
            )
        return None
    if missing := [path for path in images if path not in best]:
        raise DataError(
            f"{missing[0]} has no line in {container.path}/{source}, as {len(missing)} of the "
            f"{len(images)} images there; every one needs its label; complete the list"
        )
    return best


def _parse(text: str, classes: Collection[str]) -> dict[str, str]:
    """Return image name without suffix -> class, from the lines that have both, in any order."""
    found = {}
    for fields in _rows(text):
        if len(fields) < 2:
            continue
        for name, label in ((fields[0], fields[1]), (fields[1], fields[0])):
            known = label if label in classes else label.split(" ")[0]
            if known in classes:
                found[_stem(name)] = known
                break
    return found


def _rows(text: str) -> list[list[str]]:
    first = text[: text.find("\n")] if "\n" in text else text
    if "," in first:
        try:
            return [[field.strip() for field in row] for row in csv.reader(io.StringIO(text))]
        except csv.Error:
            return []
    if "\t" in first:
        return [line.split("\t") for line in text.splitlines()]
    return [line.split() for line in text.splitlines()]


def _are_numbers(text: str, images: list[str]) -> bool:
    """Tell whether the list has a line with a number for each image."""
    rows = _rows(text)
    return len(rows) >= len(images) and all(row and row[-1].isdigit() for row in rows[1:])


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name
