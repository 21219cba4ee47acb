"""Parquet files and WebDataset tars, and what goes wrong with them."""

import builtins
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributions import TRAIN, VAL, WNIDS, parquet, rows, shard_tree, table, webdataset
from image_trees import add_to_tar, jpeg, write_folder, write_tar

from rn50.data.sources import parquet as parquet_source
from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import LINK
from rn50.data.sources.detect import open_source
from rn50.data.sources.webdataset import index
from rn50.data.sources.wnids import imagenet_wnids
from rn50.errors import DataError

VAL_FILE = "data/validation-00000-of-00001.parquet"


def test_images_without_ids_are_classes_by_number_with_their_names(tmp_path):
    names = ["tench, Tinca tinca", "crane", "crane"]
    source = open_source(parquet(tmp_path / "x", paths=False, names=names))
    assert [(c.id, c.name) for c in source.classes] == list(zip("012", names, strict=True))
    source = open_source(parquet(tmp_path / "y", paths=False, label=lambda w: 9 + WNIDS.index(w)))
    assert [(c.id, c.name) for c in source.classes] == [(n, n) for n in ("09", "10", "11")]


def test_the_wordnet_id_in_a_path_comes_before_the_label(tmp_path):
    source = open_source(parquet(tmp_path / "x", label=lambda wnid: 2 - WNIDS.index(wnid)))
    assert [class_.id for class_ in source.classes] == list(WNIDS)
    assert {image.class_id for image in source.images()} == set(WNIDS)


def test_paths_that_contradict_labels_are_refused(tmp_path):
    root = parquet(tmp_path / "x")
    pq.write_table(table("val", label=lambda wnid: 2 - WNIDS.index(wnid)), root / VAL_FILE)
    with pytest.raises(DataError, match=r"has label . for n\d+ and for n\d+; a label must be one"):
        open_source(root)


def test_test_files_and_others_are_told(tmp_path):
    source = open_source(parquet(tmp_path / "x"))
    assert source.skipped.paths == {
        "not a shard": ["README.md"],
        "test images, which have no labels": ["data/test-00000-of-00001.parquet"],
    }


def test_rows_without_label_or_bytes_are_told(tmp_path):
    root = parquet(tmp_path / "x")
    image = {"bytes": None, "path": f"x_{WNIDS[0]}.JPEG"}
    more = pa.table(
        {"image": pa.array([image, image], table("val")["image"].type), "label": [0, -1]}
    )
    pq.write_table(pa.concat_tables([table("val"), more]), root / VAL_FILE)
    source = open_source(root)
    *_, last = list(source.images())
    with pytest.raises(BadImageError, match="its row has no bytes, only a path"):
        last.read()
    assert source.skipped.paths["an image without a label"] == [f"{VAL_FILE}/x.JPEG"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "data/train-00001-of-00002.parquet",
            r"lacks 1 of the 2 shards data/train-\*, such as .*1",
        ),
        (VAL_FILE, "has no shards of the validation split"),
    ],
)
def test_a_file_that_was_not_downloaded_is_named(tmp_path, name, match):
    root = parquet(tmp_path / "x")
    (root / name).unlink()
    with pytest.raises(DataError, match=match):
        open_source(root)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path, part):
    root = parquet(tmp_path / "x")
    whole = (root / VAL_FILE).read_bytes()
    (root / VAL_FILE).write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(DataError, match=r"validation-.*parquet is cut off or damaged \("):
        open_source(root)


def test_a_file_of_damaged_bytes_is_refused_while_it_is_read(tmp_path):
    root = parquet(tmp_path / "x")
    content = bytearray((root / VAL_FILE).read_bytes())
    at = pq.ParquetFile(root / VAL_FILE).metadata.row_group(0).column(0).data_page_offset
    content[at : at + 40] = b"\xff" * 40
    (root / VAL_FILE).write_bytes(content)
    source = open_source(root)
    with pytest.raises(DataError, match="is cut off or damaged"):
        list(source.images())


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"picture": "image"}, "has the columns picture, label; one called image or img is needed"),
        ({"class": "label"}, "has the columns image, class; one called label or labels"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, match):
    root = parquet(tmp_path / "x")
    (new, old), *_ = columns.items()
    found = table("val")
    pq.write_table(
        found.rename_columns([new if c == old else c for c in found.column_names]), root / VAL_FILE
    )
    with pytest.raises(DataError, match=match):
        open_source(root)


def test_a_column_of_pixels_is_refused(tmp_path):
    root = parquet(tmp_path / "x")
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), root / VAL_FILE)
    with pytest.raises(DataError, match="it must have the fields bytes and path"):
        open_source(root)


def test_a_row_group_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_source, "_MAX_GROUP_BYTES", 100)
    with pytest.raises(DataError, match=r"row group of .* bytes; it is held in memory"):
        open_source(parquet(tmp_path / "x"))


def test_a_path_in_a_row_leads_nowhere(tmp_path):
    root = parquet(tmp_path / "x")
    image = {"bytes": jpeg(0), "path": f"../../../etc/x_{WNIDS[0]}.JPEG"}
    kind = table("val")["image"].type
    pq.write_table(pa.table({"image": pa.array([image], kind), "label": [0]}), root / VAL_FILE)
    *_, last = list(open_source(root).images())
    assert last.path == f"{VAL_FILE}/x.JPEG"


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    root = parquet(tmp_path / "x")
    real = builtins.__import__

    def without_pyarrow(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match=r"pip install 'rn50\[parquet\]'"):
        open_source(root)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("make", [parquet, webdataset])
def test_shards_may_be_links_as_in_the_cache_of_the_hub(tmp_path, make):
    blobs = make(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots"
    for number, file in enumerate(sorted(path for path in blobs.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(tmp_path / f"blob{number}"))
    assert len(list(open_source(snapshot).images())) == len(TRAIN) + len(VAL)


def test_a_folder_for_each_split_is_understood(tmp_path):
    (tmp_path / "default").mkdir()
    for split in ("train", "val"):
        folder = tmp_path / "default" / {"val": "validation"}.get(split, split)
        folder.mkdir()
        pq.write_table(table(split), folder / "0000.parquet")
    assert open_source(tmp_path).count() == len(TRAIN) + len(VAL)


def thousand(root, label=lambda index: index):
    """A shard whose keys tell no ids, and which has all labels of ImageNet."""
    data = jpeg(0)
    tree = {}
    for number in range(1000):
        tree[f"s{number}.jpg"] = data
        tree[f"s{number}.cls"] = str(label(number)).encode()
    for name in ("train-000.tar", "val-000.tar"):
        write_tar(write_folder(root, {}) / name, tree)
    return root


def test_a_thousand_labels_are_the_ranks_of_the_sorted_ids(tmp_path):
    tmp_path.joinpath("x").mkdir()
    source = open_source(thousand(tmp_path / "x"))
    assert [class_.id for class_ in source.classes] == list(imagenet_wnids())
    for image in source.images():
        number = int(image.path.rpartition("/s")[2].partition(".")[0])
        assert image.class_id == imagenet_wnids()[number]
    assert source.check()[0].startswith("classes: 1,000 labels, taken as the ranks")


def test_a_thousand_labels_in_another_order_than_the_keys_tell_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    root = thousand(tmp_path / "x")
    tree = shard_tree([(f"{WNIDS[1]}_5", WNIDS[1], jpeg(1))], label=lambda wnid: 7)
    write_tar(root / "train-001.tar", tree)
    with pytest.raises(DataError, match=rf"has label 7 for {WNIDS[1]}, and in ImageNet's order"):
        open_source(root)


def test_other_labels_stand_for_themselves(tmp_path):
    for name, labels in (("numbers", ["9", "10"]), ("words", ["cat", "dog"])):
        root = tmp_path / name
        root.mkdir()
        for split in ("train", "val"):
            tree = {
                f"{i}.{suffix}": data
                for i, label in enumerate(labels)
                for suffix, data in (("jpg", jpeg(i)), ("cls", label.encode()))
            }
            write_tar(root / f"{split}-0.tar", tree)
    assert [c.id for c in open_source(tmp_path / "numbers").classes] == ["09", "10"]
    assert [c.id for c in open_source(tmp_path / "words").classes] == ["cat", "dog"]


def test_one_label_for_two_ids_is_refused(tmp_path):
    root = webdataset(tmp_path / "x", info=False, label=lambda wnid: 0)
    with pytest.raises(DataError, match=r"has label 0 for n\d+ and for n\d+; a label must be one"):
        open_source(root)


@pytest.mark.parametrize("info", [True, False])
def test_a_shard_that_was_not_downloaded_is_named(tmp_path, info):
    root = webdataset(tmp_path / "x", info=info)
    write_tar(root / "imagenet1k-train-0002.tar", shard_tree(rows("train")))
    (root / "imagenet1k-train-0001.tar").unlink()
    match = r"lacks 1 of the 3 shards .*train-0001\.tar" if info else "no shard number 1 before"
    with pytest.raises(DataError, match=match):
        open_source(root)


def test_a_shard_with_fewer_images_than_listed_is_refused(tmp_path):
    root = webdataset(tmp_path / "x")
    write_tar(root / "imagenet1k-train-0001.tar", shard_tree(rows("train")[5:7]))
    with pytest.raises(DataError, match=r"has 2 labelled images, and _info\.json tells of 3"):
        open_source(root)


@pytest.mark.parametrize("text", ["{", "[]", '{"splits": {"train": {}}}', '{"splits": []}'])
def test_a_damaged_list_of_shards_is_refused(tmp_path, text):
    root = webdataset(tmp_path / "x")
    (root / "_info.json").write_text(text)
    with pytest.raises(DataError, match=r"_info\.json is damaged .* or remove it"):
        open_source(root)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_shard_that_was_cut_off_is_refused_before_any_work(tmp_path, part):
    root = webdataset(tmp_path / "x")
    path = root / "imagenet1k-validation-00.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole.rstrip(b"\0")) * part)])
    with pytest.raises(DataError, match=r"validation-00\.tar is cut off"):
        open_source(root)


def test_labels_may_be_in_json_and_images_without_are_told(tmp_path):
    tree = {
        "a/1.2.jpeg": jpeg(0),
        "a/1.json": json.dumps({"label": 5}).encode(),
        "a/2.PNG": jpeg(1),
        "a/2.cls": b"6\n",
        "a/3.jpg": jpeg(2),
        "a/4.jpg": jpeg(3),
        "a/4.json": b"not json",
        "a/5.cls": b"7",
    }
    tree["a/1.jpeg"] = tree.pop("a/1.2.jpeg")
    tree = dict(sorted(tree.items()))
    for split in ("train", "val"):
        write_tar(tmp_path / f"x_{split}.tar", tree)
    source = open_source(tmp_path)
    found = [(image.split, image.path, image.class_id) for image in source.images()]
    assert found[:2] == [
        ("train", "x_train.tar/a/1.jpeg", "5"),
        ("train", "x_train.tar/a/2.png", "6"),
    ]
    left_out = source.skipped.paths["an image without a label"]
    assert left_out[:2] == ["x_train.tar/a/3.jpg", "x_train.tar/a/4.jpg"]


def test_links_in_a_shard_are_never_followed(tmp_path):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            add_to_tar(tar, "1.jpg", jpeg(0))
            add_to_tar(tar, "1.cls", b"0")
            member = tarfile.TarInfo("2.jpg")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
            add_to_tar(tar, "2.cls", b"1")
    source = open_source(tmp_path)
    assert len(list(source.images())) == 2
    assert source.skipped.paths[LINK] == ["train.tar/2.jpg", "val.tar/2.jpg"]


def test_the_index_of_a_shard_says_where_its_images_lie(tmp_path):
    path = webdataset(tmp_path / "x") / "imagenet1k-train-0000.tar"
    content = path.read_bytes()
    found = [
        (entry.key, entry.label, content[entry.offset : entry.offset + entry.size])
        for entry in index(path)
    ]
    assert found == [(name, str(WNIDS.index(w)), data) for name, w, data in rows("train")[:5]]
