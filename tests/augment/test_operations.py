"""Each operation against torchvision's on the same parameters, image by image."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import SIZES, pictures
from torchvision.transforms.v2 import functional as reference

from rn50.augment import colour, filters, geometry, rounds
from rn50.augment.ops import Op
from rn50.augment.rounds import Sampling

COUNT = 16
NEAREST = Sampling()


def shear(x: bool):
    def apply(image, m):
        degrees = math.degrees(math.atan(m))
        angles = [degrees, 0.0] if x else [0.0, degrees]
        return reference.affine(image, 0.0, [0, 0], 1.0, angles, center=[0, 0])

    return apply


def translate(x: bool):
    def apply(image, m):
        return reference.affine(image, 0.0, [int(m), 0] if x else [0, int(m)], 1.0, [0.0, 0.0])

    return apply


# Operation: torchvision's, how far apart two levels may be, and the range of magnitudes.
CASES = {
    Op.SHEAR_X: (shear(True), 0, (-0.99, 0.99)),
    Op.SHEAR_Y: (shear(False), 0, (-0.99, 0.99)),
    Op.TRANSLATE_X: (translate(True), 0, (-40, 40)),
    Op.TRANSLATE_Y: (translate(False), 0, (-40, 40)),
    Op.ROTATE: (reference.rotate, 0, (-180, 180)),
    Op.BRIGHTNESS: (reference.adjust_brightness, 0, (0, 3)),
    Op.COLOR: (reference.adjust_saturation, 1, (0, 3)),
    Op.CONTRAST: (reference.adjust_contrast, 1, (0, 3)),
    Op.SHARPNESS: (reference.adjust_sharpness, 1, (0, 3)),
    Op.POSTERIZE: (lambda image, m: reference.posterize(image, int(m)), 0, (0, 8)),
    Op.SOLARIZE: (reference.solarize, 0, (0, 255)),
    Op.AUTOCONTRAST: (lambda image, _: reference.autocontrast(image), 0, (0, 1)),
    Op.EQUALIZE: (lambda image, _: reference.equalize(image), 0, (0, 1)),
    Op.INVERT: (lambda image, _: reference.invert(image), 0, (0, 1)),
    Op.HUE: (reference.adjust_hue, 2, (-0.5, 0.5)),
    Op.BLUR: (lambda image, m: reference.gaussian_blur(image, [13, 13], [m]), 1, (0.1, 2)),
}
WHOLE = (Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.POSTERIZE)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def magnitudes_of(op: Op, low: float, high: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).uniform(low, high, COUNT).astype(np.float32)
    drawn[:2] = (low, high)
    return np.rint(drawn) if op in WHOLE else drawn


def ours(images, op, magnitudes, sampling=NEAREST) -> torch.Tensor:
    ops = np.full((1, len(images)), op, dtype=np.int8)
    return rounds.apply(images, ops, magnitudes[None], sampling)


def distance(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (got.cpu().int() - expected.cpu().int()).abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.name.lower())
def test_an_operation_is_torchvisions(op, size, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    theirs, tolerance, (low, high) = CASES[op]
    for seed in range(6):
        images = pictures(COUNT, *size, seed=seed)
        if op == Op.BLUR and min(size) < 13:
            continue
        magnitudes = magnitudes_of(op, low, high, seed)
        got = ours(images.to(device), op, magnitudes)
        expected = torch.stack(
            [theirs(image, m) for image, m in zip(images, magnitudes.tolist(), strict=True)]
        )
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=torch.channels_last)
        off = distance(got, expected).amax(1) > tolerance
        # A source on the border of two pixels may be rounded either way.
        assert off.float().mean() <= (2e-4 if op == Op.ROTATE else 0), (op, seed)


def test_every_operation_is_compared():
    assert {*CASES} == {*Op} - {Op.IDENTITY, Op.SOLARIZE_ADD}


def test_neutral_magnitudes_change_nothing():
    images = pictures(COUNT, 24, 24)
    neutral = {
        **dict.fromkeys((Op.IDENTITY, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.ROTATE), 0.0),
        **dict.fromkeys((Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS), 1.0),
        Op.POSTERIZE: 8.0,
        Op.SOLARIZE: 256.0,
        Op.SOLARIZE_ADD: 0.0,
        Op.TRANSLATE_Y: 0.0,
    }
    for op, magnitude in neutral.items():
        got = ours(images, op, np.full(COUNT, magnitude, dtype=np.float32))
        assert torch.equal(got, images), op
    assert distance(ours(images, Op.HUE, np.zeros(COUNT, np.float32)), images).max() <= 1


def test_solarize_add_is_its_definition():
    images = pictures(COUNT, 31, 17)
    amounts = np.linspace(0, 110, COUNT).astype(np.int64).astype(np.float32)
    pixels = images.numpy().astype(int)
    added = np.minimum(255, pixels + amounts.astype(int)[:, None, None, None])
    expected = np.where(pixels < 128, added, pixels)
    assert np.array_equal(ours(images, Op.SOLARIZE_ADD, amounts).numpy(), expected)


@pytest.mark.parametrize("op", [Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE])
def test_linear_sampling_and_filling_are_pillows(op):
    fill = (124, 116, 104)
    scale = {Op.ROTATE: 40.0, Op.SHEAR_X: 0.4, Op.SHEAR_Y: 0.4}.get(op, 9.0)
    magnitudes = np.random.default_rng(1).uniform(-scale, scale, COUNT).astype(np.float32)
    for height, width in SIZES:
        images = pictures(COUNT, height, width)
        got = ours(images, op, magnitudes, Sampling(linear=True, fill=fill))
        maps = geometry.matrices(np.full(COUNT, op, dtype=np.int8), magnitudes, height, width)
        for image, result, (a, b, c, d, e, f) in zip(images, got, maps.tolist(), strict=True):
            # Pillow's pixel centres lie at halves.
            corner = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            expected = picture.transform(
                (width, height),
                Image.Transform.AFFINE,
                corner,
                Image.Resampling.BILINEAR,
                fillcolor=fill,
            )
            off = distance(result.permute(1, 2, 0), torch.from_numpy(np.array(expected)))
            assert (off.amax(2) > 1).float().mean() <= 0.002


def test_rounds_group_mixed_operations_without_changing_what_each_image_undergoes():
    draws = np.random.default_rng(0)
    images = pictures(60, 24, 24)
    before = images.clone()
    ops = draws.integers(0, len(Op), (3, 60)).astype(np.int8)
    magnitudes = np.empty(ops.shape, dtype=np.float32)
    for i, op in np.ndenumerate(ops):
        low, high = CASES[Op(op)][2] if Op(op) in CASES else (0, 100)
        value = draws.uniform(low, high)
        magnitudes[i] = np.rint(value) if Op(op) in (*WHOLE, Op.SOLARIZE_ADD) else value
    together = rounds.apply(images, ops, magnitudes, Sampling())
    for i in range(60):
        alone = rounds.apply(
            images[i : i + 1], ops[:, i : i + 1], magnitudes[:, i : i + 1], Sampling()
        )
        assert distance(together[i], alone[0]).max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("op", [*Op][1:], ids=lambda op: op.name.lower())
def test_neither_layout_nor_company_changes_what_becomes_of_an_image(op):
    low, high = CASES[op][2] if op in CASES else (0, 110)
    magnitudes = magnitudes_of(op, low, high, 0)
    if op == Op.SOLARIZE_ADD:
        magnitudes = np.rint(magnitudes)
    larger = pictures(COUNT, 40, 33)
    strided = larger[:, :, 1:38:2, 3:20]
    for sampling in (NEAREST, Sampling(linear=True, fill=(3, 200, 90))):
        expected = ours(strided.contiguous(), op, magnitudes, sampling)
        layouts = (strided, strided.contiguous(memory_format=torch.channels_last))
        for images in layouts:
            assert torch.equal(ours(images, op, magnitudes, sampling), expected)
        for i in range(COUNT):
            alone = ours(strided[i : i + 1], op, magnitudes[i : i + 1], sampling)
            assert torch.equal(alone[0], expected[i])
    assert torch.equal(larger, pictures(COUNT, 40, 33))


def test_rounds_of_identities_return_the_images_themselves():
    images = pictures(4, 9, 9)
    nothing = np.zeros((2, 4), dtype=np.int8)
    assert rounds.apply(images, nothing, nothing.astype(np.float32), Sampling()) is images


def test_tiny_images_pass_through_every_operation():
    for height, width in ((1, 1), (2, 5), (3, 3)):
        images = pictures(4, height, width)
        for op in Op:
            got = ours(images, op, np.full(4, 0.4, dtype=np.float32))
            assert got.shape == images.shape


def test_a_strong_blur_of_a_small_image_keeps_its_mean():
    images = pictures(4, 9, 9)
    got = filters.gaussian_blur(images, torch.full((4,), 2.0))
    assert (got.float().mean((2, 3)) - images.float().mean((2, 3))).abs().max() < 12
    assert colour.invert(images).dtype == torch.uint8
