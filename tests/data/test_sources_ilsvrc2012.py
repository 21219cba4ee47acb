"""The archives of image-net.org, whole, in pieces, and as they should not be."""

import builtins
import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from distributions import (
    DEVKIT_ID,
    TRAIN,
    VAL,
    WNIDS,
    class_tar,
    devkit_tree,
    extracted_once,
    folder_tree,
    ilsvrc2012,
    interrupted,
    train_tar,
    val_tree,
)
from image_trees import add_to_tar, jpeg, write_folder, write_tar

from rn50.data.pack import pack
from rn50.data.sources import published
from rn50.data.sources.base import BadImageError
from rn50.data.sources.container import LINK, MAX_FILE_BYTES, REPEATED, SPECIAL, UNSAFE
from rn50.data.sources.detect import open_source
from rn50.errors import DataError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KIT = "ILSVRC2012_devkit_t12.tar.gz"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archives(tmp_path):
    return ilsvrc2012(tmp_path / "source")


@pytest.fixture
def as_published(archives, monkeypatch):
    """The miniatures, taken for the published archives."""
    known = {
        path.name: published.Archive(md5(path), path.stat().st_size) for path in archives.iterdir()
    }
    monkeypatch.setattr(published, "ARCHIVES", known)
    return archives


def read_all(path: Path) -> list[str]:
    """Read everything, and return what was checked."""
    source = open_source(path)
    for image in source.images():
        image.read()
    return source.check()


def test_development_kit_numbers_are_not_class_indices(archives):
    source = open_source(archives)
    labels = {image.path: image.class_id for image in source.images() if image.split == "val"}
    assert labels == {f"{name}.JPEG": wnid for name, (wnid, _) in VAL.items()}
    ranks = {wnid: rank for rank, wnid in enumerate(WNIDS, 1)}
    assert all(ranks[wnid] != DEVKIT_ID[wnid] for wnid in WNIDS), "else this tests nothing"


def test_archives_as_published_are_told_so(as_published, tmp_path, monkeypatch):
    counts = published.ilsvrc2012()
    total = {"train": len(TRAIN), "val": len(VAL)}
    monkeypatch.setattr(
        published, "ilsvrc2012", lambda *_: replace(counts, total=total, per_class={})
    )
    manifest = pack(open_source(as_published), tmp_path / "packed")
    kit, train, val, *counts = manifest["checks"]
    assert kit == f"{KIT}: md5 {md5(as_published / KIT)}, as published"
    assert train == f"{TRAIN_TAR}: md5 {md5(as_published / TRAIN_TAR)}, as published"
    assert val == f"{VAL_TAR}: md5 {md5(as_published / VAL_TAR)}, as published"
    assert counts == [
        "train: 8 images, as ILSVRC2012 has",
        "val: 6 images, as ILSVRC2012 has",
    ]


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR])
def test_an_archive_with_other_bytes_than_published_is_refused_at_the_end(
    as_published, tmp_path, name
):
    path = as_published / name
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xd9", 2000) - 20
    content[at] ^= 1  # within a JPEG: all headers stay as they were
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is damaged: its MD5 is .*download it again"):
        pack(open_source(as_published), tmp_path / "packed", skip_bad=True)
    assert not (tmp_path / "packed").exists()


def test_other_archives_are_told_by_their_hash(archives):
    lines = read_all(archives)
    assert lines[1] == (
        f"{TRAIN_TAR}: md5 {md5(archives / TRAIN_TAR)}; another archive than the published one "
        "(147,897,477,120 bytes, md5 1d675b47d978889d74fa0da5fadfb00e)"
    )


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.85])
def test_a_download_that_was_cut_off_is_refused_before_any_work(as_published, name, part):
    whole = (as_published / name).read_bytes()
    (as_published / name).write_bytes(whole[: int(len(whole.rstrip(b"\0")) * part)])
    with pytest.raises(DataError, match=rf"{name} is cut off: it has .* of {len(whole):,} bytes"):
        open_source(as_published)


def test_a_cut_at_the_border_of_a_member_is_refused_too(archives):
    with tarfile.open(archives / TRAIN_TAR) as tar:
        second = tar.getmembers()[1].offset
    whole = (archives / TRAIN_TAR).read_bytes()
    (archives / TRAIN_TAR).write_bytes(whole[:second])
    with pytest.raises(DataError, match="cut off or damaged"):
        open_source(archives)


def test_the_tar_of_a_class_that_is_cut_off_within_a_whole_archive_is_named(archives):
    tree = train_tar() | {f"{WNIDS[1]}.tar": class_tar(WNIDS[1])[:1500]}
    write_tar(archives / TRAIN_TAR, tree)
    with pytest.raises(DataError, match=rf"{WNIDS[1]}\.tar is cut off or damaged"):
        read_all(archives)


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR, KIT])
def test_an_archive_that_is_missing_is_named(archives, name):
    (archives / name).unlink()
    missing = {TRAIN_TAR: "training images", VAL_TAR: "validation images", KIT: "development kit"}
    with pytest.raises(DataError, match=f"has no {missing[name]}.*download what is missing"):
        open_source(archives)


def test_the_archive_of_task_3_is_not_the_training_set(archives):
    (archives / TRAIN_TAR).rename(archives / "ILSVRC2012_img_train_t3.tar")
    with pytest.raises(DataError, match=r"no training images \(ILSVRC2012_img_train_t3\.tar is of"):
        open_source(archives)


def test_the_archive_of_task_3_under_another_name_lacks_classes(archives):
    write_tar(archives / TRAIN_TAR, {f"{WNIDS[0]}.tar": class_tar(WNIDS[0])})
    with pytest.raises(DataError, match=r"has 1 of the 3 classes of the development kit and lacks"):
        open_source(archives)


def test_a_training_set_of_other_classes_is_refused(archives):
    name = "n99999999"
    write_tar(archives / TRAIN_TAR, train_tar() | {f"{name}.tar": class_tar(name)})
    with pytest.raises(DataError, match=f"has class {name}, which the development kit"):
        open_source(archives)


def test_names_do_not_matter_and_the_rest_is_told(archives):
    (archives / TRAIN_TAR).rename(archives / "a.tar")
    (archives / VAL_TAR).rename(archives / "b.tar")
    (archives / KIT).rename(archives / "c.tgz")
    write_tar(archives / "ILSVRC2012_img_test.tar", {"ILSVRC2012_test_00000001.JPEG": jpeg(0)})
    write_tar(archives / "ILSVRC2012_img_train_t3.tar", {"n02085620.tar": b""})
    source = open_source(archives)
    assert source.count() == len(TRAIN) + len(VAL)
    assert source.skipped.paths == {
        "test images, which have no labels": ["ILSVRC2012_img_test.tar"],
        "the dogs of task 3, which are another data set": ["ILSVRC2012_img_train_t3.tar"],
    }


@pytest.mark.parametrize("mode", ["w", "w:bz2"])
def test_a_development_kit_that_a_browser_unpacked_is_taken(archives, mode):
    (archives / KIT).unlink()
    write_tar(archives / "ILSVRC2012_devkit_t12.tar", devkit_tree(), mode)
    assert open_source(archives).count() == len(TRAIN) + len(VAL)


def test_a_compressed_training_archive_is_refused(archives):
    write_tar(archives / TRAIN_TAR, train_tar(), "w:gz")
    with pytest.raises(DataError, match=r"is compressed.*decompress it"):
        open_source(archives)


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR, KIT])
def test_one_archive_alone_is_not_a_data_set(archives, name):
    with pytest.raises(DataError, match=r"is one part of ILSVRC2012; .*; give the folder: /"):
        open_source(archives / name)


def test_a_class_that_was_half_extracted_is_read_from_its_tar(tmp_path):
    source = open_source(interrupted(tmp_path / "source"))
    images = [image for image in source.images() if image.class_id == WNIDS[1]]
    assert [image.read() for image in images if image.split == "train"] == [
        data for name, data in TRAIN.items() if name.startswith(WNIDS[1])
    ]
    (told,) = source.skipped.paths.values()
    assert told == [f"train/{WNIDS[1]}/"]


def test_a_class_that_was_half_extracted_without_its_tar_shows_in_the_counts(tmp_path):
    tree = folder_tree() | devkit_tree()
    lost = next(name for name in tree if name.startswith("train/") and "10026" in name)
    del tree[lost]
    *_, train, val = read_all(write_folder(tmp_path, tree))
    assert train == (
        "train: 7 images; ILSVRC2012 has 8; 1 of 3 classes have another number, such as "
        f"{lost.split('/')[1]} with 2 instead of 3"
    )
    assert val == "val: 6 images, as ILSVRC2012 has"


def test_a_tar_of_a_class_that_was_cut_off_is_refused_before_any_work(tmp_path):
    path = extracted_once(tmp_path / "source") / f"train/{WNIDS[2]}.tar"
    path.write_bytes(path.read_bytes()[:1700])
    with pytest.raises(DataError, match=rf"{WNIDS[2]}\.tar is cut off: it has 1,700 bytes"):
        open_source(tmp_path / "source")


def test_tars_of_classes_without_validation_images_are_refused(tmp_path):
    write_folder(tmp_path, {f"train/{name}": data for name, data in train_tar().items()})
    with pytest.raises(DataError, match=r"has no validation images, only train/; needed are"):
        open_source(tmp_path)


def test_archives_that_were_moved_into_train_and_val_are_found(archives):
    for name, folder in ((TRAIN_TAR, "train"), (VAL_TAR, "val")):
        (archives / folder).mkdir()
        (archives / name).rename(archives / folder / name)
    assert open_source(archives).count() == len(TRAIN) + len(VAL)


def test_a_validation_image_without_a_label_is_named(archives):
    write_tar(archives / VAL_TAR, val_tree() | {"ILSVRC2012_val_00000007.JPEG": jpeg(0)})
    with pytest.raises(DataError, match=r"val_00000007\.JPEG has no label: .* knows .*00000006"):
        open_source(archives)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data/meta.mat": b"MATLAB"}, r"data/meta\.mat cannot be read"),
        ({"data/meta.mat": None}, r"lacks data/meta\.mat"),
        ({"data/ILSVRC2012_validation_ground_truth.txt": b"1\n9\n"}, "has '9', which no class"),
        ({"data/ILSVRC2012_validation_ground_truth.txt": b"tench"}, "has 'tench', which no"),
    ],
)
def test_a_damaged_development_kit_is_refused(archives, change, match):
    top = "ILSVRC2012_devkit_t12/"
    tree = devkit_tree(top) | {top + name: data for name, data in change.items()}
    write_tar(archives / KIT, {k: v for k, v in tree.items() if v is not None}, "w:gz")
    with pytest.raises(DataError, match=match):
        open_source(archives)


def test_without_scipy_the_error_names_the_extra(archives, monkeypatch):
    real = builtins.__import__

    def without_scipy(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(DataError, match=r"pip install 'rn50\[devkit\]'"):
        open_source(archives)


def test_a_hostile_tar_within_the_archive_reaches_nothing_outside(archives, tmp_path):
    wnid = WNIDS[0]
    inner = tmp_path / "inner.tar"
    with tarfile.open(inner, "w") as tar:
        add_to_tar(tar, f"./{wnid}_1.JPEG", jpeg(0))
        add_to_tar(tar, f"{wnid}_1.JPEG", jpeg(1))
        add_to_tar(tar, f"../{wnid}_2.JPEG", jpeg(0))
        add_to_tar(tar, f"/{wnid}_2.JPEG", jpeg(0))
        add_to_tar(tar, f"{WNIDS[1]}_2.JPEG", jpeg(0))
        add_to_tar(tar, "evil.sh", b"#!")
        for name, kind in (("3", tarfile.SYMTYPE), ("4", tarfile.LNKTYPE), ("5", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"{wnid}_{name}.JPEG")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    tree = train_tar() | {f"{wnid}.tar": inner.read_bytes(), "notes.txt": b"x"}
    write_tar(archives / TRAIN_TAR, tree)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(archives)
    images = list(source.images())
    assert len(images) == source.count() == len(TRAIN) - 2 + len(VAL)
    assert {reason: len(paths) for reason, paths in source.skipped.paths.items()} == {
        UNSAFE: 2,
        LINK: 2,
        SPECIAL: 1,
        REPEATED: 1,
        "in the tar of a class, and not named as an image of it": 2,
        "not the tar of a class": 1,
    }
    assert sorted(tmp_path.rglob("*")) == before
    assert list(source.images()) is not None
    assert len(source.skipped.paths[UNSAFE]) == 2, "a second pass does not tell it twice"


def test_a_member_too_large_for_an_image_is_never_held_in_memory(tmp_path):
    root = extracted_once(tmp_path / "source")
    member = tarfile.TarInfo(f"{WNIDS[0]}_1.JPEG")
    member.size = MAX_FILE_BYTES + 512
    with (root / f"train/{WNIDS[0]}.tar").open("wb") as tar:
        tar.write(member.tobuf())
        tar.truncate(512 + member.size + 1024)
    image = next(open_source(root).images())
    with pytest.raises(BadImageError, match="more than the 268,435,456"):
        image.read()
