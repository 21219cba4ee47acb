"""Parquet files as the Hugging Face Hub has them: a column of encoded images, one of labels.

They are read row group by row group. Where the images' paths end in their WordNet ids, as those of
``ILSVRC/imagenet-1k`` do, these are the classes; else they are the label's names if these are
WordNet ids, or the label itself.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rn50.data.sources import published, splits
from rn50.data.sources.base import BadImageError, Skipped, SourceImage, Split
from rn50.data.sources.container import limited, printable
from rn50.data.sources.stored import StoredImages
from rn50.data.sources.wnids import WNID, class_names, imagenet_wnids
from rn50.errors import DataError

KIND = "Hugging Face parquet"
EXAMPLE = "data/train-00000-of-00294.parquet and data/validation-00000-of-00014.parquet"

_MAX_GROUP_BYTES = 4 << 30
"""A row group is unpacked as a whole."""
_ROWS = 64
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_NO_LABEL = "an image without a label"
_NAME = re.compile(r"(?P<base>.+?)_(?P<wnid>n\d{8})(?P<suffix>\.\w+)")


class Table:
    """One file: images and labels by row.

    Args:
        path: Of the file.
        shown: What messages call it, relative to the source.
        split: Of all its images.
    """

    def __init__(self, path: Path, shown: str, split: Split) -> None:
        self.path = path
        self.shown = shown
        self.split = split
        self.skipped = Skipped()
        self.class_of: dict[int, str] = {}
        """Label -> class id; to be set before ``images``."""
        with self._open() as file:
            schema = file.schema_arrow
            self.rows = int(file.metadata.num_rows)
            self.image = _column(schema.names, _IMAGE_COLUMNS, path)
            self.label = _column(schema.names, _LABEL_COLUMNS, path)
            self.names = _label_names(schema.metadata or {}, self.label)
            self.has_paths = _has_field(schema.field(self.image).type, "path")
            if not _has_field(schema.field(self.image).type, "bytes"):
                raise DataError(
                    f"{path} has a column {self.image} of {schema.field(self.image).type}; it must "
                    "have the fields bytes and path; save the images encoded, as a data set of the "
                    "Hugging Face Hub has them"
                )
            for number in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(number).total_byte_size
                if size > _MAX_GROUP_BYTES:
                    raise DataError(
                        f"{path} has a row group of {size:,} bytes; it is held in memory as a "
                        f"whole and must be below {_MAX_GROUP_BYTES:,}; write it again with "
                        "smaller row groups"
                    )

    def labels(self) -> Iterator[tuple[int, str | None]]:
        """Yield each row's label and the WordNet id in its path, without reading the images."""
        columns = [self.label] + ([f"{self.image}.path"] if self.has_paths else [])
        with self._open() as file:
            for batch in file.iter_batches(4096, columns=columns):
                labels = batch.column(self.label).to_pylist()
                paths = [None] * len(labels)
                if self.has_paths:
                    paths = batch.column(self.image).field("path").to_pylist()
                for label, path in zip(labels, paths, strict=True):
                    match = _NAME.fullmatch(path) if path else None
                    yield -1 if label is None else int(label), match["wnid"] if match else None

    def count(self) -> int:
        """Return the number of rows."""
        return self.rows

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the order of the rows."""
        self.skipped = Skipped()
        row = 0
        with self._open() as file:
            for batch in file.iter_batches(_ROWS, columns=[self.image, self.label]):
                labels = batch.column(self.label).to_pylist()
                for value, label in zip(batch.column(self.image), labels, strict=True):
                    image = value.as_py() or {}
                    place = f"{self.shown}/{_name(image.get('path'), row)}"
                    row += 1
                    if label is None or label < 0:
                        self.skipped.add(_NO_LABEL, place)
                        continue
                    read = partial(_read, image.get("bytes"))
                    yield SourceImage(self.split, self.class_of[int(label)], place, read)

    def check(self) -> list[str]:
        """Return nothing: the hashes of these were not published."""
        return []

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DataError(
                f"{self.path} is a parquet file, which pyarrow reads, and that is not installed; "
                "run: pip install 'rn50[parquet]'"
            ) from error
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = printable(str(error)).splitlines()[0]
            raise DataError(
                f"source {self.path} is cut off or damaged ({reason}); the whole file is needed; "
                "download it again"
            ) from error


def find(files: list[str]) -> list[str]:
    """Return which of the files are in this form."""
    return [path for path in files if path.endswith(".parquet")]


def read(origin: Path, files: list[str]) -> StoredImages:
    """Return the labelled images of all parquet files among the ``files`` in the folder ``origin``.

    Raises:
        DataError: A split or a shard is missing, a file is damaged, or labels contradict paths.
    """
    found = splits.by_split(find(files))
    splits.need_both(found, str(origin), EXAMPLE)
    splits.need_all_of(found["train"] + found["val"], str(origin))
    tables = [Table(origin / path, path, "train") for path in found["train"]]
    tables += [Table(origin / path, path, "val") for path in found["val"]]
    class_of, names = _classes(tables)
    for table in tables:
        table.class_of = class_of
    ids = set(class_of.values())
    return StoredImages(
        KIND,
        origin,
        class_names(ids, names),
        tables,
        splits.unused(files, found),
        expected=published.ilsvrc2012() if ids == set(imagenet_wnids()) else None,
    )


def _classes(tables: list[Table]) -> tuple[dict[int, str], dict[str, str]]:
    """Return the class id of each label that occurs, and the names the files tell."""
    wnids: dict[int, str] = {}
    labels: set[int] = set()
    for table in tables:
        for label, wnid in table.labels():
            if label < 0:
                continue
            labels.add(label)
            if wnid and wnids.setdefault(label, wnid) != wnid:
                raise DataError(
                    f"{table.path} has label {label} for {wnid} and for {wnids[label]}; a label "
                    "must be one class; the files are of different data sets, or damaged: "
                    "download them again"
                )
    told = next((table.names for table in tables if table.names), [])
    if labels and wnids.keys() == labels and len(set(wnids.values())) == len(wnids):
        return wnids, {}
    if told and max(labels, default=0) >= len(told):
        raise DataError(
            f"{tables[0].path} has label {max(labels)} and names of {len(told)} classes; labels "
            "must be below their number; download the files again"
        )
    if told and all(WNID.fullmatch(name) for name in told) and len(set(told)) == len(told):
        return {label: told[label] for label in labels}, {}
    width = len(str(max(labels, default=0)))
    class_of = {label: f"{label:0{width}}" for label in labels}
    return class_of, {id_: told[label] for label, id_ in class_of.items() if told}


def _label_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """Return the class names that the ``datasets`` library keeps in a file's schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _column(names: list[str], wanted: tuple[str, ...], path: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise DataError(
        f"{path} has the columns {', '.join(names)[:80]}; one called {' or '.join(wanted)} is "
        "needed; rename it"
    )


def _has_field(kind: Any, name: str) -> bool:
    return any(kind.field(i).name == name for i in range(kind.num_fields))


def _name(path: str | None, row: int) -> str:
    """Return an image's name without the WordNet id at its end, as ImageNet itself has it."""
    last = printable((path or "").replace("\\", "/")).rpartition("/")[2]
    match = _NAME.fullmatch(last)
    return f"{match['base']}{match['suffix']}" if match else last or f"{row:08}"


def _read(data: bytes | None) -> bytes:
    if data is None:
        raise BadImageError("its row has no bytes, only a path")
    limited(len(data))
    return data
