import numpy as np
import pytest
import torch
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from rn50 import rng
from rn50.augment import policies
from rn50.augment.ops import Op

NAMES = {
    "Identity": Op.IDENTITY,
    "ShearX": Op.SHEAR_X,
    "ShearY": Op.SHEAR_Y,
    "TranslateX": Op.TRANSLATE_X,
    "TranslateY": Op.TRANSLATE_Y,
    "Rotate": Op.ROTATE,
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.COLOR,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Invert": Op.INVERT,
}
ENHANCING = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
MANY = 40_000


def draws_of(count: int, columns: int, seed: int = 0) -> np.ndarray:
    return rng.uniform(rng.key(seed, "test"), np.arange(count), columns)


def as_applied(op: Op, magnitude: float) -> float:
    """What torchvision hands to its function for a magnitude of its table."""
    if op in ENHANCING:
        return 1 + magnitude
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        return int(magnitude)
    return 255 * magnitude if op == Op.SOLARIZE else magnitude


@pytest.mark.parametrize("px", [32, 64, 128, 160, 176, 192, 224, 256, 288])
@pytest.mark.parametrize(
    ("policy", "theirs", "bins"),
    [
        ("rand", v2.RandAugment, 31),
        ("wide", v2.TrivialAugmentWide, 31),
        ("auto", v2.AutoAugment, 10),
    ],
)
def test_a_space_is_torchvisions(policy, theirs, bins, px):
    space = policies._torchvision_space(policy, px, bins)
    table = theirs._AUGMENTATION_SPACE
    assert {NAMES[name] for name in table} == set(space.ops.tolist())
    for name, (magnitudes, signed) in table.items():
        row = space.ops.tolist().index(NAMES[name])
        expected = magnitudes(bins, px, px)
        values = [0.0] * bins if expected is None else expected.tolist()
        assert space.signed[row] == signed
        got = space.base[row] + space.size[row]
        applied = [as_applied(NAMES[name], value) for value in values]
        if policy == "wide" and NAMES[name] in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
            assert values[15] == pytest.approx(16)
            applied[15] = 16  # in torchvision 15, by the rounding of a float
        assert got == pytest.approx(applied, rel=1e-6, abs=1e-5)
        if NAMES[name] in (Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.POSTERIZE):
            assert got.tolist() == applied


def test_autoaugments_pairs_are_torchvisions():
    theirs = v2.AutoAugment()._policies
    ours = [tuple((op, p, level) for op, p, level in pair) for pair in policies._PAIRS]
    assert ours == [tuple((NAMES[n], p, level or 0) for n, p, level in pair) for pair in theirs]


def shares(ops: np.ndarray) -> dict[Op, float]:
    counts = np.bincount(ops.flatten(), minlength=len(Op))
    return {Op(op): count / ops.size for op, count in enumerate(counts) if count}


@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_randaugment_draws_its_14_operations_evenly_at_one_strength(num_ops):
    ops, magnitudes = policies.rand_augment(
        draws_of(MANY, 2 * num_ops), 224, num_ops=num_ops, magnitude=9
    )
    assert ops.shape == magnitudes.shape == (num_ops, MANY)
    assert len(shares(ops)) == 14
    assert all(share == pytest.approx(1 / 14, abs=0.006) for share in shares(ops).values())
    assert set(np.abs(magnitudes[ops == Op.ROTATE])) == {9.0}
    assert set(magnitudes[ops == Op.TRANSLATE_X]) == {-30.0, 30.0}
    bright = magnitudes[ops == Op.BRIGHTNESS]
    assert {round(float(value), 4) for value in bright} == {0.73, 1.27}
    assert (bright > 1).mean() == pytest.approx(0.5, abs=0.05)


def test_trivial_augment_draws_one_operation_at_any_strength():
    ops, magnitudes = policies.trivial_augment(draws_of(MANY, 3), 224)
    assert ops.shape == (1, MANY)
    assert all(share == pytest.approx(1 / 14, abs=0.006) for share in shares(ops).values())
    turned = magnitudes[ops == Op.ROTATE]
    assert (turned.min(), turned.max()) == (-135, 135)
    assert len(np.unique(turned)) == 61
    assert set(magnitudes[ops == Op.POSTERIZE]) == {2, 3, 4, 5, 6, 7, 8}


def test_autoaugment_does_operations_as_often_as_torchvision():
    ops, _ = policies.auto_augment(draws_of(MANY, 5), 224)
    expected: dict[Op, float] = {}
    for pair in policies._PAIRS:
        for op, probability, _ in pair:
            expected[op] = expected.get(op, 0) + probability / 50
    got = shares(ops)
    assert got.pop(Op.IDENTITY) == pytest.approx(1 - sum(expected.values()), abs=0.01)
    assert got == pytest.approx(expected, abs=0.01)


def test_timms_randaugment_has_its_operations_ranges_and_probability():
    ops, magnitudes = policies.rand_augment_timm(draws_of(MANY, 10), 200, num_ops=2, magnitude=7)
    got = shares(ops)
    assert got.pop(Op.IDENTITY) == pytest.approx(0.5, abs=0.01)
    assert {*got} == {*Op} - {Op.IDENTITY, Op.HUE, Op.BLUR}
    assert all(share == pytest.approx(1 / 30, abs=0.004) for share in got.values())

    def of(op: Op) -> np.ndarray:
        return magnitudes[ops == op].astype(float)

    # Level 7 of 10 with a deviation of 0.5; each argument as timm computes it from the level.
    for op, most in ((Op.ROTATE, 30), (Op.SHEAR_X, 0.3), (Op.TRANSLATE_Y, 90)):
        assert np.abs(of(op)).mean() == pytest.approx(0.7 * most, rel=0.01)
        assert np.abs(of(op)).std() == pytest.approx(0.05 * most, rel=0.1)
        assert (of(op) > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(of(Op.COLOR) - 1).mean() == pytest.approx(0.63, rel=0.01)
    assert set(of(Op.POSTERIZE)) <= {1, 2, 3}
    assert of(Op.SOLARIZE).mean() == pytest.approx(256 - 0.7 * 256 + 0.5, abs=2)
    assert of(Op.SOLARIZE_ADD).mean() == pytest.approx(0.7 * 110 - 0.5, abs=1)
    ops, magnitudes = policies.rand_augment_timm(draws_of(999, 5), 200, num_ops=1, magnitude=10)
    assert np.abs(of(Op.ROTATE)).max() == 30


def test_the_arguments_of_timms_operations_are_those_that_timm_computes():
    made = rand_augment_transform("rand-m7-mstd0.5-inc1", {"translate_pct": 0.45})
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in made.ops} == {
        (policies.TIMM_PROB, 7, policies.TIMM_STD)
    }
    ends = ("Increasing", "Rel")
    named = {name: name for name in NAMES} | {"SolarizeAdd": "SolarizeAdd"}
    ours = {NAMES.get(name, Op.SOLARIZE_ADD): name for name in named}
    by_name = {}
    for op in made.ops:
        name = op.name
        for end in ends:
            name = name.removesuffix(end)
        by_name[name] = op
    assert {ours[op] for op in policies._TIMM} == {*by_name}
    levels = np.linspace(0, 10, 41)
    for op, argument in policies._TIMM.items():
        level_fn, hparams = by_name[ours[op]].level_fn, by_name[ours[op]].hparams
        mine = argument(levels / 10, levels / 10, 200)
        for level, value in zip(levels, mine, strict=True):
            if level_fn is None:
                continue
            (expected,) = level_fn(float(level), hparams)
            if op in ENHANCING:  # theirs has drawn a sign
                value, expected = abs(value - 1), abs(expected - 1)
            if ours[op].startswith("Translate"):
                expected *= 200  # theirs is a part of the side
            assert abs(value) == pytest.approx(abs(expected), abs=1e-5), (op, level)


def test_colour_jitter_is_distributed_as_torchvisions():
    ops, magnitudes = policies.color_jitter(
        draws_of(MANY, 8), brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1
    )
    jitter = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    for op, bounds in (
        (Op.BRIGHTNESS, jitter.brightness),
        (Op.CONTRAST, jitter.contrast),
        (Op.COLOR, jitter.saturation),
        (Op.HUE, jitter.hue),
    ):
        assert ((ops == op).sum(axis=0) == 1).all()
        assert (ops == op).mean(axis=1) == pytest.approx([0.25] * 4, abs=0.01)
        drawn = magnitudes[ops == op]
        assert (drawn.min(), drawn.max()) == pytest.approx(bounds, abs=1e-3)
        assert drawn.mean() == pytest.approx(sum(bounds) / 2, abs=0.01)
    order = {tuple(column) for column in ops.T.tolist()}
    assert len(order) == 24


def test_what_is_not_jittered_is_left_out():
    ops, _ = policies.color_jitter(
        draws_of(100, 8), brightness=0.4, contrast=0, saturation=0, hue=0
    )
    assert set(ops.flatten().tolist()) == {Op.BRIGHTNESS, Op.IDENTITY}


def test_so_many_images_are_blurred_as_is_asked_for():
    ops, sigma = policies.gaussian_blur(draws_of(MANY, 2), probability=0.3, sigma=(0.1, 2.0))
    assert shares(ops)[Op.BLUR] == pytest.approx(0.3, abs=0.01)
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2.0
    assert torch.from_numpy(ops).dtype == torch.int8
