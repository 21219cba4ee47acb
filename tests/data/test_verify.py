import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_trees import jpeg, packed

from rn50 import durable
from rn50.data.shard_writer import ShardWriter
from rn50.data.shards import MANIFEST, fingerprint
from rn50.data.sources.base import ClassName
from rn50.data.verify import verify
from rn50.errors import DataError


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20
    path.write_bytes(content)


def test_a_whole_data_set_passes_and_is_counted(tmp_path):
    data = packed(tmp_path, shard_bytes=5000)
    reports = []
    found = verify(data.folder, workers=2, report=lambda *counts: reports.append(counts))
    assert found.images == {"train": 6, "val": 2}
    assert found.num_classes == 2
    assert found.fingerprint == data.fingerprint
    files = [path for path in data.folder.iterdir() if path.name != MANIFEST]
    assert found.num_bytes == sum(path.stat().st_size for path in files)
    assert reports[-1] == (8, 8)


def test_any_flipped_byte_of_a_shard_is_found_and_placed(tmp_path):
    data = packed(tmp_path)
    path = data.folder / "val-000000.tar"
    with tarfile.open(path) as tar:
        members = {(m.offset, m.name) for m in tar}
    whole = path.read_bytes()
    # Every 16th byte, and all around the borders of the members.
    borders = {offset + d for offset, _ in members for d in (0, 511, 512, 513)}
    for position in sorted({*range(0, len(whole), 16), *borders}):
        flip(path, position)
        name = max((offset, name) for offset, name in members if offset <= position)[1]
        after_all = position >= len(whole) - 1024
        expected = r"val-000000\.tar: what follows" if after_all else name.rpartition(".")[0]
        with pytest.raises(DataError, match=expected):
            verify(data.folder, workers=1)
        path.write_bytes(whole)
    verify(data.folder)


def test_a_damaged_jpeg_is_named_with_its_shard_and_byte(tmp_path):
    data = packed(tmp_path, shard_bytes=5000)
    split = data.split("train")
    place = split.describe(4)
    row = split.index[4]
    flip(data.folder / f"train-{row['shard']:06d}.tar", int(row["offset"]) + 30)
    with pytest.raises(DataError) as error:
        verify(data.folder)
    assert f"{place}: its JPEG was altered" in str(error.value)
    assert str(error.value).count("its JPEG") == 1


def test_a_damaged_label_is_named(tmp_path):
    data = packed(tmp_path)
    path = data.folder / "train-000000.tar"
    with tarfile.open(path) as tar:
        flip(path, tar.getmember("ant/ant_2.cls").offset_data)
    with pytest.raises(DataError, match=r"ant/ant_2 \(.*its label"):
        verify(data.folder)


def test_a_damaged_key_file_is_named(tmp_path):
    data = packed(tmp_path)
    flip(data.folder / "train.keys.txt", 0)
    with pytest.raises(DataError, match=r"train\.keys\.txt: its hash"):
        verify(data.folder)


def test_a_wrong_fingerprint_is_found(tmp_path):
    data = packed(tmp_path)
    data.manifest["fingerprint"] = "0" * 32
    (data.folder / MANIFEST).write_text(json.dumps(data.manifest))
    with pytest.raises(DataError, match="its fingerprint is not that"):
        verify(data.folder)


def written(folder: Path, images: list[tuple[bytes, int, tuple[int, int]]]) -> Path:
    """Pack images by a writer that checks nothing."""
    writer = ShardWriter(folder, "train")
    for i, (data, label, size) in enumerate(images):
        writer.add(f"a/{i}", data, label, size)
    entry, index = writer.close()
    manifest = {
        "format": 1,
        "classes": [{"id": name, "name": name} for name in "ab"],
        "splits": {"train": entry},
        "fingerprint": fingerprint([ClassName(n, n) for n in "ab"], [("train", index)]),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("data", "label", "size", "problem"),
    [
        (jpeg(0)[:-100], 0, (24, 16), "it cannot be decoded"),
        (jpeg(0, "CMYK"), 0, (24, 16), "it is a CMYK JPEG"),
        (jpeg(0), 0, (16, 24), r"it has 24×16 pixels, not 16×24"),
        (jpeg(0), 2, (24, 16), "has the label 2, and there are 2 classes"),
        (jpeg(0), 0, (24, 16), "class 'b' has no images"),
    ],
)
def test_what_a_wrong_packer_wrote_is_found(tmp_path, data, label, size, problem):
    with pytest.raises(DataError, match=problem):
        verify(written(tmp_path, [(data, label, size)]))


def test_an_index_out_of_order_is_found(tmp_path):
    folder = written(tmp_path, [(jpeg(i), 0, (24, 16)) for i in range(3)])
    path = folder / "train.index.npy"
    index = np.load(path)[::-1]
    np.save(path, index)
    keys = folder / "train.keys.txt"
    keys.write_text("a/2\na/1\na/0\n")
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name, file in (("index", path), ("keys", keys)):
        manifest["splits"]["train"][name]["blake2b"] = durable.file_digest(file)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not sorted by label and key"):
        verify(folder)


def test_many_problems_are_counted_and_the_first_are_listed(tmp_path):
    images = [(jpeg(i), i // 24, (1, 1)) for i in range(25)]
    with pytest.raises(DataError, match=r"damaged in 25 places(.|\n)*… and 5 more"):
        verify(written(tmp_path, images))
