from dataclasses import replace

import pytest

from rn50.analyze import resolutions
from rn50.analyze.predictions import Scores
from rn50.analyze.resolutions import AtSize, default_sizes
from rn50.config import Images
from rn50.errors import UsageError
from rn50.evaluate import at_size


def images(**sides):
    return Images(batch_size=8, **sides)


@pytest.mark.parametrize(
    ("sides", "classes", "expected"),
    [
        ({}, 1000, (224, 256, 288)),
        ({"train_px": 176}, 1000, (176, 224, 256, 288)),
        ({"sizes": ((0, 128), (5, 192))}, 1000, (192, 224, 256, 288)),
        ({"train_px": 192, "test_px": 256}, 1000, (192, 224, 256, 288, 320)),
        ({"train_px": 192, "test_px": 256}, 100, (192, 256, 288, 320)),
        ({"train_px": 288, "test_px": 288}, 1000, (224, 288, 320, 384)),
        ({"train_px": 64, "test_px": 64, "test_resize_px": 72}, 1000, (64, 72, 80)),
        ({"train_px": 32, "test_px": 32, "test_resize_px": 32}, 10, (32, 40)),
    ],
)
def test_sizes_are_of_training_of_larger_tests_and_of_published_figures(sides, classes, expected):
    sides = {"test_resize_px": sides.get("test_px", 224) + 32, **sides}
    assert default_sizes(images(**sides), classes) == expected


def test_the_crop_keeps_its_share_of_the_image():
    own = images()
    assert at_size(own, 224) is own
    larger = at_size(own, 288)
    assert (larger.test_px, larger.test_resize_px) == (288, 329)
    assert (larger.mean, larger.train_px) == (own.mean, own.train_px)
    whole = images(train_px=32, test_px=32, test_resize_px=32)
    assert at_size(whole, 40).test_resize_px == 40


@pytest.mark.parametrize("px", [-1, 0, 7, 2049])
def test_a_side_that_is_none_is_refused(px):
    with pytest.raises(UsageError, match=f"px is {px}; a test size has 8 to 2048 pixels"):
        at_size(images(), px)


def row(px, top1, flipped):
    plain = Scores(images=10_000, top1=top1, top5=0.9, loss=1.0)
    return AtSize(px, px + 32, plain, Scores(10_000, flipped, 0.92, 0.9))


def test_the_best_size_and_the_gain_of_the_flip_are_told_apart():
    found = resolutions.section(
        [row(192, 0.70, 0.71), row(224, 0.75, 0.76), row(288, 0.77, 0.775)],
        images(train_px=192),
    )
    assert "| 192 (training) | 224 | 70.00% ± 0.46% | 90.00% | 1.0000 | 71.00% |" in found.markdown
    assert "| 224 (test) | 256 |" in found.markdown
    assert "Best at 288 px, +2.00 percentage points against 224 px" in found.markdown
    assert "gives +1.00 percentage points at 224 px" in found.markdown
    sizes = {size["px"]: size for size in found.facts["sizes"]}
    assert sizes[224]["top1"] == 0.75
    assert sizes[224]["flip"]["top1"] == 0.76
    assert sizes[224]["top1_standard_error"] == pytest.approx((0.75 * 0.25 / 10_000) ** 0.5)
    assert [p.name for p in found.pictures] == ["sizes.png"]


def test_other_networks_of_the_run_stand_beside_it_at_every_size():
    average = Scores(images=10_000, top1=0.8, top5=0.95, loss=0.9)
    rows = [replace(row(px, 0.7, 0.71), others={"average": average}) for px in (224, 288)]
    found = resolutions.section(rows, images())
    assert "| 288 | 80.00% ± 0.40% |" in found.markdown
    assert [size["others"]["average"]["loss"] for size in found.facts["sizes"]] == [0.9, 0.9]


def test_one_size_alone_is_compared_with_nothing():
    found = resolutions.section([row(224, 0.75, 0.76)], images())
    assert found.pictures == ()
    assert "Best at" not in found.markdown
    assert "224 (training, test)" in found.markdown
