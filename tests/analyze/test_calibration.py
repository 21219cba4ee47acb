import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from analyze.seen import answered, drawn, seen_of
from rn50.analyze import calibration
from rn50.analyze.calibration import accuracy_above, calibrate


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_the_expected_error_is_that_of_torchmetrics(classes, num_bins):
    logits, labels = drawn(2000, classes)
    seen = seen_of(logits, labels)
    assert seen.confidence.max() < 1  # of which torchmetrics makes a bin of its own
    got = calibrate(seen.confidence, seen.correct, num_bins)
    for norm, mine in (("l1", got.expected_error), ("max", got.maximum_error)):
        expected = multiclass_calibration_error(
            logits.softmax(1), labels, classes, n_bins=num_bins, norm=norm
        )
        assert mine == pytest.approx(float(expected), abs=2e-6)
    assert got.counts.sum() == 2000


@pytest.mark.parametrize(("right", "expected"), [([1, 1, 1, 1], 0.2), ([0, 0, 0, 0], 0.8)])
def test_all_right_and_all_wrong(right, expected):
    got = calibrate(np.full(4, 0.8), np.array(right, bool))
    assert got.expected_error == pytest.approx(expected)
    assert got.maximum_error == pytest.approx(expected)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_1_to_the_last():
    got = calibrate(np.array([0.0, 0.5, 0.500001, 1.0]), np.ones(4, bool), 2)
    assert got.counts.tolist() == [2, 2]
    assert got.expected_error == pytest.approx((2 * 0.75 + 2 * 0.25) / 4, abs=1e-6)


def test_bins_are_told_with_what_is_in_them():
    got = calibrate(np.array([0.1, 0.15, 0.9]), np.array([True, False, True]), 4)
    assert got.counts.tolist() == [2, 0, 0, 1]
    assert got.accuracy[0] == 0.5
    assert got.confidence[0] == pytest.approx(0.125)
    assert np.isnan(got.accuracy[1:3]).all()


def test_accuracy_above_a_confidence():
    rows = accuracy_above(np.array([0.2, 0.6, 0.9]), np.array([False, False, True]), (0, 0.5, 0.95))
    assert rows == [(0, 3, pytest.approx(1 / 3)), (0.5, 2, 0.5), (0.95, 0, None)]


@pytest.mark.parametrize(
    ("scale", "verdict"), [(0.2, "underconfident"), (9.0, "overconfident"), (1.0, "as sure")]
)
def test_a_section_tells_over_from_underconfidence(scale, verdict):
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 6)
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]  # calibrated by construction
    seen = seen_of(scale * logits, labels)
    found = calibration.section(seen)
    assert f": {verdict}" in found.markdown
    assert found.facts["negative_log_likelihood"] == seen.scores.loss
    assert found.facts["mean_confidence"] == pytest.approx(float(seen.confidence.mean()), abs=1e-6)
    assert [p.name for p in found.pictures] == ["reliability.png", "confidence.png"]
    assert sum(b["images"] for b in found.facts["bins"]) == 4000
    if scale == 1.0:
        assert found.facts["expected_calibration_error"] < 0.03


@pytest.mark.parametrize("predicted", [[0, 1], [1, 0]])
def test_two_images_are_enough_for_a_section(predicted):
    assert calibration.section(answered([0, 1], predicted, 2)).pictures
