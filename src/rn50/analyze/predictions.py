"""What a network says of every image of a split: the facts from which its mistakes are told."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from rn50.augment.device import Normalise
from rn50.config import Images
from rn50.data.loader import Loader
from rn50.data.plan import evaluation_requests
from rn50.data.shards import PackedSplit
from rn50.evaluate import BATCH, LOSS_UNIT, logits_of, loss_units
from rn50.hardware import Compute

Report = Callable[[int, int], None]
"""Told how many images are done, and of how many."""

FLIPPED = "flip"
"""The name of the answers from an image and its mirror image."""

_GUESSES = 5


@dataclass(frozen=True, slots=True)
class Scores:
    """What ``rn50 eval`` prints of a network, with how sure it is."""

    images: int
    top1: float
    """0 to 1."""
    top5: float
    """Of as many guesses as there are classes, if fewer than five."""
    loss: float
    """Mean cross-entropy without label smoothing, in nats: the negative log-likelihood."""

    @property
    def top1_error(self) -> float:
        """Return the standard error of top-1, of as many draws as images: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.images)


@dataclass(frozen=True)
class Predictions:
    """A network's answers on the images of a split, in the split's order."""

    num_classes: int
    """How many the network tells apart; the images may be of fewer."""
    labels: Int64[np.ndarray, " images"]
    """The true classes."""
    guesses: Int64[np.ndarray, "images guesses"]
    """The five most probable classes, or all if fewer, the most probable first."""
    probabilities: Float32[np.ndarray, "images guesses"]
    """Of the guesses."""
    true_probability: Float32[np.ndarray, " images"]
    """Of the true class."""
    true_rank: Int64[np.ndarray, " images"]
    """How many classes are more probable than the true one: 0 to the number of classes less 1."""
    loss_units: Int64[np.ndarray, " images"]
    """The loss of each image, in units of 2**-16."""

    @property
    def predicted(self) -> Int64[np.ndarray, " images"]:
        """Return the most probable class of each image."""
        return self.guesses[:, 0]

    @property
    def confidence(self) -> Float32[np.ndarray, " images"]:
        """Return the probability of the most probable class."""
        return self.probabilities[:, 0]

    @cached_property
    def correct(self) -> Bool[np.ndarray, " images"]:
        """Return which images are classified right."""
        return self.predicted == self.labels

    @cached_property
    def losses(self) -> Float64[np.ndarray, " images"]:
        """Return the cross-entropy of each image, in nats."""
        return self.loss_units * LOSS_UNIT

    @cached_property
    def confusion(self) -> Int64[np.ndarray, "classes classes"]:
        """Return how many images of each true class (row) are taken for each class (column)."""
        places = self.labels * self.num_classes + self.predicted
        counts = np.bincount(places, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)

    @cached_property
    def scores(self) -> Scores:
        """Return the totals, equal to those of ``rn50.evaluate.evaluate``."""
        count = len(self.labels)
        return Scores(
            images=count,
            top1=int(self.correct.sum()) / count,
            top5=int((self.guesses == self.labels[:, None]).any(axis=1).sum()) / count,
            loss=int(self.loss_units.sum()) * LOSS_UNIT / count,
        )


@torch.no_grad()
def predict(
    nets: Mapping[str, nn.Module],
    split: PackedSplit,
    images: Images,
    loader: Loader,
    compute: Compute,
    *,
    mirrored: str = "",
    report: Report = lambda _done, _total: None,
) -> dict[str, Predictions]:
    """Show every image of a split to several networks, once, in one pass over the data.

    Decoding, batches and precision are those of ``rn50.evaluate.evaluate``, and so are the totals.
    A network's mode is restored afterwards.

    Args:
        nets: By name, on the device.
        split: The images.
        images: Test size, resize and normalisation.
        loader: Decodes the images.
        compute: Device and precision.
        mirrored: The network that is shown the mirror images, too (flip test-time augmentation).
        report: Told of each batch.

    Returns:
        The answers of each network by its name, and by ``FLIPPED`` those of the network that saw
        both: the mean of the two distributions.

    Raises:
        DataError: An image cannot be decoded.
    """
    normalise = Normalise(images.mean, images.std).to(compute.device)
    requests = evaluation_requests(images, split.num_images, BATCH)
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    done = num_classes = 0
    with _evaluating(nets):
        for batch in loader.read(split, requests):
            inputs = normalise(batch.images)
            for name, net in nets.items():
                logits = logits_of(net, inputs, compute)
                num_classes = logits.shape[1]
                parts.setdefault(name, []).append(answers(logits, batch.labels))
                if name == mirrored:
                    both = mean_distribution(logits, logits_of(net, inputs.flip(3), compute))
                    parts.setdefault(FLIPPED, []).append(answers(both, batch.labels))
            done += len(batch.labels)
            report(done, split.num_images)
    return {
        name: Predictions(
            num_classes,
            split.labels,
            *(torch.cat(column).numpy() for column in zip(*batches, strict=True)),
        )
        for name, batches in parts.items()
    }


def mean_distribution(
    logits: Float[Tensor, "batch classes"], others: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """Return the logarithm of the mean of two distributions, which are given by their scores."""
    both = torch.stack([logits, others]).log_softmax(dim=2)
    return both.logsumexp(dim=0) - math.log(2)


def answers(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> tuple[Tensor, ...]:
    """Return the fields of ``Predictions`` after the labels, of one batch, on the host."""
    probabilities = logits.softmax(dim=1).nan_to_num(nan=0.0)
    guesses = logits.topk(min(_GUESSES, logits.shape[1]), dim=1).indices
    # Among equal scores topk may choose others for another k; the best one is that of k = 1.
    best = logits.topk(1, dim=1).indices
    first = guesses[:, :1].clone()
    guesses = torch.where(guesses == best, first, guesses)
    guesses[:, :1] = best
    true = logits.gather(1, labels[:, None])
    columns = (
        guesses,
        probabilities.gather(1, guesses),
        probabilities.gather(1, labels[:, None])[:, 0],
        (logits > true).sum(dim=1),
        loss_units(logits, labels),
    )
    return tuple(column.cpu() for column in columns)


@contextmanager
def _evaluating(nets: Mapping[str, nn.Module]) -> Iterator[None]:
    was_training = {name: net.training for name, net in nets.items()}
    for net in nets.values():
        net.eval()
    try:
        yield
    finally:
        for name, net in nets.items():
            net.train(was_training[name])
