"""Predictions for tests: of drawn scores, of chosen answers."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rn50.analyze.predictions import Predictions, answers


def seen_of(logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> Predictions:
    columns = [column.numpy() for column in answers(logits, labels)]
    return Predictions(logits.shape[1], labels.numpy(), *columns)


def drawn(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores that are right in about half of the images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2.0 * torch.rand(count, generator=generator)
    return logits, labels


def answered(labels: list[int], predicted: list[int], classes: int) -> Predictions:
    """Sure of one class for each image."""
    logits = torch.zeros(len(labels), classes)
    logits[torch.arange(len(labels)), torch.tensor(predicted)] = 5.0
    return seen_of(logits, torch.tensor(labels))


def counts(labels: list[int], predicted: list[int], classes: int) -> np.ndarray:
    return answered(labels, predicted, classes).confusion
