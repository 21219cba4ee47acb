"""Images to measure with: those of a folder, a tar or a packed data set, or made on the spot."""

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rn50.data.encoding import Encoding
from rn50.data.pack import Options, pack
from rn50.data.shards import MANIFEST, PackedDataset, PackedSplit
from rn50.data.sources.base import ClassName, Skipped, SourceImage, Split

_SUFFIXES = (".jpg", ".jpeg")

Named = tuple[str, bytes]
"""Class and JPEG."""


class Pictures:
    """A source of JPEGs held in memory; the first image of each class is also its validation.

    Args:
        named: The images.
    """

    kind = "benchmark"
    skipped = Skipped()

    def __init__(self, named: list[Named]) -> None:
        self._named = named
        self._firsts = list({name: (name, data) for name, data in reversed(named)}.values())
        self.classes = tuple(ClassName(name, name) for name in sorted({n for n, _ in named}))

    def count(self) -> int:
        """Return the number of images of both splits."""
        return len(self._named) + len(self._firsts)

    def images(self) -> Iterator[SourceImage]:
        """Yield all images as training images, then the validation images."""
        parts: tuple[tuple[Split, list[Named]], ...] = (
            ("train", self._named),
            ("val", self._firsts),
        )
        for split, named in parts:
            for i, (name, data) in enumerate(named):
                path = f"{split}/{name}/{i:06d}.jpg"
                yield SourceImage(split, name, path, partial(bytes, data))


class MadePictures:
    """JPEGs of smooth colours and grain, drawn when they are read.

    At 500x375 they have about the bytes of ImageNet's (109 kB), which is what decoding costs.

    Args:
        count: Training images; a sixteenth of them again, at least one a class, for validation.
        width: In pixels.
        height: In pixels.
        num_classes: Classes, in turn.
    """

    kind = "made"
    skipped = Skipped()

    def __init__(self, count: int, width: int, height: int, num_classes: int = 8) -> None:
        self._counts: dict[Split, int] = {"train": count, "val": max(num_classes, count // 16)}
        self._size = width, height
        self.classes = tuple(ClassName(f"c{i:03d}", f"c{i:03d}") for i in range(num_classes))

    def count(self) -> int:
        """Return the number of images of both splits."""
        return sum(self._counts.values())

    def images(self) -> Iterator[SourceImage]:
        """Yield the training images, then the validation images."""
        for split, count in self._counts.items():
            for i in range(count):
                name = self.classes[i % len(self.classes)].id
                path = f"{split}/{name}/{i:06d}.jpg"
                seed = 2 * i + (split == "val")
                yield SourceImage(split, name, path, partial(_jpeg, seed, *self._size))


def packed(
    images: Path | None, count: int, folder: Path, encoding: Encoding | None = None
) -> PackedDataset:
    """Pack up to ``count`` images into the new ``folder``.

    Args:
        images: Folder of JPEGs (with or without class folders), tar of flat JPEGs named
            ``<class>_<name>``, or packed data set; None: 500x375 images are made.
        count: Images, evenly from all of them.
        folder: A folder that does not exist yet.
        encoding: How images are made smaller; None: byte for byte.
    """
    source = MadePictures(count, 500, 375) if images is None else Pictures(_found(images, count))
    pack(source, folder, options=Options(encoding=encoding))
    return PackedDataset.open(folder)


def unpack(split: PackedSplit, folder: Path) -> Path:
    """Write the images of a split, byte for byte, into class folders as ``ImageFolder`` reads."""
    for i in range(split.num_images):
        path = folder / f"{split.labels[i]:05d}" / f"{i:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.jpeg(i))
    return folder


def _found(images: Path, count: int) -> list[Named]:
    if images.is_dir() and (images / MANIFEST).is_file():
        split = PackedDataset.open(images).split("train")
        return [
            (f"{split.labels[i]:05d}", bytes(split.jpeg(i)))
            for i in _evenly(split.num_images, count)
        ]
    if images.is_dir():
        paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in _SUFFIXES)
        chosen = [paths[i] for i in _evenly(len(paths), count)]
        found = [(_class_of(path.relative_to(images)), path.read_bytes()) for path in chosen]
    else:
        with tarfile.open(images) as tar:
            members = sorted(
                (m for m in tar if m.isfile() and m.name.lower().endswith(_SUFFIXES)),
                key=lambda m: m.name,
            )
            found = []
            for i in _evenly(len(members), count):
                file = tar.extractfile(members[i])
                assert file is not None
                found.append((_class_of(Path(members[i].name)), file.read()))
    if not found:
        raise SystemExit(f"{images} holds no JPEGs; give a folder, a tar or a packed data set")
    return found


def _class_of(path: Path) -> str:
    """Return the folder of an image, or what its name begins with where it has none."""
    return path.parent.name or path.name.partition("_")[0]


def _evenly(available: int, count: int) -> list[int]:
    chosen = min(count, available) if count else available
    return np.linspace(0, available, chosen, endpoint=False).astype(int).tolist()


def _jpeg(seed: int, width: int, height: int) -> bytes:
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    canvas = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    fine = Image.fromarray(draws.integers(0, 256, (height // 3 + 1, width // 3 + 1), np.uint8))
    canvas = canvas + (np.asarray(fine.resize((width, height)), np.float32) - 128)[..., None] / 3
    canvas += draws.normal(0, 7, (height, width, 1)).astype(np.float32)
    file = io.BytesIO()
    pixels = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pixels.save(file, "JPEG", quality=90, subsampling="4:4:4")
    return file.getvalue()
