import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torchvision.transforms.v2 import functional as reference

from rn50.augment.device import Normalise, flip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def some_images(batch: int = 5, height: int = 6, width: int = 7) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_only_the_marked_images_are_mirrored_left_to_right():
    images = some_images()
    flips = torch.tensor([True, False, False, True, True])
    got = flip(images, flips)
    for i, mirrored in enumerate(flips.tolist()):
        expected = reference.horizontal_flip(images[i]) if mirrored else images[i]
        assert torch.equal(got[i], expected)
    assert not torch.equal(got[0], images[0])


def test_flipping_keeps_layout_and_type_and_leaves_its_input_alone():
    images = some_images()
    before = images.clone()
    got = flip(images, torch.ones(5, dtype=torch.bool))
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_shapes_and_types_are_checked_in_tests():
    flip(some_images(), torch.ones(5, dtype=torch.bool))
    for images, flips in (
        (some_images(), torch.ones(4, dtype=torch.bool)),
        (some_images(), torch.ones(5, dtype=torch.uint8)),
        (some_images().float(), torch.ones(5, dtype=torch.bool)),
    ):
        with pytest.raises(TypeCheckError):
            flip(images, flips)


def test_normalisation_is_torchvisions():
    images = some_images()
    expected = reference.normalize(reference.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(Normalise(MEAN, STD)(images), expected, rtol=1e-6, atol=2e-6)


def test_normalisation_of_black_and_white_is_exact_to_rounding():
    got = Normalise(MEAN, STD)(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = torch.tensor([[-mean / std, (1 - mean) / std]])
        torch.testing.assert_close(got[0, channel], expected, rtol=1e-6, atol=1e-6)


def test_normalisation_gives_float32_channels_last_whatever_the_layout():
    images, normalise = some_images(), Normalise(MEAN, STD)
    expected = normalise(images)
    for same in (images, images.contiguous(), some_images(5, 6, 9)[:, :, :, :7].copy_(images)):
        got = normalise(same)
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, expected)


def test_normalisation_can_write_into_a_part_of_a_batch():
    images, normalise = some_images(), Normalise(MEAN, STD)
    batch = torch.zeros(7, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    normalise(images[:4], out=batch[2:6])
    assert torch.equal(batch[2:6], normalise(images)[:4])
    assert not batch[[0, 1, 6]].any()


def test_normalisation_has_nothing_to_train():
    normalise = Normalise(MEAN, STD)
    assert not list(normalise.parameters())
    assert not normalise(some_images()).requires_grad
