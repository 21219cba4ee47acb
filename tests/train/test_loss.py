import math

import pytest
import torch
from torch.nn import functional as F

from rn50.config import Loss, Model
from rn50.errors import UsageError
from rn50.model import resnet
from rn50.train.loss import Dense, init_bias, loss, of_ignorance

CLASSES = 7


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, CLASSES, generator=generator) * 3
    labels = torch.randint(0, CLASSES, (12,), generator=generator)
    partners = torch.randint(0, CLASSES, (12,), generator=generator)
    return logits, labels, partners, torch.rand(12, generator=generator)


def written_out(labels, partners, share, smoothing: float) -> torch.Tensor:
    """Return the target image by image, class by class."""
    target = torch.zeros(len(labels), CLASSES)
    for i in range(len(labels)):
        target[i, labels[i]] += share[i]
        target[i, partners[i]] += 1 - share[i]
        target[i] = target[i] * (1 - smoothing) + smoothing / CLASSES
    return target


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_plain_cross_entropy_is_torch_s_to_the_bit(smoothing):
    logits, labels, *_ = drawn()
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.equal(loss(Loss(label_smoothing=smoothing), logits, labels), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pairs_equal_the_dense_target_and_are_smoothed_once(smoothing):
    logits, labels, partners, share = drawn()
    settings = Loss(label_smoothing=smoothing)
    target = written_out(labels, partners, share, smoothing)
    theirs = F.cross_entropy(logits, target)
    torch.testing.assert_close(loss(settings, logits, labels, partners, share), theirs)
    plain = Dense(written_out(labels, partners, share, 0.0))
    torch.testing.assert_close(loss(settings, logits, plain), theirs)


def test_a_share_of_one_is_the_plain_loss():
    logits, labels, partners, _ = drawn()
    for settings in (Loss(), Loss(name="bce")):
        mixed = loss(settings, logits, labels, partners, torch.ones(12))
        torch.testing.assert_close(mixed, loss(settings, logits, labels))


def test_a_target_that_is_smoothed_already_is_not_smoothed_again():
    logits, labels, partners, share = drawn()
    smoothed = Dense(written_out(labels, partners, share, 0.1), smoothed=True)
    theirs = F.cross_entropy(logits, smoothed.probabilities)
    torch.testing.assert_close(loss(Loss(label_smoothing=0), logits, smoothed), theirs)
    for name in ("cross-entropy", "bce"):
        with pytest.raises(
            UsageError, match=r"label_smoothing is 0\.1, but the target is smoothed"
        ):
            loss(Loss(name=name), logits, smoothed)


@pytest.mark.parametrize("over", ["sum", "mean"])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_sums_or_averages_over_classes(over, mixed):
    logits, labels, partners, share = drawn()
    share = share if mixed else torch.ones(12)
    target = written_out(labels, partners, share, 0.1)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    theirs = each.sum(1).mean() if over == "sum" else each.mean()
    settings = Loss(name="bce", bce_over_classes=over)
    more = (partners, share) if mixed else ()
    torch.testing.assert_close(loss(settings, logits, labels, *more), theirs)


def test_targets_above_the_threshold_become_one():
    logits, labels, partners, share = drawn()
    target = (written_out(labels, partners, share, 0.0) > 0.2).float()
    theirs = F.binary_cross_entropy_with_logits(logits, target)
    settings = Loss(name="bce", label_smoothing=0.0, bce_over_classes="mean", bce_threshold=0.2)
    torch.testing.assert_close(loss(settings, logits, labels, partners, share), theirs)


def test_the_bias_makes_the_first_answers_sum_to_one_and_is_set_for_bce_alone():
    net = resnet.build(Model(arch="resnet18", num_classes=100), seed=0)
    before = net.fc.bias.detach().clone()
    for untouched in (Loss(), Loss(name="bce", bce_log_bias=False)):
        init_bias(net, untouched)
        assert torch.equal(net.fc.bias, before)
    init_bias(net, Loss(name="bce"))
    assert net.fc.bias.tolist() == pytest.approx([-math.log(100)] * 100)
    logits, labels = net.fc.bias.expand(4, 100), torch.arange(4)
    first = loss(Loss(name="bce", label_smoothing=0), logits, labels).item()
    assert first == pytest.approx(math.log(100) + 1, abs=0.02)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cross-entropy"},
        {"name": "bce"},
        {"name": "bce", "bce_log_bias": False},
        {"name": "bce", "bce_over_classes": "mean"},
    ],
)
def test_the_loss_of_ignorance_is_that_of_a_network_whose_last_layer_answers_nothing(
    settings, smoothing
):
    _, labels, partners, share = drawn()
    with_smoothing = Loss(**settings, label_smoothing=smoothing)
    net = torch.nn.Sequential(torch.nn.Linear(3, CLASSES))
    torch.nn.init.zeros_(net[0].weight)
    torch.nn.init.zeros_(net[0].bias)
    init_bias(net, with_smoothing)
    found = loss(with_smoothing, net(torch.randn(12, 3)), labels, partners, share)
    assert of_ignorance(with_smoothing, CLASSES) == pytest.approx(found.item(), rel=1e-5)
