"""Eight forms of the same images give the same data set."""

import os
import re

import pytest
from distributions import (
    TRAIN,
    VAL,
    WNIDS,
    devkit_tree,
    extracted_once,
    flat_tree,
    folder_tree,
    ilsvrc2012,
    interrupted,
    kaggle_tree,
    mini_form,
    parquet,
    ten_classes,
    tiny_form,
    webdataset,
)
from image_trees import Tree, write_folder, write_tar, write_zip

from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources import published
from rn50.data.sources.base import Checked, Expected, Noted
from rn50.data.sources.detect import open_source
from rn50.data.sources.wnids import imagenet_wnids
from rn50.data.verify import verify
from rn50.errors import DataError, UsageError

CSV = "file,label\n" + "".join(f"{name}.JPEG,{wnid}\n" for name, (wnid, _) in VAL.items())
TABS = "".join(f"{name}.JPEG\t{wnid}\t0\t0\t9\t9\n" for name, (wnid, _) in VAL.items())
SPACES = "".join(f"{wnid} {name}\n" for name, (wnid, _) in VAL.items())


def without(tree: Tree, *starts: str) -> Tree:
    return {path: data for path, data in tree.items() if not path.startswith(starts)}


FORMS = {
    "ILSVRC2012": {
        "archives": ilsvrc2012,
        "extracted once": extracted_once,
        "interrupted": interrupted,
        "extracted, val flat": lambda root: write_folder(
            root, without(folder_tree(), "val/") | flat_tree("x.md", "") | devkit_tree()
        ),
    },
    "Kaggle CLS-LOC": {
        "folder": lambda root: write_folder(root, kaggle_tree()),
        "one level more": lambda root: write_folder(root, kaggle_tree("imagenet/")),
        "the folder ILSVRC alone": lambda root: write_folder(root / "x", kaggle_tree()) / "ILSVRC",
        "zip": lambda root: write_zip(root, kaggle_tree()),
        "tar.gz": lambda root: write_tar(root, kaggle_tree(), "w:gz"),
        "XML": lambda root: write_folder(root, without(kaggle_tree(), "LOC_val")),
        "zip, XML": lambda root: write_zip(root, without(kaggle_tree(), "LOC_val")),
        "no list": lambda root: write_folder(root, without(kaggle_tree(), "ILSVRC/ImageSets")),
    },
    "class folders": {
        "folder": lambda root: write_folder(root, folder_tree()),
        "three levels more": lambda root: write_folder(root, folder_tree("a/b/c/")),
        "Train and VALIDATION": lambda root: write_folder(
            root,
            {
                re.sub("^train/", "Train/", path): data
                for path, data in folder_tree(val="VALIDATION").items()
            },
        ),
        "flat, tabs": lambda root: write_folder(root, flat_tree("val/val_annotations.txt", TABS)),
        "flat, csv above": lambda root: write_folder(root, flat_tree("labels.csv", CSV, "x/")),
        "flat, class first": lambda root: write_zip(root, flat_tree("val/list.txt", SPACES)),
        "flat, in images": lambda root: write_folder(
            root, flat_tree("val/val_annotations.txt", TABS, val="val/images/")
        ),
        "flat, tar": lambda root: write_tar(root, flat_tree("val/list.txt", SPACES), "w:gz"),
        "flat, devkit in the archive": lambda root: write_zip(
            root, flat_tree("x.md", "") | devkit_tree()
        ),
    },
    "tiny-imagenet-200": {
        "folder": lambda root: write_folder(root, tiny_form()),
        "zip": lambda root: write_zip(root, tiny_form()),
    },
    "Hugging Face parquet": {
        "paths": parquet,
        "names that are ids": lambda root: parquet(root, paths=False, names=list(WNIDS)),
    },
    "WebDataset": {
        "as timm's": webdataset,
        "no list": lambda root: webdataset(root, info=False),
    },
}


@pytest.mark.parametrize(
    ("kind", "make"),
    [(kind, make) for kind, forms in FORMS.items() for make in forms.values()],
    ids=[f"{kind}: {name}" for kind, forms in FORMS.items() for name in forms],
)
def test_every_form_gives_the_same_data_set_image_for_image(tmp_path, kind, make):
    path = make(tmp_path / "source")
    source = open_source(path)
    assert source.kind == kind
    assert isinstance(source, Checked)
    assert isinstance(source, Noted)
    assert isinstance(source, Expected)
    assert source.count() == len(TRAIN) + len(VAL)
    pack(source, tmp_path / "packed")
    verify(tmp_path / "packed")
    packed = PackedDataset.open(tmp_path / "packed")
    assert tuple(class_.id for class_ in packed.classes) == WNIDS
    found = {
        split.key(i): (packed.classes[split.labels[i]].id, bytes(split.jpeg(i)))
        for split in (packed.split("train"), packed.split("val"))
        for i in range(split.num_images)
    }
    expected = {name: (name.partition("/")[0], data) for name, data in TRAIN.items()}
    expected |= {f"{wnid}/{name}": (wnid, data) for name, (wnid, data) in VAL.items()}
    assert found == expected


def test_classes_that_share_a_name_stay_two(tmp_path):
    tree = kaggle_tree() | {
        "LOC_synset_mapping.txt": "".join(f"{wnid} crane\n" for wnid in WNIDS).encode()
    }
    source = open_source(write_folder(tmp_path, tree))
    assert [(class_.id, class_.name) for class_ in source.classes] == [(w, "crane") for w in WNIDS]


def test_the_names_of_imagenets_classes_are_torchvisions(tmp_path):
    source = open_source(write_folder(tmp_path, folder_tree()))
    assert [class_.name for class_ in source.classes] == ["tench", "crane bird", "crane"]


@pytest.mark.parametrize("write", [write_folder, lambda p, t: write_tar(p, t, "w:gz")])
def test_imagenette_is_known_and_its_leak_told(tmp_path, write):
    path = write(tmp_path / "imagenette2-160.tgz", ten_classes("imagenette2-160/"))
    source = open_source(path)
    assert source.kind == "imagenette2"
    manifest = pack(source, tmp_path / "packed")
    (note,) = manifest["notes"]
    assert "10 of the 10 validation images (100%)" in note
    assert "contaminated" in note
    *archive, train, val = manifest["checks"]
    assert train.startswith("train: 10 images; imagenette2 has 9,469; 10 of 10 classes have")
    assert "such as n02979186 with 1 instead of 993" in train
    assert val.startswith("val: 10 images; imagenette2 has 3,925")
    if path.is_file():
        assert re.match(r"imagenette2-160\.tgz: md5 \w{32}; another archive", *archive)


def test_the_first_imagenette_had_no_leak(tmp_path):
    source = open_source(write_folder(tmp_path, ten_classes("imagenette/", val_of_train=False)))
    assert source.kind == "imagenette"
    assert source.notes == ()
    assert source.expected is None


def test_imagewoof_is_known(tmp_path):
    assert set(published.IMAGEWOOF) <= set(imagenet_wnids())
    swap = dict(zip(published.IMAGENETTE, published.IMAGEWOOF, strict=True))
    tree = {}
    for path, data in ten_classes("imagewoof2/").items():
        for old, new in swap.items():
            path = path.replace(old, new)
        tree[path] = data
    assert open_source(write_folder(tmp_path, tree)).kind == "imagewoof2"


def test_imagenet_mini_has_all_classes_and_few_images(tmp_path):
    source = open_source(write_zip(tmp_path / "archive.zip", mini_form()))
    assert source.kind == "ImageNet-mini-1000"
    assert [class_.id for class_ in source.classes] == list(imagenet_wnids())
    assert source.notes == ()
    assert sum(1 for _ in source.images()) == 2000
    train, val = source.check()
    assert train == "train: 1,000 images; ImageNet-mini-1000 has 34,745"
    assert val == "val: 1,000 images; ImageNet-mini-1000 has 3,923"


@pytest.mark.parametrize(
    ("layout", "needs"),
    [
        ("ilsvrc2012", r"ILSVRC2012_img_train\.tar, "),
        ("kaggle", "CLS-LOC/train"),
        ("tiny-imagenet", r"wnids\.txt"),
        ("imagenette", "ten classes"),
        ("imagenet-mini", "1,000 classes"),
        ("parquet", r"train-00000-of-00294\.parquet"),
        ("webdataset", r"train-0000\.tar"),
    ],
)
def test_a_form_that_is_asked_for_and_not_there_is_refused(tmp_path, layout, needs):
    path = write_folder(tmp_path, folder_tree())
    with pytest.raises(DataError, match=f"is not of the form {layout}; that needs .*{needs}"):
        open_source(path, layout=layout)


def test_a_form_that_is_asked_for_is_taken(tmp_path):
    path = write_folder(tmp_path / "x", tiny_form())
    assert open_source(path, layout="tiny-imagenet").kind == "tiny-imagenet-200"
    path = write_folder(tmp_path / "y", ten_classes(""))
    assert open_source(path, layout="folders").kind == "class folders"
    assert open_source(path, layout="imagenette").kind == "imagenette2"
    path = write_folder(tmp_path / "z", kaggle_tree())
    assert open_source(path, layout="kaggle").kind == "Kaggle CLS-LOC"


@pytest.mark.parametrize("make", [ilsvrc2012, parquet, webdataset])
def test_what_has_its_own_validation_images_takes_no_others(tmp_path, make):
    with pytest.raises(UsageError, match="has its own validation images"):
        open_source(make(tmp_path / "source"), val_source=tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="folders are not made read-only so")
def test_nothing_is_written_into_a_source(tmp_path):
    root = write_folder(tmp_path / "source", kaggle_tree())
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    pack(open_source(root), tmp_path / "packed")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
