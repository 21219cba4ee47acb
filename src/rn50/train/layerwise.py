"""Optimizers that torch has not: LARS, LAMB and SGD with decoupled decay.

timm has maintained ones. Ours are its equals (tested) in a few lines that
take the step count from the run's step and decide on the trust ratio by module type; a
dependency on timm would bring its whole model zoo.

With ``heeds_found_inf`` they keep torch's protocol for updates that the device may find it has to
skip: where the optimizer's ``found_inf`` is 1, a tensor that the host does not read, the gradients
may be anything, and weights and state stay as they are to the bit.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Groups = Iterable[dict[str, Any]]


class SGDW(torch.optim.SGD):
    """SGD whose decay is no part of the gradient: ``p *= 1 - lr / peak_lr * weight_decay``.

    Loshchilov and Hutter, 2017 (arXiv:1711.05101), with the decay as a share of the weight per step
    at the peak, as in composer/optim/decoupled_weight_decay.py. Tested against a written-out loop.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        peak_lr: float,
        momentum: float,
        nesterov: bool,
        heeds_found_inf: bool = False,
    ) -> None:
        # torch's own decay must see 0, or it would be added to the gradient as well.
        renamed = [
            {**group, "weight_decay": 0.0, "decoupled_decay": group["weight_decay"]}
            for group in groups
        ]
        fused = heeds_found_inf or None
        super().__init__(renamed, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        self.peak_lr = peak_lr

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Shrink the weights, then do SGD's step."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["decoupled_decay"] > 0:
                keep = 1 - group["lr"] / self.peak_lr * group["decoupled_decay"]
                torch._foreach_mul_(parameters, _unless(_found_inf(self), keep))
        super().step()


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose steps are as long, per layer, as its weights allow.

    You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv:1708.03888): the
    gradient with its decay is multiplied by ``trust_coefficient * |w| / (|g| + decay * |w|)`` in
    the groups that adapt. The learning rate multiplies the momentum when it is applied, as in
    torch and timm, and not when it is gathered, as in the paper. Tested against the formula
    written out, and timm's.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        trust_coefficient: float,
        heeds_found_inf: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "adapts": True})
        self._step_supports_amp_scaling = heeds_found_inf
        self.nesterov = nesterov
        self.trust_coefficient = trust_coefficient

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one update."""
        found = _found_inf(self)
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group, found)
            if not parameters:
                continue
            decay, momentum = group["weight_decay"], group["momentum"]
            steps = torch._foreach_add(gradients, parameters, alpha=decay)
            if group["adapts"]:
                torch._foreach_mul_(steps, self._ratios(parameters, gradients, decay))
            if momentum > 0:
                buffers = _kept(self, "momentum_buffer", parameters)
                torch._foreach_mul_(buffers, _unless(found, momentum))
                torch._foreach_add_(buffers, _nothing_if(found, steps))
                if self.nesterov:
                    torch._foreach_add_(steps, buffers, alpha=momentum)
                else:
                    steps = tuple(buffers)
            torch._foreach_add_(parameters, _nothing_if(found, steps), alpha=-group["lr"])

    def _ratios(
        self, parameters: list[Tensor], gradients: list[Tensor], decay: float
    ) -> tuple[Tensor, ...]:
        lengths = torch.stack(torch._foreach_norm(parameters))
        others = torch.stack(torch._foreach_norm(gradients))
        ratio = self.trust_coefficient * lengths / (others + decay * lengths + 1e-8)
        return torch.where((lengths > 0) & (others > 0), ratio, 1.0).unbind()


class LAMB(torch.optim.Optimizer):
    """Adam whose steps are as long, per layer, as its weights.

    You et al., Large Batch Optimization for Deep Learning, 2019 (arXiv:1904.00962): the averages,
    corrected for their youth, give ``u = m / (sqrt(v) + eps) + decay * w``, and the step is
    ``lr * |w| / |u| * u`` in the groups that adapt. NVIDIA's and timm's form, on which
    ResNet strikes back was trained; timm's also clips the whole gradient's norm at 1, which here
    is ``optim.clip_grad_norm``. Tested against the formula written out, and timm's.

    ``param_groups[…]["step"]`` is the number of updates before the next; the caller sets it.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        heeds_found_inf: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "adapts": True, "step": 0})
        self.eps = eps
        self._step_supports_amp_scaling = heeds_found_inf

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one update."""
        found = _found_inf(self)
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group, found)
            if not parameters:
                continue
            (beta1, beta2), updates = group["betas"], group["step"] + 1
            means = _kept(self, "exp_avg", parameters)
            squares = _kept(self, "exp_avg_sq", parameters)
            torch._foreach_mul_(means, _unless(found, beta1))
            torch._foreach_add_(means, gradients, alpha=1 - beta1)
            torch._foreach_mul_(squares, _unless(found, beta2))
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, (1 - beta2**updates) ** 0.5)
            torch._foreach_add_(roots, self.eps)
            steps = torch._foreach_div(means, 1 - beta1**updates)
            torch._foreach_div_(steps, roots)
            torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
            if group["adapts"]:
                torch._foreach_mul_(steps, _lengths_over(parameters, steps))
            torch._foreach_add_(parameters, _nothing_if(found, steps), alpha=-group["lr"])


def _lengths_over(parameters: list[Tensor], steps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the length of each layer's weights over that of its step; 1 where either is 0."""
    lengths = torch.stack(torch._foreach_norm(parameters))
    others = torch.stack(torch._foreach_norm(steps))
    return torch.where((lengths > 0) & (others > 0), lengths / others, 1.0).unbind()


def _with_gradients(
    group: dict[str, Any], found: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have gradients, and these; zeros where the update is skipped."""
    parameters = [p for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    if found is not None:
        gradients = [torch.where(found > 0, 0.0, gradient) for gradient in gradients]
    return parameters, gradients


def _found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return 1 where the update is to be skipped, on the device; None: it is not."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found


def _unless(found: Tensor | None, factor: float) -> float | Tensor:
    """Return a factor, but 1 where the update is skipped."""
    return factor if found is None else torch.where(found > 0, 1.0, factor)


def _nothing_if(found: Tensor | None, steps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return finite steps, or zeros where the update is skipped."""
    return steps if found is None else torch._foreach_mul(steps, (found == 0).to(steps[0].dtype))


def _kept(optimizer: torch.optim.Optimizer, kind: str, parameters: list[Tensor]) -> list[Tensor]:
    """Return a tensor per parameter from the optimizer's state, made of zeros at first."""
    found = []
    for parameter in parameters:
        state = optimizer.state[parameter]
        if kind not in state:
            state[kind] = torch.zeros_like(parameter)
        found.append(state[kind])
    return found
