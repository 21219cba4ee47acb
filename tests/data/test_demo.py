import hashlib
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from rn50.data import demo
from rn50.data.demo import DemoSource, jpeg, picture
from rn50.data.shapes import SHAPES


def files(source: DemoSource) -> list[bytes]:
    return [image.read() for image in source.images()]


def test_the_same_seed_gives_the_same_bytes_in_any_order_on_any_thread():
    one, other = list(DemoSource(3, 2, 1).images()), list(DemoSource(3, 2, 1).images())
    in_order = [image.read() for image in one]
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda image: image.read(), reversed(other)))
    assert in_order == backwards[::-1]
    assert [image.path for image in one] == [image.path for image in other]


def test_another_seed_gives_other_pictures():
    assert not set(files(DemoSource(0, 2, 1))) & set(files(DemoSource(1, 2, 1)))


def test_the_pixels_are_the_committed_ones_on_every_machine():
    digest = hashlib.blake2b(digest_size=16)
    for split in ("train", "val"):
        for index in range(2 * len(SHAPES)):
            pixels = picture(7, split, index)
            digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
    assert digest.hexdigest() == "5d0919956c6e225c01fc99711cc483ed"


def test_every_class_has_the_number_of_images_asked_for_in_each_split():
    source = DemoSource(train_per_class=3, val_per_class=2)
    images = list(source.images())
    ids = [name.id for name in source.classes]
    assert ids == sorted(set(ids))
    assert len(ids) >= 10
    assert Counter((image.split, image.class_id) for image in images) == {
        (split, id): per_class for split, per_class in (("train", 3), ("val", 2)) for id in ids
    }
    assert source.count() == len(images) == len({image.path for image in images})
    assert source.skipped.paths == {}


def test_the_classes_take_turns_so_that_any_run_of_images_is_balanced():
    images = list(DemoSource(train_per_class=2, val_per_class=1).images())
    assert len({image.class_id for image in images[3 : 3 + len(SHAPES)]}) == len(SHAPES)


def test_the_class_named_is_the_shape_drawn(monkeypatch):
    def nothing(u, v):
        return np.ones_like(u) * 9.0, np.ones_like(u)

    index = 4
    before = picture(0, "train", index)
    monkeypatch.setitem(demo.SHAPES, list(DemoSource().images())[index].class_id, nothing)
    assert np.mean(before != picture(0, "train", index)) > 0.2


def test_every_file_is_a_jpeg_in_colour_and_sizes_and_aspects_vary():
    sizes = set()
    for file in files(DemoSource(0, 6, 1)):
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    sides = {min(size) for size in sizes}
    aspects = [width / height for width, height in sizes]
    assert min(sides) >= 64
    assert max(sides) <= 128
    assert len(sides) > 15
    assert 0.74 < min(aspects) < 0.85
    assert 1.18 < max(aspects) < 1.35


def test_training_and_validation_share_no_picture():
    pictures = {
        split: {picture(0, split, index).tobytes() for index in range(50)}
        for split in ("train", "val")
    }
    assert len(pictures["train"]) == len(pictures["val"]) == 50
    assert not pictures["train"] & pictures["val"]


def test_a_linear_classifier_on_the_pixels_gets_less_than_half_right():
    def pixels(split: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        indices = range(per_class * len(SHAPES))
        rows = [
            np.asarray(Image.open(io.BytesIO(jpeg(0, split, index))).resize((32, 32))).ravel()
            for index in indices
        ]
        return np.stack(rows).astype(np.float64) / 255.0, np.arange(len(rows)) % len(SHAPES)

    inputs, labels = pixels("train", 100)
    val_inputs, val_labels = pixels("val", 30)
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    inputs, val_inputs = (inputs - mean) / spread, (val_inputs - mean) / spread
    targets = np.eye(len(SHAPES))[labels] - 1.0 / len(SHAPES)

    best = 0.0
    kernel = inputs @ inputs.T
    for decay in (1e3, 1e4, 1e5):
        dual = np.linalg.solve(kernel + decay * np.eye(len(kernel)), targets)
        guesses = (val_inputs @ (inputs.T @ dual)).argmax(axis=1)
        best = max(best, float(np.mean(guesses == val_labels)))
    assert 1.0 / len(SHAPES) < best < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"train_per_class": 0}, "train_per_class is 0; it must be at least 1"),
        ({"val_per_class": 0}, "val_per_class is 0; it must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DemoSource(**settings)


def test_the_mask_is_where_the_object_is_painted(monkeypatch):
    def nothing(u, v):
        return np.ones_like(u) * 9.0, np.ones_like(u)

    for index in range(len(SHAPES)):
        inside, whole = demo.mask(0, "val", index), picture(0, "val", index)
        with monkeypatch.context() as patch:
            patch.setitem(demo.SHAPES, demo.class_of(index).id, nothing)
            empty = picture(0, "val", index)
            assert not demo.mask(0, "val", index).any()
        assert inside.shape == whole.shape[:2]
        # The shadow lies outside and is faint; light and noise are the same on both.
        change = np.abs(whole.astype(int) - empty).sum(axis=2)
        assert change[inside].mean() > 5 * change[~inside].mean()
        assert 0.15 < inside.mean() < 0.75
