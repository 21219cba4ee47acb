import json
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from image_trees import class_tree, jpeg, packed

from rn50.data.shard_writer import ShardWriter
from rn50.data.shards import MANIFEST, PackedDataset, fingerprint, image_digest
from rn50.data.sources.base import ClassName
from rn50.errors import DataError


def test_every_image_is_read_back_as_the_bytes_that_went_in(tmp_path):
    tree = class_tree()
    data = packed(tmp_path, tree)
    for name, split in (("train", data.split("train")), ("val", data.split("val"))):
        originals = {
            path.split("/", 1)[1].rpartition(".")[0]: tree[path] for path in tree if name in path
        }
        read = {split.key(i): bytes(split.jpeg(i)) for i in range(split.num_images)}
        assert read == originals


def test_labels_sizes_and_digests_are_those_of_the_images(tmp_path):
    data = packed(tmp_path)
    train = data.split("train")
    assert data.classes == (ClassName("ant", "ant"), ClassName("bee", "bee"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == np.int64
    assert set(train.widths.tolist()) == {24}
    assert set(train.heights.tolist()) == {16}
    assert train.index["digest"].tolist() == [image_digest(train.jpeg(i)) for i in range(6)]


def test_the_shards_are_plain_tar_files_in_the_layout_of_webdataset(tmp_path):
    data = packed(tmp_path, shard_bytes=5000)
    split = data.split("train")
    shards = sorted(data.folder.glob("train-*.tar"))
    assert len(shards) > 1
    assert all(path.stat().st_size <= 5000 for path in shards)
    labels = {split.key(i): split.labels[i] for i in range(split.num_images)}
    for path in shards:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key = image.name.removesuffix(".jpg")
                assert "." not in key
                assert label.name == f"{key}.cls"
                assert int(tar.extractfile(label).read()) == labels.pop(key)
                assert {image.mtime, image.uid, image.gid} == {0}
    assert not labels


def test_an_image_larger_than_a_shard_has_its_own(tmp_path):
    writer = ShardWriter(tmp_path, "train", shard_bytes=100)
    for i in range(3):
        writer.add(f"a/{i}", jpeg(i), 0, (24, 16))
    entry, index = writer.close()
    assert len(entry["shards"]) == 3
    assert index["shard"].tolist() == [0, 1, 2]


def test_taken_keys_get_a_suffix_even_if_only_the_case_differs(tmp_path):
    writer = ShardWriter(tmp_path, "train")
    for key in ("a/x", "a/X", "a/x", "a/x-2"):
        writer.add(key, jpeg(0), 0, (24, 16))
    writer.close()
    lines = (tmp_path / "train.keys.txt").read_text().split()
    assert sorted(lines) == ["a/X-2", "a/x", "a/x-2-2", "a/x-3"]


def test_long_and_foreign_keys_are_read_by_tarfile(tmp_path):
    keys = ["日本/" + "very-long-name-" * 20, "été/x"]
    writer = ShardWriter(tmp_path, "train")
    for key in keys:
        writer.add(key, jpeg(0), 0, (24, 16))
    _, index = writer.close()
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames() == [f"{key}.{end}" for key in keys for end in ("jpg", "cls")]
        offsets = [member.offset_data for member in tar.getmembers()[::2]]
    assert sorted(index["offset"].tolist()) == offsets


def test_threads_read_the_same_images(tmp_path):
    split = packed(tmp_path).split("train")
    order = np.random.default_rng(0).integers(0, split.num_images, 2000).tolist()
    expected = [bytes(split.jpeg(i)) for i in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: bytes(split.jpeg(i)), order)) == expected


def test_describe_names_key_shard_and_place(tmp_path):
    split = packed(tmp_path).split("train")
    assert split.describe(4) == (f"bee/bee_1 (train-000000.tar at byte {split.index['offset'][4]})")


def test_the_fingerprint_changes_with_classes_labels_and_images_only(tmp_path):
    index = packed(tmp_path).split("train").index
    classes = [ClassName("a", "x"), ClassName("b", "y")]
    plain = fingerprint(classes, [("train", index)])
    moved = index.copy()
    moved["shard"] += 1
    moved["offset"] += 1
    assert fingerprint([ClassName("a", "new"), ClassName("b", "y")], [("train", moved)]) == plain
    assert fingerprint([ClassName("a", "x"), ClassName("c", "y")], [("train", index)]) != plain
    for field in ("label", "digest"):
        other = index.copy()
        other[field][3] += 1
        assert fingerprint(classes, [("train", other)]) != plain


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*run: rn50 prepare SOURCE"):
        PackedDataset.open(tmp_path / "none")


def test_a_folder_of_images_is_refused_with_the_command_that_packs_it(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"looks like a folder of images.*rn50 prepare .* DEST"):
        PackedDataset.open(tmp_path)


def test_an_archive_is_refused_with_the_command_that_packs_it(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.tar is a file.*rn50 prepare .*x\.tar DEST"):
        PackedDataset.open(tmp_path / "x.tar")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        PackedDataset.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "splits": {"train": {}}}']
)
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        PackedDataset.open(tmp_path)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    data = packed(tmp_path)
    data.manifest["splits"]["train"]["index"]["file"] = "../secret"
    (data.folder / MANIFEST).write_text(json.dumps(data.manifest))
    with pytest.raises(DataError, match="lies in another folder"):
        PackedDataset.open(data.folder)


def test_another_format_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text('{"format": 2, "tool": "rn50 9.0"}')
    with pytest.raises(DataError, match=r"format 2; this version reads format 1.*rn50 9\.0"):
        PackedDataset.open(tmp_path)


def test_an_absent_split_is_refused_by_the_names_of_those_that_exist(tmp_path):
    with pytest.raises(DataError, match=r"no split 'test'; it has 'train', 'val'"):
        packed(tmp_path).split("test")


def test_a_missing_shard_is_named(tmp_path):
    data = packed(tmp_path)
    (data.folder / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar is missing"):
        data.split("train")


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    data = packed(tmp_path)
    path = data.folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-000000\.tar has \d+ bytes; it must have"):
        data.split("train")


def test_an_altered_index_is_refused(tmp_path):
    data = packed(tmp_path)
    path = data.folder / "train.index.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.index\.npy was altered"):
        data.split("train")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of this kind")
def test_more_shards_than_open_files_allowed_are_opened(tmp_path):
    import resource

    writer = ShardWriter(tmp_path, "train", shard_bytes=1)
    for i in range(300):
        writer.add(f"a/{i}", b"x", 0, (1, 1))
    entry, _ = writer.close()
    manifest = {
        "format": 1,
        "classes": [{"id": "a", "name": "a"}],
        "splits": {"train": entry},
        "fingerprint": "",
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert PackedDataset.open(tmp_path).split("train").num_images == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
