"""One update of the model and its averages."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rn50.augment.device import Normalise
from rn50.augment.mixing import mix
from rn50.augment.pipeline import prepare, sampling_of
from rn50.config import Run
from rn50.data.loader import Batch
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.model import average, stochastic_depth
from rn50.model.resnet import ResNet
from rn50.train import guard, optim, sam
from rn50.train import loss as losses
from rn50.train.schedule import Knobs
from rn50.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Engine:
    """What a step is computed with, besides the state."""

    net: nn.Module
    """The model of the state, possibly compiled and wrapped to share gradients."""
    normalise: Normalise
    compute: Compute
    group: Group
    statistics: guard.Statistics
    """BatchNorm's, of the model of the state."""

    @classmethod
    def of(cls, state: TrainState, run: Run, compute: Compute, group: Group) -> "Engine":
        """Wrap the model of ``state`` as the hardware section asks for."""
        net: nn.Module = state.model
        if isinstance(net, ResNet):
            net.recompute(run.hardware.recompute)
        if run.hardware.sync_batchnorm:
            group.synchronised(net, compute.device)
        if compute.compile:
            # The average and the checkpoints keep using the bare model, which shares its weights.
            net = torch.compile(net)  # type: ignore[assignment]
        normalise = Normalise(run.images.mean, run.images.std).to(compute.device)
        net = group.parallel(net, compute.device)
        statistics = guard.Statistics(state.model)
        return cls(
            net=net, normalise=normalise, compute=compute, group=group, statistics=statistics
        )


def train_step(state: TrainState, engine: Engine, batch: Batch, knobs: Knobs, run: Run) -> None:
    """Do one update with this process's share of the batch, in micro-batches.

    Order: backward of the scaled loss, summed over micro-batches (on a sharpness-aware step once
    more, at the ascended point); unscale; clip; step; averages. Where the loss or the gradient is
    not finite, everything stays as it was but for the loss scale and the count of steps.
    """
    optim.turn(state.optimizer, lr=knobs.lr, momentum=knobs.momentum, step=state.step)
    engine.statistics.keep()
    _backward(state, engine, batch, run)
    if knobs.sam:
        with sam.ascended(state.model, run.optim.sam_rho):
            _backward(state, engine, batch, run, counts=False)

    state.scaler.unscale_(state.optimizer)
    stepped = guard.update(state.model, state.optimizer, state.scaler, run.optim.clip_grad_norm)
    if stepped is not None:
        engine.statistics.put_back(1 - stepped)
    if state.average is not None and knobs.average_keep is not None:
        average.update(state.average, state.model, knobs.average_keep, stepped)
    if state.swa is not None and knobs.swa_share is not None:
        average.take(state.swa, state.model, knobs.swa_share, stepped)
    state.meter.end_step(stepped)
    state.step += 1


def inputs_of(
    batch: Batch, part: slice, run: Run, normalise: Normalise
) -> Float[Tensor, "part 3 px px"]:
    """Return part of a batch as the network takes it: augmented and normalised, not mixed."""
    draws = batch.request.draws
    return prepare(
        batch.images[part],
        batch.flips[part],
        None if draws is None else draws.part(part),
        normalise,
        sampling_of(run.augment.policy, run.images.mean),
    )


def _backward(
    state: TrainState, engine: Engine, batch: Batch, run: Run, *, counts: bool = True
) -> None:
    """Put the gradient of the whole batch, over all processes, into the weights' ``grad``."""
    count = len(batch.labels)
    size = engine.compute.micro_batch or count
    for start in range(0, count, size):
        part = slice(start, start + size)
        with engine.group.accumulating(engine.net, last=start + size >= count):
            loss, logits = _accumulate(state, engine, batch, part, run)
        if counts:
            state.meter.add(loss, logits, batch.labels[part])


def _accumulate(
    state: TrainState, engine: Engine, batch: Batch, part: slice, run: Run
) -> tuple[Tensor, Tensor]:
    """Add the gradient of one micro-batch, weighted by its share of the batch.

    Returns:
        Its mean loss and its logits.
    """
    labels = batch.labels[part]
    inputs = inputs_of(batch, part, run, engine.normalise)
    inputs, targets = mix(inputs, labels, batch.request.mix)
    dtype = engine.compute.autocast_dtype
    with torch.autocast(engine.compute.device.type, dtype=dtype, enabled=dtype is not None):
        logits = engine.net(inputs, *_drawn(state, engine, run, len(batch.labels), part))
    loss = losses.loss(
        run.loss, logits.float(), targets.labels, targets.partner_labels, targets.share
    )
    if part.start == 0:
        # Only now: let go before the forward pass, the memory of the last gradients would be given
        # out and faulted in again, a tenth of a step's time on a CPU.
        state.optimizer.zero_grad(set_to_none=True)
    weight = guard.weight(loss, len(labels) / len(batch.labels))
    state.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), logits.detach()


def _drawn(
    state: TrainState, engine: Engine, run: Run, count: int, part: slice
) -> tuple[Float[Tensor, "images blocks"], ...]:
    """Return what the network is given besides the images: the draws of stochastic depth, if any.

    Args:
        state: Whose step it is.
        engine: Which process, and where the draws go.
        run: The rate and the seed.
        count: Images of this process's share of the batch.
        part: Those of the micro-batch.
    """
    if run.model.stochastic_depth == 0:
        return ()
    assert isinstance(state.model, ResNet)
    places = range(engine.group.rank * count, (engine.group.rank + 1) * count)[part]
    scales = stochastic_depth.scales(
        run.model.stochastic_depth,
        state.model.num_blocks,
        seed=run.seed,
        step=state.step,
        places=places,
    )
    if engine.compute.device.type == "cuda":
        scales = scales.pin_memory()
    return (scales.to(engine.compute.device, non_blocking=True),)
