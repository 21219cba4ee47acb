"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest.

Foret et al., Sharpness-Aware Minimization, 2020 (arXiv:2010.01412): with the batch's gradient g the
weights ascend by ``rho * g / |g|``, and the gradient found there steps from where they were. Done
only every few steps, as Mosaic does (every 10; composer/algorithms/sam), it costs a tenth more
instead of twice as much. Which steps are sharpness-aware is a function of the step.

The ascent uses the whole batch's gradient: summed over micro-batches and, by DDP, over processes.
So neither changes the mathematics. A loss scale cancels out in ``g / |g|``. Tested against the
written-out update.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rn50.config import Optim


def is_due(step: int, optim: Optim) -> bool:
    """Return whether update number ``step``, counted from 0, is a sharpness-aware one."""
    return optim.sam_rho > 0 and (step + 1) % optim.sam_every == 0


@contextmanager
def ascended(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights ``rho`` up their gradient; put them back, to the bit, at the end.

    Inside, BatchNorm normalises by the batch as ever, but its running statistics, which are of the
    weights themselves, stay as they are. If the gradient is not finite, neither are the weights
    inside, nor the gradient found there: the loss scaler then skips the step.
    """
    moving: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with torch.no_grad():
        before = [p.detach().clone() for p in moving]
        torch._foreach_add_(moving, _ascent([p.grad for p in moving if p.grad is not None], rho))
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True
        with torch.no_grad():
            torch._foreach_copy_(moving, before)


def _ascent(gradients: list[Tensor], rho: float) -> tuple[Tensor, ...]:
    """Return the gradients scaled to a common length of ``rho``."""
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return torch._foreach_mul(gradients, rho / (length + 1e-12))
