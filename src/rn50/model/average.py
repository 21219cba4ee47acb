"""Averages of the weights, each a second model: exponential (EMA) and of equal shares (SWA).

An average is never swapped into the trained model: it is evaluated, saved and exported by itself.
Weights without BatchNorm statistics that belong to them score at chance, so the EMA averages the
statistics too, and those of the SWA are estimated anew from training images.
"""

import copy
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def start(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` to be averaged into, without gradients, in evaluation mode."""
    average = copy.deepcopy(model)
    average.requires_grad_(False)
    return average.eval()


def decay(update: int, *, horizon_updates: float) -> float:
    """Return the share of the EMA that survives an update.

    The final decay is ``exp(-1 / horizon_updates)``. It is warmed up as ``(1 + n) / (10 + n)``,
    the rule of TensorFlow's ExponentialMovingAverage, so that the random initial weights do not
    linger: after n updates the average reaches back over about n / 9 of them. Tested: its first
    values, and that a horizon later 1 / e of what was is left.

    Args:
        update: How many updates came before this one.
        horizon_updates: Time constant of the average, in updates.
    """
    return min(math.exp(-1 / horizon_updates), (1 + update) / (10 + update))


@torch.no_grad()
def update(
    average: nn.Module, model: nn.Module, keep: float, stepped: Float[Tensor, ""] | None = None
) -> None:
    """Move an EMA towards ``model`` in place: ``keep * average + (1 - keep) * model``.

    Polyak and Juditsky, 1992 (doi:10.1137/0330046), with an exponential window, as in Inception's
    training (Szegedy et al., 2015, arXiv:1512.00567). BatchNorm's statistics are averaged with the
    weights, its integer counters copied. Tested against the formula, parameter by parameter.

    Args:
        average: Made by ``start``.
        model: The trained network.
        keep: Share of the average that survives, 0 to 1.
        stepped: 1 where the optimizer has stepped, 0 where the loss scaler skipped the step, so
            that the average stays as it is; on the device, which the host does not wait for. None:
            it has stepped.
    """
    targets, sources = [], []
    for target, source in zip(_tensors(average), _tensors(model), strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source)
        else:
            _copy(target, source, stepped)
    _lerp(targets, sources, 1 - keep, stepped)


@torch.no_grad()
def take(
    swa: nn.Module, model: nn.Module, share: float, stepped: Float[Tensor, ""] | None = None
) -> None:
    """Take the weights of ``model`` into an SWA in place: ``swa + share * (model - swa)``.

    With ``share`` = 1 / n for the n-th weights taken, all have equal shares (Izmailov et al., 2018,
    arXiv:1803.05407). Buffers are copied: BatchNorm's statistics are the model's until
    ``estimate_statistics``. Tested against ``torch.optim.swa_utils.AveragedModel``.

    Args:
        swa: Made by ``start``; what it held is gone with a share of 1.
        model: The trained network.
        share: Share of these weights, above 0, up to 1.
        stepped: As for ``update``; first weights (a share of 1) are taken anyway. Where others are
            skipped, those taken before keep their place among them: the shares still sum to 1.
    """
    if share == 1:
        stepped = None
    for target, source in zip(swa.buffers(), model.buffers(), strict=True):
        _copy(target, source, stepped)
    _lerp([p.detach() for p in swa.parameters()], [*model.parameters()], share, stepped)


@torch.no_grad()
def estimate_statistics(net: nn.Module, inputs: Iterable[Float[Tensor, "_ 3 _ _"]]) -> list[Tensor]:
    """Estimate BatchNorm's statistics anew, as the mean over the batches of ``inputs``.

    Equal to ``torch.optim.swa_utils.update_bn`` on the same batches (tested), but of a network that
    is frozen in part only the layers that train are changed; ``update_bn`` sets the others to mean
    0 and variance 1.

    Args:
        net: In evaluation mode, before and after.
        inputs: Batches, normalised as in training.

    Returns:
        The means and variances that were estimated, to be agreed upon by processes; none where
        the network has no BatchNorm, and then no batch is asked for.
    """
    net.train()
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the mean over all batches
    for batch in inputs if layers else ():
        net(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.eval()
    return [layer.get_buffer(n) for layer in layers for n in ("running_mean", "running_var")]


def _lerp(
    targets: list[Tensor], sources: list[Tensor], share: float, stepped: Tensor | None
) -> None:
    if stepped is None:
        torch._foreach_lerp_(targets, sources, share)
        return
    moves = torch._foreach_sub(sources, targets)
    torch._foreach_mul_(moves, share * stepped)
    torch._foreach_add_(targets, moves)


def _copy(target: Tensor, source: Tensor, stepped: Tensor | None) -> None:
    target.copy_(source if stepped is None else torch.where(stepped > 0, source, target))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in model.parameters()), *model.buffers()]
