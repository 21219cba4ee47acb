"""Files that lie: weights, checkpoints, indexes and manifests end in one line, and run nothing."""

import ast
import json
import pickle
import re
import shutil
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from rn50 import durable
from rn50.config import Images, Model
from rn50.data.shards import MANIFEST, PackedDataset
from rn50.errors import DataError
from rn50.model import weights
from rn50.model.resnet import build
from rn50.train import checkpoint
from rn50.train.state import Snapshot

SOURCE = Path(__file__).parents[1] / "src" / "rn50"
RAN = "ran.txt"


class Malicious:
    """What, when unpickled, writes a file where the tests look for it."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder / RAN)

    def __reduce__(self):
        return (Path.write_text, (Path(self.place), "unpickled"))


def file_of(header: bytes, data: bytes = b"", told: int | None = None) -> bytes:
    """A safetensors file, with the length of its header as told."""
    return struct.pack("<Q", len(header) if told is None else told) + header + data


def tensor(start: int, end: int, shape: list[int], kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def made(tensors: dict, data: bytes) -> bytes:
    return file_of(json.dumps(tensors).encode(), data)


def hostile_tensors(folder: Path) -> dict[str, bytes]:
    torch.save({"a": Malicious(folder)}, folder / "x.pt")
    nested = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    return {
        "a pickle": pickle.dumps(Malicious(folder)),
        "a torch file": (folder / "x.pt").read_bytes(),
        "a header of exabytes": file_of(b"{}", told=(1 << 62)),
        "a header larger than the file": file_of(b"{}", told=90_000_000),
        "a negative length": file_of(b"{}", told=(1 << 64) - 1),
        "a deep header": file_of(nested),
        "a header that is no JSON": file_of(b"\xff" * 64),
        "tensors that overlap": made({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
        "a tensor beyond the end": made({"a": tensor(0, 1 << 40, [1 << 38])}, bytes(8)),
        "a negative place": made({"a": tensor(-4, 4, [2])}, bytes(8)),
        "a shape of other bytes": made({"a": tensor(0, 8, [1 << 31, 1 << 31])}, bytes(8)),
        "a shape that wraps around": made({"a": tensor(0, 0, [1 << 32, 1 << 32])}, b""),
        "an unknown type": made({"a": tensor(0, 8, [2], "OBJ")}, bytes(8)),
        "bytes of no tensor": made({"a": tensor(0, 4, [1])}, bytes(64)),
    }


KINDS = (
    *("a pickle", "a torch file", "a header of exabytes", "a header larger than the file"),
    *("a negative length", "a deep header", "a header that is no JSON", "tensors that overlap"),
    *("a tensor beyond the end", "a negative place", "a shape of other bytes"),
    *("a shape that wraps around", "an unknown type", "bytes of no tensor"),
)


def refused(load, path: Path, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not list(folder.rglob(RAN)), "a file ran what it held"
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weights_file_that_lies_is_refused(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    path.write_bytes(hostile_tensors(tmp_path)[kind])
    assert "is not a whole weights file" in refused(weights.load, path, tmp_path)


MODEL = Model(arch="resnet18", num_classes=3)


def header(**change):
    told = weights.header(
        model=MODEL,
        images=Images(batch_size=1),
        classes=[("a", "an a"), ("b", "a b"), ("c", "a c")],
        about={},
    )
    return told | change


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"arch": "resnet18", "num_classes": 10**6}},
        {"model": {"arch": "resnet18", "num_classes": 10**15}},
        {"model": {"arch": "resnet152", "num_classes": 3}},
        {"class_ids": ["a"]},
        {"class_ids": ["a", "b", 3]},
        {"class_names": ["a", "b", "c", "d"]},
    ],
)
def test_a_header_that_tells_of_another_network_is_refused_before_that_is_made(tmp_path, change):
    path = tmp_path / "w.safetensors"
    weights.save(path, build(MODEL, seed=0).state_dict(), header(**change))
    refused(weights.load, path, tmp_path)


def saved(folder: Path) -> Path:
    values = {
        "step": 3,
        "model": {"a": torch.zeros(2)},
        "momentum": {"a": torch.ones(2)},
        "scaler": {},
        "window": (0, 0, 0),
        "epoch": (0, 0, 0),
    }
    snapshot = Snapshot(**{field.name: values.get(field.name) for field in fields(Snapshot)})
    return checkpoint.save(folder, snapshot, {"run": {}})


def rewritten(place: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and its hash in the manifest."""
    (place / name).write_bytes(content)
    manifest = json.loads((place / "manifest.json").read_bytes())
    manifest[name] = {"bytes": len(content), "blake2b": durable.digest(content)}
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["model.safetensors", "momentum.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_lies_with_hashes_that_fit_is_refused(tmp_path, kind, name):
    place = saved(tmp_path)
    rewritten(place, name, hostile_tensors(tmp_path)[kind])
    refused(checkpoint.load, place, tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"format": 1}', "[" * 100_000, "{}"])
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_checkpoint_s_json_of_another_form_is_refused(tmp_path, name, text):
    place = saved(tmp_path)
    if name == "manifest.json":
        (place / name).write_text(text)
    else:
        rewritten(place, name, text.encode())
    refused(checkpoint.load, place, tmp_path)


def altered(packed: Path, folder: Path, change) -> Path:
    """A data set whose training index was changed, and its hash in the manifest."""
    copy = Path(shutil.copytree(packed, folder / "copy"))
    path = copy / "train.index.npy"
    index = np.load(path)
    content = change(index)
    if content is None:
        np.save(path, index)
    else:
        path.write_bytes(content)
    manifest = json.loads((copy / MANIFEST).read_bytes())
    entry = manifest["splits"]["train"]["index"]
    entry["blake2b"], entry["bytes"] = durable.file_digest(path), path.stat().st_size
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def put(field: str, value: int):
    def change(index):
        index[field][7] = value

    return change


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


DTYPE = "[('shard','<u4'),('offset','<u8'),('length','<u4'),('label','<u4'),('width','<u4'),"
DTYPE += "('height','<u4'),('digest','<u8')]"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put("shard", 1 << 31), "points into a shard 2147483648, and there are"),
        (put("offset", 1 << 40), "points out of its shards"),
        (put("offset", (1 << 64) - 1), "points out of its shards"),
        (put("offset", (1 << 64) - 100), "points out of its shards"),
        (put("length", (1 << 32) - 1), "points out of its shards"),
        (put("label", 4), "has the label 4, and there are 4 classes"),
        (put("width", 0), "an image without pixels"),
        (put("height", (1 << 32) - 1), "without pixels, or with more than 100,000,000"),
        (lambda index: b"", "is not the index"),
        (lambda index: pickle.dumps(index), "is not the index"),
        (lambda index: npy("{'descr':'|O','fortran_order':False,'shape':(96,)}"), "is not the ind"),
        (
            lambda index: npy(f"{{'descr':{DTYPE},'fortran_order':False,'shape':(96,)}}"),
            "is not the index",
        ),
        (
            lambda index: npy(f"{{'descr':{DTYPE},'fortran_order':False,'shape':(10**15,)}}"),
            "is not the index",
        ),
        (lambda index: npy("__import__('os').abort()"), "is not the index"),
    ],
)
def test_an_index_that_lies_with_a_hash_that_fits_is_refused(packed, tmp_path, change, match):
    folder = altered(packed, tmp_path, change)
    with pytest.raises(DataError, match=match) as caught:
        PackedDataset.open(folder).split("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("splits",), []),
        (("splits",), None),
        (("splits", "train"), 3),
        (("splits", "train", "shards"), {"a": 1}),
        (("splits", "train", "shards", 0), "train-000000.tar"),
        (("splits", "train", "shards", 0, "file"), 7),
        (("splits", "train", "shards", 0, "file"), "../../etc/passwd"),
        (("splits", "train", "shards", 0, "file"), ".."),
        (("splits", "train", "shards", 0, "bytes"), -1),
        (("splits", "train", "shards", 0, "bytes"), "many"),
        (("splits", "train", "images"), 10**18),
        (("splits", "train", "images"), -1),
        (("splits", "train", "index", "blake2b"), None),
        (("splits", "train", "keys"), []),
        (("classes",), 4),
        (("classes",), [{"id": "a"}]),
        (("classes", 1), None),
    ],
)
def test_a_manifest_that_lies_is_refused(packed, tmp_path, path, value):
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    inner = manifest
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError) as caught:
        PackedDataset.open(folder).split("train")
    assert "\n" not in str(caught.value)


def test_a_manifest_of_endless_depth_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(DataError, match="is damaged"):
        PackedDataset.open(tmp_path)


def test_two_images_with_the_same_bytes_are_found_by_verify(packed, tmp_path):
    from rn50.data.verify import verify

    def overlap(index):
        index["offset"][8], index["length"][8] = index["offset"][7], index["length"][7]

    folder = altered(packed, tmp_path, overlap)
    PackedDataset.open(folder).split("train")
    with pytest.raises(DataError, match="is damaged in"):
        verify(folder)


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("eval", "exec", "os.system", "yaml.load", "joblib.load", "torch.hub.load", "torch.jit.load"),
}
UNPACKING = {"extractall", "extract", "unpack_archive"}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), options, f"{path.name}:{node.lineno}"


def misdeeds(path: Path) -> list[str]:
    found = []
    for name, options, where in calls(path):
        if name in FORBIDDEN or name.rpartition(".")[2] in UNPACKING:
            found.append(f"{where} calls {name}")
        if name == "torch.load" and options.get("weights_only") is not True:
            found.append(f"{where} unpickles what it is given: weights_only must be True")
        if options.get("allow_pickle") is True or options.get("shell") is True:
            found.append(f"{where} allows pickle or a shell")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_nothing_that_is_read_can_run(path):
    assert misdeeds(path) == []


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(path)", "torch.load(path, weights_only=False)", "pickle.loads(data)"),
        *("np.load(path, allow_pickle=True)", "tar.extractall(place)", "eval(text)"),
        *("subprocess.run(words, shell=True)", "shutil.unpack_archive(path)"),
    ],
)
def test_what_could_run_would_be_seen(tmp_path, line):
    (tmp_path / "x.py").write_text(f"import x\nif x:\n    {line}\n")
    assert len(misdeeds(tmp_path / "x.py")) == 1


def test_torch_is_new_enough_to_unpickle_weights_safely():
    """CVE-2026-24747: below 2.10, ``weights_only`` could be made to corrupt memory."""
    text = (SOURCE.parents[1] / "pyproject.toml").read_text()
    least = re.search(r'"torch>=(\d+)\.(\d+)', text)
    assert least is not None
    assert (int(least[1]), int(least[2])) >= (2, 10)


def test_a_pickle_would_have_run(tmp_path):
    """The tests above would see it."""
    pickle.loads(pickle.dumps(Malicious(tmp_path)))
    assert list(tmp_path.rglob(RAN))
