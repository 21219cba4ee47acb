import io
import json
import subprocess
import sys
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

from rn50.cli import main
from rn50.data import account
from rn50.data.encoding import Encoding
from rn50.data.jpeg import to_jpeg, warnings_ignored
from rn50.data.pack import Options, key, pack
from rn50.data.shards import MANIFEST, PackedDataset
from rn50.data.sources.base import BadImageError, ClassName, Skipped, SourceImage
from rn50.data.sources.detect import open_source
from rn50.data.subset import subset
from rn50.data.verify import verify
from rn50.errors import DataError, UsageError


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
        *("format", "tool", "source", "chosen", "stored", "classes", "splits", "skipped"),
        *("converted", "duplicates", "checks", "notes", "fingerprint"),
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


@pytest.mark.parametrize("encoding", [None, Encoding(resize_short=32)])
def test_the_number_of_workers_changes_no_byte(tmp_path, encoding):
    tree = class_tree(per_class=30) | {
        f"train/ant/x{i}.png": jpeg(i, size=(60, 50)) for i in range(40)
    }
    source = open_source(write_folder(tmp_path / "source", tree))
    made = []
    for workers in (1, 3):
        dest = tmp_path / f"packed-{workers}"
        pack(source, dest, shard_bytes=50_000, options=Options(encoding=encoding, workers=workers))
        made.append(content(dest))
    assert made[0] == made[1]


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UsageError, match=r"--workers is -1; it must be at least 1, or 0"):
        Options(workers=-1)


def test_smaller_images_are_counted_and_their_cost_is_told(tmp_path):
    tree = class_tree() | {"train/ant/x.jpg": jpeg(0, size=(200, 100)), "val/bee/x.png": big_png()}
    options = Options(encoding=Encoding(resize_short=64))
    data = packed(tmp_path, tree, options=options)
    stored = data.manifest["stored"]
    assert stored == {
        "resize_short": 64,
        "quality": 90,
        "subsampling": "420",
        "resized": {"train": 7, "val": 0},
        "source_bytes": sum(map(len, tree.values())),
        "stored_bytes": sum(int(data.split(s).index["length"].sum()) for s in ("train", "val")),
    }
    assert stored["stored_bytes"] < stored["source_bytes"]
    assert data.split("train").heights.max() == 64
    assert data.split("val").heights.max() == 100
    assert data.manifest["converted"] == {"PNG": {"count": 1, "examples": ["val/bee/x.png"]}}
    told = "\n".join(account.lines(data.manifest))
    assert "made smaller: 7 of 7 training images, to a short side of at most 64 px" in told
    assert "what that costs: its PSNR was not measured; the nearest" in told
    assert "validation images keep their original bytes" in told
    verify(data.folder)


def big_png():
    return encoded(picture(5, "RGB", (200, 100)), "PNG")


def test_original_bytes_are_told_nothing_about(tmp_path):
    manifest = packed(tmp_path).manifest
    assert manifest["stored"]["resize_short"] is None
    assert manifest["stored"]["source_bytes"] == manifest["stored"]["stored_bytes"]
    assert account.lines(manifest) == []


@pytest.mark.parametrize("encoding", [None, Encoding(resize_short=16)])
def test_copies_are_found_within_and_across_the_splits(tmp_path, encoding):
    tree = class_tree(("ant", "bee", "cat")) | {
        "train/bee/copy.jpg": jpeg(0),  # of train/ant/ant_0
        "train/ant/copy.jpg": jpeg(1),  # of train/ant/ant_1
        "train/ant/copy2.jpg": jpeg(1),
        "val/cat/copy.jpg": jpeg(200),  # of train/cat/cat_0
    }
    data = packed(tmp_path, tree, options=Options(encoding=encoding))
    assert data.manifest["duplicates"] == {
        "train": {
            "copies": 3,
            "other_label": 1,
            "examples": [["ant/ant_0", "bee/copy"], ["ant/ant_1", "ant/copy", "ant/copy2"]],
        },
        "val": {"copies": 0, "other_label": 0, "examples": []},
        "val_in_train": {"copies": 1, "examples": [["cat/copy", "cat/cat_0"]]},
    }
    told = "\n".join(account.lines(data.manifest))
    assert (
        "3 training images are copies of others, 1 with different labels, such as ant/ant_0 ="
        in told
    )
    assert "1 validation images are training images too" in told


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pack(Drawn(), tmp_path / "link")
    assert (tmp_path / "real" / MANIFEST).is_file()
    assert names(tmp_path) == ["link", "real"]


SPACE = """
import resource, sys, tracemalloc
from pathlib import Path
from rn50.data.pack import pack
from rn50.data.sources.base import ClassName, Skipped, SourceImage

class Many:
    kind = "many"
    classes = tuple(ClassName(f"n{i:08}", "") for i in range(100))
    skipped = Skipped()
    def count(self):
        return COUNT
    def images(self):
        for i in range(COUNT):
            split = "train" if i % 20 else "val"
            id_ = self.classes[i // 20 % 100].id
            yield SourceImage(split, id_, f"{split}/{id_}/{id_}_{i}.JPEG", DATA.__bytes__)

COUNT, DATA = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
pack(Many(), Path(sys.argv[3]), shard_bytes=4 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_memory_hardly_grows_with_the_number_of_images(tmp_path):
    # The samples of a tenth of a million images would be 3 MB; their keys and rows are 12 MB.
    used = []
    for count in (2_000, 22_000):
        command = [sys.executable, "-c", SPACE, str(count), jpeg(0, "L", (8, 8)).hex()]
        done = subprocess.run([*command, tmp_path / str(count)], capture_output=True, check=True)
        used.append(int(done.stdout))
    per_image = (used[1] - used[0]) * 2**20 / 20_000
    assert per_image < 500, "500 bytes for each of 1.3 million images are 650 MB"


def test_the_command_hands_its_options_on_and_tells_the_account(tmp_path, capsys):
    tree = class_tree(("ant", "bee", "cat"), per_class=4) | {
        "train/ant/a.jpg": jpeg(7, size=(80, 60)),
        "train/bee/a.jpg": jpeg(8, "CMYK"),
    }
    source = write_folder(tmp_path / "source", tree)
    main(
        [
            *("prepare", str(source), str(tmp_path / "d"), "--resize-short", "32", "--quality=80"),
            *("--subsampling", "444", "--classes", "ant,bee", "--per-class", "2"),
            *("--workers", "1", "--skip-bad"),
        ]
    )
    wanted = Encoding(resize_short=32, quality=80, subsampling="444")
    manifest = pack(
        subset(open_source(source), "ant,bee", 2), tmp_path / "e", options=Options(encoding=wanted)
    )
    assert content(tmp_path / "d") == content(tmp_path / "e")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'd'}: 4 train, 2 val images of 2 classes"
    assert out[1:] == [f"  {line}" for line in account.lines(manifest)]
    assert any("converted (CMYK JPEG): 1, such as train/bee/a.jpg" in line for line in out)
