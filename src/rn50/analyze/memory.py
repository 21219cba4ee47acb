"""The memory of a network beyond its weights: what backward keeps, what a forward pass takes.

Measured on the network itself, run on torch's meta device, where tensors have shapes and storages
but no values: so it costs no memory, and what backward keeps agrees to the byte with a run on a CPU
(``tests/analyze/test_memory.py``). Buffers that a library's kernels take for themselves (cuDNN's
workspace) are not in it.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rn50 import config
from rn50.model.resnet import BasicBlock, Bottleneck, ResNet

OPTIMIZER_TENSORS = {"sgd": 1, "sgdw": 1, "lars": 1, "lamb": 2, "adamw": 2}
"""Tensors of its own size, in fp32, that each optimizer keeps for a parameter that it trains."""

Precision = Literal["fp32", "16-bit"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a training forward pass keeps for backward."""

    per_image: int
    """Grows with the batch."""
    fixed: int
    """Does not: statistics of BatchNorm and, in 16-bit, the weights' 16-bit copies."""
    by_part: dict[str, int]
    """``per_image`` by where it arises: ``stem``, ``layer1`` … ``layer4``, ``head``."""
    outside_blocks_per_image: int
    """What is kept with ``hardware.recompute``: the blocks' inputs, and all outside of blocks."""
    largest_block_per_image: int
    """What ``hardware.recompute`` computes anew at a time: the insides of the largest block."""

    def of(self, batch: int) -> int:
        """Return the bytes for a batch."""
        return self.fixed + batch * self.per_image

    def recomputed(self, batch: int) -> int:
        """Return the bytes for a batch with ``hardware.recompute``."""
        return self.fixed + batch * (self.outside_blocks_per_image + self.largest_block_per_image)


def kept(net: ResNet, px: int, precision: Precision) -> Kept:
    """Measure what autograd saves in a forward pass, each storage once, parameters left out.

    Args:
        net: On the meta device; its mode is restored.
        px: Side of the images.
        precision: ``"16-bit"``: under autocast (bf16 or fp16), whose convolutions, and all that
            follows them, give 16-bit activations.
    """
    # From two batches, for some of it does not grow with the batch; and BatchNorm refuses a
    # single image whose map is a single value.
    two, three = (_saved(net, px, batch, precision) for batch in (2, 3))
    per_image = {part: three.parts[part] - two.parts[part] for part in three.parts}
    return Kept(
        per_image=sum(per_image.values()),
        fixed=sum(3 * two.parts[part] - 2 * three.parts[part] for part in two.parts)
        + (_cast_weights(net) if precision == "16-bit" else 0),
        by_part=per_image,
        outside_blocks_per_image=three.outside_blocks - two.outside_blocks,
        largest_block_per_image=three.largest_block - two.largest_block,
    )


def inference_peak(net: ResNet, px: int, precision: Precision) -> int:
    """Return the most bytes that activations of one image take at once, its pixels included."""
    dtype = torch.bfloat16 if precision == "16-bit" else torch.float32
    net = copy.deepcopy(net).to(dtype).eval()
    inputs = torch.empty(1, 3, px, px, device="meta", dtype=dtype)
    inputs = inputs.to(memory_format=torch.channels_last)
    with torch.no_grad(), Live(inputs, outside=_own(net)) as live:
        net(inputs)
    return live.peak


def optimizer_bytes(net: nn.Module, name: str, *, momentum: float = 0.9) -> int:
    """Return the bytes of an optimizer's own tensors; SGD and LARS without momentum keep none."""
    if momentum == 0 and OPTIMIZER_TENSORS[name] == 1:
        return 0
    return OPTIMIZER_TENSORS[name] * sum(p.nbytes for p in net.parameters() if p.requires_grad)


def model_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers: of the model, or of an average."""
    return sum(tensor.nbytes for tensor in net.state_dict().values())


def num_averages(average: config.Average) -> int:
    """Return how many averages of the weights a run keeps."""
    return sum((average.ema_horizon > 0, average.swa_epochs > 0))


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, and the most there were at once.

    Args:
        inputs: Counted from the start.
        outside: Storages not to count, such as the weights'.
    """

    def __init__(self, inputs: Tensor, *, outside: Iterable[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = set(outside)
        self._take(inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._take(leaf)
        return result

    def _take(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


@dataclass(frozen=True, slots=True)
class _Saved:
    parts: dict[str, int]
    outside_blocks: int
    largest_block: int


class _Watch:
    """Remembers storages that autograd saves, and in which block it saved them."""

    def __init__(self, net: ResNet, precision: Precision) -> None:
        self._ignored = _own(net)
        self._halves = precision == "16-bit"
        self.saved: dict[int, tuple[Tensor, int]] = {}
        """By storage: a tensor that keeps it alive, so that its name is not given anew; bytes."""
        self.places: dict[int, list[str]] = {}
        self.block_inputs: set[int] = set()
        self.place = "stem"

    def pack(self, tensor: Tensor) -> Tensor:
        key = self._note(tensor)
        if key not in self._ignored and self.place not in self.places.setdefault(key, []):
            self.places[key].append(self.place)
        return tensor

    def before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.place = name
            if name != "head" and inputs[0].requires_grad:
                self.block_inputs.add(self._note(inputs[0]))

        return enter

    def bytes(self, keys: Iterable[int]) -> int:
        return sum(self.saved[key][1] for key in keys)

    def _note(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        # What has a value per image is an activation; BatchNorm keeps its statistics in fp32.
        if self._halves and tensor.is_floating_point() and tensor.dim() > 1:
            num_bytes //= 2
        self.saved.setdefault(key, (tensor, num_bytes))
        return key


def _saved(net: ResNet, px: int, batch: int, precision: Precision) -> _Saved:
    watch = _Watch(net, precision)
    blocks = {n: m for n, m in net.named_modules() if isinstance(m, BasicBlock | Bottleneck)}
    hooks = [block.register_forward_pre_hook(watch.before(n)) for n, block in blocks.items()]
    hooks.append(net.avgpool.register_forward_pre_hook(watch.before("head")))
    was_training = net.training
    inputs = torch.empty(batch, 3, px, px, device="meta").to(memory_format=torch.channels_last)
    try:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda tensor: tensor):
            outputs = net.train()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)
    del outputs
    parts = dict.fromkeys(("stem", "layer1", "layer2", "layer3", "layer4", "head"), 0)
    for key, places in watch.places.items():
        parts[places[0].split(".")[0]] += watch.bytes([key])
    outside = {k for k, places in watch.places.items() if {"stem", "head"} & set(places)}
    always = outside | watch.block_inputs
    insides = [
        watch.bytes(k for k, places in watch.places.items() if name in places and k not in always)
        for name in blocks
    ]
    return _Saved(parts, watch.bytes(always), max(insides))


def _own(net: nn.Module) -> set[int]:
    return {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}


def _cast_weights(net: nn.Module) -> int:
    """Return the bytes of autocast's 16-bit copies of weights, which backward keeps."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(2 * layer.weight.numel() for layer in layers if layer.weight.requires_grad)
