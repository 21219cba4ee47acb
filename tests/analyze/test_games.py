import numpy as np
import pytest
import torch

from analyze.colours import squares, weights
from rn50.analyze.games import (
    TOLERANCE,
    Objects,
    chance_objects,
    choose_grids,
    mosaic,
    play_grids,
    play_objects,
)
from rn50.analyze.gradcam import grad_cam

PX = 128


def objects(places: list[tuple[int, int]], side: int, px: int = PX) -> Objects:
    masks = torch.zeros(len(places), px, px, dtype=torch.bool)
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[top : top + side, left : left + side] = True
    return Objects(masks)


def test_a_network_that_looks_at_the_object_always_hits_and_its_opposite_never():
    net, labels = weights(PX).net, [0, 1, 2, 3]
    places = [(0, 0), (30, 60), (70, 20), (64, 64)]
    inputs = squares(PX, places, labels, side=50) / 255
    targets = torch.tensor([[label, (label + 1) % 4] for label in labels])
    found = grad_cam(net, inputs, layer="layer4", targets=targets)
    assert found.logits.argmax(dim=1).tolist() == labels
    true, other = found.maps.unbind(dim=1)
    known = objects(places, 50)
    score, near = play_objects(true, known, found.jump)
    assert (score.hits, score.zeros, near) == (1.0, 0.0, 1.0)
    assert score.mass > 0.5
    score, near = play_objects(other, known, found.jump)
    assert (score.hits, score.mass, score.zeros, near) == (0.0, 0.0, 1.0, 0.0)


def test_a_network_that_looks_elsewhere_misses():
    maps = grad_cam(
        weights(PX).net,
        squares(PX, [(0, 0)], [0], side=40) / 255,
        layer="layer4",
        targets=torch.tensor([[0]]),
    ).maps[:, 0]
    score, near = play_objects(maps, objects([(80, 80)], 40), 32)
    assert (score.hits, near) == (0.0, 0.0)


def test_near_the_box_is_15_pixels_in_an_image_of_224():
    known = objects([(100, 60)], 50, px=224)
    assert TOLERANCE * 224 == 15
    assert known.boxes().tolist() == [[100, 60, 150, 110]]
    inside = {(85.5, 80): True, (84.5, 80): False, (164.5, 80): True, (165.5, 80): False}
    inside |= {(120, 45.5): True, (120, 44.5): False, (120, 124.5): True, (120, 125.5): False}
    inside |= {(90, 50): True, (88, 48): False}  # a corner is round
    for place, is_near in inside.items():
        places = torch.tensor([place], dtype=torch.float32)
        assert known.near_box(places).tolist() == [is_near], place
        assert known.on_object(places).tolist() == [False]
    assert known.on_object(torch.tensor([[149.9, 109.9]])).tolist() == [True]
    assert known.on_object(torch.tensor([[150.1, 100.0]])).tolist() == [False]


def test_the_object_counts_and_not_its_box():
    ring = torch.ones(1, 64, 64, dtype=torch.bool)
    ring[0, 16:48, 16:48] = False
    maps = torch.zeros(1, 4, 4)
    maps[0, 2, 2] = 1.0
    score, near = play_objects(maps, Objects(ring), 16)
    assert (score.hits, near) == (0.0, 1.0)


def test_chance_is_what_random_maps_score():
    known = objects([(5, 5), (60, 40), (20, 70)], 45)
    chance, near = chance_objects(4, 4, known, 32)
    draws = torch.rand(3000, 4, 4, generator=torch.Generator().manual_seed(0))
    many = Objects(known.masks.repeat(1000, 1, 1))
    score, near_drawn = play_objects(draws, many, 32)
    assert score.hits == pytest.approx(chance.hits, abs=0.03)
    assert near_drawn == pytest.approx(near, abs=0.03)
    even, _ = play_objects(torch.ones(3, 4, 4), known, 32)
    assert chance.mass == pytest.approx(even.mass, abs=1e-6)
    assert chance.mass == pytest.approx(45 * 45 / PX**2)


def test_maps_keep_to_their_quadrants_and_random_ones_to_a_quarter():
    labels = [3, 0, 1, 2]
    images = squares(PX, [(40, 40)] * 4, labels, side=60)
    grids = mosaic(images, torch.arange(4)[None])
    assert grids.shape == (1, 3, 2 * PX, 2 * PX)
    assert torch.equal(grids[0, :, :PX, PX:], images[1])
    assert torch.equal(grids[0, :, PX:, :PX], images[2])
    found = grad_cam(weights(PX).net, grids / 255, layer="layer4", targets=torch.tensor([labels]))
    score = play_grids(found.maps, 2 * PX, found.jump)
    assert (score.hits, score.zeros) == (1.0, 0.0)
    assert score.mass > 0.9
    swapped = play_grids(found.maps.flip(1), 2 * PX, found.jump)
    assert swapped.hits == 0.0
    assert swapped.mass < 0.1
    draws = torch.rand(500, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    random = play_grids(draws, 256, 32)
    assert random.hits == pytest.approx(0.25, abs=0.03)
    assert random.mass == pytest.approx(0.25, abs=0.01)
    assert play_grids(torch.zeros(2, 4, 4, 4), 64, 16).hits == 0.0


def test_grids_are_of_the_surest_right_images_of_four_classes_each_once():
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 6, 200))
    logits = torch.from_numpy(generator.normal(size=(200, 6)).astype(np.float32))
    logits[torch.arange(200), labels] += 1.0
    grids = choose_grids(logits, labels, 1000)
    used = grids.flatten().tolist()
    assert len(used) == len(set(used))
    right = set(torch.nonzero(logits.argmax(dim=1) == labels)[:, 0].tolist())
    assert set(used) <= right
    assert all(len(set(labels[grid].tolist())) == 4 for grid in grids)
    left = labels[sorted(right - set(used))]
    assert len(set(left.tolist())) < 4
    confidence = logits.softmax(dim=1).amax(dim=1)
    for label in range(6):
        of_class = [image for image in used if labels[image] == label]
        surest = sorted(of_class, key=lambda image: -confidence[image])
        assert of_class == surest
    assert choose_grids(logits, labels, 3).tolist() == grids[:3].tolist()


def test_too_few_classes_make_no_grid():
    labels = torch.tensor([0, 1, 2, 2])
    assert choose_grids(torch.eye(4)[labels], labels, 10).shape == (0, 4)
