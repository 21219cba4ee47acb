"""Tiny-ImageNet-200 as Stanford distributes it: lists of classes, and a flat val with labels."""

from rn50.data.sources import published
from rn50.data.sources.base import Skipped, Split
from rn50.data.sources.container import Container, Listing
from rn50.data.sources.stored import Labelled, StoredImages
from rn50.data.sources.wnids import class_names
from rn50.errors import DataError

KIND = "tiny-imagenet-200"

_IDS = "wnids.txt"
_WORDS = "words.txt"
_VAL_LABELS = "val/val_annotations.txt"


def top(listing: Listing) -> str | None:
    """Return the folder that holds the layout, ``""`` or with a ``/`` at its end; None if none."""
    tops = ["", *sorted({path.split("/")[0] + "/" for path in listing.files if "/" in path})]
    for candidate in tops:
        if candidate + _IDS in listing.files and candidate + _VAL_LABELS in listing.files:
            return candidate
    return None


def read(container: Container, listing: Listing, top: str) -> StoredImages:
    """Return the labelled images of a container whose layout lies in ``top``.

    Raises:
        DataError: The lists and the images do not agree.
    """
    texts = _texts(container, listing, top)
    ids = sorted(set(texts[_IDS].split()))
    words = dict(line.split("\t", 1) for line in texts.get(_WORDS, "").splitlines() if "\t" in line)
    val_labels = _val_labels(texts[_VAL_LABELS])
    labels: dict[str, tuple[Split, str]] = {}
    for path in listing.files:
        match path.removeprefix(top).split("/"):
            case ["train", class_id, "images", _]:
                labels[path] = ("train", class_id)
            case ["val", "images", name]:
                if name not in val_labels:
                    raise DataError(
                        f"{path} has no line in {top}{_VAL_LABELS}; every validation image needs "
                        "its label; extract or download the data set again"
                    )
                labels[path] = ("val", val_labels.pop(name))
            case _:
                _skip(listing.skipped, path, top, texts.keys())
    if val_labels:
        raise DataError(
            f"{len(val_labels)} of the images in {top}{_VAL_LABELS} are missing, such as "
            f"{top}val/images/{next(iter(val_labels))}; the data set must be whole; "
            "extract or download it again"
        )
    _check_classes(labels, ids, top)
    return StoredImages(
        KIND,
        container.path,
        class_names(ids, {id_: name.strip() for id_, name in words.items()}),
        [Labelled(container, labels)],
        listing.skipped,
        expected=published.tiny_imagenet(ids) if len(ids) == 200 else None,
    )


def _texts(container: Container, listing: Listing, top: str) -> dict[str, str]:
    wanted = {top + name: name for name in (_IDS, _WORDS, _VAL_LABELS)}
    present = [path for path in wanted if path in listing.files]
    return {
        wanted[member.path]: member.read().decode("utf-8", "replace")
        for member in container.members(present)
    }


def _val_labels(text: str) -> dict[str, str]:
    labels = {}
    for number, line in enumerate(text.splitlines(), 1):
        match line.split("\t"):
            case [name, class_id, *_]:
                labels[name] = class_id
            case _ if line.strip():
                raise DataError(
                    f"{_VAL_LABELS} line {number} is {line[:40]!r}; it must be an image, a tab and "
                    "a class; download the data set again"
                )
    return labels


def _check_classes(labels: dict[str, tuple[Split, str]], ids: list[str], top: str) -> None:
    known = set(ids)
    for path, (_, class_id) in labels.items():
        if class_id not in known:
            raise DataError(
                f"{path} is of class {class_id}, which {top}{_IDS} does not list; it must list "
                "every class; extract or download the data set again"
            )
    if missing := sorted(
        known - {class_id for split, class_id in labels.values() if split == "train"}
    ):
        raise DataError(
            f"class {missing[0]} of {top}{_IDS} has no images in {top}train/{missing[0]}/images; "
            "every class needs at least one; extract or download the data set again"
        )


def _skip(skipped: Skipped, path: str, top: str, read: object) -> None:
    inside = path.removeprefix(top)
    if inside in (_IDS, _WORDS, _VAL_LABELS):
        return
    reason = "an image without a label" if inside.startswith("test/") else "not part of the layout"
    skipped.add(reason, path)
