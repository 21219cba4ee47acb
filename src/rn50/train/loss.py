"""The training loss: cross-entropy or binary cross-entropy, of plain, mixed or dense targets.

A target comes as labels, as pairs of labels with the first one's share (mixup, CutMix), or dense,
as a probability per class. Smoothing is applied here and nowhere else: of a mixed target it is the
same before and after mixing, as both are linear, and a target that says it is smoothed already is
refused where it would be smoothed again.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from rn50.config import Loss
from rn50.errors import UsageError


@dataclass(frozen=True, slots=True)
class Dense:
    """A probability for each class of each image."""

    probabilities: Float[Tensor, "batch classes"]
    smoothed: bool = False
    """Whether label smoothing has been applied to it."""


def loss(
    settings: Loss,
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"] | Dense,
    partner_labels: Int64[Tensor, " batch"] | None = None,
    share: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean loss over a batch.

    Cross-entropy is torch's, label smoothing (Szegedy et al., 2015, arXiv:1512.00567) included.
    Binary cross-entropy (Wightman et al., 2021, arXiv:2110.00476) is summed over classes, as
    Composer does and timm with ``bce_sum``, or averaged, timm's default: the gradient is then
    smaller by the number of classes. Tested against torch's losses of the dense target.

    Args:
        settings: Which loss, smoothing, threshold.
        logits: The network's answers, in float32.
        labels: The class of each image, or a dense target.
        partner_labels: The class of the image mixed into each; None: nothing is mixed in.
        share: How much of each mixed image is its own, 0 to 1.

    Raises:
        UsageError: The dense target is smoothed already and the settings would smooth it again.
    """
    if isinstance(labels, Dense) or settings.name == "bce":
        target = _dense(settings, labels, partner_labels, share, logits.shape[1])
        if settings.name == "bce":
            return _binary(settings, logits, target)
        return F.cross_entropy(logits, target)
    smoothing = settings.label_smoothing
    if partner_labels is None or share is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    own = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    other = F.cross_entropy(logits, partner_labels, label_smoothing=smoothing, reduction="none")
    return (share * own + (1 - share) * other).mean()


@torch.no_grad()
def init_bias(model: nn.Module, settings: Loss) -> None:
    """Set the classifier's bias to -log(classes) where binary cross-entropy asks for it.

    Each class is then answered with about one in ``classes`` from the start, instead of one half:
    the sum over classes would begin with a loss of ``classes * log(2)`` (Composer's
    ``linear_log_constant_bias``, composer/models/initializers.py; the prior of Lin et al., 2017,
    arXiv:1708.02002). Tested: the first answers sum to one.
    """
    if settings.name == "bce" and settings.bce_log_bias:
        classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        classifier.bias.fill_(-math.log(classifier.out_features))


def of_ignorance(settings: Loss, classes: int) -> float:
    """Return the loss of a network that has learned nothing: the order of the first losses.

    Its answers are alike for all classes, as the last layer's bias begins (``init_bias``); label
    smoothing and mixing, which keep a target's sum at 1, do not change it.
    """
    if settings.name == "cross-entropy":
        return math.log(classes)
    total = classes * math.log(2)
    if settings.bce_log_bias and classes > 1:
        # The bias is -log(classes), whose sigmoid is 1 / (classes + 1).
        total = math.log(classes) + classes * math.log1p(1 / classes)
    return total / classes if settings.bce_over_classes == "mean" else total


def _binary(settings: Loss, logits: Tensor, target: Tensor) -> Tensor:
    if settings.bce_threshold > 0:
        target = (target > settings.bce_threshold).to(logits.dtype)
    if settings.bce_over_classes == "mean":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def _dense(
    settings: Loss,
    labels: Tensor | Dense,
    partner_labels: Tensor | None,
    share: Tensor | None,
    classes: int,
) -> Tensor:
    """Return the smoothed probability of each class of each image."""
    smoothing = settings.label_smoothing
    if isinstance(labels, Dense):
        if labels.smoothed and smoothing > 0:
            raise UsageError(
                f"loss.label_smoothing is {smoothing:g}, but the target is smoothed already; "
                "set --label-smoothing 0 or hand over the target unsmoothed"
            )
        target = labels.probabilities
    else:
        target = F.one_hot(labels, classes).float()
        if partner_labels is not None and share is not None:
            partner = F.one_hot(partner_labels, classes).float()
            target = share[:, None] * target + (1 - share[:, None]) * partner
    return target * (1 - smoothing) + smoothing / classes
