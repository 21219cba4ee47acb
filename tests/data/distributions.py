"""The same few images of ImageNet's classes in each form in which ImageNet is distributed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_trees import Tree, add_to_tar, jpeg, write_folder, write_tar
from scipy.io import savemat

from rn50.data.sources import published
from rn50.data.sources.wnids import imagenet_wnids

WNIDS = ("n01440764", "n02012849", "n03126707")
"""Tench, and the two that are called crane."""

TRAIN = {
    f"{wnid}/{wnid}_{number}": jpeg(100 * label + number)
    for label, wnid in enumerate(WNIDS)
    for number in (7, 18, 10026)[: 3 - label % 2]
}
"""Class and name -> JPEG."""

VAL = {
    f"ILSVRC2012_val_{number:08}": (wnid, jpeg(1000 + number, "L" if number == 2 else "RGB"))
    for number, wnid in enumerate([WNIDS[i] for i in (2, 0, 1, 2, 0, 1)], 1)
}
"""Name -> class and JPEG."""

DEVKIT_ID = {WNIDS[2]: 1, WNIDS[0]: 2, WNIDS[1]: 3}
"""No class has the number that its rank among the sorted ids would suggest."""


def tar_bytes(tree: Tree) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in tree.items():
            add_to_tar(archive, name, data)
    return file.getvalue()


def class_tar(wnid: str) -> bytes:
    names = [name for name in TRAIN if name.startswith(wnid)]
    return tar_bytes({f"{name.partition('/')[2]}.JPEG": TRAIN[name] for name in names})


def train_tar() -> Tree:
    """What ILSVRC2012_img_train.tar holds; its classes are not in the order of their names."""
    return {f"{wnid}.tar": class_tar(wnid) for wnid in reversed(WNIDS)}


def val_tree(top: str = "") -> Tree:
    return {f"{top}{name}.JPEG": data for name, (_, data) in VAL.items()}


def meta_mat() -> bytes:
    fields = ["ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images"]
    rows = [
        (id_, wnid, "words of it", 0, 3 - WNIDS.index(wnid) % 2) for wnid, id_ in DEVKIT_ID.items()
    ]
    rows.append((4, "n00001740", "entity, a group of classes", 3, 0))
    synsets = np.array(rows, dtype=[(name, object) for name in fields])
    file = io.BytesIO()
    savemat(file, {"synsets": synsets.reshape(-1, 1)})
    return file.getvalue()


def devkit_tree(top: str = "ILSVRC2012_devkit_t12/") -> Tree:
    truth = "".join(f"{DEVKIT_ID[wnid]}\n" for wnid, _ in VAL.values())
    return {
        f"{top}readme.txt": b"words",
        f"{top}data/meta.mat": meta_mat(),
        f"{top}data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def ilsvrc2012(root: Path) -> Path:
    root.mkdir()
    write_tar(root / "ILSVRC2012_img_train.tar", train_tar())
    write_tar(root / "ILSVRC2012_img_val.tar", val_tree())
    write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", devkit_tree(), "w:gz")
    return root


def kaggle_tree(top: str = "") -> Tree:
    data, lists = "ILSVRC/Data/CLS-LOC", "ILSVRC/ImageSets/CLS-LOC"
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 3 4 5 6 \n" for name, (wnid, _) in VAL.items()]
    tree = {f"{data}/train/{name}.JPEG": jpeg_ for name, jpeg_ in TRAIN.items()}
    tree |= val_tree(f"{data}/val/")
    tree |= {f"{data}/test/ILSVRC2012_test_00000001.JPEG": jpeg(1)}
    for name, (wnid, _) in VAL.items():
        tree[f"ILSVRC/Annotations/CLS-LOC/val/{name}.xml"] = (
            f"<annotation><filename>{name}</filename><source><database>x</database></source>"
            f"<object>\n\t<name>{wnid}</name></object></annotation>"
        ).encode()
    tree[f"{lists}/train_cls.txt"] = "".join(
        f"{name} {number}\n" for number, name in enumerate(TRAIN, 1)
    ).encode()
    tree["LOC_val_solution.csv"] = ("ImageId,PredictionString\n" + "".join(rows[::-1])).encode()
    tree["LOC_synset_mapping.txt"] = "".join(f"{w} words, of {w}\n" for w in WNIDS).encode()
    return {top + path: content for path, content in tree.items()}


def folder_tree(top: str = "", val: str = "val") -> Tree:
    tree = {f"{top}train/{name}.JPEG": data for name, data in TRAIN.items()}
    return tree | {f"{top}{val}/{w}/{name}.JPEG": data for name, (w, data) in VAL.items()}


def flat_tree(mapping: str, text: str, top: str = "", val: str = "val/") -> Tree:
    """Class folders for train, a flat val, and a list of labels."""
    tree = {path: data for path, data in folder_tree(top).items() if "/val/" not in f"/{path}"}
    return tree | val_tree(f"{top}{val}") | {f"{top}{mapping}": text.encode()}


def tiny_form(top: str = "tiny-imagenet-200/") -> Tree:
    tree = {
        "wnids.txt": "\n".join(reversed(WNIDS)).encode(),
        "words.txt": "".join(f"{wnid}\twords\n" for wnid in WNIDS).encode(),
        "val/val_annotations.txt": "".join(
            f"{name}.JPEG\t{wnid}\t0\t0\t9\t9\n" for name, (wnid, _) in VAL.items()
        ).encode(),
        "test/images/test_0.JPEG": jpeg(7),
    }
    for name, data in TRAIN.items():
        wnid, _, image = name.partition("/")
        tree[f"train/{wnid}/images/{image}.JPEG"] = data
    tree |= val_tree("val/images/")
    return {top + path: content for path, content in tree.items()}


def rows(split: str) -> list[tuple[str, str, bytes]]:
    """(name, class, JPEG) of each image of a split."""
    if split == "train":
        return [(name.partition("/")[2], name.partition("/")[0], d) for name, d in TRAIN.items()]
    return [(name, wnid, data) for name, (wnid, data) in VAL.items()]


def table(
    split: str, paths: bool = True, names: list[str] | None = None, label=WNIDS.index
) -> pa.Table:
    """A split as the Hugging Face Hub has it."""
    images = [
        {"bytes": data, "path": f"{name}_{wnid}.JPEG" if paths else f"{name}.JPEG"}
        for name, wnid, data in rows(split)
    ]
    image = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    labels = pa.array([label(wnid) for _, wnid, _ in rows(split)], pa.int64())
    found = pa.table({"image": image, "label": labels})
    if names is None:
        return found
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    return found.replace_schema_metadata({"huggingface": told})


def parquet(root: Path, **options) -> Path:
    """Two files for train, of two rows a group; one for val, one for test."""
    (root / "data").mkdir(parents=True)
    train = table("train", **options)
    for number, part in enumerate((train[:5], train[5:])):
        path = root / f"data/train-{number:05}-of-00002.parquet"
        pq.write_table(part, path, row_group_size=2)
    val = table("val", **options)
    pq.write_table(val, root / "data/validation-00000-of-00001.parquet")
    pq.write_table(val, root / "data/test-00000-of-00001.parquet")
    (root / "README.md").write_text("# ImageNet")
    return root


def shard_tree(images: list[tuple[str, str, bytes]], label=WNIDS.index) -> Tree:
    tree = {}
    for name, wnid, data in images:
        tree[f"{name}.jpg"] = data
        tree[f"{name}.cls"] = str(label(wnid)).encode()
        tree[f"{name}.json"] = b'{"filename": "x"}'
    return tree


def webdataset(root: Path, info: bool = True, **options) -> Path:
    """Two shards for train, one for val."""
    root.mkdir()
    train = rows("train")
    shards = {
        "imagenet1k-train-0000.tar": train[:5],
        "imagenet1k-train-0001.tar": train[5:],
        "imagenet1k-validation-00.tar": rows("val"),
    }
    for name, images in shards.items():
        write_tar(root / name, shard_tree(images, **options))
    if info:
        splits = {
            split: {
                "filenames": [name for name in shards if split in name],
                "shard_lengths": [len(shards[name]) for name in shards if split in name],
            }
            for split in ("train", "validation")
        }
        (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def extracted_once(root: Path) -> Path:
    """The tars of the classes in a folder train, the val images in a folder val."""
    tree = {f"train/{name}": data for name, data in train_tar().items()}
    return write_folder(root, tree | val_tree("val/") | devkit_tree())


def interrupted(root: Path) -> Path:
    """One class extracted, one half extracted beside its tar, one not yet."""
    tree = {f"train/{wnid}.tar": class_tar(wnid) for wnid in WNIDS[1:]}
    tree |= {f"train/{n}.JPEG": data for n, data in TRAIN.items() if n.startswith(WNIDS[0])}
    half = next(name for name in TRAIN if name.startswith(WNIDS[1]))
    tree[f"train/{half}.JPEG"] = TRAIN[half][:100]
    return write_folder(root, tree | folder_tree_val() | devkit_tree())


def folder_tree_val() -> Tree:
    return {path: data for path, data in folder_tree().items() if path.startswith("val/")}


def ten_classes(top: str, val_of_train: bool = True) -> Tree:
    """Imagenette, one image of each class and split."""
    tree = {}
    for label, wnid in enumerate(published.IMAGENETTE):
        tree[f"{top}train/{wnid}/{wnid}_{label}.JPEG"] = jpeg(label)
        name = f"{wnid}_9" if val_of_train else f"ILSVRC2012_val_{label + 1:08}"
        tree[f"{top}val/{wnid}/{name}.JPEG"] = jpeg(50 + label)
    tree[f"{top}noisy_imagenette.csv"] = b"path,noisy_labels_0\n"
    return tree


def mini_form(top: str = "imagenet-mini/") -> Tree:
    """ImageNet-mini-1000, one image of each class and split, all alike."""
    image = jpeg(0)
    tree = {}
    for number, wnid in enumerate(imagenet_wnids(), 1):
        tree[f"{top}train/{wnid}/{wnid}_1.JPEG"] = image
        tree[f"{top}val/{wnid}/ILSVRC2012_val_{number:08}.JPEG"] = image
    return tree
