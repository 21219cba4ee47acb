import math

import pytest
import timm.optim
import torch

from rn50.train.layerwise import LAMB, LARS, SGDW

SHAPES = ((4, 3), (5,), (2, 2, 3, 3))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) * (step + 1) for shape in SHAPES]


def groups(params, decay: float) -> list[dict]:
    """Return the matrices, which decay and adapt, and the vector, which does neither."""
    return [
        {"params": [params[0], params[2]], "weight_decay": decay, "adapts": True},
        {"params": [params[1]], "weight_decay": 0.0, "adapts": False},
    ]


def run(optimizer, params, rates: list[float]) -> list[torch.Tensor]:
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = lr
            if "step" in group and not isinstance(group["step"], torch.Tensor):
                group["step"] = step
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


RATES = [0.3, 0.2, 0.4, 0.05, 0.0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdw_shrinks_by_the_share_of_the_peak_and_then_steps(nesterov):
    params = parameters()
    plain = [{k: v for k, v in g.items() if k != "adapts"} for g in groups(params, 0.01)]
    optimizer = SGDW(plain, lr=0.4, peak_lr=0.4, momentum=0.9, nesterov=nesterov)
    ours = run(optimizer, params, RATES)
    for i, w in enumerate(p.detach().clone() for p in parameters()):
        v = torch.zeros_like(w)
        for step, lr in enumerate(RATES):
            g = gradients(step)[i]
            v = 0.9 * v + g
            w = w * (1 - lr / 0.4 * (0 if i == 1 else 0.01))
            w = w - lr * (g + 0.9 * v if nesterov else v)
        torch.testing.assert_close(ours[i], w)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_the_formula_written_out(nesterov):
    params = parameters()
    optimizer = LARS(
        groups(params, 0.01), lr=1, momentum=0.9, nesterov=nesterov, trust_coefficient=0.02
    )
    ours = run(optimizer, params, RATES)
    for i, w in enumerate(p.detach().clone() for p in parameters()):
        v = torch.zeros_like(w)
        decay = 0 if i == 1 else 0.01
        for step, lr in enumerate(RATES):
            g = gradients(step)[i]
            length, other = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
            ratio = 1 if i == 1 else 0.02 * length / (other + decay * length)
            u = ratio * (g + decay * w)
            v = 0.9 * v + u
            w = w - lr * (u + 0.9 * v if nesterov else v)
        torch.testing.assert_close(ours[i], w)


def test_lamb_is_the_formula_written_out():
    params = parameters()
    optimizer = LAMB(groups(params, 0.02), lr=1, betas=(0.9, 0.99), eps=1e-6)
    ours = run(optimizer, params, RATES)
    for i, w in enumerate(p.detach().clone() for p in parameters()):
        m, s = torch.zeros_like(w), torch.zeros_like(w)
        for step, lr in enumerate(RATES):
            g = gradients(step)[i]
            m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g**2
            first, second = m / (1 - 0.9 ** (step + 1)), s / (1 - 0.99 ** (step + 1))
            u = first / (second**0.5 + 1e-6) + (0 if i == 1 else 0.02) * w
            ratio = 1 if i == 1 else math.sqrt((w**2).sum()) / math.sqrt((u**2).sum())
            w = w - lr * ratio * u
        torch.testing.assert_close(ours[i], w)


@pytest.mark.parametrize("kind", ["lars", "lamb"])
def test_weights_of_length_0_step_without_a_trust_ratio(kind):
    zero = torch.nn.Parameter(torch.zeros(3, 3))
    group = [{"params": [zero], "weight_decay": 0.1, "adapts": True}]
    if kind == "lars":
        optimizer = LARS(group, lr=1, momentum=0.0, nesterov=False, trust_coefficient=0.001)
    else:
        optimizer = LAMB(group, lr=1, betas=(0.9, 0.99), eps=1e-6)
    zero.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), -torch.ones(3, 3))
    zero.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.isfinite(zero).all()


def test_lars_and_lamb_equal_timm_s():
    ours_params, theirs_params = parameters(), parameters()
    theirs = timm.optim.Lars(
        [{k: v for k, v in g.items() if k != "adapts"} for g in groups(theirs_params, 0.01)],
        lr=1,
        momentum=0.9,
        nesterov=True,
        trust_coeff=0.02,
    )
    ours = LARS(
        groups(ours_params, 0.01), lr=1, momentum=0.9, nesterov=True, trust_coefficient=0.02
    )
    for one, other in zip(
        run(ours, ours_params, RATES), run(theirs, theirs_params, RATES), strict=True
    ):
        torch.testing.assert_close(one, other)
    ours_params, theirs_params = parameters(), parameters()
    theirs = timm.optim.Lamb(
        [{k: v for k, v in g.items() if k != "adapts"} for g in groups(theirs_params, 0.01)],
        lr=1,
        betas=(0.9, 0.99),
        max_grad_norm=None,
    )
    ours = LAMB(groups(ours_params, 0.01), lr=1, betas=(0.9, 0.99), eps=1e-6)
    for one, other in zip(
        run(ours, ours_params, RATES), run(theirs, theirs_params, RATES), strict=True
    ):
        torch.testing.assert_close(one, other)
