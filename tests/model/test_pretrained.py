import argparse
import json

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from rn50 import durable
from rn50.config import Images, Model
from rn50.errors import DataError, UsageError
from rn50.model import pretrained, weights
from rn50.model.resnet import build

MODEL = Model(arch="resnet18", num_classes=5)
CLASSES = [(f"n{i}", f"class {i}") for i in range(5)]
IDS = tuple(name for name, _ in CLASSES)


def a_net(seed: int, model: Model = MODEL) -> nn.Module:
    """A network whose statistics are not those of a new one."""
    net = build(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net


def write(path, seed: int, model: Model = MODEL, classes=CLASSES) -> nn.Module:
    net = a_net(seed, model)
    header = weights.header(
        model=model, images=Images(batch_size=8), classes=classes, about={"step": 1}
    )
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    safetensors.torch.save_file(tensors, path, {weights.HEADER: json.dumps(header)})
    return net


def begun(path, model: Model = MODEL, ids: tuple[str, ...] = ()) -> nn.Module:
    net = build(model, seed=99)
    pretrained.begin(net, pretrained.read(path), model, ids)
    return net


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_all_weights_and_statistics_of_our_file_are_taken(tmp_path):
    net = write(tmp_path / "w.safetensors", 1)
    assert_equal(begun(tmp_path / "w.safetensors", ids=IDS), net)
    found = pretrained.read(tmp_path / "w.safetensors")
    assert (found.model, found.class_ids) == (MODEL, IDS)
    assert found.digest == durable.file_digest(tmp_path / "w.safetensors")


def test_of_a_run_s_folder_the_swa_is_taken_else_the_ema_else_the_model(tmp_path):
    for seed, name in enumerate(("model", "average", "swa")):
        net = write(tmp_path / f"{name}.safetensors", seed)
        assert_equal(begun(tmp_path), net)
        assert pretrained.file_of(tmp_path).name == f"{name}.safetensors"


@pytest.mark.parametrize("within", [None, "state_dict", "model"])
def test_a_state_dict_of_torchvision_is_taken_also_out_of_a_checkpoint(tmp_path, within):
    theirs = torchvision.models.resnet18(num_classes=5)
    theirs.bn1.running_mean.fill_(3)
    held = theirs.state_dict()
    if within == "model":
        held = {f"module.{name}": tensor for name, tensor in held.items()}
    torch.save(held if within is None else {within: held, "epoch": 3}, tmp_path / "theirs.pth")
    ours = begun(tmp_path / "theirs.pth", ids=IDS)
    assert_equal(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_safetensors_without_our_header_and_files_without_counters_are_taken(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=5).state_dict()
    without = {name: t for name, t in theirs.items() if "num_batches_tracked" not in name}
    safetensors.torch.save_file(without, tmp_path / "model.safetensors")
    net = begun(tmp_path / "model.safetensors")
    assert torch.equal(net.fc.weight, theirs["fc.weight"])
    assert net.bn1.num_batches_tracked == 0


def test_layout_and_what_trains_are_kept(tmp_path):
    write(tmp_path / "w.safetensors", 1)
    frozen = Model(arch="resnet18", num_classes=5, train_only="classifier-and-last-bn")
    net = begun(tmp_path / "w.safetensors", frozen)
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_classes": 7}, "tells 7 classes apart, and the run has 5; a run begins from weights"),
        ({"arch": "resnet34"}, r"with model.arch resnet34, and the run has resnet18; give --model"),
        ({"stem": "small"}, r"with model.stem small, and the run has imagenet"),
        ({"blurpool": "convs"}, r"with model.blurpool convs, and the run has none"),
    ],
)
def test_another_network_is_refused_with_what_differs(tmp_path, change, reason):
    model = Model(**({"arch": "resnet18", "num_classes": 5} | change))
    classes = [(f"n{i}", "") for i in range(model.num_classes)]
    write(tmp_path / "w.safetensors", 1, model, classes)
    with pytest.raises(UsageError, match=reason):
        begun(tmp_path / "w.safetensors")


def test_other_classes_or_another_order_of_them_are_refused(tmp_path):
    write(tmp_path / "w.safetensors", 1)
    with pytest.raises(UsageError, match=r"is of other classes \(n0, n1, n2 …\) than the data"):
        begun(tmp_path / "w.safetensors", ids=IDS[::-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda held: held.pop("conv1.weight"),
            r"it lacks conv1\.weight; give weights of the same",
        ),
        (lambda held: held.update(more=torch.ones(2)), "it has besides more"),
        (
            lambda held: held.update({"conv1.weight": torch.ones(64, 3, 3, 3)}),
            r"it has another shape of conv1\.weight",
        ),
        (lambda held: held["fc.bias"].fill_(float("nan")), "not finite numbers"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(tmp_path, change, reason):
    held = torchvision.models.resnet18(num_classes=5).state_dict()
    change(held)
    torch.save(held, tmp_path / "theirs.pth")
    before = build(MODEL, seed=99)
    net = build(MODEL, seed=99)
    with pytest.raises((UsageError, DataError), match=reason):
        pretrained.begin(net, pretrained.read(tmp_path / "theirs.pth"), MODEL)
    assert_equal(net, before)


def test_what_is_no_weights_is_refused(tmp_path):
    with pytest.raises(DataError, match="which does not exist; give a weights file or the folder"):
        pretrained.read(tmp_path / "absent.pth")
    with pytest.raises(DataError, match="a folder without weights"):
        pretrained.read(tmp_path)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    torch.save({"args": argparse.Namespace(lr=1), "model": {}}, tmp_path / "objects.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"lr": 0.1}}, tmp_path / "numbers.pth")
    for name in ("empty.pth", "noise.safetensors", "objects.pth", "list.pth", "numbers.pth"):
        with pytest.raises(DataError, match=rf"{name} holds no weights to begin from") as caught:
            pretrained.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(tmp_path):
    write(tmp_path / "w.safetensors", 1)
    content = (tmp_path / "w.safetensors").read_bytes()
    for length in (4, 100, len(content) - 1):
        (tmp_path / "w.safetensors").write_bytes(content[:length])
        with pytest.raises(DataError, match="holds no weights to begin from"):
            pretrained.read(tmp_path / "w.safetensors")
