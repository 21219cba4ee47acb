"""The 1,000 classes of ILSVRC2012 by their WordNet ids: which there are, and what they are called.

A class is known by its id alone. Names are for reading: two classes are called crane, and two
maillot.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

from rn50.data.sources.base import ClassName

WNID = re.compile(r"n\d{8}")


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the ids in sorted order, which is that of the outputs of a 1,000-class model."""
    text = resources.files("rn50.data.sources").joinpath("imagenet_wnids.txt").read_text("ascii")
    return tuple(text.split())


@cache
def _index() -> Mapping[str, int]:
    return {wnid: index for index, wnid in enumerate(imagenet_wnids())}


def class_names(
    ids: Iterable[str], known: Mapping[str, str] | None = None
) -> tuple[ClassName, ...]:
    """Return the classes sorted by id, each with the best name there is.

    Args:
        ids: The class ids.
        known: Names that the source itself tells, which come first.
    """
    known = known or {}
    index = _index()
    ordered = sorted(set(ids))
    words: list[str] = []
    if any(id_ in index and id_ not in known for id_ in ordered):
        # torchvision keeps the names in the order of the sorted ids; it takes a second to import.
        from torchvision.models import ResNet50_Weights

        words = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return tuple(
        ClassName(id_, known.get(id_) or (words[index[id_]] if id_ in index else id_))
        for id_ in ordered
    )
