import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.transforms import v2

from rn50 import rng
from rn50.augment import draws
from rn50.augment.draws import augment_draws, mix_draws
from rn50.augmentation import Augment, Mix
from rn50.errors import UsageError

MANY = 20_000
ALL = Augment(
    policy="randaugment",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    blur_prob=0.5,
    erase_prob=0.5,
    erase_mode="pixel",
    dropout_prob=0.5,
)


def values(count: int, columns: int, seed: int = 0) -> np.ndarray:
    return rng.uniform(rng.key(seed, "test"), np.arange(count), columns)


def test_nothing_is_drawn_where_nothing_is_augmented():
    assert augment_draws(Augment(), 0, 0, np.arange(4), 32) is None
    assert mix_draws(Mix(), 0, 0, 32) is None
    assert mix_draws(Mix(mixup_alpha=1.0, prob=0.0), 0, 0, 32) is None


@pytest.mark.parametrize(
    "policy", ["randaugment", "randaugment-timm", "autoaugment", "trivialaugment"]
)
def test_an_images_draws_depend_on_seed_epoch_and_image_alone(policy):
    settings = Augment(policy=policy, erase_prob=0.5)
    ids = np.array([7, 3, 11, 200])
    whole = augment_draws(settings, 5, 2, ids, 64)
    assert whole is not None
    for row, i in enumerate(ids):
        alone = augment_draws(settings, 5, 2, np.array([i]), 64)
        part = whole.part(slice(row, row + 1))
        for name in ("ops", "magnitudes", "holes"):
            assert np.array_equal(getattr(part, name), getattr(alone, name))
    others = [augment_draws(settings, *key, np.arange(50), 64) for key in ((5, 2), (5, 3), (6, 2))]
    assert len({other.ops.tobytes() for other in others if other}) == 3


def test_all_kinds_of_augmentation_are_drawn_together():
    got = augment_draws(ALL, 0, 0, np.arange(10), 64)
    assert got is not None
    assert got.ops.shape == got.magnitudes.shape == (2 + 4 + 1, 10)
    assert (got.ops.dtype, got.magnitudes.dtype) == (np.int8, np.float32)
    assert got.holes.shape == (10, 1 + 8, 4)
    assert got.noise is not None
    assert got.part(slice(2, 5)).noise.tolist() == got.noise[2:5].tolist()


def test_the_holes_of_random_erasing_are_distributed_as_torchvisions():
    holes = draws.erasing(values(MANY, 23), 50, 0.4, (0.02, 1 / 3))[:, 0]
    erased = holes[holes[:, 2] > 0]
    assert len(erased) / MANY == pytest.approx(0.4, abs=0.015)
    top, left, height, width = erased.T
    assert (top + height <= 50).all()
    assert (left + width <= 50).all()
    assert max(height.max(), width.max()) < 50
    theirs = v2.RandomErasing(p=1.0, scale=(0.02, 1 / 3))
    params = [theirs.make_params([torch.zeros(3, 50, 50)]) for _ in range(2000)]
    for name, ours in (("i", top), ("j", left), ("h", height), ("w", width)):
        drawn = [p[name] for p in params]
        assert scipy.stats.ks_2samp(ours, drawn).statistic < 0.04


def test_coarse_dropout_cuts_one_to_so_many_holes_within_the_image():
    holes = draws.coarse_dropout(values(MANY, 2 + 8), 40, 0.5, 0.2)
    assert holes.shape == (MANY, 4, 4)
    count = (holes[..., 2] > 0).sum(1)
    assert (np.bincount(count) / MANY) == pytest.approx([0.5] + 4 * [0.125], abs=0.02)
    assert set(holes[..., 2].flatten().tolist()) == set(holes[..., 3].flatten().tolist()) == {0, 8}
    assert holes[..., :2].min() == 0
    assert holes[..., :2].max() == 32


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 0.5, 0.999, 1.0, 1.5, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    rows = values(4000, 256)
    drawn = [draws.symmetric_beta(alpha, row) for row in rows]
    assert all(0 <= value <= 1 for value in drawn)
    # Very small alphas pile up within the rounding of 0 and 1.
    reference = scipy.stats.beta(alpha, alpha).rvs(4000, random_state=0)
    rounded = [np.round(sample, 9) for sample in (drawn, reference)]
    assert scipy.stats.ks_2samp(*rounded).pvalue > 1e-3


def test_cutmixs_box_and_share_are_torchvisions(monkeypatch):
    cutmix = v2.CutMix(alpha=1.0, num_classes=4)
    draw = np.random.default_rng(0)
    for _ in range(300):
        px = int(draw.integers(1, 80))
        share, column, row = draw.random(), int(draw.integers(px)), int(draw.integers(px))
        places = [row, column]  # from its end: the column comes first
        monkeypatch.setattr(cutmix._dist, "sample", partial(lambda x, _: torch.tensor(x), share))
        with monkeypatch.context() as patch:
            take = partial(lambda rest, *_, **__: torch.tensor([rest.pop()]), places)
            patch.setattr(torch, "randint", take)
            theirs = cutmix.make_params([torch.zeros(2, 3, px, px)])
        top, left, height, width = draws.cutmix_box(share, column, row, px)
        assert theirs["box"] == (left, top, left + width, top + height)
        assert theirs["lam_adjusted"] == pytest.approx(1 - height * width / px**2)


def test_batches_are_mixed_and_switched_as_often_as_is_asked_for():
    settings = Mix(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.8, switch_prob=0.25)
    steps = [mix_draws(settings, 0, step, 32) for step in range(4000)]
    mixed = [step for step in steps if step is not None]
    assert len(mixed) / 4000 == pytest.approx(0.8, abs=0.03)
    cut = [step for step in mixed if step.box is not None]
    assert len(cut) / len(mixed) == pytest.approx(0.25, abs=0.03)
    for step in cut:
        assert step.share == pytest.approx(1 - step.box[2] * step.box[3] / 32**2)
    assert np.mean([step.share for step in mixed]) == pytest.approx(0.5, abs=0.06)
    assert steps[:50] == [mix_draws(settings, 0, step, 32) for step in range(50)]
    assert steps[:50] != [mix_draws(settings, 1, step, 32) for step in range(50)]


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0)])
def test_one_of_both_is_always_that_one(alphas):
    settings = Mix(mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    steps = [mix_draws(settings, 0, step, 32) for step in range(100)]
    assert all((step.box is None) == (alphas[1] == 0) for step in steps)
    assert not any(math.isnan(step.share) for step in steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mix(mixup_alpha=-0.1), "mix.mixup_alpha is -0.1: input should be greater than or"),
        (lambda: Mix(cutmix_alpha=-1), "mix.cutmix_alpha is -1: input should be greater than or"),
        (lambda: Mix(prob=1.5), "mix.prob is 1.5: input should be less than or equal to 1"),
        (lambda: Augment(policy="randaugment", magnitude=9.5), "magnitude is 9.5; randaugment has"),
        (lambda: Augment(magnitude=31), "augment.magnitude is 31: input should be less than"),
        (
            lambda: Augment(policy="randaugment-timm", magnitude=11),
            "magnitude is 11; randaugment-timm allows up to 10",
        ),
        (lambda: Augment(erase_area=(0.5, 0.2)), r"erase_area is \(0.5, 0.2\); it must ascend"),
        (lambda: Augment(color_jitter=(0.1, 0.1, 0.1, 0.6)), "input should be less than or equal"),
        (lambda: Augment(repeats=0), "augment.repeats is 0: input should be greater than"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
