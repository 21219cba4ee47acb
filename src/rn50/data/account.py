"""What a user is told once a data set is packed."""

from collections.abc import Iterator, Mapping
from typing import Any

from rn50.data.encoding import Encoding, fidelity
from rn50.data.shards import FOREIGN

_PLACES = {"train": "training", "val": "validation"}


def lines(manifest: Mapping[str, Any]) -> list[str]:
    """Return the account of a manifest: what was left out, converted, made smaller, found twice."""
    told = [
        f"{verb} ({reason}): {entry['count']:,}, such as {entry['examples'][0]}"
        for verb, part in (("left out", "skipped"), ("converted", "converted"))
        for reason, entry in manifest[part].items()
    ]
    if manifest.get(FOREIGN):
        tars = sum(len(split["shards"]) for split in manifest["splits"].values())
        told.append(f"used in place: the images of {tars:,} tars, which must stay where they are")
    told += _chosen(manifest["chosen"])
    told += _stored(manifest["stored"], manifest["splits"])
    told += _duplicates(manifest["duplicates"])
    told += [f"checked: {line}" for line in manifest["checks"]]
    told += [f"note: {line}" for line in manifest["notes"]]
    return told


def _chosen(chosen: Mapping[str, Any] | None) -> Iterator[str]:
    if chosen is None:
        return
    limit = f", up to {chosen['per_class']} images of each" if chosen["per_class"] else ""
    yield f"chosen: {chosen['classes']} of {chosen['of_classes']} classes{limit}"


def _stored(stored: Mapping[str, Any], splits: Mapping[str, Any]) -> Iterator[str]:
    if stored["resize_short"] is None:
        return
    encoding = Encoding(
        resize_short=stored["resize_short"],
        quality=stored["quality"],
        subsampling=stored["subsampling"],
    )
    resized, total = sum(stored["resized"].values()), splits["train"]["images"]
    before, after = stored["source_bytes"] / 1e6, stored["stored_bytes"] / 1e6
    yield (
        f"made smaller: {resized:,} of {total:,} training images, to a short side of at most "
        f"{encoding.resize_short} px and JPEG of quality {encoding.quality}, "
        f"{encoding.subsampling}; {before:,.1f} MB became {after:,.1f} MB "
        f"({before / max(after, 1e-9):.1f} times smaller; decoding costs what its bytes cost)"
    )
    yield f"what that costs: {fidelity(encoding)}"
    yield "validation images keep their original bytes, so that scores can be compared"


def _duplicates(found: Mapping[str, Any]) -> Iterator[str]:
    for split, place in _PLACES.items():
        part = found[split]
        if part["copies"]:
            other = (
                f", {part['other_label']:,} with different labels" if part["other_label"] else ""
            )
            yield (
                f"found twice: {part['copies']:,} {place} images are copies of others{other}, "
                f"such as {' = '.join(part['examples'][0])}"
            )
    common = found["val_in_train"]
    if common["copies"]:
        yield (
            f"found twice: {common['copies']:,} validation images are training images too, so that "
            f"scores will flatter, such as {' = '.join(common['examples'][0])}"
        )
