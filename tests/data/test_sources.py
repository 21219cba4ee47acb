import io
import itertools
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from image_trees import (
    add_to_tar,
    class_tree,
    jpeg,
    tiny_tree,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from rn50.data.sources.archives import open_container
from rn50.data.sources.base import BadImageError, Source, Stored
from rn50.data.sources.container import (
    LINK,
    MAX_FILE_BYTES,
    REPEATED,
    SPECIAL,
    SYSTEM,
    UNSAFE,
    is_system,
    safe_path,
)
from rn50.data.sources.detect import open_source
from rn50.errors import DataError, UsageError

SHARED = Path(__file__).parents[2] / "../shared/data"

WRITERS = {
    "folder": write_folder,
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, tree: write_tar(path, tree, "w:gz"),
    "tar.bz2": lambda path, tree: write_tar(path, tree, "w:bz2"),
    "tar.xz": lambda path, tree: write_tar(path, tree, "w:xz"),
}


def contents(source: Source) -> dict[str, tuple[str, str, bytes]]:
    """Read everything after the last image was yielded, as threads might."""
    images = list(source.images())
    assert len(images) == source.count()
    return {image.path: (image.split, image.class_id, image.read()) for image in images}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


@pytest.mark.parametrize("top", ["", "imagenette2-320/"])
def test_class_folders_are_read_from_every_container(tmp_path, write, top):
    tree = class_tree(top=top)
    source = open_source(write(tmp_path / "data", tree))
    assert source.kind == "class folders"
    assert [(class_.id, class_.name) for class_ in source.classes] == [("ant",) * 2, ("bee",) * 2]
    assert isinstance(source, Stored)
    assert source.origin == tmp_path / "data"
    expected = {}
    for path, data in tree.items():
        split, class_id, _ = path.removeprefix(top).split("/")
        expected[path] = (split, class_id, data)
    assert contents(source) == expected
    assert source.skipped.paths == {}


@pytest.mark.parametrize("top", ["", "tiny-imagenet-200/"])
def test_tiny_imagenet_is_read_from_every_container(tmp_path, write, top):
    tree = tiny_tree(top)
    source = open_source(write(tmp_path / "data", tree))
    assert source.kind == "tiny-imagenet-200"
    assert [class_.id for class_ in source.classes] == ["n01", "n02", "n03"]
    found = contents(source)
    assert len(found) == 6
    for label, id_ in enumerate(["n03", "n01", "n02"]):
        train, val = f"{top}train/{id_}/images/{id_}_0.JPEG", f"{top}val/images/val_{label}.JPEG"
        assert found[train] == ("train", id_, tree[train])
        assert found[val] == ("val", id_, tree[val])


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Val"])
def test_the_validation_folder_may_have_any_usual_name(tmp_path, name):
    tree = {path.replace("val/", f"{name}/"): data for path, data in class_tree().items()}
    source = open_source(write_folder(tmp_path, tree))
    assert sum(image.split == "val" for image in source.images()) == 2


def test_val_is_taken_before_test_and_the_rest_is_recorded(tmp_path):
    tree = class_tree() | {"test/ant/t.jpg": jpeg(1), "README.md": b"text", "train/loose.jpg": b""}
    source = open_source(write_folder(tmp_path, tree))
    assert source.count() == 8
    assert source.skipped.paths == {
        "in neither train nor val": ["README.md", "test/ant/t.jpg"],
        "in no class folder": ["train/loose.jpg"],
    }


def test_images_lie_at_any_depth_below_their_class(tmp_path):
    tree = class_tree() | {"train/ant/images/deep/x.jpg": jpeg(1)}
    source = open_source(write_folder(tmp_path, tree))
    assert contents(source)["train/ant/images/deep/x.jpg"] == ("train", "ant", jpeg(1))


def test_a_class_without_validation_images_is_allowed(tmp_path):
    tree = {path: data for path, data in class_tree().items() if not path.startswith("val/bee")}
    (tmp_path / "val" / "bee").mkdir(parents=True)
    source = open_source(write_folder(tmp_path, tree))
    assert len(source.classes) == 2
    assert source.count() == 7


@pytest.mark.parametrize(("train_top", "val_top"), [("", ""), ("train/", "val/"), ("x/train/", "")])
def test_validation_images_may_lie_in_another_container(tmp_path, train_top, val_top):
    train = {
        path.replace("train/", train_top): data
        for path, data in class_tree().items()
        if path.startswith("train/")
    }
    val = {
        path.replace("val/", val_top): data
        for path, data in class_tree().items()
        if path.startswith("val/")
    }
    source = open_source(
        write_tar(tmp_path / "train.tar", train), val_source=write_folder(tmp_path / "v", val)
    )
    assert [image.split for image in source.images()] == ["train"] * 6 + ["val"] * 2


def test_files_of_the_system_are_left_out_and_recorded(tmp_path, write):
    hidden = ["train/ant/._a.jpg", "train/.DS_Store", "train/bee/Thumbs.db", "__MACOSX/x/y.jpg"]
    hidden.append("train/.cache/x.jpg")
    source = open_source(write(tmp_path / "data", class_tree() | dict.fromkeys(hidden, b"x")))
    assert source.count() == 8
    recorded = source.skipped.paths[SYSTEM]
    # A folder is not entered where it can be left alone.
    assert set(recorded) <= set(hidden)
    assert {"train/ant/._a.jpg", "train/.DS_Store", "train/bee/Thumbs.db"} <= set(recorded)


def test_the_order_is_that_of_the_names_in_a_folder_and_of_the_archive_in_an_archive(tmp_path):
    tree = dict(reversed(class_tree().items()))
    for path, expected in (
        (write_folder(tmp_path / "f", tree), sorted(tree)),
        (write_tar(tmp_path / "t", tree), list(tree)),
        (write_zip(tmp_path / "z", tree), list(tree)),
    ):
        assert [image.path for image in open_source(path).images()] == expected


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hostile_tar_reaches_nothing_outside(tmp_path, mode):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(0))
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        for name, data in class_tree().items():
            add_to_tar(archive, f"./{name}", data)
        for name in (
            "train/ant/../../../evil.jpg",
            "/abs/train/ant/evil.jpg",
            "../train/ant/x.jpg",
        ):
            add_to_tar(archive, name, jpeg(1))
        for name, kind in (
            ("train/ant/symbolic.jpg", tarfile.SYMTYPE),
            ("train/ant/hard.jpg", tarfile.LNKTYPE),
            ("train/ant/device.jpg", tarfile.CHRTYPE),
            ("train/ant/pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        add_to_tar(archive, "train/ant/ant_0.JPEG", b"the second of this name")
    before = sorted(tmp_path.rglob("*"))
    source = open_source(tmp_path / "a.tar")
    assert {path: read for path, (_, _, read) in contents(source).items()} == class_tree()
    assert {reason: len(paths) for reason, paths in source.skipped.paths.items()} == {
        UNSAFE: 3,
        LINK: 2,
        SPECIAL: 2,
        REPEATED: 1,
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hostile_zip_reaches_nothing_outside(tmp_path):
    path = write_zip(tmp_path / "a.zip", class_tree())
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../evil.jpg", "/abs.jpg", "C:/x.jpg", "train\\ant\\..\\..\\..\\x.jpg"):
            archive.writestr(name, jpeg(1))
        for name, mode in (("train/ant/link.jpg", 0o120777), ("train/ant/pipe.jpg", 0o010644)):
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = mode << 16
            archive.writestr(entry, "/etc/passwd")
    source = open_source(path)
    assert {path: read for path, (_, _, read) in contents(source).items()} == class_tree()
    assert {reason: len(paths) for reason, paths in source.skipped.paths.items()} == {
        UNSAFE: 4,
        LINK: 1,
        SPECIAL: 1,
    }


def test_a_zip_made_with_backslashes_is_read(tmp_path):
    tree = {path.replace("/", "\\"): data for path, data in class_tree().items()}
    assert contents(open_source(write_zip(tmp_path / "a.zip", tree))).keys() == class_tree().keys()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_and_pipes_in_a_folder_are_not_followed(tmp_path):
    root = write_folder(tmp_path / "data", class_tree())
    (tmp_path / "outside").mkdir()
    (root / "train/ant/link.jpg").symlink_to(root / "train/ant/ant_0.JPEG")
    (root / "train/cat").symlink_to(tmp_path / "outside")
    (root / "train/loop").symlink_to(root)
    os.mkfifo(root / "train/ant/pipe.jpg")
    source = open_source(root)
    assert source.count() == 8
    assert source.skipped.paths[LINK] == ["train/ant/link.jpg", "train/cat", "train/loop"]
    assert source.skipped.paths[SPECIAL] == ["train/ant/pipe.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_names_that_are_not_utf8_are_read_and_written_as_escapes(tmp_path):
    folder = write_folder(tmp_path / "data", class_tree())
    (folder / os.fsdecode(b"train/ant/caf\xe9.jpg")).write_bytes(jpeg(5))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "data")
    for path, top in ((folder, ""), (tmp_path / "a.tar", "data/")):
        found = contents(open_source(path))
        assert found[f"{top}train/ant/caf\\udce9.jpg"] == ("train", "ant", jpeg(5))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_member_too_large_for_an_image_is_refused_unread(tmp_path, mode):
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode, **({"compresslevel": 1} if mode == "w:gz" else {})) as archive:
        member = tarfile.TarInfo("x.jpg")
        member.size = MAX_FILE_BYTES + 1
        with (tmp_path / "zeros").open("wb") as zeros:
            zeros.truncate(member.size)
        with (tmp_path / "zeros").open("rb") as zeros:
            archive.addfile(member, zeros)
    (found,) = open_container(path).members({"x.jpg"})
    with pytest.raises(BadImageError, match=r"268,435,457 bytes, more than the 268,435,456"):
        found.read()


def test_a_damaged_member_of_a_zip_is_a_bad_image(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.jpg", jpeg(0))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    (found,) = open_container(path).members({"x.jpg"})
    with pytest.raises(BadImageError, match="zip file is damaged there: Bad CRC"):
        found.read()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "a/b"),
        ("./a//b/", "a/b"),
        ("a/./b", "a/b"),
        ("..", None),
        ("a/../b", None),
        ("/a", None),
        ("C:\\a", None),
        ("D:/a", None),
        ("a..b/c", "a..b/c"),
    ],
)
def test_names_are_brought_to_normal_form_or_refused(name, expected):
    assert safe_path(name) == expected


def test_a_dot_at_the_beginning_of_any_part_hides_a_file():
    assert is_system("a/.b/c")
    assert is_system("a/THUMBS.DB")
    assert not is_system("a.b/c.d")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_cut_off_anywhere_is_refused(tmp_path, mode):
    whole = write_tar(tmp_path / "whole", class_tree(), mode).read_bytes()
    path = tmp_path / "cut"
    # The zeros at the end of a plain tar file but for one block are filler.
    ends = range(1, len(whole.rstrip(b"\0")) if mode == "w" else len(whole), len(whole) // 23)
    for end in itertools.chain(ends, [512 * 3] if mode == "w" else []):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut off or damaged|not an archive"):
            open_source(path)


def test_a_damaged_header_amid_a_tar_does_not_end_it_in_silence(tmp_path):
    path = write_tar(tmp_path / "a.tar", class_tree())
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[3].offset
    content = bytearray(path.read_bytes())
    content[offset + 150] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut off or damaged"):
        open_source(path)


def test_a_cut_off_zip_is_refused(tmp_path):
    whole = write_zip(tmp_path / "whole", class_tree()).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="cut off or damaged"):
        open_source(tmp_path / "cut")


def test_a_tar_that_shrinks_between_listing_and_reading_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", class_tree())
    images = list(open_source(path).images())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut off or damaged"):
        images[-1].read()


def test_a_compressed_tar_that_loses_a_file_between_listing_and_reading_is_refused(tmp_path):
    tree = class_tree()
    source = open_source(write_tar(tmp_path / "a.tgz", tree, "w:gz"))
    del tree["train/bee/bee_2.JPEG"]
    write_tar(tmp_path / "a.tgz", tree, "w:gz")
    with pytest.raises(DataError, match=r"train/bee/bee_2\.JPEG is no longer in it"):
        list(source.images())


def test_a_file_that_vanishes_from_a_folder_is_named(tmp_path):
    source = open_source(write_folder(tmp_path, class_tree()))
    (tmp_path / "train/ant/ant_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"cannot read .*ant_1\.JPEG: No such file"):
        contents(source)


def test_demo_is_a_source(tmp_path):
    demo = pytest.importorskip("rn50.data.demo")
    assert isinstance(open_source("demo"), demo.DemoSource)
    with pytest.raises(UsageError, match="demo has its own validation images"):
        open_source("demo", val_source=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared images are not next to the checkout")
def test_the_beginning_of_the_real_tiny_imagenet_is_read_as_it_is(tmp_path):
    tree = tiny_tree()
    real = {}
    with tarfile.open(SHARED / "tiny-imagenet-200.tar.gz") as archive:
        for member in itertools.islice(archive, 400):
            if member.isfile():
                real[member.name] = archive.extractfile(member).read()
    assert len(real["tiny-imagenet-200/wnids.txt"].split()) == 200
    ids = sorted({name.split("/")[2] for name in real if name.endswith(".JPEG")})
    # Only the lists are cut down, to what the first members hold.
    real["tiny-imagenet-200/wnids.txt"] = "\n".join(ids).encode()
    real["tiny-imagenet-200/val/images/val_0.JPEG"] = jpeg(0)
    real["tiny-imagenet-200/val/val_annotations.txt"] = f"val_0.JPEG\t{ids[0]}\t0\t0\t1\t1".encode()
    source = open_source(write_tar(tmp_path / "a.tar", real))
    assert source.kind == open_source(write_tar(tmp_path / "b.tar", tree)).kind
    assert [class_.id for class_ in source.classes] == ids
    for image in source.images():
        assert Image.open(io.BytesIO(image.read())).format == "JPEG"
