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

from rn50.config import Optim


def is_due(step: int, optim: Optim) -> bool:
    """Return whether update number ``step``, counted from 0, is a sharpness-aware one."""
    return optim.sam_rho > 0 and (step + 1) % optim.sam_every == 0


@contextmanager
def ascended(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights ``rho`` up their gradient; put them back, to the bit, at the end.

    BatchNorm's running statistics are put back too: they are of the weights themselves, and see
    the batch once. (Switched off instead, compiled code would be compiled anew for each side of
    the images.) If the gradient is not finite, neither are the weights inside, nor the gradient
    found there: the loss scaler then skips the step.
    """
    moving: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
    changing = [*moving, *model.buffers()]
    with torch.no_grad():
        before = [tensor.detach().clone() for tensor in changing]
        torch._foreach_add_(moving, _ascent([p.grad for p in moving if p.grad is not None], rho))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)


def _ascent(gradients: list[Tensor], rho: float) -> tuple[Tensor, ...]:
    """Return the gradients scaled to a common length of ``rho``."""
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return torch._foreach_mul(gradients, rho / (length + 1e-12))
