"""What is known of published archives and data sets: sizes, MD5s, numbers of images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rn50.data.sources.base import Counts, Split
from rn50.data.sources.tars import ends_whole
from rn50.data.sources.wnids import imagenet_wnids
from rn50.errors import DataError


@dataclass(frozen=True, slots=True)
class Archive:
    """A file as it was published."""

    md5: str
    size: int | None = None
    """In bytes; None where it is not known for certain."""


ARCHIVES: dict[str, Archive] = {
    "ILSVRC2012_img_train.tar": Archive("1d675b47d978889d74fa0da5fadfb00e", 147_897_477_120),
    "ILSVRC2012_img_val.tar": Archive("29b22e2961454d5413ddabcf34fc5622", 6_744_924_160),
    "ILSVRC2012_devkit_t12.tar.gz": Archive("fa75699e90414af021442c21a62c3abf"),
    "imagenette2.tgz": Archive("fe2fc210e6bb7c5664d602c3cd71e612"),
    "imagenette2-320.tgz": Archive("3df6f0d01a2c9592104656642f5e78a3"),
    "imagenette2-160.tgz": Archive("e793b78cc4c9e9a4ccc0c1155377a412"),
}
"""By the name of the file."""

_IMAGENETTE_TRAIN = (963, 955, 993, 858, 941, 956, 961, 931, 951, 960)
_IMAGENETTE_VAL = (387, 395, 357, 386, 409, 394, 389, 419, 399, 390)
IMAGENETTE = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)
IMAGEWOOF = (
    *("n02086240", "n02087394", "n02088364", "n02089973", "n02093754"),
    *("n02096294", "n02099601", "n02105641", "n02111889", "n02115641"),
)


def ilsvrc2012(
    train: Mapping[str, int] | None = None, val: Mapping[str, int] | None = None
) -> Counts:
    """Return the numbers of ILSVRC2012, with those of the classes that a development kit tells."""
    known = imagenet_wnids()
    return Counts(
        "ILSVRC2012",
        {"train": 1_281_167, "val": 50_000} if train is None else {"train": sum(train.values())},
        {
            "train": {} if train is None else train,
            "val": dict.fromkeys(known, 50) if val is None else val,
        },
    )


def imagenette2() -> Counts:
    """Return the numbers of imagenette2, alike for all its image sizes."""
    per_class: dict[Split, Mapping[str, int]] = {
        "train": dict(zip(IMAGENETTE, _IMAGENETTE_TRAIN, strict=True)),
        "val": dict(zip(IMAGENETTE, _IMAGENETTE_VAL, strict=True)),
    }
    return Counts("imagenette2", {"train": 9_469, "val": 3_925}, per_class)


def imagenet_mini() -> Counts:
    """Return the numbers of ImageNet-mini-1000."""
    return Counts("ImageNet-mini-1000", {"train": 34_745, "val": 3_923})


def tiny_imagenet(ids: list[str]) -> Counts:
    """Return the numbers of tiny-imagenet-200."""
    return Counts(
        "tiny-imagenet-200", {}, {"train": dict.fromkeys(ids, 500), "val": dict.fromkeys(ids, 50)}
    )


def refuse_cut_off(path: Path) -> None:
    """Raise ``DataError`` if the plain tar ``path`` is shorter than published, or has no end.

    This reads a few bytes, before hours of work that would end in the same error.
    """
    known = ARCHIVES.get(path.name)
    size = os.path.getsize(path)
    if ends_whole(path):
        return
    whole = f" of {known.size:,}" if known and known.size and size < known.size else ""
    raise DataError(
        f"source {path} is cut off: it has {size:,}{whole} bytes and no end-of-archive mark; the "
        "whole archive is needed; resume or repeat the download"
    )


def verdict(path: Path, md5: str) -> str:
    """Return a line that tells whether ``path``, whose hash is ``md5``, is as it was published.

    Raises:
        DataError: It has the size of the published archive, and other bytes.
    """
    known = ARCHIVES.get(path.name)
    if known is None:
        return f"{path.name}: md5 {md5}"
    if md5 == known.md5:
        return f"{path.name}: md5 {md5}, as published"
    if known.size is not None and os.path.getsize(path) == known.size:
        raise DataError(
            f"source {path} is damaged: its MD5 is {md5}, and {known.md5} was published; the "
            "archive must be as published; download it again"
        )
    size = f"{known.size:,} bytes, " if known.size else ""
    return f"{path.name}: md5 {md5}; another archive than the published one ({size}md5 {known.md5})"


def deviations(expected: Counts, found: Mapping[Split, Mapping[str, int]]) -> list[str]:
    """Return a line for each split that says how far ``found`` is from the published numbers."""
    lines = []
    for split, classes in found.items():
        images = sum(classes.values())
        known = expected.per_class.get(split, {})
        other = [id_ for id_ in known if classes.get(id_, 0) != known[id_]]
        total = expected.total.get(split, sum(known.values()) if known else images)
        if images == total and not other:
            lines.append(f"{split}: {images:,} images, as {expected.name} has")
            continue
        line = f"{split}: {images:,} images; {expected.name} has {total:,}"
        if other:
            worst = max(other, key=lambda id_: abs(known[id_] - classes.get(id_, 0)))
            line += (
                f"; {len(other)} of {len(known)} classes have another number, such as {worst} "
                f"with {classes.get(worst, 0):,} instead of {known[worst]:,}"
            )
        lines.append(line)
    return lines
