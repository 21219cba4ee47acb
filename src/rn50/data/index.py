"""The index of a split: where each image lies, what it shows, and what it must be."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from rn50 import durable
from rn50.data.jpeg import MAX_PIXELS
from rn50.errors import DataError

RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("label", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("digest", "<u8"),
    ]
)
"""One image: where its JPEG's bytes lie in which shard, what it shows, its size in pixels, and
``shards.image_digest`` of the JPEG."""

Records = Shaped[np.ndarray, "_"]
"""A row of ``RECORD``, of any length."""


class Expected(NamedTuple):
    """What the index tells of a JPEG, to be compared with what was read."""

    width: int
    height: int
    digest: int
    """See ``shards.image_digest``."""


def load_index(folder: Path, entry: dict[str, Any]) -> Records:
    """Return the index that a split's entry of the manifest names, read-only.

    It is read, not mapped: 46 MB for ImageNet's train split, hashed in 0.1 s, and what was hashed
    is what is used, whatever becomes of the file.

    Raises:
        DataError: The file was altered, or is not an index of so many images.
    """
    path = folder / entry["index"]["file"]
    data = path.read_bytes()
    if durable.digest(data) != entry["index"]["blake2b"]:
        raise DataError(
            f"{path} was altered: its hash is not that of the manifest; copy it again or prepare "
            "the data again"
        )
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"it is of NumPy's format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != RECORD or shape != (entry["images"],):
            raise ValueError(
                f"it has {shape} rows of {dtype}, and the manifest tells of {entry['images']}"
            )
        return np.frombuffer(data, RECORD, shape[0], file.tell())
    except ValueError as error:
        raise DataError(
            f"{path} is not the index of these images ({error}); prepare the data again"
        ) from error


def check_index(index: Records, sizes: Sequence[int], num_classes: int, of: str) -> None:
    """Refuse an index that tells what cannot be, which decoders and networks would believe.

    Two images may have the same bytes: that harms nothing here, and ``verify`` finds it.

    Args:
        index: What ``load_index`` returned.
        sizes: Bytes of each shard.
        num_classes: Labels must be below.
        of: Whose index it is, for the message.

    Raises:
        DataError: It points out of its shards, or has an impossible label or size.
    """
    if problem := _problem(index, np.array(sizes, np.uint64), num_classes):
        raise DataError(
            f"the index of {of} {problem}; it must be the one that `rn50 prepare` wrote; prepare "
            "the data again"
        )


def _problem(index: Records, sizes: Shaped[np.ndarray, " shards"], num_classes: int) -> str:
    if len(index) == 0:
        return ""
    if index["shard"].max() >= len(sizes):
        return f"points into a shard {index['shard'].max()}, and there are {len(sizes)}"
    room, lengths = sizes[index["shard"]], index["length"].astype(np.uint64)
    # Not offset + length, which may wrap around.
    if (lengths > room).any() or (index["offset"] > room - lengths).any():
        return "points out of its shards"
    if index["label"].max() >= num_classes:
        return f"has the label {index['label'].max()}, and there are {num_classes} classes"
    pixels = index["width"].astype(np.uint64) * index["height"]
    if pixels.min() < 1 or pixels.max() > MAX_PIXELS:
        return f"has an image without pixels, or with more than {MAX_PIXELS:,}"
    return ""
