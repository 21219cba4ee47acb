"""All that a run carries from one step to the next. Everything else is a function of the step."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rn50.config import Run
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.model import average, pretrained, resnet
from rn50.model.pretrained import Pretrained
from rn50.train import loss, optim
from rn50.train.meter import Meter, Totals
from rn50.train.schedule import Timeline
from rn50.train.trouble import Course, Trouble, TroubleError


@dataclass(slots=True)
class TrainState:
    """A run's state between two steps; its tensors are updated in place."""

    step: int
    """Updates done."""
    model: nn.Module
    """The bare network, without DDP or compilation."""
    average: nn.Module | None
    """The EMA."""
    swa: nn.Module | None
    """The SWA; the initial weights until it takes the first."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: Meter
    trouble: Trouble

    def is_left_open(self, timeline: Timeline) -> bool:
        """Return whether an epoch's steps are done, but not its evaluation: a stop came between."""
        return timeline.ends_epoch(self.step) and self.meter.epoch.images > 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state as plain tensors and JSON values, to be saved or put back."""

    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    swa: dict[str, Tensor] | None
    momentum: dict[str, Tensor]
    """The optimizer's tensors, see ``optim.momentum_buffers``."""
    scaler: dict[str, Any]
    window: tuple[int, int, int]
    """Images, loss units and correct answers since the last report."""
    epoch: tuple[int, int, int]
    """The same since the last epoch ended."""
    trouble: Trouble | None = None
    """Bad numbers lately, and the running means of the loss; None: it was saved without them."""

    def is_left_open(self, timeline: Timeline) -> bool:
        """Return what ``TrainState.is_left_open`` did when this was taken."""
        return timeline.ends_epoch(self.step) and self.epoch[0] > 0


def new(run: Run, compute: Compute, group: Group) -> TrainState:
    """Return the state before the first step, the same for every process."""
    model = resnet.build(run.model, seed=run.seed)
    loss.init_bias(model, run.loss)
    return of_model(model, run, compute, group)


def begin_from(
    state: TrainState, found: Pretrained, run: Run, class_ids: tuple[str, ...] = ()
) -> None:
    """Put weights into the model and the averages of a new state.

    Args:
        state: Before its first step.
        found: The weights.
        run: Says which network they must be for.
        class_ids: The classes of the data, by output; empty: not compared.

    Raises:
        UsageError: They are of another network or of other classes.
    """
    pretrained.begin(state.model, found, run.model, class_ids)
    for net in (state.average, state.swa):
        if net is not None:
            net.load_state_dict(state.model.state_dict())


def of_model(model: nn.Module, run: Run, compute: Compute, group: Group) -> TrainState:
    """Return the state before the first step of training ``model``."""
    model.to(compute.device).train()
    return TrainState(
        step=0,
        model=model,
        average=average.start(model) if run.average.ema_horizon > 0 else None,
        swa=average.start(model) if run.average.swa_epochs > 0 else None,
        optimizer=optim.build(model, run.optim),
        scaler=torch.amp.GradScaler(compute.device.type, enabled=compute.scales_loss),
        meter=Meter(compute.device, group),
        trouble=Trouble(Course.from_ignorance(loss.of_ignorance(run.loss, run.model.num_classes))),
    )


def drain(state: TrainState) -> None:
    """Read what the device has counted since the last time; every process must call it alike."""
    scaled = state.scaler.is_enabled()
    state.trouble.take(state.meter.drain(), state.step, scaled=scaled)


def snapshot(state: TrainState) -> Snapshot:
    """Return the state's tensors by name (references, not copies). Drains the meter first.

    Every process must call it at the same step.

    Raises:
        TroubleError: The weights or the momentum are not finite: nobody could go on from them.
    """
    drain(state)
    momentum = optim.momentum_buffers(state.model, state.optimizer)
    carried = [*state.model.parameters(), *momentum.values()]
    if not torch.isfinite(nn.utils.get_total_norm(carried)):
        raise TroubleError(
            f"the weights or the momentum are not finite after step {state.step:,} and are not "
            "saved",
            state.step - 1,
        )
    return Snapshot(
        step=state.step,
        model=state.model.state_dict(),
        average=None if state.average is None else state.average.state_dict(),
        swa=None if state.swa is None else state.swa.state_dict(),
        momentum=momentum,
        scaler=state.scaler.state_dict(),
        window=_plain(state.meter.window),
        epoch=_plain(state.meter.epoch),
        trouble=copy.deepcopy(state.trouble),
    )


def restore(state: TrainState, saved: Snapshot) -> None:
    """Overwrite a state with a snapshot, strictly: nothing may be missing or left over.

    Raises:
        ValueError: The snapshot is of another network or lacks a part.
    """
    parts = (
        ("model", state.model, saved.model),
        ("average", state.average, saved.average),
        ("SWA", state.swa, saved.swa),
    )
    for name, net, tensors in parts:
        if (net is None) != (tensors is None):
            has, wants = ("an", "none") if net is None else ("no", "one")
            raise ValueError(f"the checkpoint has {has} {name}, the run keeps {wants}")
    try:
        for _, net, tensors in parts:
            if net is not None and tensors is not None:
                net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is of another network: {error}") from error
    state.optimizer.zero_grad(set_to_none=True)
    optim.load_momentum_buffers(state.model, state.optimizer, saved.momentum)
    if saved.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(saved.scaler)
    state.meter.clear()
    state.meter.window = Totals(*saved.window)
    state.meter.epoch = Totals(*saved.epoch)
    if saved.trouble is not None:
        state.trouble = copy.deepcopy(saved.trouble)
    state.step = saved.step


def num_bytes(state: TrainState) -> int:
    """Return how much memory the state's tensors take, and a checkpoint of it on the disk."""
    nets = [net for net in (state.model, state.average, state.swa) if net is not None]
    tensors = [tensor for net in nets for tensor in net.state_dict().values()]
    kinds = optim.num_buffers(state.optimizer)
    trained = [p for p in state.model.parameters() if p.requires_grad]
    return sum(t.nbytes for t in tensors) + kinds * sum(p.nbytes for p in trained)


def _plain(totals: Totals) -> tuple[int, int, int]:
    return totals.images, totals.loss_units, totals.correct
