import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from rn50 import evaluate as evaluation
from rn50.config import Hardware, Images, Model
from rn50.data import native
from rn50.data.decode import Decoder
from rn50.data.loader import Loader
from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.base import ClassName
from rn50.data.sources.detect import open_source
from rn50.distributed import Group
from rn50.errors import DataError, UsageError
from rn50.evaluate import LOSS_UNIT, count, evaluate, labelled, score, topk_correct
from rn50.hardware import Compute
from rn50.model import weights
from rn50.model.resnet import build

CPU = torch.device("cpu")
COMPUTE = Compute(device=CPU, precision="fp32", workers=2)
IMAGES = Images(batch_size=8, train_px=32, test_px=32, test_resize_px=40)


def a_net(classes: int, seed: int) -> nn.Module:
    """Small, with a BatchNorm whose two modes differ and outputs that tell images apart."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    net[1].running_mean.uniform_(-1, 1)
    with torch.no_grad():
        net[5].weight.mul_(5)
    return net


def slow_scores(net: nn.Module, dataset: PackedDataset, ks=(1, 5)) -> dict[str, float]:
    """Image by image, with the formulas written out."""
    val = dataset.split("val")
    decoder = Decoder()
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGES.mean, IMAGES.std))
    losses, hits = [], dict.fromkeys(ks, 0)
    net.eval()
    for i in range(val.num_images):
        pixels = torch.empty(32, 32, 3, dtype=torch.uint8)
        decoder.center_resized(val.jpeg(i), 40, pixels)
        with torch.no_grad():
            logits = net(((pixels.permute(2, 0, 1) / 255 - mean) / std)[None])[0]
        label = int(val.labels[i])
        losses.append(float(logits.exp().sum().log() - logits[label]))
        rank = int((logits > logits[label]).sum())
        for k in ks:
            hits[k] += rank < k
    return {
        "loss": sum(losses) / len(losses),
        **{f"top{k}": hits[k] / len(losses) for k in ks},
        "images": len(losses),
    }


def scores_of(nets, dataset, images=IMAGES):
    with Loader(CPU, workers=2, prefetch=2) as loader:
        return evaluate(nets, dataset.split("val"), images, loader, COMPUTE, Group())


def test_scores_are_those_of_a_slow_pass_image_by_image(dataset):
    net = a_net(9, seed=0)
    expected = slow_scores(net, dataset)
    assert 0 < expected["top1"] < expected["top5"] < 1
    got = scores_of({"model": net}, dataset)["model"]
    assert got["loss"] == pytest.approx(expected.pop("loss"), abs=1e-4)
    assert {name: got[name] for name in expected} == expected


@pytest.mark.parametrize("batch", [1, 7, 36])
def test_a_bad_image_stays_in_the_denominator_as_a_wrong_guess(
    packed, tmp_path, monkeypatch, batch
):
    net = a_net(9, seed=0)
    whole = PackedDataset.open(packed)
    alone = []
    val = whole.split("val")
    for i in range(36):
        one = Decoder()
        pixels = torch.empty(32, 32, 3, dtype=torch.uint8)
        one.center_resized(val.jpeg(i), 40, pixels)
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGES.mean, IMAGES.std))
        net.eval()
        with torch.no_grad():
            logits = net(((pixels.permute(2, 0, 1) / 255 - mean) / std)[None])
        alone.append(count(logits, torch.tensor([int(val.labels[i])])))
    right = next(i for i in range(36) if alone[i][2])
    folder = shutil.copytree(packed, tmp_path / "copy")
    shard, offset = val.place(right)
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(300))
    monkeypatch.setattr(evaluation, "BATCH", batch)
    with Loader(CPU, workers=2, prefetch=2) as loader:
        args = ({"model": net}, PackedDataset.open(folder).split("val"), IMAGES, loader, COMPUTE)
        told = []
        got = evaluate(*args, Group(), lambda ids: told.append(ids.tolist()))["model"]
        with pytest.raises(DataError, match=f"cannot decode {val.key(right)}"):
            evaluate(*args, Group())
    expected = sum(one for i, one in enumerate(alone) if i != right)
    assert told == [[right]]
    assert got["images"] == 36
    assert got["top1"] == int(expected[2]) / 36
    assert got["top5"] == int(expected[3]) / 36
    assert got["loss"] == pytest.approx((int(expected[1]) * LOSS_UNIT + math.log(9)) / 36, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 5, 7, 35, 36, 1000])
def test_every_image_is_scored_whatever_the_batch(dataset, monkeypatch, batch):
    net = a_net(9, seed=0)
    expected = slow_scores(net, dataset)
    monkeypatch.setattr(evaluation, "BATCH", batch)
    got = scores_of({"model": net}, dataset)["model"]
    assert got["images"] == 36
    assert (got["top1"], got["top5"]) == (expected["top1"], expected["top5"])
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-4)


def test_model_and_average_are_scored_in_one_pass(dataset, monkeypatch):
    nets = {"model": a_net(9, seed=0), "average": a_net(9, seed=1)}
    alone = {name: scores_of({name: net}, dataset)[name] for name, net in nets.items()}
    assert alone["model"] != alone["average"]
    decoded = []
    center_resized = Decoder.center_resized

    def recorded(self, jpeg, resize_px, out, expected):
        decoded.append(len(jpeg))
        center_resized(self, jpeg, resize_px, out, expected)

    monkeypatch.setattr(native, "library", lambda: None)  # which decodes many in one call
    monkeypatch.setattr(Decoder, "center_resized", recorded)
    assert scores_of(nets, dataset) == alone
    assert len(decoded) == 36


def test_the_modes_of_the_networks_are_restored_and_their_statistics_kept(dataset):
    nets = {"model": a_net(9, seed=0).train(), "average": a_net(9, seed=1).eval()}
    before = {name: net[1].running_mean.clone() for name, net in nets.items()}
    scores_of(nets, dataset)
    assert (nets["model"].training, nets["average"].training) == (True, False)
    assert nets["model"][1].training
    for name, net in nets.items():
        assert torch.equal(net[1].running_mean, before[name])


def test_with_fewer_than_five_classes_top5_counts_as_many_guesses(dataset):
    got = scores_of({"model": a_net(4, seed=0)}, dataset)["model"]
    assert got["top5"] == 1
    assert got["top1"] < 1


def test_counts_are_exact():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 8), torch.randint(8, (50,))
    images, units, top1, top5 = count(logits, labels).tolist()
    ranks = [int((row > row[y]).sum()) for row, y in zip(logits, labels, strict=True)]
    assert images == 50
    assert top1 == sum(rank < 1 for rank in ranks)
    assert top5 == sum(rank < 5 for rank in ranks)
    assert units * LOSS_UNIT == pytest.approx(
        float(F.cross_entropy(logits, labels, reduction="sum")), abs=50 * LOSS_UNIT
    )


def test_counts_of_parts_add_up_to_those_of_the_whole():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 8), torch.randint(8, (50,))
    parts = sum(count(logits[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7))
    assert torch.equal(parts, count(logits, labels))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_loss_of_a_network_that_diverged_is_large_and_finite(bad):
    logits = torch.zeros(3, 8)
    logits[1, 2] = bad
    images, units, _, _ = count(logits, torch.tensor([0, 1, 2])).tolist()
    assert images == 3
    assert units * LOSS_UNIT > 2**19


def test_topk_counts_the_labels_among_the_k_best():
    logits = torch.tensor([[0.1, 0.5, 0.2, 0.4], [0.9, 0.1, 0.2, 0.3]])
    for labels, expected in (
        ([1, 0], [2, 2, 2, 2]),
        ([2, 1], [0, 0, 1, 2]),
        ([3, 3], [0, 2, 2, 2]),
    ):
        got = [int(topk_correct(logits, torch.tensor(labels), k)) for k in (1, 2, 3, 4)]
        assert got == expected


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_there_is_not_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; with 4 classes it must be from 1 to that"):
        topk_correct(torch.zeros(2, 4), torch.tensor([0, 1]), k)


MODEL = Model(arch="resnet18", num_classes=4)


def write_weights(path, dataset, seed=0, classes=None, model=MODEL):
    net = build(model, seed=seed)
    with torch.no_grad():
        net.fc.weight.mul_(20)
    header = weights.header(
        model=model,
        images=IMAGES,
        classes=classes or [(c.id, c.name) for c in dataset.classes],
        about={},
    )
    weights.save(path, net.state_dict(), header)
    return net


def test_a_weights_file_is_scored(packed, dataset, tmp_path):
    net = write_weights(tmp_path / "model.safetensors", dataset)
    settings = Hardware(device="cpu", precision="fp32", workers=2)
    got = score(tmp_path / "model.safetensors", packed, settings)
    assert list(got) == ["model"]
    expected = slow_scores(net, dataset, ks=(1,))
    assert got["model"]["top1"] == expected["top1"]
    assert got["model"]["loss"] == pytest.approx(expected["loss"], abs=1e-3)


def test_the_folder_of_a_run_is_scored_with_its_average(packed, dataset, tmp_path):
    settings = Hardware(device="cpu", precision="fp32", workers=2)
    write_weights(tmp_path / "model.safetensors", dataset, seed=0)
    assert list(score(tmp_path, packed, settings)) == ["model"]
    write_weights(tmp_path / "average.safetensors", dataset, seed=1)
    both = score(tmp_path, packed, settings)
    assert list(both) == ["model", "average"]
    assert both["model"]["loss"] != both["average"]["loss"]
    assert both == {
        name: score(tmp_path / f"{name}.safetensors", packed, settings)[name] for name in both
    }


def test_a_run_without_weights_yet_is_refused(packed, tmp_path):
    with pytest.raises(DataError, match="has no weights yet; a run writes model"):
        score(tmp_path, packed, Hardware(device="cpu"))


@pytest.mark.parametrize("ids", ["ant bee cat", "ant bee cat eel"])
def test_weights_for_other_classes_are_refused(packed, dataset, tmp_path, ids):
    classes = [(name, name) for name in ids.split()]
    model = Model(arch="resnet18", num_classes=len(classes))
    write_weights(tmp_path / "w.safetensors", dataset, classes=classes, model=model)
    with pytest.raises(DataError, match=f"tell {len(classes)} classes apart .* has 4 ") as caught:
        score(tmp_path / "w.safetensors", packed, Hardware(device="cpu"))
    assert "give the data of the same classes" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_of_some_of_the_classes_is_scored_among_all(packed, dataset, tmp_path):
    ids = ["ape", "dog", "bee", "cat", "eel", "ant"]
    names = [(id_, id_.upper()) for id_ in ids]
    model = Model(arch="resnet18", num_classes=6)
    net = write_weights(tmp_path / "w.safetensors", dataset, classes=names, model=model)
    said = []
    settings = Hardware(device="cpu", precision="fp32", workers=2)
    got = score(tmp_path / "w.safetensors", packed, settings, say=said.append)["w"]
    places = torch.tensor([5, 2, 3, 1])  # of ant, bee, cat and dog
    mapped = dataset.with_classes([ClassName(*pair) for pair in names])
    assert mapped.split("val").labels.tolist() == places[dataset.split("val").labels].tolist()
    expected = slow_scores(net, mapped)
    assert got["top1"] == expected["top1"]
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-3)
    assert said == [
        f"{packed} has 4 of the 6 classes of the weights; they are found by their ids and scored "
        "among all"
    ]


def test_what_is_noted_of_the_data_is_told_when_a_larger_network_is_scored(
    packed, dataset, tmp_path
):
    noted = shutil.copytree(packed, tmp_path / "noted")
    manifest = json.loads((noted / "manifest.json").read_text())
    manifest["notes"] = ["these images are of the training split of ImageNet"]
    (noted / "manifest.json").write_text(json.dumps(manifest))
    names = [(id_, id_) for id_ in ("ant", "bee", "cat", "dog", "eel")]
    model = Model(arch="resnet18", num_classes=5)
    write_weights(tmp_path / "w.safetensors", dataset, classes=names, model=model)
    said = []
    score(tmp_path / "w.safetensors", noted, Hardware(device="cpu"), say=said.append)
    assert said[1] == "note: these images are of the training split of ImageNet"


def test_a_head_of_another_size_than_the_data_is_refused(dataset):
    assert labelled(dataset, Model(num_classes=4)) is dataset
    with pytest.raises(
        UsageError, match=r"num_classes is 10, but .* has 4 classes; .* --model\.num-classes 4$"
    ):
        labelled(dataset, Model(num_classes=10))


def test_the_head_of_imagenet_is_for_its_classes_alone(dataset):
    with pytest.raises(DataError, match="has class 'ant', which is none of the 1000"):
        labelled(dataset, Model(num_classes=1000, classes="imagenet"))


def test_ten_classes_of_imagenet_are_trained_with_all_its_outputs_only_if_asked(tmp_path):
    wnids = ["n01440764", "n02102040", "n03888257"]
    for split in ("train", "val"):
        for i, wnid in enumerate(wnids):
            (tmp_path / split / wnid).mkdir(parents=True)
            pixels = np.full((40, 40, 3), 60 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / wnid / "0.jpg")
    pack(open_source(tmp_path), tmp_path.with_name("packed-wnids"))
    dataset = PackedDataset.open(tmp_path.with_name("packed-wnids"))
    with pytest.raises(UsageError, match=r"or --model\.classes imagenet to train ImageNet's 1000"):
        labelled(dataset, Model(num_classes=1000))
    mapped = labelled(dataset, Model(num_classes=1000, classes="imagenet"))
    assert mapped.split("train").labels.tolist() == [0, 217, 701]
    assert len(mapped.classes) == 1000
    assert mapped.classes[701].id == "n03888257"
