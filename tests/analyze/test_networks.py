import pytest
import safetensors.torch
import torch
import torchvision

from analyze.run_folders import IMAGES, write_run, write_weights
from rn50.analyze import networks
from rn50.data.sources.base import ClassName
from rn50.data.sources.wnids import imagenet_wnids
from rn50.errors import DataError, UsageError

TEN = [ClassName(f"c{i}", f"class {i}") for i in range(10)]


def test_of_a_run_the_model_is_taken_and_its_averages_come_along(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, "model", "average", "swa", "best")
    found = networks.find(run, "auto")
    assert (found.name, list(found.others)) == ("model", ["average", "swa"])
    assert found.run is not None
    assert found.run.model.arch == "resnet18"
    assert found.is_trained
    assert found.weights.images == IMAGES
    average = networks.find(run, "average")
    assert (average.name, list(average.others)) == ("average", ["model", "swa"])
    assert average.weights.about["network"] == "average"
    assert networks.find(run, "best").weights.about["network"] == "best"


def test_a_run_that_saved_its_best_alone_is_analysed_by_that(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, "best")
    assert networks.find(run, "auto").name == "best"


def test_a_network_that_the_run_lacks_is_refused_with_those_it_has(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, "model", "average")
    with pytest.raises(UsageError, match=r"has no swa.safetensors; it has model, average: choose"):
        networks.find(run, "swa")


def test_a_run_without_weights_has_an_architecture(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset)
    found = networks.find(run, "auto")
    assert not found.is_trained
    assert found.weights.model.num_classes == 4
    assert "has no weights yet" in found.notes[0]
    with pytest.raises(UsageError, match=r"network is swa, but .* has no weights yet"):
        networks.find(run, "swa")


def test_weights_without_the_settings_of_their_run_are_enough(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, "model")
    (run / "config.json").write_text("{")
    assert networks.find(run, "auto").run is None


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no run: neither weights nor config.json"):
        networks.find(tmp_path, "auto")
    with pytest.raises(DataError, match=r"there is no .*gone to analyse"):
        networks.find(tmp_path / "gone", "auto")


def test_a_file_is_one_network(dataset, tmp_path):
    run = write_run(tmp_path / "run", dataset, "model", "average")
    found = networks.find(run / "average.safetensors", "auto")
    assert (found.name, found.others) == ("average", {})
    assert found.weights.class_ids == tuple(c.id for c in dataset.classes)
    with pytest.raises(UsageError, match="no folder of a run; give the run's folder"):
        networks.find(run / "average.safetensors", "model")


def test_weights_of_a_run_that_diverged_are_refused(dataset, tmp_path):
    file = tmp_path / "model.safetensors"
    write_weights(file, dataset, seed=0, network="model")
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    tensors["fc.bias"][1] = float("nan")
    safetensors.torch.save_file(tensors, file, metadata)
    with pytest.raises(DataError, match="not finite numbers; its run diverged"):
        networks.find(file, "auto")


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_a_file_of_torchvision_is_known_by_its_shapes(arch, tmp_path):
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, arch)(num_classes=10).eval()
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    found = networks.find(tmp_path / "checkpoint.pth", "auto", TEN)
    assert found.weights.model.arch == arch
    assert found.weights.class_ids[:2] == ("c0", "c1")
    assert "tells neither its classes nor how images are prepared" in found.notes[0]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(found.weights.net(x), theirs(x), atol=1e-4)


def test_a_thousand_outputs_are_imagenets_and_others_have_numbers(tmp_path):
    for outputs, name in ((1000, imagenet_wnids()[0]), (7, "output 0")):
        net = torchvision.models.resnet18(num_classes=outputs)
        safetensors.torch.save_file(net.state_dict(), tmp_path / f"{outputs}.safetensors")
        found = networks.find(tmp_path / f"{outputs}.safetensors", "auto", TEN)
        assert len(found.weights.class_ids) == outputs
        assert found.weights.class_ids[0] == name


def test_weights_of_other_networks_are_refused(tmp_path):
    net = torchvision.models.mobilenet_v3_small()
    torch.save(net.state_dict(), tmp_path / "mobile.pth")
    with pytest.raises(DataError, match="no network that rn50 knows; give those of resnet18"):
        networks.find(tmp_path / "mobile.pth", "auto")
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(DataError, match="holds no weights to begin from"):
        networks.find(tmp_path / "text.pth", "auto")
