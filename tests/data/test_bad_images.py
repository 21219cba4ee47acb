"""What a run tells of bad images: each once, in any process, and again only after going back."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from data.test_substitutes import IMAGES, damage
from rn50.config import Storage
from rn50.data.bad_images import BadImages
from rn50.data.loader import Loader
from rn50.data.plan import TrainPlan
from rn50.data.shards import PackedDataset
from rn50.distributed import Group
from rn50.errors import DataError

SKIP = Storage(on_bad_image="skip", max_bad_images=0.1)


@pytest.fixture
def data(packed, tmp_path) -> PackedDataset:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    for image in (3, 30, 31):
        damage(folder, "train", image)
    return PackedDataset.open(folder)


def register(data: PackedDataset, storage: Storage = SKIP):
    told = []
    return BadImages(storage, data.classes, Group(), told.append), told


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def train(bad: BadImages, data: PackedDataset, start: int, stop: int) -> list[list[int]]:
    split = data.split("train")
    plan = TrainPlan(images=IMAGES, seed=0, widths=split.widths, heights=split.heights)
    with Loader(torch.device("cpu"), workers=2, prefetch=2) as loader:
        return [b.bad.tolist() for b in bad.batches(loader, split, plan, stop, start)]


def test_an_image_is_told_once_with_its_place_and_the_counts_of_its_class(data):
    bad, told = register(data)
    split = data.split("train")
    bad.met(split, 4, ids(30, 3))
    bad.met(split, 5, ids(30, 31))
    bad.met(split, 6, ids())
    shard, offset = split.place(30)
    assert told[1] == {
        "kind": "bad_image",
        "step": 4,
        "split": "train",
        "image": 30,
        "key": split.key(30),
        "shard": shard,
        "offset": offset,
        "class": "bee",
        "class_count": 1,
        "count": 2,
    }
    assert [(r["image"], r["step"]) for r in told] == [(3, 4), (30, 4), (31, 5)]
    assert [(r["class"], r["class_count"], r["count"]) for r in told] == [
        ("ant", 1, 1),
        ("bee", 1, 2),
        ("bee", 2, 3),
    ]
    json.dumps(told)


def test_the_splits_are_counted_apart(data):
    bad, told = register(data)
    bad.met(data.split("train"), 1, ids(30))
    bad.met(data.split("val"), 1, ids(30))
    assert [(r["split"], r["count"]) for r in told] == [("train", 1), ("val", 1)]


def test_a_batch_is_told_of_before_it_is_handed_on_with_the_step_that_it_will_be(data):
    bad, told = register(data)
    met = train(bad, data, 0, 8)
    first = {i: step for step in range(8, 0, -1) for i in met[step - 1]}
    assert first.keys() == {3, 30, 31}
    assert {r["image"]: r["step"] for r in told} == first


def test_a_run_that_resumes_tells_what_the_record_lacks(data, tmp_path):
    bad, told = register(data)
    train(bad, data, 0, 8)
    at = told[0]["step"]
    kept = [r for r in told if r["step"] <= at]
    assert len(kept) < len(told)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [{"kind": "start", "step": 0}, *kept]))
    again, rest = register(data)
    again.recall(path)
    train(again, data, at, 8)
    assert kept + rest == told


def test_a_run_that_goes_back_tells_again_of_what_came_after(data):
    bad, told = register(data)
    train(bad, data, 0, 8)
    first = list(told)
    at = told[0]["step"]
    train(bad, data, at, 8)
    assert told[len(first) :] == [r for r in first if r["step"] > at]


def test_more_than_the_limit_is_an_error_and_the_limit_is_not(data):
    split = data.split("train")
    bad, told = register(data, Storage(on_bad_image="skip", max_bad_images=2 / 96))
    bad.met(split, 1, ids(30, 31))
    match = (
        r"3 of 96 train images cannot be decoded; storage\.max_bad_images allows 0\.0208.*verify"
    )
    with pytest.raises(DataError, match=match):
        bad.met(split, 2, ids(3))
    assert len(told) == 3


def test_the_default_allows_one_in_a_thousand():
    assert Storage().max_bad_images == 0.001
    assert Storage().on_bad_image == "error"


def test_without_skipping_a_bad_image_is_an_error_and_nothing_is_told(data):
    bad, told = register(data, Storage())
    with pytest.raises(DataError, match="cannot decode"):
        train(bad, data, 0, 8)
    assert told == []
    assert bad.in_evaluation(data.split("val"), 1) is None


class Together(Group):
    """Two processes as two threads, which add what they bring."""

    __slots__ = ()
    shared: dict = {}  # noqa: RUF012 (one meeting place)
    barrier = threading.Barrier(2)

    def sum(self, counts):
        self.shared[self.rank] = counts
        self.barrier.wait(10)
        total = self.shared[0] + self.shared[1]
        self.barrier.wait(10)
        return total


def test_what_one_process_meets_all_know_and_the_first_tells(data):
    split = data.split("train")
    told = [[], []]
    counted = [[], []]
    met = [[ids(30), ids(), ids(3)], [ids(31), ids(30), ids()]]

    def process(rank: int) -> None:
        group = Together(rank=rank, world_size=2)
        bad = BadImages(
            Storage(on_bad_image="skip", max_bad_images=2 / 96),
            data.classes,
            group,
            (told[rank].append),
        )
        for step, found in enumerate(met[rank], 1):
            try:
                bad.met(split, step, found)
                counted[rank].append("allowed")
            except DataError:
                counted[rank].append("too many")

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(r["image"], r["step"]) for r in told[0]] == [(30, 1), (31, 1), (3, 3)]
    assert told[1] == []
    assert counted == [["allowed", "allowed", "too many"]] * 2
