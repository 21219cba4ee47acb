import json

import numpy as np
import pytest
import torch
from torch import nn

from rn50.train import histograms


@pytest.mark.parametrize("shape", [(1000,), (64, 3, 7, 7)])
def test_a_histogram_is_numpys(shape):
    # Multiples of 1/8 in a range of 32: no value lies within rounding of a border.
    values = torch.randint(-124, 124, shape) / 8 + 1 / 16
    values.view(-1)[0], values.view(-1)[1] = -16.0, 16.0
    found = histograms.of(values)
    counts, edges = np.histogram(values.numpy(), bins=histograms.BINS)
    assert found["counts"] == counts.tolist()
    assert (found["low"], found["high"]) == (edges[0], edges[-1])


def test_values_that_are_all_the_same_have_a_range_of_one():
    found = histograms.of(torch.full((10,), 3.0))
    assert (found["low"], found["high"], sum(found["counts"])) == (2.5, 3.5, 10)
    assert found["counts"][histograms.BINS // 2] == 10


def test_histograms_come_before_the_epochs_asked_for():
    written = []
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    write = histograms.told(written.append, net, 2)
    for epoch in (1, 2, 3, 4):
        write({"kind": "train", "step": epoch * 5, "epoch": epoch})
        write({"kind": "epoch", "step": epoch * 5, "epoch": epoch})
    alone, with_it = ["train", "epoch"], ["train", "histograms", "epoch"]
    kinds = [one["kind"] for one in written]
    assert kinds == [*alone, *with_it, *alone, *with_it]
    record = next(one for one in written if one["kind"] == "histograms")
    assert record["step"] == 10
    assert list(record["weights"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert sum(record["weights"]["0.weight"]["counts"]) == 6
    json.dumps(record)


def test_without_being_asked_nothing_is_recorded_or_wrapped():
    written = []
    assert histograms.told(written.append, nn.Linear(1, 1), 0) == written.append
