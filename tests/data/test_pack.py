import io
import json
import os
import socket
import tarfile

import numpy as np
import pytest
from image_trees import (
    class_tree,
    encoded,
    jpeg,
    names,
    packed,
    picture,
    tiny_tree,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from rn50.data.jpeg import to_jpeg, warnings_ignored
from rn50.data.pack import key, pack
from rn50.data.shards import MANIFEST, PackedDataset
from rn50.data.sources.base import BadImageError, ClassName, Skipped, SourceImage
from rn50.data.sources.detect import open_source
from rn50.data.verify import verify
from rn50.errors import DataError


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = write_folder(tmp_path / "source", class_tree(per_class=20))
    pack(open_source(source), tmp_path / "a")
    pack(open_source(source), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_container_changes_neither_fingerprint_nor_the_images_numbers(tmp_path):
    tree = class_tree(per_class=5)
    backwards = dict(reversed(tree.items()))
    sources = [
        write_folder(tmp_path / "folder", tree),
        write_zip(tmp_path / "a.zip", backwards),
        write_tar(tmp_path / "a.tar", backwards),
        write_tar(tmp_path / "a.tgz", {f"top/{path}": tree[path] for path in backwards}, "w:gz"),
    ]
    found = set()
    for i, source in enumerate(sources):
        manifest = pack(open_source(source), tmp_path / f"packed-{i}", shard_bytes=5000 * (i + 1))
        split = PackedDataset.open(tmp_path / f"packed-{i}").split("train")
        keys = tuple(split.key(i) for i in range(split.num_images))
        found.add((manifest["fingerprint"], keys, split.index["digest"].tobytes()))
    assert len(found) == 1


def test_the_manifest_lists_what_was_packed_without_a_date_or_a_place(tmp_path):
    data = packed(tmp_path)
    manifest = json.loads((data.folder / MANIFEST).read_bytes())
    assert manifest == data.manifest
    assert list(manifest) == [
        *("format", "tool", "source", "classes", "splits", "skipped", "converted", "fingerprint")
    ]
    assert manifest["source"] == {"kind": "class folders", "name": "source"}
    assert manifest["splits"]["train"]["images"] == 6
    assert str(tmp_path) not in json.dumps(manifest)


def test_tiny_imagenet_is_packed_with_names_and_labels_by_sorted_id(tmp_path):
    tree = tiny_tree()
    data = packed(tmp_path, tree)
    assert data.classes == (
        ClassName("n01", "goldfish, Carassius auratus"),
        ClassName("n02", "newt"),
        ClassName("n03", "n03"),
    )
    val = data.split("val")
    assert [val.key(i) for i in range(3)] == ["n01/val_1", "n02/val_2", "n03/val_0"]
    assert val.labels.tolist() == [0, 1, 2]
    assert bytes(val.jpeg(0)) == tree["tiny-imagenet-200/val/images/val_1.JPEG"]
    assert data.split("train").key(0) == "n01/n01_0"
    assert data.manifest["skipped"]["an image without a label"] == {
        "count": 1,
        "examples": ["tiny-imagenet-200/test/images/test_0.JPEG"],
    }
    verify(data.folder)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_a_jpeg_in_gray_or_colour_is_stored_untouched(mode, options):
    data = encoded(picture(0, mode), **options)
    made = to_jpeg(data)
    assert made.data is data
    assert (made.width, made.height, made.converted) == (24, 16, None)


@pytest.mark.parametrize(
    ("kind", "mode", "origin"),
    [
        ("PNG", "RGB", "PNG"),
        ("PNG", "RGBA", "PNG"),
        ("PNG", "L", "PNG"),
        ("WEBP", "RGB", "WEBP"),
        ("BMP", "RGB", "BMP"),
        ("GIF", "L", "GIF"),
        ("JPEG", "CMYK", "CMYK JPEG"),
    ],
)
def test_other_formats_become_colour_jpegs_that_look_the_same(kind, mode, origin):
    image = picture(0, mode, (64, 48))
    options = {"lossless": True} if kind == "WEBP" else {}
    made = to_jpeg(encoded(image, kind, **options))
    assert made.converted == origin
    again = to_jpeg(made.data)
    assert again.converted is None
    assert (again.width, again.height) == (64, 48)
    shown = np.asarray(Image.open(io.BytesIO(made.data))).astype(int)
    assert shown.shape == (48, 64, 3)
    assert np.abs(shown - np.asarray(image.convert("RGB"))).mean() < 4


def test_sixteen_bits_are_scaled_to_eight():
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    made = to_jpeg(encoded(ramp, "PNG"))
    shown = np.asarray(Image.open(io.BytesIO(made.data)).convert("L")).astype(int)
    assert np.abs(shown - (np.asarray(ramp) >> 8)).max() < 4


def test_conversions_are_counted_whatever_the_suffix_says(tmp_path):
    tree = class_tree()
    tree["train/ant/a.JPEG"] = encoded(picture(1), "PNG")
    tree["train/ant/b.jpg"] = jpeg(2, "CMYK")
    tree["train/ant/c.png"] = jpeg(3)
    data = packed(tmp_path, tree)
    assert data.manifest["converted"] == {
        "CMYK JPEG": {"count": 1, "examples": ["train/ant/b.jpg"]},
        "PNG": {"count": 1, "examples": ["train/ant/a.JPEG"]},
    }
    assert data.split("train").num_images == 9
    verify(data.folder)


def test_the_exif_orientation_does_not_turn_the_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    made = to_jpeg(encoded(picture(0), exif=exif))
    assert (made.width, made.height) == (24, 16)


def test_broken_exif_is_no_reason_to_warn(tmp_path):
    data = encoded(picture(0), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    packed(tmp_path, class_tree() | {"train/ant/x.jpg": data})


def test_too_many_pixels_are_refused_before_they_are_decoded():
    data = jpeg(0, "L", (10_001, 10_000))
    with (
        warnings_ignored(),
        pytest.raises(BadImageError, match=r"10001×10000 pixels, more than 100,000,000"),
    ):
        to_jpeg(data)


@pytest.mark.parametrize(
    ("class_id", "path", "expected"),
    [
        ("n01443537", "train/n01443537/images/n01443537_0.JPEG", "n01443537/n01443537_0"),
        ("n01", "val/images/val_0.JPEG", "n01/val_0"),
        ("cat", "top/train/cat/a/b.1.jpg", "cat/a/b_1"),
        ("St. Bernard", "train/St. Bernard/x y.jpg", "St__Bernard/x_y"),
        ("犬", "train/犬/e\u0301.png", "犬/é"),
        ("a", "train/a/..x.jpg", "a/__x"),
    ],
)
def test_keys_hold_the_class_and_no_dot(class_id, path, expected):
    assert key(class_id, path) == expected


def test_files_whose_keys_would_collide_are_all_kept(tmp_path):
    tree = class_tree() | {
        f"train/ant/{name}": jpeg(1) for name in ("a.b.jpg", "a_b.jpg", "a_b.png")
    }
    split = packed(tmp_path, tree).split("train")
    keys = [split.key(i) for i in range(split.num_images)]
    assert keys[:3] == ["ant/a_b", "ant/a_b-2", "ant/a_b-3"]


def test_progress_is_reported_up_to_the_last_image(tmp_path):
    reports = []
    packed(tmp_path, class_tree(per_class=20), report=lambda *counts: reports.append(counts))
    assert reports == [(16, 42), (32, 42), (42, 42)]


class Drawn:
    """A source with neither folder nor file."""

    kind = "drawn"
    classes = (ClassName("a", "A"),)
    skipped = Skipped()

    def __init__(self, read=lambda: jpeg(0)):
        self.read = read

    def count(self):
        return 2

    def images(self):
        yield SourceImage("train", "a", "train/a/0.jpg", self.read)
        yield SourceImage("val", "a", "val/a/0.jpg", self.read)


def test_a_source_that_lies_nowhere_is_named_by_its_kind(tmp_path):
    assert pack(Drawn(), tmp_path / "d")["source"] == {"kind": "drawn", "name": "drawn"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_packing_is_interrupted(tmp_path, error):
    def fail():
        raise error("stop")

    with pytest.raises(error):
        pack(Drawn(fail), tmp_path / "d")
    assert names(tmp_path) == []


def test_an_empty_destination_is_used_and_missing_parents_are_made(tmp_path):
    (tmp_path / "d").mkdir()
    pack(Drawn(), tmp_path / "d")
    pack(Drawn(), tmp_path / "x" / "y" / "d")
    assert content(tmp_path / "d") == content(tmp_path / "x" / "y" / "d")


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1  # above the highest process id
    stale = tmp_path / f".tmp-{host}-{dead}-d"
    kept = [
        tmp_path / f".tmp-{host}-{os.getppid()}-d",
        tmp_path / f".tmp-{host}-{dead}-other",
        tmp_path / f".tmp-elsewhere-{dead}-d",
    ]
    for folder in (stale, *kept):
        (folder / "inside").mkdir(parents=True)
    pack(Drawn(), tmp_path / "d")
    assert names(tmp_path) == sorted(["d", *(folder.name for folder in kept)])


def test_the_shards_hold_the_images_in_the_order_of_the_source(tmp_path):
    tree = dict(reversed(class_tree().items()))
    pack(open_source(write_tar(tmp_path / "a.tar", tree)), tmp_path / "d")
    with tarfile.open(tmp_path / "d" / "train-000000.tar") as tar:
        images = [name for name in tar.getnames() if name.endswith(".jpg")]
    expected = [path for path in tree if path.startswith("train/")]
    assert images == [path.removeprefix("train/").replace("JPEG", "jpg") for path in expected]


def test_a_source_that_reads_no_file_raises_what_it_raises(tmp_path):
    def fail():
        raise DataError("the source is gone")

    with pytest.raises(DataError, match="the source is gone"):
        pack(Drawn(fail), tmp_path / "d")
