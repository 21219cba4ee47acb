"""WebDataset tars that are trained on where they lie."""

import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from distributions import TRAIN, VAL, WNIDS, folder_tree, rows, shard_tree, webdataset
from image_trees import encoded, jpeg, names, picture, write_folder, write_tar

from rn50.cli import main
from rn50.config import Images
from rn50.data import cache
from rn50.data.in_place import UNUSABLE, open_tars
from rn50.data.loader import Loader
from rn50.data.pack import Options, pack
from rn50.data.plan import TrainPlan, evaluation_requests
from rn50.data.remote import local_folder
from rn50.data.shards import MANIFEST, PackedDataset
from rn50.data.sources.detect import open_source
from rn50.data.verify import verify
from rn50.errors import DataError, UsageError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")

IN_PLACE = Options(in_place=True, workers=2)
FIRST = "imagenet1k-train-0000.tar"


def indexed(source, dest, **options) -> PackedDataset:
    pack(open_tars(str(source)), dest, options=IN_PLACE, **options)
    return PackedDataset.open(dest)


@pytest.fixture
def source(tmp_path):
    return webdataset(tmp_path / "source")


@pytest.fixture
def data(source, tmp_path) -> PackedDataset:
    return indexed(source, tmp_path / "data")


@pytest.fixture
def copied(source, tmp_path) -> PackedDataset:
    """The same source, prepared as any other."""
    pack(open_source(source), tmp_path / "copied")
    return PackedDataset.open(tmp_path / "copied")


def content(folder):
    """What the files are, or where they lead."""
    return {
        path.name: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.iterdir()
    }


def batches(data: PackedDataset):
    images = Images(batch_size=4, train_px=32, test_px=32, test_resize_px=36)
    train, val = data.split("train"), data.split("val")
    plan = TrainPlan(images=images, seed=0, widths=train.widths, heights=train.heights)
    wanted = {"train": [plan.request(step) for step in range(6)]}
    wanted["val"] = list(evaluation_requests(images, val.num_images, 4))
    with Loader(torch.device("cpu"), workers=2, prefetch=2) as loader:
        for split in (train, val):
            for batch in loader.read(split, wanted[split.name]):
                yield batch.images.clone(), batch.labels.clone(), batch.flips.clone()


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20
    path.write_bytes(content)


def test_no_image_is_copied_and_nothing_is_written_to_the_source(source, tmp_path):
    before = content(source)
    data = indexed(source, tmp_path / "data")
    assert content(source) == before
    made = content(data.folder)
    assert {name: path for name, path in made.items() if name.endswith(".tar")} == {
        "train-000000.tar": source / FIRST,
        "train-000001.tar": source / "imagenet1k-train-0001.tar",
        "val-000000.tar": source / "imagenet1k-validation-00.tar",
    }
    assert made.keys() - before.keys() == {
        *("train-000000.tar", "train-000001.tar", "val-000000.tar", MANIFEST),
        *("train.index.npy", "train.keys.txt", "val.index.npy", "val.keys.txt"),
    }
    assert str(tmp_path) not in made[MANIFEST].decode()


def test_each_image_has_the_bytes_number_name_and_label_that_packing_gives_it(data, copied):
    for name in ("train", "val"):
        one, other = data.split(name), copied.split(name)
        assert one.num_images == other.num_images == len({"train": TRAIN, "val": VAL}[name])
        for i in range(one.num_images):
            assert bytes(one.jpeg(i)) == bytes(other.jpeg(i))
            assert one.key(i) == other.key(i)
        for column in ("label", "width", "height", "digest", "length"):
            assert one.index[column].tolist() == other.index[column].tolist()


def test_batches_are_those_of_the_packed_data_bit_for_bit(data, copied):
    one, other = list(batches(data)), list(batches(copied))
    assert len(one) == len(other) > 6
    for batch, twin in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, twin, strict=True))


def test_a_run_can_go_on_with_either_since_the_fingerprints_are_equal(data, copied):
    assert data.fingerprint == copied.fingerprint


def test_the_manifests_differ_in_the_shards_alone(data, copied):
    one, other = data.manifest, copied.manifest
    assert one.pop("foreign_tars") is True
    for manifest in (one, other):
        for split in manifest["splits"].values():
            del split["shards"], split["index"]
    assert one == other


def test_images_whose_names_would_collide_are_numbered_as_packing_does(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(root / name, shard_tree(rows("train")))
    data = indexed(root, tmp_path / "data")
    pack(open_source(root), tmp_path / "copied")
    keys = [
        (folder / "train.keys.txt").read_bytes() for folder in (data.folder, tmp_path / "copied")
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0].split())) == 2 * len(TRAIN)


def test_the_same_tars_give_the_same_bytes_whatever_the_number_of_threads(source, tmp_path):
    for workers in (1, 3):
        options = Options(in_place=True, workers=workers)
        pack(open_tars(str(source)), tmp_path / f"data-{workers}", options=options)
    assert content(tmp_path / "data-1") == content(tmp_path / "data-3")


def test_tars_of_the_same_name_in_two_folders_are_told_apart(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / "source" / split, {"README": b""})
        write_tar(tmp_path / "source" / split / "0000.tar", shard_tree(rows(split)))
    data = indexed(tmp_path / "source", tmp_path / "data")
    verify(data.folder)
    assert data.split("train").num_images == len(TRAIN)
    assert data.split("val").num_images == len(VAL)


def test_the_source_may_be_named_by_a_relative_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verify(indexed("source", tmp_path / "deep" / "data").folder)


def test_the_index_may_be_moved(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    verify(data.folder.rename(tmp_path / "elsewhere" / "data"))


def test_tars_that_were_moved_are_missed_and_named(data, source, tmp_path):
    source.rename(tmp_path / "moved")
    for read in (lambda: data.split("train"), lambda: verify(data.folder)):
        with pytest.raises(
            DataError, match=rf"refers to {source / FIRST}, which is missing; .*put"
        ):
            read()


def test_a_tar_of_another_size_is_refused(data, source):
    with (source / FIRST).open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=rf"\({source / FIRST}\) has .* bytes; it must have"):
        data.split("train")


def test_what_is_whole_is_verified_and_counted(data):
    found = verify(data.folder, workers=2)
    assert found.images == {"train": len(TRAIN), "val": len(VAL)}
    assert found.fingerprint == data.fingerprint


def test_a_flipped_byte_of_any_image_is_found_and_the_image_named(data, source):
    split = data.split("train")
    for i in range(split.num_images):
        row = split.index[i]
        path = source / f"imagenet1k-train-{row['shard']:04}.tar"
        whole = path.read_bytes()
        flip(path, int(row["offset"] + row["length"] // 2))
        with pytest.raises(DataError) as error:
            verify(data.folder, workers=1)
        assert f"{split.describe(i)}: its JPEG was altered" in str(error.value)
        assert f"({path}): its hash is not that" in str(error.value)
        assert str(error.value).count("its JPEG") == 1
        path.write_bytes(whole)
    verify(data.folder)


def test_a_flipped_byte_beside_the_images_is_found_and_the_tar_named(data, source):
    flip(source / FIRST, 0)
    with pytest.raises(DataError, match=rf"1 places(.|\n)*\({source / FIRST}\): its hash"):
        verify(data.folder)


@pytest.mark.parametrize(
    ("image", "kind"), [(encoded(picture(1), "PNG"), "PNG"), (jpeg(1, "CMYK"), "CMYK JPEG")]
)
def test_an_image_that_would_need_conversion_is_refused_or_left_out(tmp_path, image, kind):
    root = webdataset(tmp_path / "source", info=False)
    tree = shard_tree([*rows("train"), (f"{WNIDS[0]}/odd", WNIDS[0], image)])
    write_tar(root / "imagenet1k-train-0002.tar", tree)
    place = f"imagenet1k-train-0002.tar/{WNIDS[0]}/odd.jpg"
    with pytest.raises(DataError, match=rf"{place} is a {kind}; .* prepare without --in-place"):
        indexed(root, tmp_path / "data")
    assert names(tmp_path) == ["source"]
    data = indexed(root, tmp_path / "data", skip_bad=True)
    assert data.manifest["skipped"][UNUSABLE] == {"count": 1, "examples": [f"{place} ({kind})"]}
    assert data.split("train").num_images == 2 * len(TRAIN)
    verify(data.folder)


def test_a_jpeg_that_is_called_png_is_used(tmp_path):
    root = webdataset(tmp_path / "source", info=False)
    tree = {f"{WNIDS[0]}/odd.png": jpeg(1), f"{WNIDS[0]}/odd.cls": b"0"}
    write_tar(root / "imagenet1k-train-0002.tar", tree)
    assert indexed(root, tmp_path / "data").split("train").num_images == len(TRAIN) + 1


def test_a_broken_image_is_refused_or_left_out(tmp_path):
    root = webdataset(tmp_path / "source", info=False)
    broken = [(f"{WNIDS[0]}/broken", WNIDS[0], jpeg(1)[:-60])]
    write_tar(root / "imagenet1k-train-0002.tar", shard_tree(broken))
    with pytest.raises(DataError, match=r"broken\.jpg cannot be decoded: .* --skip-bad"):
        indexed(root, tmp_path / "data")
    data = indexed(root, tmp_path / "data", skip_bad=True)
    assert data.manifest["skipped"]["a bad image"]["count"] == 1
    # A tar of which nothing is used is not needed.
    assert not (data.folder / "train-000002.tar").exists()


def folder_of_compressed(root):
    for path in list(webdataset(root, info=False).iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return root


@pytest.mark.parametrize(
    "make",
    [
        folder_of_compressed,
        lambda root: write_folder(root, folder_tree()),
        lambda root: webdataset(root) / FIRST,
        lambda root: "demo",
    ],
    ids=["compressed", "class folders", "one tar", "demo"],
)
def test_any_other_source_is_refused_and_told_what_is_taken(tmp_path, make):
    with pytest.raises(UsageError, match="takes one folder of WebDataset tars that are not comp"):
        indexed(make(tmp_path / "source"), tmp_path / "data")


def test_a_source_that_does_not_exist_is_said_not_to(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_tars(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("options", [{"val_source": "x"}, {"layout": "folders"}])
def test_options_for_other_sources_are_refused(source, options):
    with pytest.raises(UsageError, match="takes one folder of WebDataset tars"):
        open_tars(str(source), **options)


@pytest.mark.parametrize("opened", [open_source, lambda root: open_tars(str(root))])
def test_tars_that_are_compressed_without_saying_so_are_named(tmp_path, opened):
    root = webdataset(tmp_path / "source")
    (root / FIRST).write_bytes(gzip.compress((root / FIRST).read_bytes()))
    with pytest.raises(DataError, match=rf"{FIRST} is compressed; .* decompress them"):
        opened(root)


def test_a_source_without_places_is_refused_by_the_packer_too(tmp_path):
    root = write_folder(tmp_path / "source", folder_tree())
    with pytest.raises(UsageError, match="takes one folder of WebDataset tars"):
        pack(open_source(root), tmp_path / "data", options=IN_PLACE)
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_and_touches_no_tar(source, tmp_path, error):
    before = content(source)

    def stop(done, total):
        raise error

    with pytest.raises(error):
        indexed(source, tmp_path / "data", report=stop)
    assert names(tmp_path) == ["source"]
    assert content(source) == before


def test_what_a_killed_run_leaves_harms_neither_the_tars_nor_the_next_run(source, tmp_path):
    before = content(source)
    code = """
import os, sys
from pathlib import Path
from rn50.data.in_place import open_tars
from rn50.data.pack import Options, pack
stop = lambda done, total: os._exit(9)
pack(open_tars(sys.argv[1]), Path(sys.argv[2]), options=Options(in_place=True), report=stop)
"""
    done = subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "data")])
    assert done.returncode == 9
    left = tmp_path / ".data.partial"
    assert (left / "data" / "train-000000.tar").is_symlink()
    shutil.copytree(left, tmp_path / ".copied.partial", symlinks=True)
    # More than the next run needs.
    (left / "data" / "train-000007.tar").symlink_to(source / FIRST)
    verify(indexed(source, tmp_path / "data").folder)
    pack(open_source(source), tmp_path / "copied")
    verify(tmp_path / "copied")
    assert not (tmp_path / "copied" / "train-000000.tar").is_symlink()
    assert content(source) == before
    assert names(tmp_path) == ["copied", "data", "source"]
    assert len(names(tmp_path / "data")) == 8


def test_a_copy_that_follows_the_links_is_read_from_a_url(data, copied, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    shutil.copytree(data.folder, tmp_path / "bucket", symlinks=False)
    folder = local_folder(f"file://{tmp_path / 'bucket'}")
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert verify(folder).fingerprint == copied.fingerprint
    assert bytes(PackedDataset.open(folder).split("val").jpeg(0)) == bytes(
        copied.split("val").jpeg(0)
    )


def test_the_command_indexes_and_says_that_the_tars_must_stay(source, tmp_path, capsys):
    main(["prepare", str(source), str(tmp_path / "data"), "--in-place", "--per-class", "1"])
    out = capsys.readouterr().out
    assert "3 train, 3 val images of 3 classes" in out
    assert "used in place: the images of 3 tars, which must stay where they are" in out
    labels = PackedDataset.open(tmp_path / "data").split("train").labels
    assert np.array_equal(labels, [0, 1, 2])
    main(["verify", str(tmp_path / "data")])


def test_in_place_and_smaller_exclude_each_other(source, tmp_path, capsys):
    words = ["prepare", str(source), str(tmp_path / "data"), "--in-place", "--resize-short", "64"]
    with pytest.raises(SystemExit):
        main(words)
    assert "--resize-short stores others" in capsys.readouterr().err
