import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from rn50 import rng
from rn50.augment.mixing import partners
from rn50.config import Augment, Images, Mix
from rn50.data import plan
from rn50.data.plan import CROP_TRIES, TrainPlan, evaluation_requests, random_resized_crops
from rn50.errors import UsageError

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvisions_box(draws, width, height, scale, ratio):
    """RandomResizedCrop.get_params of torchvision 0.29, with these draws for its own."""
    areas, ratios = draws[:CROP_TRIES], draws[CROP_TRIES : 2 * CROP_TRIES]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw in zip(areas, ratios, strict=True):
        target_area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect_ratio = math.exp(low + ratio_draw * (high - low))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w = width
        h = height
    return (height - h) // 2, (width - w) // 2, h, w


def draws_of(count: int, seed: int = 0):
    return rng.uniform(rng.key(seed, "test"), np.arange(count), 2 * CROP_TRIES + 2)


def sizes(count: int, low: int, high: int, seed: int):
    return np.random.default_rng(seed).integers(low, high, (2, count))


CASES = {
    "photographs": (*sizes(4000, 100, 1000, 0), AREA, RATIO),
    "tiny images": (*sizes(2000, 1, 12, 1), AREA, RATIO),
    "panoramas": (sizes(1000, 500, 5000, 2)[0], sizes(1000, 1, 60, 3)[0], AREA, RATIO),
    "ribbons": (sizes(1000, 1, 60, 4)[0], sizes(1000, 500, 5000, 5)[0], AREA, RATIO),
    "whole images": (*sizes(1000, 30, 60, 6), (1.0, 1.0), (1.0, 1.0)),
    "wide crops": (*sizes(1000, 30, 300, 7), (0.3, 0.9), (1.5, 3.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_boxes_are_torchvisions_for_the_same_draws(case):
    widths, heights, area, ratio = CASES[case]
    draws = draws_of(len(widths))
    got = random_resized_crops(draws, widths, heights, area=area, ratio=ratio)
    rows = zip(draws.tolist(), widths.tolist(), heights.tolist(), strict=True)
    expected = [torchvisions_box(*row, area, ratio) for row in rows]
    assert got.tolist() == [list(box) for box in expected]


@pytest.mark.parametrize("case", CASES)
def test_boxes_lie_in_the_image_and_hold_a_pixel(case):
    widths, heights, area, ratio = CASES[case]
    draws = draws_of(len(widths), seed=1)
    draws[::3] = 1 - 2.0**-53  # the largest draw there is
    draws[1::3] = 0
    boxes = random_resized_crops(draws, widths, heights, area=area, ratio=ratio)
    top, left, height, width = boxes.T
    assert boxes.dtype == np.int64
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


def test_an_image_that_no_crop_fits_is_cropped_in_its_centre():
    boxes = random_resized_crops(
        draws_of(3), np.array([1000, 10, 50]), np.array([10, 1000, 50]), area=(1, 1), ratio=RATIO
    )
    assert boxes[:2].tolist() == [[0, 493, 10, 13], [493, 0, 13, 10]]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (400, 400), (300, 900)])
def test_crops_are_distributed_as_torchvisions(width, height):
    count = 4000
    ours = random_resized_crops(
        draws_of(count), np.full(count, width), np.full(count, height), area=AREA, ratio=RATIO
    )
    blank = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            RandomResizedCrop.get_params(blank, list(AREA), list(RATIO)) for _ in range(count)
        ]
    for name, one, other in zip(
        ("share", "log ratio", "row", "column"), measures(ours), measures(theirs), strict=True
    ):
        error = 5 * math.sqrt((one.var() + other.var()) / count)
        assert abs(one.mean() - other.mean()) < error + 1e-9, name
        assert abs((one**2).mean() - (other**2).mean()) < 5 * math.sqrt(
            ((one**2).var() + (other**2).var()) / count
        ), name


def measures(boxes):
    top, left, height, width = np.array(boxes, dtype=float).T
    return height * width, np.log(width / height), top + height / 2, left + width / 2


def a_plan(batch: int = 8, count: int = 50, seed: int = 0, **options) -> TrainPlan:
    others = ("rank", "world_size", "augment", "mix")
    group = {name: options.pop(name) for name in others if name in options}
    widths, heights = sizes(count, 40, 90, 0)
    images = Images(batch_size=batch, train_px=32, **options)
    return TrainPlan(images=images, seed=seed, widths=widths, heights=heights, **group)


def epoch_ids(train: TrainPlan, epoch: int) -> list[int]:
    steps = range(epoch * train.steps_per_epoch, (epoch + 1) * train.steps_per_epoch)
    return np.concatenate([train.sample_ids(step) for step in steps]).tolist()


def test_an_epoch_visits_no_image_twice_and_as_many_as_fill_its_batches():
    train = a_plan(batch=8, count=50)
    assert train.steps_per_epoch == 6
    for epoch in range(4):
        ids = epoch_ids(train, epoch)
        assert len(set(ids)) == len(ids) == 48
        assert set(ids) <= set(range(50))


def test_images_left_out_of_an_epoch_are_others_in_the_next():
    train = a_plan(batch=8, count=50)
    assert {i for epoch in range(20) for i in epoch_ids(train, epoch)} == set(range(50))
    left_out = [frozenset(range(50)) - set(epoch_ids(train, epoch)) for epoch in range(20)]
    assert len(set(left_out)) > 10


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_ids(a_plan(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_a_batch_does_not_depend_on_what_was_asked_before():
    steps = [13, 0, 5, 17, 13, 6]
    mixed = [a_plan().request(step) for step in steps]
    plan._permutations.clear()
    again = a_plan()
    for step, request in zip(steps, mixed, strict=True):
        other = again.request(step)
        assert np.array_equal(request.ids, other.ids)
        assert np.array_equal(request.boxes, other.boxes)
        assert np.array_equal(request.flips, other.flips)


def test_orders_of_at_most_two_epochs_are_kept():
    train = a_plan()
    for step in range(60):
        train.sample_ids(step)
        assert len(plan._permutations) <= 2


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_the_batch_of_one_process(world_size):
    alone = a_plan()
    shares = [a_plan(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 7):
        whole = alone.request(step)
        parts = [share.request(step) for share in shares]
        assert all(np.array_equal(s.sample_ids(step), alone.sample_ids(step)) for s in shares)
        assert {len(part.ids) for part in parts} == {8 // world_size}
        for name in ("ids", "boxes", "flips"):
            together = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(together, getattr(whole, name))


def test_the_draws_of_an_image_do_not_depend_on_the_batch_size():
    def by_image(train: TrainPlan) -> dict:
        requests = [train.request(step) for step in range(train.steps_per_epoch)]
        return {
            i: (*box, flip)
            for r in requests
            for i, box, flip in zip(r.ids.tolist(), r.boxes.tolist(), r.flips.tolist(), strict=True)
        }

    small, large = by_image(a_plan(batch=5)), by_image(a_plan(batch=25))
    assert len(small) == 50
    assert small == large


def test_a_request_holds_boxes_within_its_images():
    train = a_plan(crop_area=(0.25, 1.0))
    request = train.request(3)
    assert (request.px, request.resize_px) == (32, 0)
    top, left, height, width = request.boxes.T
    assert (top + height <= train.heights[request.ids]).all()
    assert (left + width <= train.widths[request.ids]).all()
    share = height * width / (train.heights[request.ids] * train.widths[request.ids])
    assert (share > 0.2).all()


def test_crops_and_flips_are_drawn_anew_each_epoch():
    train = a_plan(batch=50)
    first, second = (train.request(epoch) for epoch in (0, 1))
    for name in ("boxes", "flips"):
        in_order = [getattr(r, name)[np.argsort(r.ids)] for r in (first, second)]
        assert not np.array_equal(*in_order)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_so_many_images_are_mirrored_as_is_asked_for(probability):
    train = a_plan(batch=4000, count=4000, flip_prob=probability)
    error = 4 * math.sqrt(probability * (1 - probability) / 4000)
    assert train.request(0).flips.mean() == pytest.approx(probability, abs=error)


def test_a_batch_larger_than_the_split_is_refused():
    assert a_plan(batch=50, count=50).steps_per_epoch == 1
    with pytest.raises(
        UsageError, match=r"batch_size is 51, but .* only 50 images; give --batch-s"
    ):
        a_plan(batch=51, count=50)
    assert a_plan(batch=50, count=50, augment=Augment(repeats=5)).steps_per_epoch == 1
    with pytest.raises(UsageError, match=r"batch_size is 51, but .* only 50 images"):
        a_plan(batch=51, count=50, augment=Augment(repeats=5))


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(UsageError, match="batch_size is 8, which 3 processes cannot share evenly"):
        a_plan(batch=8, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("count", "batch"), [(37, 1), (37, 8), (37, 37), (40, 100), (3, 2)])
def test_evaluation_visits_every_image_once(world_size, count, batch):
    images = Images(batch_size=8, test_px=40, test_resize_px=48)
    requests = [
        request
        for rank in range(world_size)
        for request in evaluation_requests(images, count, batch, rank=rank, world_size=world_size)
    ]
    assert np.concatenate([r.ids for r in requests]).tolist() == list(range(count))
    for request in requests:
        assert 1 <= len(request.ids) <= batch
        assert (request.px, request.resize_px, request.boxes) == (40, 48, None)
        assert request.flips.tolist() == [False] * len(request.ids)


SCALES = {"multi_scale": (16, 24, 32)}


def test_each_step_draws_one_of_the_scales_by_seed_and_step_alone():
    steps = range(600)
    sides = [a_plan(**SCALES).px(step) for step in steps]
    for side in SCALES["multi_scale"]:
        assert sides.count(side) / 600 == pytest.approx(1 / 3, abs=0.06)
    # One of three again is as likely as another; a side that held for an epoch would be again more.
    again = sum(one == other for one, other in itertools.pairwise(sides))
    assert again / 599 == pytest.approx(1 / 3, abs=0.06)
    train = a_plan(**SCALES)
    assert [train.px(step) for step in reversed(steps)] == sides[::-1]
    assert [a_plan(**SCALES, seed=1).px(step) for step in steps] != sides
    assert [a_plan(**SCALES, count=400).px(step) for step in steps] == sides


def test_processes_decode_a_step_at_the_same_side_and_draw_for_it():
    settings = {**SCALES, "augment": Augment(erase_prob=1.0), "mix": Mix(cutmix_alpha=1.0)}
    shares = [a_plan(**settings, rank=rank, world_size=2) for rank in range(2)]
    seen = set()
    for step in range(40):
        one, other = (share.request(step) for share in shares)
        assert one.px == other.px == a_plan(**settings).px(step)
        assert one.mix == other.mix
        top, left, height, width = np.concatenate([one.draws.holes, other.draws.holes])[:, 0].T
        assert (top + height <= one.px).all()
        assert (left + width <= one.px).all()
        seen.add(one.px)
    assert seen == {16, 24, 32}


def test_crops_and_flips_are_those_of_one_scale():
    scaled, plain = a_plan(**SCALES), a_plan()
    for step in (0, 3, 20):
        one, other = scaled.request(step), plain.request(step)
        for name in ("ids", "boxes", "flips"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_scales_are_drawn_until_sizes_begin():
    train = a_plan(**SCALES, sizes=((2, 24), (3, 40)))
    sides = [[train.px(6 * epoch + i) for i in range(6)] for epoch in range(4)]
    assert set(sides[0] + sides[1]) == {16, 24, 32}
    assert sides[2:] == [[24] * 6, [40] * 6]
    assert {train.request(6 * epoch).px for epoch in (2, 3)} == {24, 40}


EVERYTHING = Augment(
    policy="randaugment",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    blur_prob=0.5,
    erase_prob=0.5,
    erase_mode="pixel",
    dropout_prob=0.5,
)
ARRAYS = ("ops", "magnitudes", "holes", "noise")


def test_nothing_is_augmented_or_mixed_unless_asked_for():
    request = a_plan().request(3)
    assert request.draws is None
    assert request.mix is None


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_draws_of_one_process(world_size, repeats):
    settings = {
        "augment": dataclasses.replace(EVERYTHING, repeats=repeats),
        "mix": Mix(mixup_alpha=0.2, cutmix_alpha=1.0),
    }
    alone = a_plan(**settings)
    for step in (0, 7):
        whole = alone.request(step)
        for rank in range(world_size):
            part = a_plan(**settings, rank=rank, world_size=world_size).request(step)
            share = slice(rank * len(part.ids), (rank + 1) * len(part.ids))
            assert part.mix == whole.mix
            assert np.array_equal(part.boxes, whole.boxes[share])
            for name in ARRAYS:
                assert np.array_equal(
                    getattr(part.draws, name), getattr(whole.draws.part(share), name)
                )


def test_augmentation_is_drawn_anew_each_epoch_and_changes_neither_crops_nor_flips():
    plain, train = a_plan(batch=50), a_plan(batch=50, augment=EVERYTHING)
    first, second = (train.request(epoch) for epoch in (0, 1))
    assert np.array_equal(first.boxes, plain.request(0).boxes)
    assert np.array_equal(first.flips, plain.request(0).flips)
    in_order = [r.draws.ops[:, np.argsort(r.ids)] for r in (first, second)]
    assert not np.array_equal(*in_order)


@pytest.mark.parametrize(("batch", "repeats"), [(8, 2), (8, 3), (8, 4), (6, 3), (25, 4), (9, 2)])
def test_repeated_augmentation_puts_copies_into_a_batch_but_never_side_by_side(batch, repeats):
    train = a_plan(batch=batch, augment=Augment(repeats=repeats))
    plain = a_plan(batch=batch)
    assert train.steps_per_epoch == plain.steps_per_epoch
    for epoch in range(20):
        ids = epoch_ids(train, epoch)
        assert len(ids) == train.steps_per_epoch * batch
        counts = np.bincount(ids, minlength=50)
        assert (counts > 0).sum() == math.ceil(len(ids) / repeats)
        assert sorted(counts[counts > 0])[1:] == [repeats] * ((counts > 0).sum() - 1)
        for step in range(train.steps_per_epoch):
            rows = ids[step * batch : (step + 1) * batch]
            assert all(one != other for one, other in itertools.pairwise(rows))
            assert len(set(rows)) <= batch // repeats + 2


@pytest.mark.parametrize(
    ("batch", "repeats", "world_size", "micro_batch"),
    [(8, 2, 1, 8), (8, 4, 2, 2), (24, 3, 4, 4), (24, 12, 2, 4), (10, 5, 1, 4), (6, 3, 3, 2)],
)
def test_no_image_is_mixed_with_a_copy_of_itself(batch, repeats, world_size, micro_batch):
    settings = {"augment": Augment(repeats=repeats), "mix": Mix(mixup_alpha=0.2)}
    for rank in range(world_size):
        train = a_plan(batch=batch, rank=rank, world_size=world_size, **settings)
        for step in range(40):
            for ids in torch.from_numpy(train.request(step).ids).split(micro_batch):
                assert (partners(ids) != ids).all()


def test_copies_of_an_image_are_cropped_and_augmented_differently():
    train = a_plan(batch=24, augment=dataclasses.replace(EVERYTHING, repeats=3))
    request = train.request(0)
    boxes = {(i, *box) for i, box in zip(request.ids.tolist(), request.boxes.tolist(), strict=True)}
    assert len(set(request.ids.tolist())) == 8
    assert len(boxes) == 24
    assert len({column.tobytes() for column in request.draws.magnitudes.T.copy()}) == 24


def test_partners_under_repetition_change_from_batch_to_batch():
    train = a_plan(batch=10, count=10, augment=Augment(repeats=2))
    pairs = {tuple(train.sample_ids(step)[:2].tolist()) for step in range(30)}
    assert len(pairs) > 15


def test_a_share_of_odd_size_cannot_be_mixed():
    mixed = Mix(mixup_alpha=0.2)
    assert a_plan(batch=12, world_size=6, mix=mixed).request(0).mix is not None
    with pytest.raises(UsageError, match=r"each of 4 processes has 3 images .* mixed in pairs"):
        a_plan(batch=12, world_size=4, mix=mixed)
