import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from analyze.colours import NAMES, squares, weights
from rn50.analyze import gallery, pointing
from rn50.analyze.section import Section
from rn50.config import Images, Model
from rn50.data.demo import DemoSource
from rn50.data.loader import Loader
from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.base import ClassName, Skipped, SourceImage
from rn50.errors import UsageError
from rn50.model.resnet import build
from rn50.model.weights import Weights

PX = 128


class Squares:
    """JPEGs of black with a square of the class's colour."""

    kind = "squares"
    skipped = Skipped()

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.names = names
        self.classes = tuple(ClassName(name, name) for name in sorted(names))

    def count(self) -> int:
        return 4 * len(self.names)

    def images(self):
        for split, per_class in (("train", 1), ("val", 3)):
            for label, name in enumerate(self.names):
                for i in range(per_class):
                    place = (10 * i + 8 * label, 50 - 20 * i)
                    pixels = squares(PX, [place], [label], 60)[0].permute(1, 2, 0).numpy()
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
                    path = f"{split}/{name}/{i}.jpg"
                    yield SourceImage(split, name, path, file.getvalue)


@pytest.fixture(scope="module")
def loader():
    with Loader(torch.device("cpu"), workers=1, prefetch=1) as made:
        yield made


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("squares") / "packed"
    pack(Squares(), folder)
    return PackedDataset.open(folder).with_classes([ClassName(name, name) for name in NAMES])


def check_pictures(section: Section, names: list[str]) -> None:
    assert [picture.name for picture in section.pictures] == names
    for picture in section.pictures:
        assert picture.markdown in section.markdown
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.format == "PNG"
            assert image.width >= 800
            assert np.asarray(image.convert("L")).std() > 10
    assert json.loads(json.dumps(section.facts)) == section.facts


def test_a_network_that_looks_at_colours_wins_every_grid(coloured, loader):
    section = pointing.section(weights(PX), coloured, loader=loader, layer="layer4")
    grids = section.facts["grids"]
    assert (grids["grids"], grids["px"], grids["layer"]) == (3, 2 * PX, "layer4")
    trained, untrained = (grids["scores"][name] for name in ("this network", "untrained"))
    assert trained["hits"] == 1.0
    assert trained["mass"] > 0.9
    assert untrained["hits"] < 0.7
    assert "| this network | 100.0% |" in section.markdown
    assert "3 grids, 12 maps" in section.markdown
    assert "objects" not in section.facts
    check_pictures(section, ["grids.png"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("demo") / "packed"
    pack(DemoSource(train_per_class=1, val_per_class=2), folder)
    return PackedDataset.open(folder)


def untrained(dataset: PackedDataset) -> Weights:
    model = Model(arch="resnet18", num_classes=len(dataset.classes), zero_init_residual=False)
    images = Images(batch_size=8, train_px=64, test_px=64, test_resize_px=72)
    ids = tuple(c.id for c in dataset.classes)
    return Weights(build(model, seed=3).eval(), model, images, ids, ids, {})


def test_demo_data_has_objects_to_point_at_and_an_untrained_network_is_no_better_than_chance(
    demo, loader
):
    section = pointing.section(untrained(demo), demo, loader=loader)
    facts = section.facts["objects"]
    assert (facts["images"], facts["px"], facts["layer"]) == (20, 64, "layer3")
    chance = facts["scores"]["a place at random"]
    assert 0.3 < chance["hits"] < 0.7
    assert 0.3 < chance["mass"] < 0.7
    assert chance["near_box"] > chance["hits"]
    assert facts["scores"]["this network"]["hits"] < chance["hits"] + 0.3
    assert "up to 15 px from it in an image of 224 px (4.3 px here)" in section.markdown
    assert section.pictures[-1].name == "pointing.png"
    check_pictures(section, [picture.name for picture in section.pictures])


def test_without_a_grid_the_cause_that_holds_is_told(coloured, loader, tmp_path):
    pack(Squares(NAMES[:2]), tmp_path)
    every = [ClassName(name, name) for name in NAMES]
    few = PackedDataset.open(tmp_path).with_classes(every)
    section = pointing.section(weights(PX), few, loader=loader, layer="layer4")
    assert section.facts["grids"]["grids"] == 0
    assert "classes, each classified right; those looked at are of 2." in section.markdown
    wrong = weights(PX)
    with torch.no_grad():
        wrong.net.fc.bias[1] = 1e6
    section = pointing.section(wrong, coloured, loader=loader, layer="layer4")
    assert "of the 12 looked at, 3 are classified right, of 1 classes" in section.markdown


def test_limit_takes_images_from_all_of_the_split(demo, loader):
    section = pointing.section(untrained(demo), demo, loader=loader, limit=5)
    assert section.facts["objects"]["images"] == 5


def test_a_wrong_layer_is_refused(demo, coloured, loader):
    with pytest.raises(UsageError, match="layer is 'layer9', which the network has not; give a"):
        pointing.section(untrained(demo), demo, loader=loader, layer="layer9")
    with pytest.raises(UsageError, match="layer is 'fc', whose output has no places; give a"):
        gallery.section(weights(PX), squares(PX, [(0, 0)], [0], 50), torch.tensor([0]), layer="fc")


def test_the_gallery_shows_right_and_wrong_answers():
    labels = [0, 1, 2, 3] * 5
    places = [(3 * i, 60 - 3 * i) for i in range(20)]
    images = squares(PX, places, labels, 50)
    told = torch.tensor(labels)
    told[[3, 8]] = torch.tensor([1, 3])  # said to be of other classes: so the network is wrong
    section = gallery.section(weights(PX), images, told)
    facts = section.facts
    assert (facts["layer"], facts["cells"], facts["target"]) == ("layer4", [4, 4], None)
    assert len(facts["right"]) == gallery.RIGHT
    assert {one["true"] for one in facts["right"]} == set(NAMES)
    assert all(one["true"] == one["predicted"] for one in facts["right"])
    assert sorted((one["true"], one["predicted"]) for one in facts["wrong"]) == [
        ("green", "yellow"),
        ("yellow", "red"),
    ]
    surest = [one["confidence"] for one in facts["wrong"]]
    assert surest == sorted(surest, reverse=True)
    assert all(one["true_probability"] < one["confidence"] for one in facts["wrong"])
    assert "of `layer4`, whose map has 4 × 4 values for 128 × 128 px" in section.markdown
    check_pictures(section, ["gradcam-right.png", "gradcam-wrong.png"])


def test_the_gallery_shows_any_class_and_says_where_nothing_is_wrong():
    labels = torch.tensor([0, 1, 2, 3])
    images = squares(PX, [(20, 20)] * 4, labels.tolist(), 80)
    section = gallery.section(weights(PX), images, labels, layer="layer3.1", target=2)
    assert section.facts["target"] == "blue"
    assert "the map of the class *blue* over it" in section.markdown
    assert "None of the 4 images looked at is classified wrong." in section.markdown
    check_pictures(section, ["gradcam-right.png"])


def test_of_many_classes_the_gallery_takes_some_from_beginning_to_end():
    labels = torch.arange(60) % 40
    answers = gallery.Answers(labels, labels, torch.eye(40)[labels])
    chosen = labels[gallery.shown_right(answers)].tolist()
    assert chosen == sorted(set(chosen))
    assert (len(chosen), chosen[0], chosen[-1]) == (gallery.RIGHT, 0, 39)
    assert not len(gallery.shown_wrong(answers))
