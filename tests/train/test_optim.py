import pytest
import torch
from torch import nn

from rn50.config import Model, Optim
from rn50.model import resnet
from rn50.train import optim

NET = Model(arch="resnet18", num_classes=4)


def test_only_convolution_and_linear_weights_decay_also_those_of_shortcuts():
    net = resnet.build(NET, seed=0)
    built = optim.build(net, Optim(peak_lr=0.1, weight_decay=0.5))
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in built.param_groups)
    assert [group["weight_decay"] for group in built.param_groups] == [0.5, 0.0]
    assert "layer2.0.downsample.0.weight" in decayed
    assert "fc.weight" in decayed
    assert {"fc.bias", "bn1.weight", "layer2.0.downsample.1.weight"} <= others
    assert decayed | others == set(dict(net.named_parameters()))
    shapes = dict(net.named_parameters())
    assert all(shapes[name].ndim > 1 for name in decayed)
    assert all(shapes[name].ndim == 1 for name in others)


def trained_once(net: nn.Module) -> torch.optim.SGD:
    built = optim.build(net, Optim(peak_lr=0.1))
    net(torch.ones(2, 3, 32, 32)).sum().backward()
    built.step()
    return built


def test_momentum_is_saved_by_name_and_put_back_in_the_weights_layout():
    net = resnet.build(NET, seed=0)
    buffers = optim.momentum_buffers(net, trained_once(net))
    assert buffers.keys() == dict(net.named_parameters()).keys()
    fresh = resnet.build(NET, seed=0)
    other = optim.build(fresh, Optim(peak_lr=0.1))
    assert optim.momentum_buffers(fresh, other) == {}
    optim.load_momentum_buffers(fresh, other, {k: b.contiguous() for k, b in buffers.items()})
    for name, loaded in optim.momentum_buffers(fresh, other).items():
        assert torch.equal(loaded, buffers[name])
        assert loaded.stride() == dict(fresh.named_parameters())[name].stride()


@pytest.mark.parametrize(
    ("decayed", "expected"),
    [
        ("weights", {"conv1.weight", "fc.weight"}),
        ("all-but-norm", {"conv1.weight", "fc.weight", "fc.bias"}),
        ("all", {"conv1.weight", "fc.weight", "fc.bias", "bn1.weight", "bn1.bias"}),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "adamw"])
def test_what_decays_goes_by_module_type_and_only_weights_adapt(name, decayed, expected):
    net = resnet.build(NET, seed=0)
    built = optim.build(net, Optim(name=name, peak_lr=0.1, weight_decay=0.5, decayed=decayed))
    names = {id(p): n for n, p in net.named_parameters()}
    key = "decoupled_decay" if name == "sgdw" else "weight_decay"
    found = {names[id(p)] for g in built.param_groups if g[key] == 0.5 for p in g["params"]}
    some = {"conv1.weight", "fc.weight", "fc.bias", "bn1.weight", "bn1.bias"}
    assert found & some == expected
    assert sum(len(group["params"]) for group in built.param_groups) == len(names)
    if name in ("lars", "lamb"):
        adapts = [p for group in built.param_groups if group["adapts"] for p in group["params"]]
        assert {names[id(p)] for p in adapts} & some == {"conv1.weight", "fc.weight"}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def stepped(net: nn.Module, built: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        built.zero_grad()
        net(images).pow(2).sum().backward()
        momentum = 0.9 - 0.01 * step
        optim.turn(built, lr=0.01 / (step + 1), momentum=momentum, step=step)
        built.step()


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "adamw"])
def test_every_optimizer_goes_on_bit_identically_from_its_named_tensors_and_the_step(name):
    settings = Optim(name=name, peak_lr=0.1, weight_decay=0.01)
    whole = small()
    built = optim.build(whole, settings)
    stepped(whole, built, range(3))
    tensors = {key: t.clone() for key, t in optim.momentum_buffers(whole, built).items()}
    resumed = small()
    resumed.load_state_dict(whole.state_dict())
    other = optim.build(resumed, settings)
    optim.load_momentum_buffers(resumed, other, tensors)
    stepped(whole, built, range(3, 6))
    stepped(resumed, other, range(3, 6))
    for (key, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), key


def test_adamw_is_torch_s_with_its_own_count_of_steps():
    ours, theirs = small(), small()
    settings = Optim(name="adamw", peak_lr=0.1, weight_decay=0.01, eps=1e-8)
    built = optim.build(ours, settings)
    decayed, others = optim.split_parameters(theirs)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1)
    for step in range(4):
        images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for net, optimizer in ((ours, built), (theirs, reference)):
            optimizer.zero_grad()
            net(images).pow(2).sum().backward()
        optim.turn(built, lr=0.1, momentum=None, step=step)
        built.step()
        reference.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "adamw"])
def test_the_schedule_s_rate_and_momentum_and_the_run_s_step_reach_every_group(name):
    net = small()
    built = optim.build(net, Optim(name=name, peak_lr=0.1))
    stepped(net, built, range(1))
    optim.turn(built, lr=0.03, momentum=0.7, step=41)
    for group in built.param_groups:
        assert group["lr"] == 0.03
        assert (group["betas"][0] if "betas" in group else group["momentum"]) == 0.7
        if name == "lamb":
            assert group["step"] == 41
    if name == "adamw":
        assert {state["step"].item() for state in built.state.values()} == {41}
    optim.turn(built, lr=0.03, momentum=None, step=42)
    group = built.param_groups[0]
    assert (group["betas"][0] if "betas" in group else group["momentum"]) == 0.7


def test_tensors_of_another_optimizer_are_refused():
    net = small()
    built = optim.build(net, Optim(name="lamb", peak_lr=0.1))
    stepped(net, built, range(1))
    tensors = optim.momentum_buffers(net, built)
    assert set(tensors) == {
        f"{kind}:{name}"
        for kind in ("exp_avg", "exp_avg_sq")
        for name in dict(net.named_parameters())
    }
    with pytest.raises(ValueError, match="momentum of other parameters"):
        optim.load_momentum_buffers(net, optim.build(net, Optim(peak_lr=0.1)), tensors)


def test_momentum_of_another_network_is_refused():
    net = resnet.build(NET, seed=0)
    built = trained_once(net)
    buffers = optim.momentum_buffers(net, built)
    del buffers["fc.bias"]
    with pytest.raises(ValueError, match=r"other parameters than the model's: \['fc.bias'\]"):
        optim.load_momentum_buffers(net, built, buffers)
