import io

import numpy as np
import pytest
import torch
from PIL import Image

from analyze.seen import answered, drawn, seen_of
from rn50.analyze import mistakes
from rn50.analyze.mistakes import Labels, hardest, most_confident

NAMES = tuple(f"class {i}" for i in range(12))
LABELS = Labels(NAMES, NAMES, lambda i: f"image-{i}")


def grey(ids):
    return np.full((len(ids), 16, 16, 3), 128, np.uint8)


def test_the_hardest_are_the_wrong_ones_of_least_true_probability():
    seen = seen_of(*drawn(300, 12))
    ids = hardest(seen, 20)
    assert not seen.correct[ids].any()
    rest = np.setdiff1d(np.flatnonzero(~seen.correct), ids)
    assert (np.diff(seen.true_probability[ids]) >= 0).all()
    assert seen.true_probability[ids].max() <= seen.true_probability[rest].min()


def test_the_most_confident_mistakes_are_the_wrong_ones_of_most_confidence():
    seen = seen_of(*drawn(300, 12))
    ids = most_confident(seen, 20)
    assert not seen.correct[ids].any()
    rest = np.setdiff1d(np.flatnonzero(~seen.correct), ids)
    assert (np.diff(seen.confidence[ids]) <= 0).all()
    assert seen.confidence[ids].min() >= seen.confidence[rest].max()
    assert set(ids) != set(hardest(seen, 20))


def test_only_what_is_shown_is_decoded_and_told():
    seen = seen_of(*drawn(300, 12))
    asked = []

    def decode(ids):
        asked.append(ids)
        return grey(ids)

    found = mistakes.section(seen, LABELS, decode, 6)
    assert [list(ids) for ids in asked] == [list(hardest(seen, 6)), list(most_confident(seen, 6))]
    assert [p.name for p in found.pictures] == ["hardest.png", "confident.png"]
    first = found.facts["confident"][0]
    i = int(asked[1][0])
    assert first["image"] == f"image-{i}"
    assert first["true"] == NAMES[seen.labels[i]]
    assert first["predicted"] == NAMES[seen.predicted[i]]
    assert first["confidence"] == pytest.approx(float(seen.confidence[i]))
    assert first["true_rank"] == int(seen.true_rank[i]) + 1
    assert Image.open(io.BytesIO(found.pictures[0].png)).width == 1200
    assert f"{found.facts['wrong']:,} of 300 images" in found.markdown


def test_few_mistakes_are_shown_once():
    seen = answered([0, 1, 2, 3], [0, 2, 2, 1], 4)
    found = mistakes.section(seen, LABELS, grey, 12)
    assert [p.name for p in found.pictures] == ["hardest.png"]
    assert "### All mistakes" in found.markdown
    assert {fact["image"] for fact in found.facts["hardest"]} == {"image-1", "image-3"}


def test_a_network_that_is_always_right_has_no_gallery():
    found = mistakes.section(answered([0, 1], [0, 1], 2), LABELS, grey, 12)
    assert found.pictures == ()
    assert "0 of 2 images" in found.markdown


def test_images_are_shown_as_they_are():
    seen = answered([0, 1], [1, 0], 2)
    colours = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8).numpy()
    decode = lambda ids: np.broadcast_to(colours[ids][:, None, None], (len(ids), 16, 16, 3))  # noqa: E731
    (picture,) = mistakes.section(seen, LABELS, decode, 2).pictures
    pixels = np.array(Image.open(io.BytesIO(picture.png)).convert("RGB"))
    for colour in colours:
        assert (pixels == colour).all(axis=2).sum() > 10_000
