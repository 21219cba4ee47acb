"""ILSVRC2012 as image-net.org distributes it: archives of train and val, and a development kit.

Also what extracting some of it leaves: tars of classes, class folders, a flat folder of validation
images. Nothing is extracted; the archives are hashed while they are read.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from rn50.data.sources import devkit, folders, published
from rn50.data.sources.archives import open_container
from rn50.data.sources.base import Skipped, Split
from rn50.data.sources.class_tars import CLASS_TAR, ClassTars, TarOfTars
from rn50.data.sources.container import Container, Folder, Listing
from rn50.data.sources.devkit import VAL_IMAGE, Devkit
from rn50.data.sources.stored import Labelled, Part, StoredImages
from rn50.data.sources.tars import Tar
from rn50.data.sources.wnids import WNID, class_names, imagenet_wnids
from rn50.errors import DataError

KIND = "ILSVRC2012"
NEEDED = (
    "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz side by "
    "side in a folder"
)

_T3 = "ILSVRC2012_img_train_t3.tar"
_TRAIN_FOLDERS = ("", "train/", "ILSVRC2012_img_train/")
_VAL_FOLDERS = ("val/", "ILSVRC2012_img_val/", "")
_ARCHIVES = (".tar", ".tgz", ".gz")
_MAX_PROBES = 16
"""A folder of thousands of archives is another data set."""


@dataclass(slots=True)
class Parts:
    """What of ILSVRC2012 lies in a folder; paths are absolute or relative as the folder's is."""

    root: Path
    train_tar: Path | None = None
    val_tar: Path | None = None
    kit: Path | None = None
    train_folder: str | None = None
    """Relative, ``""`` or with a ``/``: has ``<wnid>.tar`` files, or folders of classes."""
    class_tars: list[str] = field(default_factory=list)
    val_folder: str | None = None
    skipped: Skipped = field(default_factory=Skipped)


def find(path: Path) -> Parts | None:
    """Return the parts in the folder ``path``, or in its only subfolder; None if there are none.

    Only the names in a few folders and the beginnings of archives are read.
    """
    roots = [path]
    names = [entry for entry in _names(path) if not entry.startswith(".")]
    if len(names) == 1 and (path / names[0]).is_dir():
        roots.append(path / names[0])
    for root in roots:
        parts = _parts(root)
        has_val = parts.val_tar or parts.val_folder is not None
        if parts.train_tar or parts.class_tars or (has_val and (parts.kit or parts.val_tar)):
            return parts
    return None


def read(origin: Path, parts: Parts) -> StoredImages:
    """Return the labelled images of the parts that were found in ``origin``.

    Raises:
        DataError: A part is missing or damaged, or they do not fit together.
    """
    kit = None
    if parts.kit is not None:
        container = open_container(parts.kit)
        kit = devkit.read(container, container.listing())
    train, wnids = _train(parts)
    val = _val(parts, kit, origin)
    _check_classes(parts, kit, wnids)
    facts = []
    if parts.kit is not None and parts.kit.is_file():
        facts.append(published.verdict(parts.kit, _md5(parts.kit)))
    known = set(imagenet_wnids())
    names = kit.names if kit else {}
    expected = None
    if kit:
        expected = published.ilsvrc2012(kit.train_counts, kit.val_counts)
    elif set(wnids) == known:
        expected = published.ilsvrc2012()
    source = StoredImages(
        KIND,
        origin,
        class_names(wnids, {id_: name for id_, name in names.items() if id_ not in known}),
        [*train, val],
        parts.skipped,
        expected=expected,
    )
    source.facts = facts
    return source


def refuse_train_tar(path: Path, listing: Listing) -> None:
    """Raise ``DataError`` if the archive ``path`` is a part of ILSVRC2012 and not a data set."""
    first = next(iter(listing.files), "").rpartition("/")[2]
    has_train = any("train/" in path for path in listing.files)
    is_kit = devkit.top(listing) is not None
    if not has_train and (is_kit or CLASS_TAR.fullmatch(first) or VAL_IMAGE.fullmatch(first)):
        raise DataError(
            f"{path} is one part of ILSVRC2012; needed are {NEEDED}; "
            f"give the folder: {path.absolute().parent}"
        )


def _parts(root: Path) -> Parts:
    parts = Parts(root)
    archives = [
        path
        for below in ("", "train", "val")
        for name in _names(root / below)
        if name.lower().endswith(_ARCHIVES) and not CLASS_TAR.fullmatch(name)
        if (path := root / below / name).is_file()
    ]
    for number, path in enumerate(archives):
        if number < _MAX_PROBES or path.name.startswith(KIND):
            _place(parts, path)
    for name in _names(root):
        if parts.kit is None and (root / name / devkit.META).is_file():
            parts.kit = root / name
    if parts.kit is None and (root / devkit.META).is_file():
        parts.kit = root
    for name in _TRAIN_FOLDERS:
        inside = _names(root / name)
        parts.class_tars = [n for n in inside if CLASS_TAR.fullmatch(n)]
        if parts.class_tars or (name and any(WNID.fullmatch(n) for n in inside)):
            parts.train_folder = name
            break
    for name in _VAL_FOLDERS:
        if any(VAL_IMAGE.fullmatch(n) or (name and WNID.fullmatch(n)) for n in _names(root / name)):
            parts.val_folder = name
            break
    return parts


def _place(parts: Parts, path: Path) -> None:
    """Note what the archive ``path`` is, by its first member."""
    if path.name == _T3:
        parts.skipped.add("the dogs of task 3, which are another data set", path.name)
        return
    try:
        container = open_container(path)
        name = container.first().rstrip("/") if isinstance(container, Tar) else ""
    except DataError:
        if path.name in published.ARCHIVES:
            raise
        return
    last = name.rpartition("/")[2]
    if CLASS_TAR.fullmatch(last):
        _refuse_compressed(container)
        if parts.train_tar is None or path.name in published.ARCHIVES:
            parts.train_tar = path
    elif VAL_IMAGE.fullmatch(last):
        parts.val_tar = path
    elif "devkit_t12" in f"{path.name} {name}":
        parts.kit = path
    elif last.startswith("ILSVRC2012_test_") or path.name.startswith("ILSVRC2012_img_test"):
        parts.skipped.add("test images, which have no labels", path.name)


def _refuse_compressed(container: Container) -> None:
    if isinstance(container, Tar) and container.compressed:
        raise DataError(
            f"{container.path} is compressed, which makes photographs no smaller; "
            "ILSVRC2012_img_train.tar must be a plain tar, as published; decompress it"
        )


def _train(parts: Parts) -> tuple[list[Part], list[str]]:
    """Return the training images and their classes."""
    if parts.train_tar is not None:
        if parts.train_folder is not None:
            parts.skipped.add("extracted already, and read from its archive", parts.train_folder)
        tar = TarOfTars(parts.train_tar)
        return [tar], sorted(tar.wnids)
    if parts.train_folder is None:
        raise _missing(parts, f"training images{_t3_note(parts)}")
    folder = parts.root / parts.train_folder
    tars = [name.removesuffix(".tar") for name in parts.class_tars]
    found: list[Part] = [ClassTars(folder, parts.train_folder, tars)] if tars else []
    wnids = set(tars)
    labels: dict[str, tuple[Split, str]] = {}
    disk = Folder(parts.root)
    for name in _names(folder):
        if not WNID.fullmatch(name) or not (folder / name).is_dir():
            continue
        if name in tars:
            reason = "a class folder beside the tar of the class, which is read instead"
            parts.skipped.add(reason, f"{parts.train_folder}{name}/")
            continue
        listing = disk.listing(f"{parts.train_folder}{name}")
        parts.skipped.merge(listing.skipped)
        wnids.add(name)
        labels.update(dict.fromkeys(listing.files, ("train", name)))
    if labels:
        found.append(Labelled(disk, labels))
    return found, sorted(wnids)


def _val(parts: Parts, kit: Devkit | None, origin: Path) -> Part:
    if parts.val_tar is not None:
        if kit is None:
            raise _missing(parts, "development kit, without which the val images have no labels")
        published.refuse_cut_off(parts.val_tar)
        container = open_container(parts.val_tar)
        if isinstance(container, Tar):
            container.hashed = True
        return _flat(parts, container.listing(), kit, container)
    if parts.val_folder is None:
        raise _missing(parts, "validation images")
    disk = Folder(parts.root)
    inside = _names(parts.root / parts.val_folder)
    if any(VAL_IMAGE.fullmatch(name) for name in inside):
        if kit is None:
            raise _missing(parts, "development kit, without which the val images have no labels")
        return _flat(parts, disk.listing(parts.val_folder.rstrip("/"), deep=False), kit, disk)
    listing = disk.listing(parts.val_folder.rstrip("/"))
    tree = folders.Tree(disk, listing, parts.val_folder)
    parts.skipped.merge(listing.skipped)
    return Labelled(
        disk,
        {
            path: ("val", name)
            for name, paths in tree.class_folders().items()
            if WNID.fullmatch(name)
            for path in paths
        },
    )


def _flat(parts: Parts, listing: Listing, kit: Devkit, container: Container) -> Labelled:
    parts.skipped.merge(listing.skipped)
    labels: dict[str, tuple[Split, str]] = {}
    for path in listing.files:
        name = path.rpartition("/")[2]
        if VAL_IMAGE.fullmatch(name):
            labels[path] = ("val", kit.label(name))
        elif not name.lower().endswith(_ARCHIVES):
            parts.skipped.add("not a validation image", path)
    return Labelled(container, labels)


def _check_classes(parts: Parts, kit: Devkit | None, wnids: list[str]) -> None:
    if kit is None:
        return
    known = set(kit.wnid_of.values())
    where = parts.train_tar or parts.root / (parts.train_folder or "")
    if foreign := sorted(set(wnids) - known):
        raise DataError(
            f"{where} has class {foreign[0]}, which the development kit {kit.where} does not list; "
            f"both must be of ILSVRC2012 (task 1 and 2, not 3); needed are {NEEDED}"
        )
    if lacking := sorted(known - set(wnids)):
        raise DataError(
            f"{where} has {len(wnids)} of the {len(known)} classes of the development kit and "
            f"lacks {lacking[0]}; all are needed (the archive of task 3, {_T3}, has dogs alone); "
            f"needed are {NEEDED}"
        )


def _missing(parts: Parts, what: str) -> DataError:
    found = [str(path.name) for path in (parts.train_tar, parts.val_tar, parts.kit) if path]
    found += [name for name in (parts.train_folder, parts.val_folder) if name]
    return DataError(
        f"{parts.root} has no {what}, only {', '.join(found) or 'other files'}; needed are "
        f"{NEEDED}; download what is missing from image-net.org"
    )


def _t3_note(parts: Parts) -> str:
    t3 = any(_T3 in paths for paths in parts.skipped.paths.values())
    return f" ({_T3} is of another task)" if t3 else ""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
