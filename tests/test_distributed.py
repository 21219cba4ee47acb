import json
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from rn50.config import Model
from rn50.distributed import Group, part_of_this_start
from rn50.errors import UsageError
from rn50.model.resnet import build

TWO = Group(rank=0, world_size=2)


def test_synchronised_batchnorm_keeps_names_tensors_and_what_evaluation_computes():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    images = torch.randn(2, 3, 32, 32)
    before, parameters = net.state_dict(), list(net.parameters())
    expected = net.eval()(images)
    TWO.synchronised(net, torch.device("cuda"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in net.modules()) == 20
    assert list(net.state_dict()) == list(before)
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert torch.equal(net(images), expected)


def normalised_by_halves(rank: int, port: int, place: Path) -> None:
    """Be one of two processes, each with half of a batch on a GPU of its own."""
    torch.distributed.init_process_group(
        "nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    net, images = trained_on()
    Group(rank=rank, world_size=2).synchronised(net.to(device), device)
    half = images[4 * rank : 4 * rank + 4].to(device).requires_grad_()
    out = net.train()(half)
    out.square().sum().backward()
    torch.save((out.detach().cpu(), half.grad.cpu(), net.bn1.running_var.cpu()), place / str(rank))
    torch.distributed.destroy_process_group()


def trained_on() -> tuple[nn.Module, torch.Tensor]:
    """Return a network and a batch of 8 images whose halves have other statistics."""
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    images[4:] = 3 * images[4:] + 1
    return net, images


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_halves_of_a_batch_are_normalised_as_the_whole(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(normalised_by_halves, (port, tmp_path), nprocs=2)
    net, images = trained_on()
    net, images = net.cuda().train(), images.cuda().requires_grad_()
    out = net(images)
    out.square().sum().backward()
    halves = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    close = partial(torch.testing.assert_close, rtol=1e-2, atol=1e-3)  # TF32 or not
    close(torch.cat([half[0] for half in halves]), out.detach().cpu())
    close(torch.cat([half[1] for half in halves]), images.grad.cpu())
    close(halves[0][2], net.bn1.running_var.cpu())


def test_one_process_has_nothing_to_synchronise():
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    Group().synchronised(net, torch.device("cpu"))
    assert isinstance(net.bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_synchronising_where_torch_cannot_is_refused(device):
    net = build(Model(arch="resnet18", num_classes=3), seed=0)
    with pytest.raises(UsageError, match=f"CUDA alone, not on {device}; leave it out"):
        TWO.synchronised(net, torch.device(device))


def started(store: torch.distributed.Store, world_size: int) -> list[torch.distributed.Store]:
    with ThreadPoolExecutor(world_size) as threads:
        ranks = range(world_size)
        return list(threads.map(lambda rank: part_of_this_start(store, rank, world_size), ranks))


def test_processes_started_together_share_what_earlier_ones_left_nothing_in():
    store = torch.distributed.HashStore()
    for start in range(3):
        first, *others = started(store, 4)
        assert not first.check(["address"])
        first.set("address", str(start))
        assert [other.get("address") for other in others] == [str(start).encode()] * 3


@pytest.mark.parametrize("dead", [0, 2])
def test_a_process_that_died_while_starting_does_not_hold_up_those_started_after_it(dead):
    store = torch.distributed.HashStore()
    if dead:  # it greeted, and was never answered
        store.set(f"rn50/greeting/{dead}", "dead")
    else:  # it answered the dead, and went
        store.set("rn50/answer", json.dumps({"name": "dead", "greetings": ["dead", "dead"]}))
        store.set("rn50/heard/1", "dead")
    first, *others = started(store, 3)
    first.set("address", "here")
    assert [other.get("address") for other in others] == [b"here"] * 2


def test_flags_and_texts_of_one_process_are_its_own():
    assert Group().any_of(True, False, True) == (True, False, True)
    assert Group().gather("told") == ["told"]
