"""The exponential moving average of a model, as a second model.

The average is never swapped into the trained model: it is evaluated, saved and exported by itself.
BatchNorm's statistics are averaged with the weights. An average of parameters alone keeps the
statistics of the untrained network and scores at chance.
"""

import copy
import math

import torch
from torch import nn


def start(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` to be averaged into, without gradients, in evaluation mode."""
    average = copy.deepcopy(model)
    average.requires_grad_(False)
    return average.eval()


def decay(update: int, *, horizon_updates: float) -> float:
    """Return the share of the old average that survives an update.

    The final decay is ``exp(-1 / horizon_updates)``. It is warmed up as ``(1 + n) / (10 + n)``,
    the rule of TensorFlow's ExponentialMovingAverage, so that the random initial weights do not
    linger: after n updates the average reaches back over about n / 9 of them.

    Args:
        update: How many updates came before this one.
        horizon_updates: Time constant of the average, in updates.
    """
    return min(math.exp(-1 / horizon_updates), (1 + update) / (10 + update))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move ``average`` towards ``model`` in place: ``keep * average + (1 - keep) * model``.

    Integer buffers (BatchNorm's counters) are copied.
    """
    targets, sources = [], []
    for target, source in zip(_tensors(average), _tensors(model), strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source)
        else:
            target.copy_(source)
    torch._foreach_lerp_(targets, sources, 1 - keep)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*(p.detach() for p in model.parameters()), *model.buffers()]
