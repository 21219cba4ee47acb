"""Which files of a data set are the same, byte for byte."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

_EXAMPLES = 20
_SHOWN_OF_A_GROUP = 5


@dataclass(frozen=True, slots=True)
class Contents:
    """The packed images of a split, in any order."""

    digests: UInt64[np.ndarray, " images"]
    """64-bit hash of each image's file as it lay in the source; among 1.3 million different ones
    two share a hash with a probability of 5e-8."""
    labels: UInt32[np.ndarray, " images"]
    key: Callable[[int], str]


def duplicates(train: Contents, val: Contents) -> dict[str, Any]:
    """Return the copies within each split and across them, for the manifest.

    ``copies`` counts the images that are there before; ``other_label`` those groups of equal images
    whose labels differ; ``val_in_train`` the validation images that training sees as well.
    """
    common = np.flatnonzero(np.isin(val.digests, train.digests))
    return {
        "train": _within(train),
        "val": _within(val),
        "val_in_train": {
            "copies": len(common),
            "examples": [
                [val.key(i), train.key(int(np.argmax(train.digests == val.digests[i])))]
                for i in common[:_EXAMPLES].tolist()
            ],
        },
    }


def _within(split: Contents) -> dict[str, Any]:
    order = np.argsort(split.digests, kind="stable").astype(np.int64)
    ordered = split.digests[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # places equal to the one before
    groups = [
        order[run[0] - 1 : run[-1] + 1]
        for run in np.split(again, np.flatnonzero(np.diff(again) > 1) + 1)
        if len(run)
    ]
    groups.sort(key=_first)
    return {
        "copies": len(again),
        "other_label": sum(len(np.unique(split.labels[group])) > 1 for group in groups),
        "examples": [
            [split.key(i) for i in group[:_SHOWN_OF_A_GROUP].tolist()]
            for group in groups[:_EXAMPLES]
        ],
    }


def _first(group: Int64[np.ndarray, " same"]) -> int:
    return int(group[0])
