import json

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision

from rn50.config import Images, Model
from rn50.errors import DataError
from rn50.model import weights
from rn50.model.resnet import build

MODEL = Model(arch="resnet18", num_classes=3)
IMAGES = Images(batch_size=8, train_px=32, test_px=40, test_resize_px=48, crop_area=(0.3, 1.0))
CLASSES = [("n1", "ant"), ("n2", "bee"), ("n3", "cat")]
NET = build(MODEL, seed=1)


def write(path, **changes):
    header = weights.header(
        model=MODEL, images=IMAGES, classes=CLASSES, about={"recipe": "demo", "step": 12}
    )
    weights.save(path, NET.state_dict(), header | changes)


def test_weights_are_read_back_as_they_were_written(tmp_path):
    write(tmp_path / "model.safetensors")
    read = weights.load(tmp_path / "model.safetensors")
    assert read.model == MODEL
    assert read.images == IMAGES
    assert read.class_ids == ("n1", "n2", "n3")
    assert read.class_names == ("ant", "bee", "cat")
    assert read.about == {"recipe": "demo", "step": 12}
    assert not read.net.training
    expected = NET.state_dict()
    assert list(read.net.state_dict()) == list(expected)
    assert all(torch.equal(t, expected[name]) for name, t in read.net.state_dict().items())


def test_torchvisions_network_loads_the_file_strictly(tmp_path):
    write(tmp_path / "w.safetensors")
    theirs = torchvision.models.resnet18(num_classes=3).eval()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), NET.eval()(images))


def test_the_header_says_what_is_needed_to_use_the_weights(tmp_path):
    write(tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata["rn50"])
    assert told["model"]["arch"] == "resnet18"
    assert told["images"]["test_resize_px"] == 48
    assert told["class_names"] == ["ant", "bee", "cat"]


def test_the_same_weights_are_the_same_bytes(tmp_path):
    written = set()
    for _ in range(8):
        write(tmp_path / "w.safetensors")
        written.add((tmp_path / "w.safetensors").read_bytes())
    assert len(written) == 1


def test_the_layout_of_the_weights_survives(tmp_path):
    write(tmp_path / "w.safetensors")
    read = weights.load(tmp_path / "w.safetensors").net
    assert read.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path)
    write(path, about={"step": 13})
    assert weights.load(path).about == {"step": 13}
    assert list(tmp_path.iterdir()) == [path]


def refusal(path) -> str:
    with pytest.raises(DataError) as caught:
        weights.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_missing_file_is_named(tmp_path):
    assert "there is no weights file" in refusal(tmp_path / "absent.safetensors")


def test_a_folder_is_not_a_weights_file(tmp_path):
    assert "is not a whole weights file" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_a_file_that_was_cut_off_is_refused(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a whole weights file" in refusal(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    torch.save({"a": torch.zeros(3)}, path)
    assert "is not a whole weights file" in refusal(path)


def test_weights_that_others_wrote_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path)
    assert "does not say which network it is for" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"arch": "resnet18", "num_classes": 5}},
        {"model": {"arch": "resnet50", "num_classes": 3}},
        {"model": {"arch": "vgg16"}},
        {"model": {"arch": "resnet18", "num_classes": 3, "depth": 9}},
        {"model": None},
        {"images": {}},
        {"images": 3},
        {"class_ids": None},
        {"about": 3},
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change):
    path = tmp_path / "w.safetensors"
    write(path, **change)
    assert "is not a whole weights file" in refusal(path)


def test_a_header_without_a_part_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, NET.state_dict(), {"about": {}})
    assert "is not a whole weights file" in refusal(path)


@pytest.mark.parametrize("told", ["{", "[]", "3", '"x"'])
def test_a_header_that_is_no_json_object_is_refused(tmp_path, told):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, metadata={"rn50": told})
    assert "is not a whole weights file" in refusal(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_is_seen(bad):
    net = build(MODEL, seed=0)
    assert weights.all_finite(net)
    net.layer4[1].bn2.running_var[7] = bad
    assert not weights.all_finite(net)
