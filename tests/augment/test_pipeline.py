import dataclasses

import numpy as np
import pytest
import torch
from small_images import pictures
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from rn50.augment import erasing, pipeline, rounds
from rn50.augment.device import Normalise, flip
from rn50.augment.draws import AugmentDraws, MixDraws, augment_draws
from rn50.augment.erasing import erase
from rn50.augment.mixing import Targets, mix, partners
from rn50.augment.ops import Op
from rn50.augment.pipeline import prepare, sampling_of
from rn50.augmentation import Augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALL = Augment(
    policy="randaugment-timm",
    magnitude=7,
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    blur_prob=0.5,
    erase_prob=0.5,
    erase_mode="pixel",
    dropout_prob=0.3,
)


def inputs_of(count: int = 6, px: int = 20) -> torch.Tensor:
    return Normalise(MEAN, STD)(pictures(count, px, px))


def test_holes_are_erased_as_torchvision_does():
    holes = np.array(
        [[[2, 3, 5, 7]], [[0, 0, 0, 0]], [[0, 0, 19, 19]], [[19, 19, 1, 1]], [[1, 2, 3, 4]]] * 2
    ).reshape(5, 2, 4)
    inputs = inputs_of(5)
    expected = inputs.clone()
    for image, rectangles in zip(expected, holes, strict=True):
        for i, j, h, w in rectangles.tolist():
            reference.erase(image, i, j, h, w, torch.zeros(3, 1, 1), inplace=True)
    got = erase(inputs, holes, None)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_noise_fills_holes_alone_and_is_normal_and_the_images_own():
    holes = np.array([[[2, 3, 15, 15]], [[2, 3, 15, 15]], [[0, 0, 0, 0]]])
    inputs = inputs_of(3)
    before = inputs.clone()
    got = erase(inputs, holes, np.array([5, (1 << 20) - 3, 77]))
    changed = got != before
    assert not changed[2].any()
    assert changed[:2, :, 2:17, 3:18].all()
    assert changed[:2].sum() == 2 * 3 * 15 * 15
    noise = got[:2, :, 2:17, 3:18]
    assert not torch.equal(noise[0], noise[1])
    assert noise.mean().abs() < 0.12
    assert (noise.std() - 1).abs() < 0.1


@pytest.mark.parametrize("mode", ["const", "pixel"])
def test_erasing_images_one_by_one_and_together_is_the_same(mode):
    settings = Augment(erase_prob=0.5, dropout_prob=0.4, erase_mode=mode)
    draws = augment_draws(settings, 0, 0, np.arange(40), 20)
    places = None if mode == "const" else draws.noise.copy()
    if places is not None:
        places[:20] = (1 << 20) - 1 - np.arange(20)  # whose noise goes on at the table's beginning
    one, other = inputs_of(40), inputs_of(40)
    assert not torch.equal(erasing._one_by_one(one, draws.holes, places), inputs_of(40))
    assert torch.equal(erasing._together(other, draws.holes, places), one)
    nothing = np.zeros((40, 3, 4), dtype=np.int64)
    for erase_some in (erasing._one_by_one, erasing._together):
        assert torch.equal(erase_some(inputs_of(40), nothing, None), inputs_of(40))


@pytest.mark.parametrize("count", [1, 1 << 20, (1 << 20) + 1])
def test_the_noise_of_any_image_fits_into_its_table(count):
    table = erasing._table(torch.device("cpu"), count)
    assert len(table) >= (1 << 20) - 1 + count
    assert torch.equal(table[1 << 20 :], table[: len(table) - (1 << 20)])


def test_images_are_paired_with_their_neighbours_and_stay_in_even_parts():
    rows = torch.arange(12)
    assert partners(rows).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    for size in (2, 4, 6):
        parts = torch.cat([partners(part) for part in rows.split(size)])
        assert torch.equal(parts, partners(rows))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_mixup_is_torchvisions_of_each_pair(monkeypatch, share):
    mixup = v2.MixUp(alpha=1.0, num_classes=5)
    monkeypatch.setattr(mixup._dist, "sample", lambda _: torch.tensor(share))
    assert_mixes_as(mixup, MixDraws(share=share, box=None))


def test_cutmix_is_torchvisions_of_each_pair(monkeypatch):
    cutmix = v2.CutMix(alpha=1.0, num_classes=5)
    params = {"box": (4, 2, 20, 9), "lam_adjusted": 1 - 16 * 7 / 400}
    monkeypatch.setattr(cutmix, "make_params", lambda _: params)
    # torchvision's box is (left, top, right, bottom).
    assert_mixes_as(cutmix, MixDraws(share=params["lam_adjusted"], box=(2, 4, 7, 16)))


def assert_mixes_as(theirs, draws: MixDraws) -> None:
    inputs, labels = inputs_of(6), torch.tensor([0, 4, 2, 2, 3, 1])
    # In a batch of two, torchvision's predecessor is the partner.
    pairs = [
        theirs(images, classes)
        for images, classes in zip(inputs.split(2), labels.split(2), strict=True)
    ]
    expected, probabilities = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    got, targets = mix(inputs.clone(memory_format=torch.preserve_format), labels, draws)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(targets.dense(5), probabilities, rtol=0, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert targets.labels is labels


def test_unmixed_targets_are_the_labels():
    inputs, labels = inputs_of(3), torch.tensor([2, 0, 1])
    got, targets = mix(inputs, labels, None)
    assert got is inputs
    assert targets == Targets(labels)
    assert torch.equal(targets.dense(3), torch.eye(3)[labels])


def test_without_draws_inputs_are_flipped_and_normalised_alone():
    images, flips = pictures(5, 20, 20), torch.tensor([True, False, True, True, False])
    normalise = Normalise(MEAN, STD)
    got = prepare(images, flips, None, normalise, sampling_of("none", MEAN))
    assert torch.equal(got, normalise(flip(images, flips)))


def test_a_batch_in_parts_is_the_batch_at_once():
    images = pictures(24, 32, 32)
    before = images.clone()
    flips = torch.from_numpy(np.random.default_rng(0).random(24) < 0.5)
    draws = augment_draws(ALL, 0, 3, np.arange(24), 32)
    assert draws is not None
    normalise, sampling = Normalise(MEAN, STD), sampling_of(ALL.policy, MEAN)
    whole = prepare(images, flips, draws, normalise, sampling)
    parts = [
        prepare(images[rows], flips[rows], draws.part(rows), normalise, sampling)
        for rows in (slice(0, 6), slice(6, 8), slice(8, 24))
    ]
    level = 1.001 / 255 / min(STD)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=level)
    assert (torch.cat(parts) != whole).float().mean() < 1e-3
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("at_once", [1, 5, 23])
def test_a_cpu_prepares_a_few_images_at_a_time_to_the_same_result(monkeypatch, at_once):
    images, flips = pictures(24, 32, 32), torch.arange(24) % 3 == 0
    draws = augment_draws(ALL, 0, 3, np.arange(24), 32)
    rest = (flips, draws, Normalise(MEAN, STD), sampling_of(ALL.policy, MEAN))
    whole = prepare(images, *rest)
    monkeypatch.setattr(pipeline, "_CACHED_VALUES", at_once * 3 * 32 * 32)
    calls = []
    monkeypatch.setattr(pipeline, "flip", lambda i, f: calls.append(len(i)) or flip(i, f))
    got = prepare(images, *rest)
    assert sum(calls) == 24
    assert max(calls) == at_once
    torch.testing.assert_close(got, whole, rtol=0, atol=1.001 / 255 / min(STD))
    assert (got != whole).float().mean() < 1e-3


@pytest.mark.parametrize("policy", ["randaugment-timm", "randaugment"])
def test_on_a_gpu_nothing_would_wait_and_no_tensor_be_left_on_the_host(monkeypatch, policy):
    # Fake tensors have shapes and devices alone, so that this needs no GPU: whatever depends on
    # values, as all that waits for them does, or mixes devices, raises.
    def to_device(array, device):
        return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

    for module in (rounds, erasing):
        monkeypatch.setattr(module, "to_device", to_device)
    monkeypatch.setattr(
        erasing, "_table", lambda device, count: torch.empty(1 << 21, device=device)
    )
    settings = dataclasses.replace(ALL, policy=policy, num_ops=6)
    draws = augment_draws(settings, 0, 3, np.arange(64), 48)
    assert {*np.unique(draws.ops)} >= {*Op} - {Op.IDENTITY, Op.SOLARIZE_ADD, Op.INVERT}
    with FakeTensorMode():
        shape = (64, 48, 48, 3)
        images = torch.empty(shape, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        flips = torch.empty(64, dtype=torch.bool, device="cuda")
        labels = torch.empty(64, dtype=torch.int64, device="cuda")
        normalise = Normalise(MEAN, STD).cuda()
        inputs = prepare(images, flips, draws, normalise, sampling_of(policy, MEAN))
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        for box in (None, (2, 3, 20, 10)):
            mixed, targets = mix(inputs, labels, MixDraws(share=0.3, box=box))
            assert mixed.device.type == targets.share.device.type == "cuda"


def test_timms_policy_fills_with_the_mean_colour():
    assert sampling_of("randaugment", MEAN).fill == (0, 0, 0)
    timm = sampling_of("randaugment-timm", MEAN)
    assert timm.linear
    assert timm.fill == (124, 116, 104)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_augments_as_the_cpu_without_waiting():
    images = pictures(64, 64, 64)
    flips = torch.from_numpy(np.random.default_rng(0).random(64) < 0.5)
    draws = augment_draws(ALL, 0, 3, np.arange(64), 64)
    assert isinstance(draws, AugmentDraws)
    normalise, sampling = Normalise(MEAN, STD), sampling_of(ALL.policy, MEAN)
    expected = prepare(images, flips, draws, normalise, sampling)
    on_gpu = (images.cuda(), flips.cuda(), draws, Normalise(MEAN, STD).cuda(), sampling)
    prepare(*on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = prepare(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = (got.cpu() - expected).abs() > 2.001 / 255 / min(STD)
    assert off.float().mean() < 1e-3


@pytest.mark.parametrize("box", [(5, 7, 0, 0), (5, 7, 0, 3), (5, 7, 3, 0)])
def test_a_box_clipped_to_nothing_mixes_nothing(box):
    inputs = torch.rand(4, 3, 32, 32)
    mixed, targets = mix(inputs.clone(), torch.arange(4), MixDraws(share=1.0, box=box))
    assert torch.equal(mixed, inputs)
    assert torch.equal(targets.labels, torch.arange(4))
