"""The learning rate range test: train a little while the learning rate grows, and look at the loss.

Smith (2015, arXiv:1506.01186) raised the rate linearly; fastai raises it exponentially and stops
when the smoothed loss is four times its best. So here, with the run's own step: augmentation,
mixing, precision, accumulation and processes are those of training. A single sweep depends much on
its seed, so several are made, each from new weights, and their suggestions are put together.
Sharpness-aware steps are left out: a recipe takes one in five or ten.

Tested: the rules on curves of known shape, that a sweep begins as its run does, and that two
processes find what one finds.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rn50.config import Run
from rn50.data.loader import Batch
from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.hardware import Compute
from rn50.train import origin
from rn50.train import state as states
from rn50.train.meter import Totals
from rn50.train.schedule import Knobs
from rn50.train.step import Engine, train_step

SMOOTHING = 0.9
"""Share of the running mean of the loss that a step keeps."""
STOP_RATIO = 4.0
"""A sweep ends when the smoothed loss is so many times its least."""
_SETTLING = 0.1
"""Share of a sweep at its start in which no slope is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What is swept: ``steps`` rates from ``low`` to ``high``, evenly in the logarithm."""

    low: float = 1e-4
    high: float = 10.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise UsageError(
                f"the learning rates are to go from {self.low} to {self.high}; both must be above "
                "0, and the first the smaller one; give --low and --high"
            )
        if self.steps < 20:
            raise UsageError(
                f"--steps is {self.steps}; a curve needs at least 20 to be smoothed; 100 is usual"
            )

    def lrs(self) -> list[float]:
        """Return the learning rates in order."""
        return np.geomspace(self.low, self.high, self.steps).tolist()


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep, from new weights or those of ``init_from``."""

    seed: int
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Mean training loss of each step."""
    smoothed: tuple[float, ...]
    steepest: float
    """The learning rate at which the smoothed loss falls fastest."""
    minimum_tenth: float
    """A tenth of the learning rate with the least smoothed loss."""
    diverged: bool
    """Whether it ended before the last learning rate."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What several sweeps suggest by one rule, for the recipe's global batch."""

    mean: float
    median: float
    geometric_mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Suggestion":
        """Return the three averages of the sweeps' values."""
        return cls(
            mean=statistics.mean(values),
            median=statistics.median(values),
            geometric_mean=statistics.geometric_mean(values),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """All sweeps and what they suggest."""

    sweeps: tuple[Sweep, ...]
    steepest: Suggestion
    minimum_tenth: Suggestion

    @property
    def suggested(self) -> float:
        """Return the rate to try: the geometric mean of both rules over all sweeps."""
        return math.sqrt(self.steepest.geometric_mean * self.minimum_tenth.geometric_mean)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {"suggested": self.suggested, **asdict(self)}


def find(
    run: Run,
    compute: Compute,
    group: Group,
    batches: Callable[[Run], Iterator[Batch]],
    *,
    swept: Range,
    num_sweeps: int,
    report: Callable[[int, int], None],
) -> Finding:
    """Sweep the learning rate several times and return what the curves suggest.

    Every process of the group must call it.

    Args:
        run: The run; sweep k has its seed plus k.
        compute: Device and precision.
        group: The processes that share each batch.
        batches: Returns the batches of a run from its first step on.
        swept: The learning rates.
        num_sweeps: How many sweeps, at least 1.
        report: Called with the number of sweeps done and in all.

    Raises:
        UsageError: The loss does not fall in the range.
    """
    if num_sweeps < 1:
        raise UsageError(f"--runs is {num_sweeps}; at least one sweep is needed; 3 are usual")
    sweeps = []
    for number in range(num_sweeps):
        of_seed = replace(run, seed=run.seed + number)
        with closing(batches(of_seed)) as some:  # type: ignore[type-var]
            sweeps.append(_sweep(of_seed, compute, group, some, swept))
        report(number + 1, num_sweeps)
    return Finding(
        tuple(sweeps),
        Suggestion.of([sweep.steepest for sweep in sweeps]),
        Suggestion.of([sweep.minimum_tenth for sweep in sweeps]),
    )


def _sweep(
    run: Run, compute: Compute, group: Group, batches: Iterator[Batch], swept: Range
) -> Sweep:
    state = states.new(run, compute, group)
    origin.begin(state, run, group)
    engine = Engine.of(state, run, compute, group)
    losses: list[float] = []
    for lr, batch in zip(swept.lrs(), batches, strict=False):
        train_step(state, engine, batch, Knobs(lr=lr, average_keep=None), run)
        scaled = state.scaler.is_enabled()
        if any(end.is_fault(scaled=scaled) for end in state.meter.drain()):
            break
        losses.append(state.meter.window.loss)
        state.meter.window = Totals()
        smooth = smoothed(losses)
        if smooth[-1] > STOP_RATIO * min(smooth):
            break
    return read_curve(run.seed, swept.lrs()[: len(losses)], losses, of=swept.steps)


def read_curve(seed: int, lrs: Sequence[float], losses: Sequence[float], *, of: int) -> Sweep:
    """Return a sweep with what its curve suggests.

    Args:
        seed: Of the sweep.
        lrs: The learning rates that were reached.
        losses: Their training losses.
        of: How many learning rates there were to reach.

    Raises:
        UsageError: The loss falls nowhere.
    """
    smooth = smoothed(losses)
    least = int(np.argmin(smooth)) if smooth else 0
    start = math.ceil(_SETTLING * of)
    if least <= start:
        raise UsageError(
            f"with seed {seed} the loss does not fall from learning rate {lrs[0] if lrs else '?'} "
            "on; the range must begin where training is stable and have room to learn: give a "
            "lower --low, or more --steps"
        )
    slopes = np.gradient(smooth, np.log(lrs))[start : least + 1]
    return Sweep(
        seed=seed,
        lrs=tuple(lrs),
        losses=tuple(losses),
        smoothed=tuple(smooth),
        steepest=lrs[start + int(np.argmin(slopes))],
        minimum_tenth=lrs[least] / 10,
        diverged=len(losses) < of,
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the running mean of the losses, corrected for its start as Adam's moments are."""
    mean, result = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        result.append(mean / (1 - SMOOTHING**i))
    return result
