"""Small real data sets, made on the spot."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.detect import open_source

Tree = dict[str, bytes]
"""Path -> content."""


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Blocks of colour that depend on the seed, of (width, height) ``size``."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    blocks = np.random.default_rng(seed).integers(0, 256, (2, 3, *channels), dtype=np.uint8)
    return Image.fromarray(blocks, mode).resize(size, Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    return encoded(picture(seed, mode, size))


def class_tree(classes=("ant", "bee"), per_class: int = 3, top: str = "") -> Tree:
    """Train and val folders of these classes, with one val image each."""
    tree = {}
    for label, name in enumerate(classes):
        for i in range(per_class):
            tree[f"{top}train/{name}/{name}_{i}.JPEG"] = jpeg(100 * label + i)
        tree[f"{top}val/{name}/v_{label}.jpg"] = jpeg(100 * label + 99, "L")
    return tree


def tiny_tree(top: str = "tiny-imagenet-200/") -> Tree:
    """Three classes in the layout of tiny-imagenet-200."""
    ids = ["n03", "n01", "n02"]
    annotations = [f"val_{i}.JPEG\t{id_}\t0\t0\t9\t9\n" for i, id_ in enumerate(ids)]
    tree = {
        "wnids.txt": "\n".join(ids).encode(),
        "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\tnewt\nn99\tother\n",
        "val/val_annotations.txt": "".join(annotations).encode(),
        "test/images/test_0.JPEG": jpeg(7),
    }
    for label, id_ in enumerate(ids):
        tree[f"train/{id_}/{id_}_boxes.txt"] = b"boxes"
        tree[f"train/{id_}/images/{id_}_0.JPEG"] = jpeg(label)
        tree[f"val/images/val_{label}.JPEG"] = jpeg(50 + label)
    return {top + path: data for path, data in tree.items()}


def write_folder(root: Path, tree: Tree) -> Path:
    for path, data in tree.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


def write_zip(path: Path, tree: Tree) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, tree: Tree, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in tree.items():
            add_to_tar(archive, name, data)
    return path


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def packed(root: Path, tree: Tree | None = None, **options) -> PackedDataset:
    """Pack the tree, class folders unless given, into ``root / "packed"``."""
    source = write_folder(root / "source", class_tree() if tree is None else tree)
    pack(open_source(source), root / "packed", **options)
    return PackedDataset.open(root / "packed")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
