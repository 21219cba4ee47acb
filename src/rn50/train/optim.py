"""The optimizer, with weight decay on convolution and linear weights alone."""

from typing import Any

import torch
from torch import nn

from rn50.config import Optim


def build(model: nn.Module, optim: Optim) -> torch.optim.SGD:
    """Return SGD over two groups: decayed weights, and everything else.

    The groups go by module type. Going by name, as ``"bn" in name`` does, misses the BatchNorm of
    every shortcut (``downsample.1``) and the bias of the classifier. Decay is coupled: it is part
    of the gradient, and so scaled by the learning rate and the momentum.
    """
    decayed, others = split_parameters(model)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=optim.peak_lr, momentum=optim.momentum, nesterov=optim.nesterov
    )


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights of convolutions and linear layers, and all other parameters."""
    decayed: list[nn.Parameter] = [
        module.get_parameter("weight")
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    chosen = {id(parameter) for parameter in decayed}
    return decayed, [p for p in model.parameters() if id(p) not in chosen]


def momentum_buffers(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, torch.Tensor]:
    """Return the optimizer's buffers by parameter name; empty before the first step."""
    buffers = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[name] = buffer
    return buffers


def load_momentum_buffers(
    model: nn.Module, optimizer: torch.optim.SGD, buffers: dict[str, torch.Tensor]
) -> None:
    """Put back what ``momentum_buffers`` returned, for every parameter or for none.

    Raises:
        ValueError: The names do not match the model's parameters.
    """
    parameters = dict(model.named_parameters())
    if buffers and buffers.keys() != parameters.keys():
        differing = sorted(buffers.keys() ^ parameters.keys())
        raise ValueError(f"momentum of other parameters than the model's: {differing[:3]}")
    for name, buffer in buffers.items():
        parameter = parameters[name]
        state: dict[str, Any] = optimizer.state[parameter]
        # The layout must be the parameter's: channels-last buffers step channels-last weights.
        state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
