"""The packed data set: plain tar files of JPEGs, with an index beside them for random access.

A folder holds, for each split, shards named ``train-000000.tar`` in WebDataset's layout (members
``<key>.jpg`` and ``<key>.cls``), ``train.index.npy`` with one ``RECORD`` per image, and
``train.keys.txt`` with one key per line; ``manifest.json`` lists them all with sizes and hashes.
Image ``i`` is row ``i`` of the index, which is sorted by (label, key): the numbering does not
depend on the order in which a folder or an archive happened to yield the images.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from rn50.data.index import Expected, Records, check_index, load_index
from rn50.data.shard_files import ShardFiles, unreadable
from rn50.data.sources.base import ClassName
from rn50.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
FOREIGN = "foreign_tars"
"""True in the manifest of data whose shards others wrote: all but the images may be anything."""
END = bytes(2 * tarfile.BLOCKSIZE)
"""What ends a tar file."""
_EMPTIED = (
    "; if it was there before: a cloud machine's own NVMe disk (instance store) is empty after a "
    "stop, and a disk may not be mounted: mount it, or copy the folder there again"
)
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a manifest raises that is no JSON, or of another form than ours."""


class PackedDataset:
    """A folder made by ``rn50 prepare``, opened for reading."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        for file in files(manifest):
            if Path(file["file"]).name != file["file"]:
                raise ValueError(f"{file['file']!r} lies in another folder")
        self.classes = tuple(ClassName(c["id"], c["name"]) for c in manifest["classes"])
        """In the order of the labels."""
        self.fingerprint: str = manifest["fingerprint"]
        """Hash of the classes, labels and images; see ``fingerprint``."""
        self._relabel: Int64[np.ndarray, " classes"] | None = None

    def with_classes(self, classes: Sequence[ClassName]) -> "PackedDataset":
        """Return the same images, labelled by their place in a longer list of classes.

        So ten classes of ImageNet are scored, or trained, by a network of all 1000. Classes are
        found by their ids, never by names, of which ImageNet has some twice.

        Raises:
            DataError: A class of the data is not in the list.
        """
        places = {class_.id: place for place, class_ in enumerate(classes)}
        if missing := [c.id for c in self.classes if c.id not in places]:
            raise DataError(
                f"{self.folder} has class {missing[0]!r}, which is none of the {len(classes)} "
                f"({classes[0].id} to {classes[-1].id}) that are to be told apart; give data of "
                "these classes"
            )
        longer = PackedDataset(self.folder, self.manifest)
        longer._relabel = np.array([places[c.id] for c in self.classes], np.int64)
        longer.classes = tuple(classes)
        return longer

    @classmethod
    def open(cls, folder: Path) -> "PackedDataset":
        """Read the manifest of ``folder``; nothing is decoded or hashed.

        Raises:
            DataError: ``folder`` is not a packed data set, or its manifest is damaged.
        """
        path = folder / MANIFEST
        if not os.path.isfile(path):
            raise DataError(_not_packed(folder))
        try:
            manifest = json.loads(path.read_bytes())
            if manifest["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {manifest['format']}; this version reads format {FORMAT}; "
                    "prepare the data again, or use the version that wrote it "
                    f"({manifest.get('tool', 'unknown')})"
                )
            return cls(folder, manifest)
        except OSError as error:
            raise unreadable(error) from error
        except _DAMAGED as error:
            raise _damaged(path, error) from error

    def split(self, name: str) -> "PackedSplit":
        """Open the shards of the split ``name``, ``"train"`` or ``"val"``.

        Raises:
            DataError: There is no such split, or a file is missing, cut off or (for the index)
                altered. The content of the shards is checked by ``verify`` only.
        """
        splits = self.manifest["splits"]
        if name not in splits:
            raise DataError(
                f"{self.folder} has no split {name!r}; it has {', '.join(map(repr, splits))}; "
                "choose one of these"
            )
        try:
            num_classes = len(self.manifest["classes"])
            return PackedSplit(self.folder, name, splits[name], num_classes, self._relabel)
        except OSError as error:
            raise unreadable(error) from error
        except _DAMAGED as error:
            raise _damaged(self.folder / MANIFEST, error) from error


class PackedSplit:
    """The images of one split, by number, for any number of threads."""

    def __init__(
        self,
        folder: Path,
        name: str,
        entry: dict[str, Any],
        num_classes: int,
        relabel: Int64[np.ndarray, " classes"] | None = None,
    ) -> None:
        self.name = name
        self._relabel = relabel
        self.folder = folder
        self._shards: list[str] = [shard["file"] for shard in entry["shards"]]
        for part in (*entry["shards"], entry["index"], entry["keys"]):
            check_size(folder, part)
        self._keys_file = folder / entry["keys"]["file"]
        self.index = load_index(folder, entry)
        """One ``RECORD`` per image, read-only."""
        self._files = ShardFiles([folder / shard for shard in self._shards])
        check_index(self.index, self._files.sizes, num_classes, f"{folder} ({name})")

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return len(self.index)

    @cached_property
    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return each image's class index, of the data set's classes or of ``with_classes``."""
        labels = self.index["label"].astype(np.int64)
        return labels if self._relabel is None else self._relabel[labels]

    @cached_property
    def widths(self) -> Int64[np.ndarray, " images"]:
        """Return each image's width in pixels."""
        return self.index["width"].astype(np.int64)

    @cached_property
    def heights(self) -> Int64[np.ndarray, " images"]:
        """Return each image's height in pixels."""
        return self.index["height"].astype(np.int64)

    def jpeg(self, i: int) -> bytes:
        """Read image ``i``'s JPEG.

        Raises:
            DataError: Its shard became shorter, or the disk does not give the bytes.
        """
        shard: int
        offset: int
        length: int
        shard, offset, length, *_ = self.index[i].item()
        return self._files.read(shard, offset, length)

    def expected(self, i: int) -> Expected:
        """Return what image ``i`` must be."""
        row = self.index[i]
        return Expected(int(row["width"]), int(row["height"]), int(row["digest"]))

    def locate(
        self, ids: Int64[np.ndarray, " batch"]
    ) -> tuple[
        Int32[np.ndarray, " batch"], UInt64[np.ndarray, " batch"], UInt64[np.ndarray, " batch"]
    ]:
        """Return each JPEG's open file, where it begins, and its bytes; for ``native``."""
        rows = self.index[ids]
        files = self._files.descriptors[rows["shard"]]
        return files, rows["offset"].astype(np.uint64), rows["length"].astype(np.uint64)

    def read(self, shard: int, start: int, end: int | None = None) -> bytes:
        """Read a shard from one byte up to another, or to its end."""
        stop = self._files.sizes[shard] if end is None else end
        return self._files.read(shard, start, max(stop - start, 0))

    def key(self, i: int) -> str:
        """Return the name of image ``i``, such as ``n01443537/n01443537_0``."""
        start = self._key_ends[i - 1] + 1 if i > 0 else 0
        return self._keys[start : self._key_ends[i]].decode()

    def describe(self, i: int) -> str:
        """Return the key of image ``i`` and where it lies, for messages."""
        shard, offset = self.place(i)
        return f"{self.key(i)} ({shard} at byte {offset})"

    def place(self, i: int) -> tuple[str, int]:
        """Return the shard that holds image ``i``, and the byte there where its JPEG begins."""
        row = self.index[i]
        return self._shards[row["shard"]], int(row["offset"])

    @cached_property
    def _keys(self) -> bytes:
        try:
            return self._keys_file.read_bytes()
        except OSError as error:
            raise unreadable(error) from error

    @cached_property
    def _key_ends(self) -> Int64[np.ndarray, " images"]:
        ends = np.flatnonzero(np.frombuffer(self._keys, np.uint8) == ord("\n"))
        if len(ends) != self.num_images:
            raise DataError(
                f"{self._keys_file} has {len(ends)} lines for {self.num_images} images; "
                "it must be the file that `rn50 prepare` wrote; prepare the data again"
            )
        return ends


def frame(key: str, num_bytes: int, label: int) -> tuple[bytes, bytes]:
    """Return what stands in a shard before and after a JPEG of ``num_bytes``.

    Before it, the header of ``<key>.jpg``; after it, filler, and the member ``<key>.cls`` with the
    label. A function of these values alone, so that ``verify`` can compare every byte.
    """
    text = b"%d" % label
    tail = _padding(num_bytes) + _header(f"{key}.cls", len(text)) + text + _padding(len(text))
    return _header(f"{key}.jpg", num_bytes), tail


def image_digest(jpeg: bytes | memoryview) -> int:
    """Return the 64-bit BLAKE2b hash of a JPEG, as the index keeps it."""
    return int.from_bytes(hashlib.blake2b(jpeg, digest_size=8).digest(), "little")


def fingerprint(classes: Iterable[ClassName], indexes: Iterable[tuple[str, Records]]) -> str:
    """Return the hash that says whether two packed data sets train the same thing.

    It covers the class ids, and for each (split, index) the labels and image digests in order;
    neither the size of the shards nor the order of the source changes it.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(json.dumps([c.id for c in classes]).encode())
    for split, index in indexes:
        state.update(f"{split} {len(index)}".encode())
        state.update(np.ascontiguousarray(index["label"]).tobytes())
        state.update(np.ascontiguousarray(index["digest"]).tobytes())
    return state.hexdigest()


def files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries (file, bytes, blake2b) of all files that a manifest lists."""
    return [
        {name: part[name] for name in ("file", "bytes", "blake2b")}
        for split in manifest["splits"].values()
        for part in (*split["shards"], split["index"], split["keys"])
    ]


def target(path: Path) -> str:
    """Return what a message has after a file's name: where it lies, if that is elsewhere."""
    return f" ({path.readlink()})" if path.is_symlink() else ""


def check_size(folder: Path, part: dict[str, Any]) -> None:
    """Raise ``DataError`` unless the file of a manifest's entry exists and has its size."""
    path = folder / part["file"]
    if path.is_symlink() and not path.is_file():
        raise DataError(
            f"{path} refers to {path.readlink()}, which is missing; data prepared with --in-place "
            "needs its tars where they lay; put them back or prepare the data again"
        )
    if not path.is_file():
        raise DataError(
            f"{path} is missing; {MANIFEST} lists it; copy the folder again or prepare it again"
        )
    if (size := path.stat().st_size) != part["bytes"]:
        raise DataError(
            f"{path}{target(path)} has {size} bytes; it must have {part['bytes']}; "
            "copy it again or prepare the data again"
        )


def _header(name: str, num_bytes: int) -> bytes:
    """Return the header of a member: USTAR, or PAX where the name needs it."""
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(num_bytes: int) -> bytes:
    return bytes(-num_bytes % tarfile.BLOCKSIZE)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged ({type(error).__name__}: {error}); it must be the file that "
        "`rn50 prepare` wrote; prepare the data again"
    )


def _not_packed(folder: Path) -> str:
    if not os.path.exists(folder):
        return (
            f"data folder {folder} does not exist; it must be a folder made by `rn50 prepare`; "
            f"run: rn50 prepare SOURCE {folder}{_EMPTIED}"
        )
    expected = "training reads packed data"
    if folder.is_file():
        return f"{folder} is a file; {expected}; run: rn50 prepare {folder} DEST"
    if any(path.is_dir() for path in folder.glob("[!.]*")):
        return (
            f"{folder} has no {MANIFEST} and looks like a folder of images; {expected}; "
            f"run: rn50 prepare {folder} DEST"
        )
    emptied = "" if any(folder.iterdir()) else _EMPTIED
    return f"{folder} has no {MANIFEST}; {expected}; run: rn50 prepare SOURCE DEST{emptied}"
