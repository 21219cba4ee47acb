"""Point 9 of what a run promises: an image that goes bad in the middle of a data set."""

import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from contract import runs
from contract.test_processes import without_batch_norm
from rn50.data.shards import PackedDataset
from rn50.observe import record

SKIP = ("--on-bad-image", "skip", "--storage.max-bad-images", "0.05", "--epochs", "2")
BAD_TRAIN, BAD_VAL = (30, 31, 70), (20,)


def damage(folder: Path, split: str, image: int) -> None:
    data = PackedDataset.open(folder).split(split)
    shard, offset = data.place(image)
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(int(data.index["length"][image])))


@pytest.fixture(scope="module")
def damaged(packed, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(packed, tmp_path_factory.mktemp("damaged") / "data"))
    for split, images in (("train", BAD_TRAIN), ("val", BAD_VAL)):
        for image in images:
            damage(folder, split, image)
    return folder


def told(place: Path) -> list[record.Record]:
    return [r for r in record.read(place / "metrics.jsonl") if r["kind"] == "bad_image"]


@pytest.fixture(scope="module")
def skipped(damaged, tmp_path_factory) -> tuple[Path, str]:
    place = tmp_path_factory.mktemp("runs") / "skipped"
    return place, runs.finish(runs.command(damaged, place, *SKIP))


@pytest.mark.slow
def test_a_bad_image_ends_a_run_that_names_it_and_the_ways_on(damaged, tmp_path):
    place = tmp_path / "run"
    output = runs.finish(runs.command(damaged, place), code=3)
    error = output.splitlines()[-1]
    train = PackedDataset.open(damaged).split("train")
    named = re.search(r"cannot decode (\S+ \(train-\d{6}\.tar at byte \d+\)): its bytes are", error)
    assert named
    assert named[1] in {train.describe(i) for i in BAD_TRAIN}
    assert f"run `rn50 verify {damaged}`" in error
    assert "--resume --on-bad-image skip" in error
    runs.finish(runs.command(damaged, place, *SKIP, "--resume", "--allow-change", "epochs"))
    assert len(told(place)) == 4


@pytest.mark.slow
def test_bad_images_are_skipped_recorded_once_and_counted_by_class(damaged, skipped):
    place, output = skipped
    splits = {name: PackedDataset.open(damaged).split(name) for name in ("train", "val")}
    records = told(place)
    assert [(r["split"], r["image"]) for r in records if r["split"] == "val"] == [("val", 20)]
    assert sorted(r["image"] for r in records if r["split"] == "train") == list(BAD_TRAIN)
    for r in records:
        split = splits[r["split"]]
        assert (r["shard"], r["offset"]) == split.place(r["image"])
        assert r["key"] == split.key(r["image"])
        assert output.count(f"cannot decode {split.describe(r['image'])}") == 1
    in_training = [r for r in records if r["split"] == "train"]
    assert [r["count"] for r in in_training] == [1, 2, 3]
    classes = {"bee": 0, "cat": 0}
    for r in in_training:
        classes[r["class"]] += 1
        assert r["class_count"] == classes[r["class"]]
    assert classes == {"bee": 2, "cat": 1}
    log = (place / "training_log.md").read_text()
    assert "could not be decoded: 2 train of bee, 1 " in log


@pytest.mark.slow
def test_scores_keep_every_image_in_the_denominator_and_a_bad_one_is_wrong(skipped):
    place, _ = skipped
    epochs = [r for r in record.read(place / "metrics.jsonl") if r["kind"] == "epoch"]
    for r in epochs:
        assert r["val"]["model"]["images"] == 36
        assert r["val"]["model"]["top5"] == pytest.approx(35 / 36)  # of four classes: all but it


@pytest.mark.long
def test_a_killed_run_over_bad_images_resumes_bit_identically(damaged, skipped, tmp_path):
    whole, _ = skipped
    killed = tmp_path / "killed"
    words = runs.command(damaged, killed, *SKIP, "--resume")
    runs.kill_at(words, killed, 5)
    runs.finish(words)
    runs.assert_same_end(whole, killed)
    assert len(told(killed)) == 4


@pytest.mark.long
def test_workers_do_not_change_the_substitutes(damaged, skipped, tmp_path):
    whole, _ = skipped
    place = tmp_path / "workers"
    runs.finish(runs.command(damaged, place, *SKIP, "--workers", "5"))
    runs.assert_same_end(whole, place)


@pytest.mark.long
def test_processes_and_micro_batches_train_on_the_same_substitutes(damaged, tmp_path):
    weights, records = [], []
    for processes, more in ((1, ()), (2, ("--micro-batch", "4"))):
        place = tmp_path / str(processes)
        words = runs.command(damaged, place, *SKIP, *more, processes=processes)
        runs.finish(without_batch_norm(words))
        weights.append(safetensors.torch.load_file(place / "model.safetensors"))
        records.append(told(place))
    assert records[0] == records[1]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=2e-4, atol=1e-6)


@pytest.mark.long
def test_two_processes_killed_over_bad_images_resume_bit_identically(damaged, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.finish(runs.command(damaged, whole, *SKIP, processes=2))
    words = runs.command(damaged, killed, *SKIP, "--resume", processes=2)
    runs.kill_at(words, killed, 5)
    runs.finish(words)
    runs.assert_same_end(whole, killed)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_more_bad_images_than_allowed_end_the_run(damaged, tmp_path, processes):
    more = ("--on-bad-image", "skip", "--storage.max-bad-images", "0.025")
    words = runs.command(damaged, tmp_path / "run", *more, processes=processes)
    output = runs.finish(words, code=3 if processes == 1 else 1)
    assert "3 of 96 train images cannot be decoded; storage.max_bad_images allows 0.025" in output
    assert f"rn50 verify {damaged}" in output


@pytest.mark.slow
def test_the_default_bound_is_one_in_a_thousand(damaged, tmp_path):
    words = runs.command(damaged, tmp_path / "run", "--on-bad-image", "skip")
    assert re.search(r"[12] of 96 train images cannot be decoded", runs.finish(words, code=3))


@pytest.mark.long
def test_verified_reads_find_what_still_decodes(packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "data"))
    train = PackedDataset.open(folder).split("train")
    shard, offset = train.place(50)
    jpeg = train.jpeg(50)
    # A quantisation table: any value makes a JPEG, of other colours.
    place = jpeg.index(b"\xff\xdb") + 20
    with (folder / shard).open("r+b") as file:
        file.seek(offset + place)
        file.write(bytes([jpeg[place] ^ 7]))
    more = ("--epochs", "1", "--warmup-epochs", "0")
    runs.finish(runs.command(folder, tmp_path / "unseen", *more))
    words = runs.command(folder, tmp_path / "seen", *more, "--storage.verify-reads")
    output = runs.finish(words, code=3)
    assert f"cannot decode {train.describe(50)}: its bytes are not those that were" in output
