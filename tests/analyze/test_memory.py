import pytest
import torch
from torch import nn

from rn50.analyze import memory
from rn50.analyze.layers import on_meta
from rn50.analyze.memory import Live
from rn50.config import Average, Model, Optim
from rn50.model.resnet import build
from rn50.train import optim

PX = 64
MODELS = [Model(arch="resnet18", num_classes=5), Model(num_classes=5)]


def own(net: nn.Module) -> set[int]:
    return {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}


def images(batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, PX, PX).to(memory_format=torch.channels_last)


def saved_bytes(net: nn.Module, batch: int, *, autocast: bool) -> int:
    """Return the bytes that autograd saves of a real forward pass on the CPU."""
    ignored, storages = own(net), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ignored:
            storages[storage._cdata] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        outputs = net.train()(images(batch))
    total = sum(storage.nbytes() for storage in storages.values())
    del outputs
    return total


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.arch)
@pytest.mark.parametrize("precision", ["fp32", "16-bit"])
def test_what_backward_keeps_is_what_a_real_forward_pass_saves(model, precision):
    kept = memory.kept(on_meta(model), PX, precision)
    net = build(model, seed=0)
    for batch in (2, 5):
        assert kept.of(batch) == saved_bytes(net, batch, autocast=precision == "16-bit")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.arch)
def test_what_is_alive_after_a_forward_pass_is_the_same_sum(model):
    net, inputs = build(model, seed=0).train(), images(3)
    with Live(inputs, outside=own(net)) as live:
        outputs = net(inputs)
        alive = live.now - outputs.nbytes
    assert alive == memory.kept(on_meta(model), PX, "fp32").of(3)


def test_recomputing_keeps_the_blocks_inputs_and_what_lies_outside():
    model = MODELS[1]
    net, inputs = build(model, seed=0).train(), images(4)
    net.recompute(True)
    with Live(inputs, outside=own(net)) as live:
        outputs = net(inputs)
        alive = live.now - outputs.nbytes
    kept = memory.kept(on_meta(model), PX, "fp32")
    # Statistics of the blocks' BatchNorm are not kept; those of the stem are.
    assert alive - 4 * kept.outside_blocks_per_image == 2 * 64 * 4
    assert kept.outside_blocks_per_image < kept.per_image / 2
    # The largest insides are the first block's: what its four convolutions give, and what ReLU
    # makes of the narrow two of them. Its output is the next block's input.
    values = (PX // 4) ** 2 * (4 * 64 + 2 * 256)
    assert kept.largest_block_per_image == 4 * values


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.arch)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("16-bit", torch.bfloat16)]
)
def test_the_peak_of_inference_is_that_of_a_real_pass(model, precision, dtype):
    net, inputs = build(model, seed=0).to(dtype).eval(), images(1).to(dtype)
    with torch.no_grad(), Live(inputs, outside=own(net)) as live:
        net(inputs)
    peak = memory.inference_peak(on_meta(model), PX, precision)
    # On the meta device BatchNorm returns statistics that it does not return on a CPU.
    assert peak == pytest.approx(live.peak, rel=0.01)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "lars", "lamb", "adamw"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_an_optimizer_keeps_the_tensors_that_are_told(name, momentum):
    net = build(MODELS[0], seed=0)
    settings = Optim(peak_lr=0.1, name=name, momentum=momentum, nesterov=momentum > 0)
    optimizer = optim.build(net, settings)
    net.train()(images(2)).sum().backward()
    optimizer.step()
    kept = optim.momentum_buffers(net, optimizer)
    expected = memory.optimizer_bytes(net, name, momentum=momentum)
    assert sum(tensor.nbytes for tensor in kept.values()) == expected


def test_a_network_of_which_the_classifier_alone_is_trained_keeps_next_to_nothing():
    frozen = Model(arch="resnet18", num_classes=5, train_only="classifier-and-last-bn")
    net = on_meta(frozen)
    kept = memory.kept(net, PX, "fp32")
    assert kept.per_image == kept.by_part["head"] == 4 * 512
    assert kept.of(3) == saved_bytes(build(frozen, seed=0), 3, autocast=False)
    assert memory.optimizer_bytes(net, "sgd") == 4 * (512 * 5 + 5)


def test_averages_are_counted_by_kind():
    assert memory.num_averages(Average()) == 0
    assert memory.num_averages(Average(ema_horizon=0.1)) == 1
    assert memory.num_averages(Average(ema_horizon=0.1, swa_epochs=4)) == 2
    net = on_meta(MODELS[0])
    assert memory.model_bytes(net) == sum(t.nbytes for t in net.state_dict().values())
