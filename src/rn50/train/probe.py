"""How many images a process takes at once: the most whose training step fits into memory.

Where a user gives no micro-batch, it is the whole share of the batch, or else the largest divisor
of the share that fits. A CUDA device says when its memory is full, so there the real training step
is tried, at the run's largest image size, on a copy of the model: neither the model and its
BatchNorm statistics nor any random state notices. A host's memory is given out before it is there
and the system then ends the process, so on a CPU, and on an Apple GPU that shares the memory, what
a step keeps is computed from that of a few images.

The micro-batch decides which images share BatchNorm's statistics. A checkpoint therefore tells it,
and a resumed run keeps it.
"""

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from rn50 import hardware
from rn50.config import Run
from rn50.data.loader import Batch
from rn50.data.plan import Request, TrainPlan
from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.hardware import Compute
from rn50.train import state as states
from rn50.train.schedule import Timeline
from rn50.train.step import Engine, train_step

Fits = Callable[[int], bool]

FEW = 16
"""Images below which BatchNorm's statistics cost accuracy: Wu and He (Group Normalization, 2018,
arXiv:1803.08494, figure 1) find ResNet-50's error unchanged at 16, and higher at 8 and below."""

_SPARE = 0.05
"""Share of a GPU's memory kept free in a trial: for NCCL, evaluation and fragments."""
_USABLE = 0.8
"""Share of a host's memory that training may take."""


def micro_batch(
    run: Run,
    model: nn.Module,
    compute: Compute,
    group: Group,
    plan: TrainPlan,
    *,
    begun_with: int = 0,
    say: Callable[[str], None],
) -> int:
    """Return the images that this process takes at once, the same number for every process.

    Every process of the group must call it.

    Args:
        run: The run.
        model: Its bare network, on the device; left as it is.
        compute: How it is computed.
        group: The processes that share each batch.
        plan: This process's batches.
        begun_with: The micro-batch of the run that is resumed; 0: none.
        say: Shows the user a line.

    Raises:
        UsageError: Not even the smallest micro-batch fits.
    """
    share = run.images.batch_size // group.world_size
    if compute.micro_batch:
        chosen = min(compute.micro_batch, share)
        if begun_with not in (0, chosen):
            say(_changed(begun_with, chosen, "as asked"))
        return chosen
    sizes = candidates(share, pairs=run.mix.is_on, at_most=begun_with or share)
    trying = trying_steps if compute.device.type == "cuda" else predicting
    chosen = group.least(largest(sizes, trying(run, model, compute, group, plan)))
    px = run.images.px_at(_largest_epoch(run))
    where = hardware.describe(compute.device)
    if chosen == 0:
        raise UsageError(
            f"not even {sizes[-1]} images of {px} px fit into the memory of {where}; give "
            "--hardware.recompute, a smaller --train-px, or another --arch"
        )
    if begun_with not in (0, chosen):
        say(_changed(begun_with, chosen, f"more do not fit into {where} or a process's share"))
    elif chosen < share:
        reason = "as the run was begun with" if begun_with else f"so many fit into {where}"
        say(f"micro-batch: {chosen} of a process's {share} images of {px} px at once, {reason}")
    if chosen < FEW <= share and not begun_with:
        say(
            f"BatchNorm's statistics of {chosen} images are noisy and cost accuracy; "
            "--hardware.recompute makes room for more"
        )
    return chosen


def _changed(before: int, now: int, why: str) -> str:
    return (
        f"micro-batch: {now} images at once ({why}), {before} when the run was begun; "
        "BatchNorm's statistics are now those of another number of images"
    )


def candidates(share: int, *, pairs: bool, at_most: int) -> list[int]:
    """Return the micro-batches to choose from, largest first: divisors of the share, at least 2.

    Args:
        share: Images of a batch that a process has.
        pairs: Whether images are mixed in pairs, so that only even numbers will do.
        at_most: The first of them, even where it divides nothing: the last micro-batch is smaller.
    """
    first = min(at_most, share)
    sizes = [n for n in range(first, 1, -1) if n == first or share % n == 0]
    return [n for n in sizes if not (pairs and n % 2)] or [share]


def largest(sizes: Sequence[int], fits: Fits) -> int:
    """Return the first of the descending ``sizes`` that fits, or 0 if none does, by bisection.

    The first size is tried before all others: mostly it fits.
    """
    if fits(sizes[0]):
        return sizes[0]
    too_large, small_enough = 0, len(sizes)
    while small_enough - too_large > 1:
        middle = (too_large + small_enough) // 2
        if fits(sizes[middle]):
            small_enough = middle
        else:
            too_large = middle
    return sizes[small_enough] if small_enough < len(sizes) else 0


def trying_steps(
    run: Run, model: nn.Module, compute: Compute, group: Group, plan: TrainPlan
) -> Fits:
    """Return how to find out, by the real training step, whether a micro-batch fits.

    Two steps are made on a copy of the model with its own optimizer and average, so that the second
    meets gradients and momentum; sharpness-aware ones where the run has them. Nothing is compiled,
    which takes less memory anyway.
    """
    del group  # Each process tries for itself.
    step = _largest_epoch(run) * plan.steps_per_epoch
    knobs = replace(Timeline(run, plan.steps_per_epoch).at(step), sam=run.optim.sam_rho > 0, lr=0.0)
    alone = replace(compute, micro_batch=0, compile=False)
    plan = replace(plan, images=replace(plan.images, multi_scale=()))  # its largest side alone

    def try_steps(count: int) -> None:
        spare = _spare(compute.device)
        batch = _blank(plan.request(step), count, compute.device)
        state = states.of_model(copy.deepcopy(model), run, alone, Group())
        engine = Engine.of(state, run, alone, Group())
        for _ in range(2):
            train_step(state, engine, batch, knobs, run)
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        del spare

    def fits(count: int) -> bool:
        try:
            try_steps(count)
        except (RuntimeError, MemoryError) as error:
            if not hardware.is_out_of_memory(error):
                raise
            fitting = False
        else:
            fitting = True
        # Only here has the error let go of the frames that held the tensors.
        gc.collect()
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
        return fitting

    return fits


def _spare(device: torch.device) -> Tensor | None:
    total = hardware.device_memory_bytes(device) if device.type == "cuda" else None
    return torch.empty(int(_SPARE * total), dtype=torch.uint8, device=device) if total else None


def _blank(request: Request, count: int, device: torch.device) -> Batch:
    """Return a batch of black images, to be augmented and mixed as the first of a request's are."""
    part = slice(count)
    px = request.px
    return Batch(
        request=replace(
            request,
            ids=request.ids[part],
            boxes=None if request.boxes is None else request.boxes[part],
            flips=request.flips[part],
            draws=None if request.draws is None else request.draws.part(part),
        ),
        images=torch.zeros(count, px, px, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2),
        labels=torch.zeros(count, dtype=torch.int64, device=device),
        flips=torch.from_numpy(request.flips[part].copy()).to(device),
        wait_s=0.0,
    )


def predicting(run: Run, model: nn.Module, compute: Compute, group: Group, plan: TrainPlan) -> Fits:
    """Return how to compute whether a micro-batch fits into the memory that processes share.

    By the memory in all, not by what happens to be free, so that it is the same at every start.
    With recomputation nothing is computed: everything is taken to fit.
    """
    del plan
    total = hardware.device_memory_bytes(compute.device)
    if total is None or run.hardware.recompute:
        return lambda count: True
    usable = _USABLE * total / group.local_world_size
    fixed, per_image = step_bytes(run, model, compute)
    return lambda count: fixed + count * per_image <= usable


def step_bytes(run: Run, model: nn.Module, compute: Compute) -> tuple[int, int]:
    """Return the bytes of memory that a training step takes: for the network, and for each image.

    For each image: what the forward pass keeps for backward, as torch's ``saved_tensors_hooks``
    tell of two and of four images (what both keep is the network's), and a fifth more for the
    gradients and buffers of the moment. For the network: its weights eight times (gradients,
    momentum, averages, copies in the order and the precision of the kernels), and a gigabyte for
    the interpreter and its libraries. Measured for ResNet-50 at 224 px in fp32 on a CPU: 94 MB more
    for each image, for which this returns 103.
    """
    px = run.images.px_at(_largest_epoch(run))
    net = copy.deepcopy(model)
    two, four = (_kept_bytes(net, compute, count, px) for count in (2, 4))
    weights = sum(p.nbytes for p in model.parameters())
    return 8 * weights + 10**9, round(1.2 * (four - two) / 2)


def _kept_bytes(net: nn.Module, compute: Compute, count: int, px: int) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps it, so that no address is used twice

    inputs = torch.zeros(count, 3, px, px, device=compute.device)
    inputs = inputs.to(memory_format=torch.channels_last)
    dtype = compute.autocast_dtype
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(compute.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        logits = net(inputs)
    del logits
    return sum(kept.values())


def _largest_epoch(run: Run) -> int:
    starts = (0, *(epoch for epoch, _ in run.images.sizes))
    return max(starts, key=run.images.px_at)


@contextmanager
def full_memory_explained(compute: Compute) -> Iterator[None]:
    """Turn an error that says that memory is full into one line that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        now, less = compute.micro_batch, max(1, compute.micro_batch // 2)
        raise UsageError(
            f"the memory of {hardware.describe(compute.device)} is full with {now} images at once; "
            f"give --micro-batch {less} or --hardware.recompute, or end what else uses it; "
            "with --resume a run goes on from its last checkpoint"
        ) from error
