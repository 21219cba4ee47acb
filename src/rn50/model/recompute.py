"""Activation checkpointing: memory for time.

Chen et al.: Training Deep Nets with Sublinear Memory Cost (2016, arXiv:1604.06174), by torch's
``utils.checkpoint`` without reentry. Only the input of each block is kept; backward computes the
rest anew. That second forward pass would move BatchNorm's running statistics twice (their momentum
of 0.1 would act as 0.19), so it is made to leave them alone. Outputs, gradients and statistics are
tested to equal those without it to the bit (``tests/model/test_recompute.py``).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Any) -> Any:
    """Return ``block(*inputs)``, keeping nothing of it but the inputs for backward.

    The block must draw nothing at random.
    """
    if torch.compiler.is_compiling():  # The compiler itself computes effects once.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(block)

    return checkpoint(
        block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch, as in training, but not follow its statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
