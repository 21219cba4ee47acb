"""BatchNorm statistics for the SWA: from which images, and agreed upon by all processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rn50.config import Run
from rn50.data.loader import Batch
from rn50.data.plan import Request, TrainPlan
from rn50.model import average
from rn50.train.schedule import Timeline
from rn50.train.state import TrainState
from rn50.train.step import Engine, inputs_of
from rn50.train.stoppable import LeftOffError, until_stopped


def estimate_statistics(
    state: TrainState,
    engine: Engine,
    timeline: Timeline,
    plan: TrainPlan,
    read: Callable[[Iterable[Request]], Iterator[Batch]],
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Estimate the BatchNorm statistics of the SWA of ``state``, where it holds weights, anew.

    Every process must call it. They are means over the micro-batches of all processes, and a
    function of the weights and of (recipe, seed, step); nothing but the SWA's statistics is
    touched.

    Args:
        state: After a step.
        engine: Precision, micro-batch and processes.
        timeline: The run in steps.
        plan: This process's training images.
        read: Decodes them.
        stopping: Whether to leave off, asked after each batch; the same on every process.

    Returns:
        False where it was left off; the statistics are then as they were.
    """
    if state.swa is None or timeline.swa_count(state.step) == 0:
        return True
    before = [buffer.clone() for buffer in state.swa.buffers()]
    batches = read(requests(timeline.run, plan, state.step))
    count = _num_batches(timeline.run, plan, state.step)
    taken = _Taken(until_stopped(batches, count, stopping))
    device, dtype = engine.compute.device, engine.compute.autocast_dtype
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        estimated = average.estimate_statistics(state.swa, _inputs(taken, engine, timeline.run))
    if taken.left_off:
        for buffer, value in zip(state.swa.buffers(), before, strict=True):
            buffer.copy_(value)
        return False
    engine.group.mean(estimated)
    return True


class _Taken:
    """Batches that merely end where they are left off, so that who takes them tidies up."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.left_off = False

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._batches
        except LeftOffError:
            self.left_off = True


def requests(run: Run, plan: TrainPlan, steps_done: int) -> Iterator[Request]:
    """Yield the batches of the last steps, not mixed: ``swa_bn_images``, or an epoch, of them.

    Cropped, flipped and augmented as in training, at the size of the epoch that has just ended.
    """
    for step in range(steps_done - _num_batches(run, plan, steps_done), steps_done):
        yield replace(plan.request(step), mix=None)


def _num_batches(run: Run, plan: TrainPlan, steps_done: int) -> int:
    wanted = -(-run.average.swa_bn_images // run.images.batch_size)
    return min(wanted, plan.steps_per_epoch, steps_done)


def _inputs(
    batches: Iterable[Batch], engine: Engine, run: Run
) -> Iterator[Float[Tensor, "part 3 px px"]]:
    for batch in batches:
        count = len(batch.labels)
        size = engine.compute.micro_batch or count
        for start in range(0, count, size):
            yield inputs_of(batch, slice(start, start + size), run, engine.normalise)
