import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from rn50.config import Model
from rn50.model import average
from rn50.model.resnet import build


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.Linear(16, 2)
    )


def trained(seed: int = 0, steps: int = 7):
    """Yield a network as it is after each of some steps of a real training."""
    net = small_net(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        images, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 2, (6,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.train()(images), labels).backward()
        optimizer.step()
        yield net


def batches(count: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(count)
    return [3 + 2 * torch.randn(4 + n % 2, 3, 4, 4) for n in range(count)]


def assert_same(one: nn.Module, other: nn.Module, *, exactly: bool = False) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(one.state_dict(), other.state_dict(), **tolerance)


def test_weights_and_statistics_are_those_of_torch_s_averaged_model_on_the_same_sequence():
    ours = theirs = None
    for count, net in enumerate(trained(), start=1):
        ours, theirs = ours or average.start(small_net(9)), theirs or AveragedModel(net)
        average.take(ours, net, 1 / count)
        theirs.update_parameters(net)
        assert_same(ours, theirs.module)
    average.estimate_statistics(ours, batches())
    update_bn(batches(), theirs)
    assert_same(ours, theirs.module)


def test_all_weights_have_equal_shares():
    swa, taken = average.start(small_net(9)), []
    for count, net in enumerate(trained(), start=1):
        average.take(swa, net, 1 / count)
        taken.append(net[3].weight.detach().clone())
    torch.testing.assert_close(swa[3].weight, torch.stack(taken).mean(0))


def test_statistics_are_those_of_update_bn_bit_for_bit_on_the_same_weights():
    ours, theirs = average.start(small_net()), average.start(small_net())
    estimated = average.estimate_statistics(ours, batches())
    update_bn(batches(), theirs)
    assert_same(ours, theirs, exactly=True)
    assert not torch.equal(ours[1].running_mean, small_net()[1].running_mean)
    assert estimated[0] is ours[1].running_mean
    assert estimated[1] is ours[1].running_var


def test_statistics_do_not_depend_on_those_before_and_leave_weights_mode_and_momentum_alone():
    net, other = average.start(small_net()), average.start(small_net())
    other[1].running_mean.fill_(7)
    other[1].num_batches_tracked.fill_(99)
    for one in (net, other):
        average.estimate_statistics(one, batches())
        assert not any(module.training for module in one.modules())
        assert one[1].momentum == 0.3
        assert torch.equal(one[3].weight, small_net()[3].weight)
    assert_same(net, other, exactly=True)


def test_without_batchnorm_no_batch_is_asked_for():
    def none_left():
        pytest.fail("a batch was asked for")
        yield

    assert average.estimate_statistics(nn.Sequential(nn.Linear(3, 2)), none_left()) == []


def test_of_a_frozen_network_only_the_last_batchnorm_is_estimated_anew():
    model = Model(arch="resnet18", num_classes=3, train_only="classifier-and-last-bn")
    net = build(model, seed=0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.9, 1.1)
    net = average.start(net)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    average.estimate_statistics(net, [torch.randn(4, 3, 32, 32)])
    moved = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {
        f"layer4.1.bn2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    # What comes before the last layer saw the kept statistics, so its mean is that of the network.
    assert not torch.allclose(net.layer4[1].bn2.running_mean, torch.zeros(512))


@pytest.mark.parametrize("move", [average.update, average.take])
def test_a_step_that_was_skipped_moves_no_average_and_one_that_was_not_moves_it_as_ever(move):
    net, other = small_net(0), small_net(1)
    other[1].running_mean.uniform_()
    other[1].num_batches_tracked.fill_(5)
    skipped, stepped, plain = (average.start(net) for _ in range(3))
    move(skipped, other, 0.25, torch.tensor(0.0))
    assert_same(skipped, net, exactly=True)
    move(stepped, other, 0.25, torch.tensor(1.0))
    move(plain, other, 0.25)
    assert_same(stepped, plain)
    assert not torch.equal(plain[3].weight, net[3].weight)


def test_the_first_weights_are_taken_also_after_a_skipped_step():
    swa, net = average.start(small_net(0)), small_net(1)
    average.take(swa, net, 1.0, torch.tensor(0.0))
    assert_same(swa, net, exactly=True)
