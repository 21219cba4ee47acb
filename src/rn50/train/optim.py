"""Which optimizer moves the weights, over which groups, and how its tensors are saved."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rn50.config import Optim
from rn50.train.layerwise import LAMB, LARS, SGDW

_KEPT = ("momentum_buffer", "exp_avg", "exp_avg_sq")
"""Per-parameter tensors that an optimizer carries. Step counts are not: the step tells them."""


def build(
    model: nn.Module, optim: Optim, *, heeds_found_inf: bool | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer over groups of parameters: those that decay, and the others.

    SGD and AdamW are torch's; LARS, LAMB and SGDW are in ``layerwise``. The groups go by module
    type. Going by name, as ``"bn" in name`` does, misses the BatchNorm of every shortcut
    (``downsample.1``) and the bias of the classifier. LARS and LAMB adapt to a layer's length only
    for the weights of convolutions and linear layers; for the others the trust ratio is 1. Tested:
    which parameter is in which group, for every setting.

    Args:
        model: On the device where it will be trained.
        optim: The settings.
        heeds_found_inf: Whether ``step`` leaves all as it is where the device finds the optimizer's
            ``found_inf`` to be 1 (torch's protocol between GradScaler and fused optimizers), so
            that the host need not ask. None: on CUDA, where torch's fused kernels also are the
            fastest; elsewhere to ask costs nothing, or (MPS) nobody tests those kernels.
    """
    if heeds_found_inf is None:
        heeds_found_inf = all(parameter.is_cuda for parameter in model.parameters())
    groups = _groups(model, optim)
    if optim.name == "adamw":
        fused = heeds_found_inf or None
        return torch.optim.AdamW(
            groups, lr=optim.peak_lr, betas=optim.betas, eps=optim.eps, fused=fused
        )
    if optim.name == "lamb":
        return LAMB(
            groups,
            lr=optim.peak_lr,
            betas=optim.betas,
            eps=optim.eps,
            heeds_found_inf=heeds_found_inf,
        )
    settings: dict[str, Any] = {
        "lr": optim.peak_lr,
        "momentum": optim.momentum,
        "nesterov": optim.nesterov,
    }
    if optim.name == "lars":
        settings |= {"heeds_found_inf": heeds_found_inf}
        return LARS(groups, **settings, trust_coefficient=optim.trust_coefficient)
    if optim.name == "sgdw":
        sgd: torch.optim.Optimizer = SGDW(
            groups, **settings, peak_lr=optim.peak_lr, heeds_found_inf=heeds_found_inf
        )
    else:
        sgd = torch.optim.SGD(groups, **settings, fused=heeds_found_inf or None)
    if heeds_found_inf and optim.momentum > 0:
        # Left to torch, these would hold whatever lies in memory if the first update is skipped.
        for group in sgd.param_groups:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights of convolutions and linear layers, and the others; no frozen ones."""
    decayed: list[nn.Parameter] = [
        module.get_parameter("weight")
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad
    ]
    chosen = {id(parameter) for parameter in decayed}
    return decayed, [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]


def turn(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float | None, step: int) -> None:
    """Set an optimizer to what the schedule says of update number ``step``, counted from 0.

    Adam's and LAMB's corrections for the youth of their averages go by the run's step, so that no
    counter has to be carried.

    Args:
        optimizer: What ``build`` returned.
        lr: Learning rate.
        momentum: Momentum, or first beta; None leaves it.
        step: Updates done before this one.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "step" in group:
            group["step"] = step
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
    if isinstance(optimizer, torch.optim.AdamW) and optimizer.state:
        counts = [state["step"] for state in optimizer.state.values()]
        torch._foreach_zero_(counts)
        torch._foreach_add_(counts, step)


def momentum_buffers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by parameter name; empty until the first step makes them.

    A momentum bears its parameter's name alone, other tensors have theirs before it, as in
    ``exp_avg_sq:fc.weight``.
    """
    buffers = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for kind in _KEPT:
            if state.get(kind) is not None:
                buffers[_key(kind, name)] = state[kind]
    return buffers


def load_momentum_buffers(
    model: nn.Module, optimizer: torch.optim.Optimizer, buffers: dict[str, Tensor]
) -> None:
    """Put back what ``momentum_buffers`` returned, for every parameter or for none.

    Raises:
        ValueError: The names do not match the model's parameters or the optimizer's kind.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kinds = _kinds(optimizer)
    places = {_key(kind, name): (kind, name) for kind in kinds for name in parameters}
    if buffers and buffers.keys() != places.keys():
        differing = sorted(buffers.keys() ^ places.keys())
        raise ValueError(f"momentum of other parameters than the model's: {differing[:3]}")
    for kept in optimizer.state.values() if not buffers else ():
        torch._foreach_zero_([kept[kind] for kind in kinds if kind in kept])
    for key, buffer in buffers.items():
        kind, name = places[key]
        parameter = parameters[name]
        state: dict[str, Any] = optimizer.state[parameter]
        # The layout must be the parameter's: channels-last buffers step channels-last weights.
        state[kind] = torch.empty_like(parameter).copy_(buffer)
        if isinstance(optimizer, torch.optim.AdamW):
            device = parameter.device if optimizer.defaults["fused"] else None
            state["step"] = torch.zeros((), device=device)  # ``turn`` sets it


def num_buffers(optimizer: torch.optim.Optimizer) -> int:
    """Return how many tensors of its size an optimizer carries for a parameter."""
    return len(_kinds(optimizer))


def _groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    weights, others = split_parameters(model)
    normalising = _ids(
        p for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()
    )
    biases = [p for p in others if id(p) not in normalising]
    norms = [p for p in others if id(p) in normalising]
    decay = optim.weight_decay
    if optim.decayed == "all-but-norm":
        parts = [(weights, decay, True), (biases, decay, False), (norms, 0.0, False)]
    else:
        parts = [(weights, decay, True), (others, decay if optim.decayed == "all" else 0.0, False)]
    adapts = optim.name in ("lars", "lamb")
    return [
        {"params": params, "weight_decay": decay} | ({"adapts": layer} if adapts else {})
        for params, decay, layer in parts
        if params
    ]


def _kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    if "betas" in optimizer.param_groups[0]:
        return _KEPT[1:]
    return _KEPT[:1]


def _key(kind: str, name: str) -> str:
    return name if kind == "momentum_buffer" else f"{kind}:{name}"


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}
