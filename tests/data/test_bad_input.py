"""Every wrong input ends in one line that says what to do, and leaves nothing behind."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from image_trees import (
    Tree,
    class_tree,
    encoded,
    jpeg,
    names,
    picture,
    tiny_tree,
    write_folder,
    write_tar,
)

from rn50.data.pack import pack
from rn50.data.sources.detect import open_source
from rn50.data.verify import verify
from rn50.errors import DataError, UsageError


def without(tree: Tree, start: str) -> Tree:
    return {path: data for path, data in tree.items() if not path.startswith(start)}


@contextmanager
def refused(tmp_path: Path, kind: type[Exception], match: str):
    """Expect an error of one line, and no file that was not there before."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=match) as error:
        yield
    assert "\n" not in str(error.value)
    assert ";" in str(error.value), "what was wrong; what is allowed; what to do"
    assert sorted(tmp_path.rglob("*")) == before


def prepare(tmp_path: Path, tree: Tree, **options):
    source = write_folder(tmp_path / "source", tree)
    return pack(open_source(source), tmp_path / "packed", **options)


def test_a_source_that_does_not_exist(tmp_path):
    with refused(tmp_path, DataError, "none does not exist"):
        open_source(tmp_path / "none")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.tar").write_text("<html>404 not found</html>" * 99)
    with refused(tmp_path, DataError, r"x\.tar is not an archive"):
        open_source(tmp_path / "x.tar")


def test_an_empty_folder(tmp_path):
    with refused(tmp_path, DataError, r"is empty; train/<class>/<image>"):
        open_source(tmp_path)


def test_an_archive_of_nothing(tmp_path):
    write_tar(tmp_path / "a.tar", {})
    with refused(tmp_path, DataError, r"a\.tar is empty"):
        open_source(tmp_path / "a.tar")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_folder_of_links_only(tmp_path):
    write_folder(tmp_path / "real", class_tree())
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / name)
    with refused(tmp_path, DataError, r"is empty \(2 entries are links or hidden, and not read\)"):
        open_source(tmp_path / "data")


def test_a_folder_of_loose_files(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with refused(tmp_path, DataError, "has 1 files and no folders of classes"):
        open_source(tmp_path)


def test_a_layout_with_no_image_in_it(tmp_path):
    tree = {"train/a/notes.txt": b"text", "val/a/notes.txt": b"text"}
    source = open_source(write_folder(tmp_path / "source", tree))
    match = r"class 'a' has no training images \(2 files there were left out\)"
    with refused(tmp_path, DataError, match):
        pack(source, tmp_path / "packed")


def test_class_folders_without_train(tmp_path):
    write_folder(tmp_path, {"cat/1.jpg": jpeg(0), "dog/1.jpg": jpeg(1)})
    match = r"has no folder train, only cat, dog; train/<class>/<image> and val/.*--val-source"
    with refused(tmp_path, DataError, match):
        open_source(tmp_path)


def test_several_data_sets_in_one_folder(tmp_path):
    write_folder(tmp_path, class_tree(top="a/") | class_tree(top="b/"))
    with refused(tmp_path, DataError, "holds several data sets: a/, b/"):
        open_source(tmp_path)


def test_no_validation_split(tmp_path):
    write_folder(tmp_path, without(class_tree(), "val"))
    with refused(tmp_path, DataError, "has no validation split: no val folder"):
        open_source(tmp_path)


@pytest.mark.parametrize("top", ["", "data/"])
def test_a_flat_validation_folder(tmp_path, top):
    tree = without(class_tree(top=top), f"{top}val")
    write_folder(tmp_path, tree | {f"{top}val/{i}.jpg": jpeg(i) for i in range(3)})
    match = r"val is flat: it has 3 files and no class folders.*one folder per class"
    with refused(tmp_path, DataError, match):
        open_source(tmp_path)


def test_a_flat_training_folder(tmp_path):
    tree = without(class_tree(), "train") | {"train/x.jpg": jpeg(0)}
    write_folder(tmp_path, tree)
    with refused(tmp_path, DataError, "train is flat: it has 1 files"):
        open_source(tmp_path)


def test_an_empty_validation_folder(tmp_path):
    write_folder(tmp_path, without(class_tree(), "val"))
    (tmp_path / "val").mkdir()
    with refused(tmp_path, DataError, r"val is empty; train/<class>"):
        open_source(tmp_path)


def test_validation_folders_without_images(tmp_path):
    write_folder(tmp_path / "source", without(class_tree(), "val"))
    for name in ("ant", "bee"):
        (tmp_path / "source" / "val" / name).mkdir(parents=True)
    with refused(tmp_path, DataError, "the validation split has no images"):
        pack(open_source(tmp_path / "source"), tmp_path / "packed")


def test_a_validation_class_that_training_lacks(tmp_path):
    write_folder(tmp_path, class_tree() | {"val/cow/1.jpg": jpeg(0), "val/dog/1.jpg": jpeg(1)})
    with refused(tmp_path, DataError, r"val has class 'cow' \(and 1 more\), which .*train lacks"):
        open_source(tmp_path)


def test_an_empty_class_folder(tmp_path):
    write_folder(tmp_path, class_tree())
    (tmp_path / "train" / "cow").mkdir()
    with refused(tmp_path, DataError, "train/cow has no images; every class needs at least one"):
        open_source(tmp_path)


BAD = {
    "truncated": (jpeg(0, size=(200, 200))[:-400], "image file is truncated"),
    "empty": (b"", "it is empty"),
    "page": (b"<!DOCTYPE html><html>404</html>", r"its content is no .*begins with b'<!DOCTYPE"),
    "header": (jpeg(0)[:3] + bytes(100), "its JPEG header is damaged"),
    "png": (encoded(picture(0, "RGB", (200, 200)), "PNG")[:-300], "truncated|broken"),
}


@pytest.mark.parametrize(("data", "match"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["train/ant/x.jpg", "val/bee/x.JPEG"])
def test_a_bad_image_is_named_and_the_way_around_it_told(tmp_path, data, match, name):
    source = open_source(write_folder(tmp_path / "source", class_tree() | {name: data}))
    match = f"{name} cannot be decoded: .*({match}).*--skip-bad"
    with refused(tmp_path, DataError, match):
        pack(source, tmp_path / "packed")


def test_bad_images_are_left_out_on_request_and_listed(tmp_path):
    tree = class_tree() | {f"train/ant/x{i:02}.jpg": BAD["truncated"][0] for i in range(30)}
    tree |= {"val/ant/page.jpg": BAD["page"][0]}
    manifest = prepare(tmp_path, tree, skip_bad=True)
    skipped = manifest["skipped"]["a bad image"]
    assert skipped["count"] == 31
    assert len(skipped["examples"]) == 20
    assert skipped["examples"][0].startswith("train/ant/x00.jpg (image file is truncated")
    assert manifest["splits"]["train"]["images"] == 6
    verify(tmp_path / "packed")


def test_a_class_of_bad_images_only(tmp_path):
    tree = class_tree() | {"train/cow/x.jpg": b""}
    source = open_source(write_folder(tmp_path / "source", tree))
    with refused(tmp_path, DataError, "class 'cow' has no training images"):
        pack(source, tmp_path / "packed", skip_bad=True)


def test_files_beside_the_images_are_left_out_and_listed(tmp_path):
    tree = class_tree() | {"train/ant/notes.txt": b"text", "train/ant/n01.tar": bytes(9999)}
    manifest = prepare(tmp_path, tree)
    assert manifest["skipped"] == {
        "not an image": {"count": 2, "examples": ["train/ant/n01.tar", "train/ant/notes.txt"]}
    }


def test_an_image_without_a_suffix_is_packed(tmp_path):
    manifest = prepare(tmp_path, class_tree() | {"train/ant/picture": jpeg(1)})
    assert manifest["splits"]["train"]["images"] == 7


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train/n04/images/x.JPEG": jpeg(1)}, r"x\.JPEG is of class n04, which .*wnids\.txt does"),
        ({"val/images/x.JPEG": jpeg(1)}, r"val/images/x\.JPEG has no line in .*annotations\.txt"),
        ({"wnids.txt": b"n01 n02 n03 n05"}, r"class n05 of .*wnids\.txt has no images"),
        ({"val/val_annotations.txt": b"a\tn01\nb\tn01\n"}, r"val_0\.JPEG has no line"),
        ({"val/val_annotations.txt": b"what is this"}, r"line 1 is 'what is this'; it must be"),
    ],
)
def test_a_tiny_imagenet_whose_lists_and_images_disagree(tmp_path, change, match):
    write_folder(tmp_path, tiny_tree("") | change)
    with refused(tmp_path, DataError, match):
        open_source(tmp_path)


def test_a_tiny_imagenet_that_lacks_validation_images(tmp_path):
    write_folder(tmp_path, without(tiny_tree(""), "val/images/val_2"))
    with refused(tmp_path, DataError, r"1 of the images in .*are missing, such as .*val_2\.JPEG"):
        open_source(tmp_path)


def test_a_second_source_where_the_first_has_its_own_validation(tmp_path):
    write_folder(tmp_path, tiny_tree(""))
    with refused(tmp_path, UsageError, "tiny-imagenet-200 has its own validation images"):
        open_source(tmp_path, val_source=tmp_path)


def test_a_source_that_is_packed_already(tmp_path):
    prepare(tmp_path, class_tree())
    with refused(tmp_path, UsageError, "is a packed data set already.*--data"):
        open_source(tmp_path / "packed")


def test_a_destination_inside_the_source(tmp_path):
    source = open_source(write_folder(tmp_path, class_tree()))
    for dest in (tmp_path, tmp_path / "packed", tmp_path / "train" / "x" / "y"):
        with refused(tmp_path, UsageError, "lies in the source"):
            pack(source, dest)


def test_a_destination_that_is_not_empty(tmp_path):
    source = open_source(write_folder(tmp_path / "source", class_tree()))
    write_folder(tmp_path / "packed", {"thesis.tex": b"work"})
    with refused(tmp_path, UsageError, "packed exists and is not empty"):
        pack(source, tmp_path / "packed")


def test_a_destination_that_is_a_file_or_below_one(tmp_path):
    source = open_source(write_folder(tmp_path / "source", class_tree()))
    (tmp_path / "file").write_text("x")
    for dest in (tmp_path / "file", tmp_path / "file" / "packed"):
        with refused(tmp_path, UsageError, "file is a file"):
            pack(source, dest)


@contextmanager
def tmpfs(folder: Path, options: str):
    """Mount a small file system, where the system and the rights allow it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["16k", "100k", "1m"])
def test_a_disk_that_is_full(tmp_path, size):
    images = {f"train/ant/x{i}.jpg": jpeg(i, size=(64, 64)) for i in range(600)}
    source = open_source(write_folder(tmp_path / "source", class_tree() | images))
    with tmpfs(tmp_path / "small", f"size={size}") as small:
        with refused(tmp_path, UsageError, r"cannot write .*packed: the disk is full \(.* MB free"):
            pack(source, small / "packed")
        assert names(small) == []


def test_a_disk_that_is_full_keeps_what_is_finished_and_goes_on_once_there_is_room(tmp_path):
    images = {f"train/ant/x{i}.jpg": jpeg(i, size=(64, 64)) for i in range(600)}
    source = write_folder(tmp_path / "source", class_tree() | images)
    options = {"shard_bytes": 100_000}
    with tmpfs(tmp_path / "small", "size=1m") as small:
        match = (
            r"disk is full .*; \d+ finished shards \(\d\.\d MB\) are kept in .*/\.packed\.partial"
        )
        with pytest.raises(UsageError, match=match):
            pack(open_source(source), small / "packed", **options)
        assert names(small) == [".packed.partial"]
        subprocess.run(["mount", "-o", "remount,size=9m", str(small)], check=True)
        said = []
        pack(open_source(source), small / "packed", say=said.append, **options)
        assert said[0].startswith("continuing in")
        assert names(small) == ["packed"]
        verify(small / "packed")


def test_a_mounted_disk_is_no_destination_but_a_folder_in_it_is(tmp_path):
    source = open_source(write_folder(tmp_path / "source", class_tree()))
    with tmpfs(tmp_path / "disk", "size=1m") as disk:
        with refused(tmp_path, UsageError, r"is where a disk is mounted.*choose .*/disk/packed"):
            pack(source, disk)
        pack(source, disk / "packed")


def test_a_place_that_is_read_only(tmp_path):
    source = open_source(write_folder(tmp_path / "source", class_tree()))
    with (
        tmpfs(tmp_path / "locked", "size=1m,ro") as locked,
        refused(tmp_path, UsageError, "cannot write .*packed: the file system is read-only"),
    ):
        pack(source, locked / "packed")


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(tmp_path):
    source = open_source(write_folder(tmp_path / "source", class_tree()))
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with refused(tmp_path, UsageError, "cannot write .*packed: permission is denied"):
        pack(source, locked / "packed")


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may read anything")
def test_an_image_without_permission(tmp_path):
    source = write_folder(tmp_path / "source", class_tree())
    (source / "train/ant/ant_0.JPEG").chmod(0)
    with refused(tmp_path, DataError, r"cannot read .*ant_0\.JPEG: Permission denied"):
        pack(open_source(source), tmp_path / "packed")
