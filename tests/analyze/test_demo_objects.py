from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from rn50.analyze.demo_objects import objects
from rn50.config import Images
from rn50.data import demo
from rn50.data.demo import DemoSource
from rn50.data.pack import pack
from rn50.data.shards import PackedDataset

IMAGES = Images(batch_size=8, train_px=64, test_px=64, test_resize_px=72)
IDS = np.arange(0, 20, 3, dtype=np.int64)


def packed(folder: Path, **settings: int) -> PackedDataset:
    pack(DemoSource(train_per_class=1, val_per_class=2, **settings), folder)
    return PackedDataset.open(folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return packed(tmp_path_factory.mktemp("demo") / "packed")


@pytest.mark.parametrize(("px", "resize_px"), [(64, 72), (96, 96), (224, 256)])
def test_objects_are_where_torchvisions_transform_puts_them(drawn, px, resize_px):
    images = Images(batch_size=8, train_px=64, test_px=px, test_resize_px=resize_px)
    found = objects(drawn, IDS, images)
    assert found is not None
    transform = v2.Compose([v2.Resize(resize_px), v2.CenterCrop(px)])
    split = drawn.split("val")
    for mask, i in zip(found.masks, IDS.tolist(), strict=True):
        number = int(split.key(i).split("/")[1])
        whole = demo.mask(0, "val", number)
        assert whole.shape == (split.heights[i], split.widths[i])
        expected = np.asarray(transform(Image.fromarray(whole.astype(np.uint8) * 255))) >= 128
        assert np.mean(mask.numpy() != expected) < 0.002
        assert 0.2 < expected.mean() < 0.8


def test_a_relabelled_data_set_has_the_same_objects(drawn):
    longer = drawn.with_classes(drawn.classes[::-1])
    one, other = objects(drawn, IDS, IMAGES), objects(longer, IDS, IMAGES)
    assert one is not None
    assert other is not None
    assert torch.equal(one.masks, other.masks)


def test_pictures_of_another_seed_have_no_known_objects(tmp_path):
    assert objects(packed(tmp_path / "packed", seed=1), IDS, IMAGES) is None


def test_other_data_has_no_known_objects(dataset):
    assert objects(dataset, IDS, IMAGES) is None
