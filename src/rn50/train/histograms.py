"""Histograms of the weights, recorded for trackers to show; on request only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rn50.observe.record import Record

BINS = 32


def told(
    write: Callable[[Record], None], net: nn.Module, every_epochs: int
) -> Callable[[Record], None]:
    """Return ``write``, preceded at the end of every so many epochs by the model's histograms.

    Args:
        write: Writes a record.
        net: The model.
        every_epochs: 0 for never.
    """
    if every_epochs == 0:
        return write

    def both(one: Record) -> None:
        if one["kind"] == "epoch" and one["epoch"] % every_epochs == 0:
            weights = {name: of(value) for name, value in net.named_parameters()}
            write({"kind": "histograms", "step": one["step"], "weights": weights})
        write(one)

    return both


@torch.no_grad()
def of(values: Tensor) -> dict[str, Any]:
    """Return the least and the greatest value, and how many lie in each of ``BINS`` equal parts.

    As numpy's ``histogram``: where all values are the same, the range is one wide.
    """
    # On the host: a GPU's count is refused where only deterministic kernels are allowed.
    values = values.detach().float().cpu()
    low, high = values.min().item(), values.max().item()
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, BINS, low, high)
    return {"low": low, "high": high, "counts": counts.long().tolist()}
