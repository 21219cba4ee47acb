"""The learning rate, the momentum and the averages' shares as closed forms of the step.

Nothing here has state: step 1234 has one learning rate, whether the run came there in one go, after
ten resumptions, or is only being plotted.
"""

import math
from dataclasses import dataclass

from rn50.config import Run, Schedule
from rn50.errors import UsageError
from rn50.model import average
from rn50.train import sam

_FEWEST_UPDATES = 5
"""Of an EMA in a whole run, unless it is updated at every step."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the schedule turns, at one step."""

    lr: float
    average_keep: float | None
    """Share of the EMA that survives this step; None: it is not updated."""
    momentum: float | None = None
    """Momentum or first beta; None: the optimizer's own."""
    sam: bool = False
    """Whether the gradient is taken at the ascended point (sharpness-aware minimisation)."""
    swa_share: float | None = None
    """Share of this step's weights in the SWA; None: they are not taken."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The run laid out in steps, counted from 0."""

    run: Run
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if (count := self.swa_count(self.total_steps)) < 2 and self.run.average.swa_epochs:
            raise UsageError(
                f"average.swa_every_steps is {self.run.average.swa_every_steps}, but SWA lasts "
                f"{self.total_steps - self._swa_start} steps, so it would average {count} weights; "
                "give a smaller --average.swa-every-steps, or a longer --swa-epochs"
            )
        self._refuse_stale_ema()
        if self.run.optim.sam_rho and self.run.optim.sam_every > self.total_steps:
            raise UsageError(
                f"optim.sam_every is {self.run.optim.sam_every}, but the run has only "
                f"{self.total_steps} steps, so none would be sharpness-aware; give a smaller "
                "--optim.sam-every, or --optim.sam-rho 0"
            )

    def _refuse_stale_ema(self) -> None:
        """Refuse an EMA of a handful of updates: copies of the model as it was some while ago.

        Of none, it would be the initial weights.
        """
        average, total = self.run.average, self.total_steps
        if average.ema_horizon and 1 < average.every_steps > total / _FEWEST_UPDATES:
            raise UsageError(
                f"average.every_steps is {average.every_steps}, but the run has only {total} steps,"
                f" so the EMA would be updated {total // average.every_steps} times; give "
                f"--average.every-steps {max(1, total // _FEWEST_UPDATES)} or fewer"
            )

    @property
    def total_steps(self) -> int:
        """Return the number of updates of the whole run."""
        return self.run.epochs * self.steps_per_epoch

    def at(self, step: int) -> Knobs:
        """Return the settings of update number ``step``."""
        run = self.run
        share = share_at(step, run.schedule, run.epochs, self.steps_per_epoch)
        return Knobs(
            lr=run.optim.peak_lr * share,
            average_keep=self._average_keep(step),
            momentum=momentum_at(step, self.total_steps, run.schedule),
            sam=sam.is_due(step, run.optim),
            swa_share=self._swa_share(step),
        )

    def ends_epoch(self, steps_done: int) -> bool:
        """Return whether a whole number of epochs is done after ``steps_done`` updates."""
        return steps_done % self.steps_per_epoch == 0

    def swa_count(self, steps_done: int) -> int:
        """Return how many weights the SWA holds after ``steps_done`` updates."""
        settings, start = self.run.average, self._swa_start
        if settings.swa_epochs == 0 or steps_done <= start:
            return 0
        if settings.swa_every_steps:
            return (steps_done - start) // settings.swa_every_steps
        return steps_done // self.steps_per_epoch - start // self.steps_per_epoch

    @property
    def _swa_start(self) -> int:
        """Return the updates done when averaging begins; the weights of then are not taken."""
        return self.total_steps - round(self.run.average.swa_epochs * self.steps_per_epoch)

    def _swa_share(self, step: int) -> float | None:
        count = self.swa_count(step + 1)
        return 1 / count if count > self.swa_count(step) else None

    def _average_keep(self, step: int) -> float | None:
        settings = self.run.average
        if settings.ema_horizon == 0 or (step + 1) % settings.every_steps:
            return None
        horizon = settings.ema_horizon * self.total_steps / settings.every_steps
        return average.decay(step // settings.every_steps, horizon_updates=horizon)


def share_at(step: int, schedule: Schedule, epochs: int, steps_per_epoch: int) -> float:
    """Return the learning rate of ``step`` as a share of the peak, tail included.

    The body ends where the tail begins. The tail is that of stochastic weight averaging (Izmailov
    et al., 2018, arXiv:1803.05407): constant, or cycles in each of which the rate falls in a line
    from ``tail_lr`` to ``tail_low``, reached at the cycle's last step. An annealed tail begins at
    the body's last rate and follows torch's ``SWALR`` (``anneal_strategy="cos"``). Tested against
    ``SWALR`` and the paper's formula.
    """
    tail = round(schedule.tail_epochs * steps_per_epoch)
    body = epochs * steps_per_epoch - tail
    if step >= body and tail:
        return _tail_share(
            step - body,
            _body_share(body - 1, body, schedule, steps_per_epoch),
            schedule,
            steps_per_epoch,
        )
    return _body_share(step, body, schedule, steps_per_epoch)


def _body_share(step: int, total_steps: int, schedule: Schedule, steps_per_epoch: int) -> float:
    if schedule.name == "onecycle":
        return onecycle_share(step, total_steps, schedule)
    return lr_share(
        step,
        warmup_steps=round(schedule.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
        schedule=schedule,
        milestones=tuple(round(epoch * steps_per_epoch) for epoch in schedule.milestones),
    )


def _tail_share(step: int, before: float, schedule: Schedule, steps_per_epoch: int) -> float:
    cycle = round(schedule.tail_cycle_epochs * steps_per_epoch)
    if cycle > 1:
        passed = step % cycle / (cycle - 1)
        return (1 - passed) * schedule.tail_lr + passed * schedule.tail_low
    anneal = round(schedule.tail_anneal_epochs * steps_per_epoch)
    passed = min(1.0, step / anneal) if anneal else 1.0
    return _cosine(before, schedule.tail_lr, passed)


def lr_share(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    schedule: Schedule,
    milestones: tuple[int, ...] = (),
) -> float:
    """Return the learning rate of ``step`` as a share of the peak, tails and OneCycle aside.

    Linear from ``schedule.warmup_start`` at step 0 to 1 at step ``warmup_steps`` (Goyal et al.,
    2017, arXiv:1706.02677), then the schedule's shape to ``total_steps``, one step after the last:

    cosine: half a cosine to ``final`` (Loshchilov and Hutter, 2016, arXiv:1608.03983). Equal to
    torch's ``LinearLR`` followed by ``CosineAnnealingLR``, both stepped once per update; with
    ``warmup_inside``, to timm's ``CosineLRScheduler`` with ``warmup_prefix=False``.
    polynomial: torch's ``PolynomialLR``. triangular: FFCV's line (``get_cyclic_lr``). step: torch's
    ``MultiStepLR``, counted from step 0 also where there is a warm-up. Each is tested against what
    it is equal to, at every step.
    """
    if step < warmup_steps:
        return schedule.warmup_start + (1 - schedule.warmup_start) * step / warmup_steps
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        return schedule.gamma ** sum(step >= milestone for milestone in milestones)
    begin = 0 if schedule.warmup_inside else warmup_steps
    progress = (step - begin) / (total_steps - begin)
    if schedule.name == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    power = schedule.power if schedule.name == "polynomial" else 1.0
    return schedule.final + (1 - schedule.final) * (1 - progress) ** power


def onecycle_share(step: int, total_steps: int, schedule: Schedule) -> float:
    """Return torch's ``OneCycleLR`` at ``step`` as a share of the peak, to the last digit.

    Smith and Topin, 2017 (arXiv:1708.07120). The corners lie where torch puts them, one step before
    each phase's share of the run is over. Tested at every step of whole runs with both shapes, two
    phases and three.
    """
    first = 1 / schedule.start_div
    rates = [first, 1.0, first / schedule.final_div]
    if schedule.three_phase:
        rates = [first, 1.0, first, first / schedule.final_div]
    return _onecycle(step, total_steps, schedule, rates)


def momentum_at(step: int, total_steps: int, schedule: Schedule) -> float | None:
    """Return the momentum that OneCycle asks for: low at the peak, high at both ends, as torch's.

    None where the schedule leaves it as the optimizer has it.
    """
    if schedule.cycle_momentum is None:
        return None
    low, high = schedule.cycle_momentum
    values = [high, low, high, high] if schedule.three_phase else [high, low, high]
    return _onecycle(step, total_steps, schedule, values)


def _onecycle(step: int, total_steps: int, schedule: Schedule, values: list[float]) -> float:
    """Return the value at ``step`` of a course through ``values`` at OneCycle's corners."""
    rise = schedule.rise * total_steps
    corners = [0.0, rise - 1, *([2 * rise - 2] if schedule.three_phase else []), total_steps - 1]
    phase = 1
    while step > corners[phase] and phase < len(corners) - 1:
        phase += 1
    length = corners[phase] - corners[phase - 1]
    passed = (step - corners[phase - 1]) / length if length else 1.0
    begin, end = values[phase - 1], values[phase]
    if schedule.anneal == "cos":
        return _cosine(begin, end, passed)
    return (end - begin) * passed + begin


def _cosine(begin: float, end: float, passed: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * passed))
