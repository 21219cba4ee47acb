"""Shared by all tests: types and shapes are checked as they run, and a small packed data set."""

# ruff: noqa: E402

import io
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image

# Dozens of processes import torch: each would compile all of it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Here rather than by --jaxtyping-packages, which takes one package only. What is left out has
# annotations that beartype cannot check (typing.Self, typing.TextIO, protocols) and no shapes.
install_import_hook(
    [
        "rn50.analyze",
        *("rn50.augment", "rn50.config", "rn50.data", "rn50.distributed", "rn50.durable"),
        *("rn50.evaluate", "rn50.hardware", "rn50.model", "rn50.profiles", "rn50.recipes"),
        "rn50.rng",
        "rn50.train.meter",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.base import ClassName, Skipped, SourceImage, Split

CLASSES = tuple(ClassName(name, f"a {name}") for name in ("ant", "bee", "cat", "dog"))
PER_CLASS: dict[Split, int] = {"train": 24, "val": 9}


class Pictures:
    """Smooth JPEGs of 40 to 120 px, their colour hinting at their class; one per split is grey."""

    kind = "pictures"
    classes = CLASSES
    skipped = Skipped()

    def count(self) -> int:
        return len(CLASSES) * sum(PER_CLASS.values())

    def images(self) -> Iterator[SourceImage]:
        for split, per_class in PER_CLASS.items():
            for label, name in enumerate(CLASSES):
                for i in range(per_class):
                    path = f"{split}/{name.id}/{i:03d}.jpg"
                    read = partial(_jpeg, label, i, split)
                    yield SourceImage(split, name.id, path, read)


def _jpeg(label: int, i: int, split: Split) -> bytes:
    draws = np.random.default_rng((label, i, len(split)))
    blocks = draws.integers(0, 160, (4, 5, 3), dtype=np.uint8)
    blocks[..., label % 3] += 40 + 20 * (label // 3)
    size = tuple(draws.integers(40, 121, 2).tolist())
    image = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    (image.convert("L") if (label, i) == (0, 0) else image).save(file, "JPEG", quality=90)
    return file.getvalue()


if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Started by nohup: what is tested is told by this signal, too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a packed data set of 4 classes, 24 train and 9 val images each.

    Shared: a test that alters it must copy it first.
    """
    folder = tmp_path_factory.mktemp("data") / "packed"
    pack(Pictures(), folder, shard_bytes=100_000)
    return folder


@pytest.fixture(scope="session")
def dataset(packed: Path) -> PackedDataset:
    return PackedDataset.open(packed)
