"""The processes of a run: one by default, many under ``torchrun``, on one path.

Outside this module nothing asks whether the run is distributed: rank 0 of 1 is a group like any
other, and its reductions return what they are given.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rn50.errors import UsageError, UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process is the one that writes."""
        return self.rank == 0

    @property
    def node(self) -> int:
        """Return the number of this process's machine, from 0; all have as many processes."""
        return self.rank // self.local_world_size

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose backward averages gradients over the processes.

        The caller keeps ``model``: its state is the one that is saved.
        """
        if self.world_size == 1:
            return model
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )

    def synchronised(self, model: nn.Module, device: torch.device) -> None:
        """Make BatchNorm, in place, take its statistics over all processes.

        By ``torch.nn.SyncBatchNorm``; parameters, buffers and names stay what they are. Tested:
        that, and on two GPUs that halves of a batch give what the whole gives.

        Raises:
            UsageError: The device cannot do it.
        """
        if self.world_size == 1:
            return
        if device.type != "cuda":
            raise UsageError(
                f"hardware.sync_batchnorm is on, but torch synchronises BatchNorm on CUDA alone, "
                f"not on {device.type}; leave it out"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    def accumulating(self, net: nn.Module, *, last: bool) -> Any:
        """Return a context in which gradients stay local until the last micro-batch."""
        if isinstance(net, nn.parallel.DistributedDataParallel) and not last:
            return net.no_sync()
        return nullcontext()

    def sum(self, counts: Int64[Tensor, " counts"]) -> Int64[Tensor, " counts"]:
        """Return the element-wise sum over the processes, on every process; exact, as integers."""
        if self.world_size == 1:
            return counts
        total = counts.clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over the processes, the same on every one."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.world_size

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Return on every process, for each of ``flags``, whether it holds on at least one.

        One reduction from host to host, so that no device is waited for.
        """
        return tuple(map(bool, self.sum(torch.tensor(flags, dtype=torch.int64)).tolist()))

    def gather(self, value: str) -> list[str]:
        """Return on every process the texts of all, by rank; from host to host."""
        if self.world_size == 1:
            return [value]
        values = [""] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def least(self, value: int) -> int:
        """Return on every process the smallest of the processes' values."""
        if self.world_size == 1:
            return value
        least = torch.tensor([value])
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least.item())

    def share_buffers(self, *models: nn.Module) -> None:
        """Give every process the first one's BatchNorm statistics, which each keeps by itself."""
        if self.world_size == 1:
            return
        for model in models:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def from_first(self, value: str) -> str:
        """Return on every process the text that the first one holds."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def share(self, make: Callable[[], T]) -> T:
        """Return on every process what the first one makes, or raise on every one what it raises.

        For what lies where the others may not see it, and for decisions that must be one. Every
        process must call it; from host to host, pickled, so that it needs memory for a copy.
        """
        if self.world_size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if box[1] is not None:
            raise box[1]
        return box[0]

    def wait(self) -> None:
        """Wait until every process has come here; from host to host."""
        self.any_of(False)


@contextmanager
def group(device_type: str) -> Iterator[Group]:
    """Join the group that ``torchrun`` describes in the environment, or be alone.

    Args:
        device_type: ``"cuda"`` sends device tensors by NCCL; host tensors always go by gloo.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Group()
        return
    store, rank, _ = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=part_of_this_start(store, rank, world_size),
        rank=rank,
        world_size=world_size,
    )
    try:
        yield Group(
            rank=dist.get_rank(),
            world_size=world_size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )
    finally:
        dist.destroy_process_group()


def part_of_this_start(store: Store, rank: int, world_size: int) -> Store:
    """Return a part of a store that only the processes started together with this one use.

    ``torchrun`` keeps its store when it starts workers anew (seen with torch 2.15): gloo and NCCL
    would find the addresses of dead processes there, and wait for them. Nor do its counts of starts
    agree between machines. So every process greets under a name never used before, and the first
    one answers all greetings until all have heard it.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"rn50/greeting/{rank}", name)
        while (answer := json.loads(store.get("rn50/answer")))["greetings"][rank - 1] != name:
            time.sleep(0.02)
        store.set(f"rn50/heard/{rank}", answer["name"])
        return PrefixStore(f"rn50/{answer['name']}", store)
    others = range(1, world_size)
    for other in others:
        store.set(f"rn50/heard/{other}", "")
    while any(store.get(f"rn50/heard/{other}").decode() != name for other in others):
        greetings = [store.get(f"rn50/greeting/{other}").decode() for other in others]
        store.set("rn50/answer", json.dumps({"name": name, "greetings": greetings}))
        time.sleep(0.02)
    return PrefixStore(f"rn50/{name}", store)
