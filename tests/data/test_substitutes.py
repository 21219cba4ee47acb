"""Images that were damaged after they were packed: told, or replaced alike everywhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rn50.config import Images
from rn50.data import native
from rn50.data.decode import Decoder
from rn50.data.loader import Loader
from rn50.data.plan import TrainPlan, evaluation_requests
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.data.substitutes import moved_box, substitutes
from rn50.errors import DataError

CPU = torch.device("cpu")
IMAGES = Images(batch_size=24, train_px=32, test_px=32, test_resize_px=36)


def damage(folder: Path, split: str, image: int, content: bytes | None = None) -> None:
    """Overwrite an image's bytes: by zeros, or by others as many."""
    data = PackedDataset.open(folder).split(split)
    length = int(data.index[image]["length"])
    shard, offset = data.place(image)
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length) if content is None else content[:length].ljust(length, b"\0"))


@pytest.fixture
def folder(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def opened(folder: Path, split: str = "train") -> PackedSplit:
    return PackedDataset.open(folder).split(split)


def plan_of(split: PackedSplit, **more) -> TrainPlan:
    return TrainPlan(images=IMAGES, seed=0, widths=split.widths, heights=split.heights, **more)


def epoch(split: PackedSplit, workers: int = 2, *, start: int = 0, verify: bool = False, **more):
    """The batches of two epochs from a step on, as (ids, pixels, bad)."""
    plan = plan_of(split, **more)
    requests = [plan.request(step) for step in range(start, 2 * plan.steps_per_epoch)]
    with Loader(CPU, workers=workers, prefetch=2, verify_reads=verify) as loader:
        return [
            (b.request.ids, b.images.clone(), b.bad.tolist())
            for b in loader.read(split, requests, on_bad="substitute")
        ]


def by_image(batches) -> dict[tuple[int, int], torch.Tensor]:
    """Pixels by (batch, image), each image being once in an epoch."""
    return {
        (step, image): pixels[row]
        for step, (ids, pixels, _) in enumerate(batches)
        for row, image in enumerate(ids.tolist())
    }


def test_the_next_image_of_the_class_takes_the_place_and_the_others_stay(folder):
    whole = epoch(opened(folder))
    damage(folder, "train", 30)
    split = opened(folder)
    got = epoch(split)
    decoder = Decoder()
    for step, (ids, images, bad) in enumerate(got):
        assert bad == ([30] if 30 in ids else [])
        request = plan_of(split).request(step)
        for row, image in enumerate(ids.tolist()):
            if image != 30:
                assert torch.equal(images[row], whole[step][1][row])
                continue
            sizes = [(int(split.widths[i]), int(split.heights[i])) for i in (30, 31)]
            expected = torch.empty(32, 32, 3, dtype=torch.uint8)
            box = moved_box(request.boxes[row], *sizes)
            decoder.crop_resized(split.jpeg(31), box, expected)
            assert torch.equal(images[row].permute(1, 2, 0), expected)
    assert split.labels[30] == split.labels[31]


def test_a_substitute_is_the_same_for_any_number_of_workers_and_processes_and_any_start(folder):
    for image in (3, 30, 31, 47, 95):
        damage(folder, "train", image)
    split = opened(folder)
    alone = epoch(split, workers=1)
    assert [bad for *_, bad in alone] == [bad for *_, bad in epoch(split, workers=5)]
    expected = by_image(alone)
    assert {image for *_, bad in alone for image in bad} == {3, 30, 31, 47, 95}
    shares = [epoch(split, workers=3, rank=rank, world_size=2) for rank in range(2)]
    for got in (by_image(epoch(split, workers=5)), by_image(shares[0]) | by_image(shares[1])):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    for start in (1, 5):
        late = epoch(split, start=start)
        for one, other in zip(late, alone[start:], strict=True):
            assert torch.equal(one[1], other[1])
            assert one[2] == other[2]


def test_every_decoder_substitutes_alike(folder, monkeypatch):
    damage(folder, "train", 30)
    fast = epoch(opened(folder))
    monkeypatch.setattr(native, "library", lambda: None)
    slow = epoch(opened(folder))
    assert all(torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(fast, slow, strict=True))


def test_substitutes_are_of_the_class_the_next_first(folder):
    split = opened(folder)
    assert list(substitutes(split, 30)) == [*range(31, 48), *range(24, 30)]
    assert list(substitutes(split, 47)) == list(range(24, 47))


def test_a_class_of_damaged_images_only_is_an_error_that_says_so(folder):
    for image in range(24, 48):
        damage(folder, "train", image)
    with pytest.raises(DataError, match=r"cannot decode bee/\S+ \(.*, nor any other image of its"):
        epoch(opened(folder))


@pytest.mark.parametrize(
    ("box", "size", "other", "expected"),
    [
        ([0, 0, 50, 100], (100, 50), (100, 50), [0, 0, 50, 100]),
        ([10, 20, 30, 40], (100, 80), (100, 80), [10, 20, 30, 40]),
        ([10, 20, 30, 40], (100, 80), (200, 160), [20, 40, 60, 80]),
        ([0, 60, 40, 40], (100, 40), (40, 100), [30, 0, 40, 40]),
        ([0, 0, 1, 1], (1000, 1000), (10, 10), [0, 0, 1, 1]),
        ([999, 999, 1, 1], (1000, 1000), (10, 10), [9, 9, 1, 1]),
    ],
)
def test_a_crop_is_carried_to_an_image_of_another_size(box, size, other, expected):
    moved = moved_box(np.array(box, np.int64), size, other)
    assert moved.tolist() == expected


def test_a_crop_that_was_carried_lies_inside_and_keeps_its_share_where_it_fits():
    draws = np.random.default_rng(0)
    for _ in range(2000):
        width, height, new_w, new_h = draws.integers(8, 400, 4).tolist()
        w, h = int(draws.integers(1, width + 1)), int(draws.integers(1, height + 1))
        box = [int(draws.integers(height - h + 1)), int(draws.integers(width - w + 1)), h, w]
        moved = moved_box(np.array(box, np.int64), (width, height), (new_w, new_h))
        top, left, tall, wide = moved.tolist()
        assert 0 <= top <= new_h - tall
        assert 0 <= left <= new_w - wide
        assert tall >= 1
        assert wide >= 1
        if 20 < wide < new_w and 20 < tall < new_h:
            share = (wide * tall) / (new_w * new_h)
            assert share == pytest.approx(w * h / (width * height), rel=0.06)
            assert wide / tall == pytest.approx(w / h, rel=0.06)


def test_in_evaluation_a_bad_image_is_black_and_told_and_the_others_stay(folder):
    requests = evaluation_requests(IMAGES, 36, 16)

    def read():
        with Loader(CPU, workers=3, prefetch=2) as loader:
            return [
                (b.images.clone(), b.bad.tolist())
                for b in loader.read(opened(folder, "val"), requests, on_bad="blank")
            ]

    whole = read()
    damage(folder, "val", 17)
    damage(folder, "val", 35)
    got = read()
    assert [bad for _, bad in got] == [[], [17], [35]]
    for step, row in ((1, 1), (2, 3)):
        assert (got[step][0][row] == 0).all()
        got[step][0][row] = whole[step][0][row]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(got, whole, strict=True))


def flipped_but_decodable(split: PackedSplit, image: int) -> bytes:
    """A JPEG of the same size that TurboJPEG decodes without complaint to other pixels."""
    jpeg = split.jpeg(image)
    expected = split.expected(image)
    decoder = Decoder()
    pixels = decoder.pixels(jpeg).copy()
    for place in range(len(jpeg) // 2, len(jpeg) - 2):
        altered = bytearray(jpeg)
        altered[place] ^= 1
        try:
            found = decoder.pixels(bytes(altered), None, expected)
        except Exception:
            continue
        if not np.array_equal(found, pixels):
            return bytes(altered)
    raise AssertionError("no such place")


def test_an_image_that_was_altered_and_still_decodes_is_found_where_reads_are_verified(folder):
    split = opened(folder)
    whole = epoch(split)
    damage(folder, "train", 30, flipped_but_decodable(split, 30))
    altered = epoch(opened(folder))
    assert all(bad == [] for *_, bad in altered)
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(altered, whole, strict=True))
    found = epoch(opened(folder), verify=True)
    assert [bad for ids, _, bad in found] == [[30] if 30 in ids else [] for ids, *_ in whole]
    damage(folder, "train", 30)
    zeroed = epoch(opened(folder))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(found, zeroed, strict=True))


@pytest.mark.parametrize("decoder", ["native", "python", "pillow"])
def test_verified_reads_are_told_by_every_decoder(folder, decoder, monkeypatch):
    split = opened(folder)
    damage(folder, "train", 30, flipped_but_decodable(split, 30))
    if decoder != "native":
        monkeypatch.setattr(native, "library", lambda: None)
    if decoder == "pillow":
        from rn50.data import turbojpeg

        monkeypatch.setattr(turbojpeg, "library", lambda: None)
    # Pillow, which does not complain of damage, gets no bytes but those that were packed.
    found = epoch(opened(folder), verify=decoder != "pillow")
    assert {image for *_, bad in found for image in bad} == {30}


def test_another_whole_image_in_the_place_of_one_is_not_taken_for_it(folder):
    split = opened(folder)
    sizes = set(zip(split.widths.tolist(), split.heights.tolist(), strict=True))
    assert len(sizes) > 1
    small = int(split.index["length"].argmin())
    large = int(split.index["length"].argmax())
    assert split.expected(small)[:2] != split.expected(large)[:2]
    damage(folder, "train", large, split.jpeg(small))
    found = epoch(opened(folder))
    assert {image for *_, bad in found for image in bad} == {large}


def test_an_image_without_a_byte_is_bad(folder):
    split = opened(folder)
    index = split.index.copy()
    index["length"][30] = 0
    split.index = index
    assert {image for *_, bad in epoch(split) for image in bad} == {30}


def test_random_damage_gives_the_batch_or_a_substitute_and_never_another_error(folder):
    draws = np.random.default_rng(0)
    for _ in range(15):
        split = opened(folder)
        for image in draws.integers(0, 96, 8).tolist():
            content = bytearray(split.jpeg(image))
            # Its headers, or anywhere.
            end = 700 if draws.random() < 0.5 else len(content)
            for place in draws.integers(0, end, int(draws.integers(1, 6))).tolist():
                content[place] = int(draws.integers(256))
            damage(folder, "train", image, bytes(content))
        for _, images, _ in epoch(opened(folder)):
            assert images.shape == (24, 3, 32, 32)
