"""The thousand classes are those of ImageNet, in the order of every 1,000-class model."""

import pytest
from torchvision.models import ResNet50_Weights

from rn50.data.sources.published import IMAGENETTE, IMAGEWOOF
from rn50.data.sources.wnids import WNID, class_names, imagenet_wnids

KNOWN = {
    "n01440764": (0, "tench"),
    "n02012849": (134, "crane bird"),
    "n03126707": (517, "crane"),
    "n03710637": (638, "maillot"),
    "n15075141": (999, "toilet tissue"),
}


def test_there_are_a_thousand_in_sorted_order():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert all(WNID.fullmatch(wnid) for wnid in wnids)


@pytest.mark.parametrize("wnid", KNOWN)
def test_ids_names_and_indices_belong_together(wnid):
    index, name = KNOWN[wnid]
    assert imagenet_wnids().index(wnid) == index
    (found,) = class_names([wnid])
    assert found.name == name == ResNet50_Weights.IMAGENET1K_V2.meta["categories"][index]


def test_the_ten_classes_of_imagenette_are_found_among_the_thousand():
    places = [imagenet_wnids().index(wnid) for wnid in IMAGENETTE]
    assert places == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def test_the_ten_classes_of_imagewoof_are_dogs():
    assert all(151 <= imagenet_wnids().index(wnid) <= 275 for wnid in IMAGEWOOF)


def test_a_name_that_the_source_tells_comes_first():
    names = {c.id: c.name for c in class_names(["n02012849", "ant"], {"n02012849": "a crane"})}
    assert names == {"n02012849": "a crane", "ant": "ant"}
