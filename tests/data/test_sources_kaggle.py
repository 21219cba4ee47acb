"""Kaggle's CLS-LOC: lists that disagree with the images, and lists that are not there."""

import os
from pathlib import Path

import pytest
from distributions import TRAIN, VAL, WNIDS, kaggle_tree
from image_trees import jpeg, write_folder, write_zip

from rn50.data.pack import pack
from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import Folder
from rn50.data.sources.detect import open_source
from rn50.errors import DataError

DATA = "ILSVRC/Data/CLS-LOC/"
FIRST = f"{DATA}train/{next(iter(TRAIN))}.JPEG"


def changed(change: dict[str, bytes | None]) -> dict[str, bytes]:
    return {path: data for path, data in (kaggle_tree() | change).items() if data is not None}


def test_the_rows_of_the_table_are_in_no_order():
    lines = kaggle_tree()["LOC_val_solution.csv"].decode().splitlines()
    assert lines[1:] != sorted(lines[1:])


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_names_come_from_the_mapping_and_test_images_are_told(tmp_path, write):
    source = open_source(write(tmp_path / "source", kaggle_tree()))
    assert [class_.name for class_ in source.classes] == [f"words, of {wnid}" for wnid in WNIDS]
    ((reason, (path,)),) = source.skipped.paths.items()
    assert reason == "test images, which have no labels"
    assert path.startswith(f"{DATA}test/")


def test_the_training_folders_are_not_searched_where_a_list_names_the_images(tmp_path, monkeypatch):
    root = write_folder(tmp_path, kaggle_tree())
    seen = []
    real = os.scandir

    def scandir(path):
        seen.append(Path(path).relative_to(root).as_posix())
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    source = open_source(root)
    assert len(list(source.images())) == len(TRAIN) + len(VAL)
    assert f"{DATA}val" in seen, "else this tests nothing"
    assert not [path for path in seen if path.startswith(f"{DATA}train")]


def test_an_image_that_is_listed_and_missing_is_named_or_skipped(tmp_path):
    root = write_folder(tmp_path / "source", changed({FIRST: None}))
    with pytest.raises(DataError, match=rf"{FIRST} .*train_cls\.txt lists it, and it is not there"):
        pack(open_source(root), tmp_path / "packed")
    manifest = pack(open_source(root), tmp_path / "packed", skip_bad=True)
    assert manifest["skipped"]["a bad image"]["count"] == 1


def test_a_class_that_is_listed_and_missing_is_refused_before_any_work(tmp_path):
    gone = f"{DATA}train/{WNIDS[1]}/"
    tree = {path: data for path, data in kaggle_tree().items() if not path.startswith(gone)}
    with pytest.raises(DataError, match=rf"{WNIDS[1]} is missing, and .*train_cls\.txt lists"):
        open_source(write_folder(tmp_path, tree))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_listed_link_is_not_followed(tmp_path):
    root = write_folder(tmp_path, kaggle_tree())
    (root / FIRST).unlink()
    (root / FIRST).symlink_to("/etc/passwd")
    image = next(open_source(root).images())
    with pytest.raises(BadImageError, match="a link, which is never followed"):
        image.read()


@pytest.mark.parametrize("line", ["../../../etc/passwd 1", "n01440764 1", "/n01440764/x 1"])
def test_a_list_of_something_else_is_refused(tmp_path, line):
    place = "ILSVRC/ImageSets/CLS-LOC/train_cls.txt"
    tree = kaggle_tree() | {place: f"{next(iter(TRAIN))} 1\n{line}\n".encode()}
    with pytest.raises(DataError, match=r"train_cls\.txt line 2 is .*; it must begin with"):
        open_source(write_folder(tmp_path, tree))


@pytest.mark.parametrize("write", [write_folder, write_zip])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"LOC_val_solution.csv": b"ImageId,PredictionString\n"}, r"has no label: neither LOC_val"),
        ({"LOC_val_solution.csv": b"x,y z\n"}, r"LOC_val_solution\.csv line 1 is 'x,y z'; it must"),
        ({f"{DATA}val/ILSVRC2012_val_00000003.JPEG": None}, r"1 of the 6 labelled .*00000003\.JP"),
        (
            {f"{DATA}val/ILSVRC2012_val_00000009.JPEG": jpeg(0)},
            r"val_00000009\.JPEG has no label: neither",
        ),
        (
            {
                "LOC_val_solution.csv": None,
                "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000003.xml": b"<!DOCTYPE lolz>",
            },
            r"val_00000003\.JPEG has no label",
        ),
    ],
)
def test_lists_and_validation_images_that_disagree_are_refused(tmp_path, write, change, match):
    with pytest.raises(DataError, match=match):
        open_source(write(tmp_path / "source", changed(change)))


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_validation_class_without_training_images_is_refused(tmp_path, write):
    rows = kaggle_tree()["LOC_val_solution.csv"].replace(WNIDS[2].encode(), b"n99999999")
    with pytest.raises(DataError, match="is of class n99999999, which has no training images in"):
        open_source(write(tmp_path / "source", kaggle_tree() | {"LOC_val_solution.csv": rows}))


def test_validation_images_that_were_sorted_since_are_read(tmp_path):
    tree = changed({"LOC_val_solution.csv": None})
    for name, (wnid, _) in VAL.items():
        tree[f"{DATA}val/{wnid}/{name}.JPEG"] = tree.pop(f"{DATA}val/{name}.JPEG")
    source = open_source(write_folder(tmp_path, tree))
    found = {image.path: image.class_id for image in source.images() if image.split == "val"}
    assert found == {f"{DATA}val/{w}/{name}.JPEG": w for name, (w, _) in VAL.items()}


def test_a_folder_is_listed_from_any_place_within_it(tmp_path):
    root = write_folder(tmp_path, kaggle_tree())
    listing = Folder(root).listing(f"{DATA}val")
    assert sorted(listing.files) == [f"{DATA}val/{name}.JPEG" for name in VAL]
    assert list(Folder(root).listing(f"{DATA}train", deep=False).files) == []
