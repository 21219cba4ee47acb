"""Bad numbers: what became of them lately, what is said of it, and when it is too much.

A run carries the little that is here with its state, since the record of a run may lag behind a
checkpoint. All of it is counted from sums over the processes, which therefore agree on it.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rn50.config import Run
from rn50.errors import DivergedError
from rn50.train.meter import StepEnd, Totals

MOST_OVERFLOWS = 30
"""Updates in a row that fp16's loss scaler may skip: it has halved its scale as often, from
65,536 to less than 2**-13, and it is not the scale that is to blame."""
_FAST_STEPS, _SLOW_STEPS, _PRIOR_STEPS = 10.0, 1000.0, 20.0
_LENIENT_STEPS, _LENIENCE = 100.0, 10.0
_NAMED = 10
"""How many steps a warning names."""
_ADVICE = (
    "resume with a lower --lr, a longer --warmup-epochs, --clip-grad-norm 1 or --precision fp32 "
    "(and --allow-change), or go back by --on-divergence roll-back"
)


class TroubleError(DivergedError):
    """Numbers were bad for too long, or the loss exploded.

    Attributes:
        fault: What was found.
        trusted: Updates done until which nothing was wrong: one report before what was found.
    """

    def __init__(self, fault: str, trusted: int) -> None:
        super().__init__(f"{fault}; the checkpoints are from before: {_ADVICE}")
        self.fault = fault
        self.trusted = trusted


@dataclass(slots=True)
class Course:
    """Two running means of the loss over steps: a fast one, judged by a slow one.

    The loss explodes when the fast mean (over about 10 steps) is ``factor`` times the slow one
    (about 1000) as it was before, and half of the highest slow mean so far. The ratio makes it free
    of the loss's scale. The second condition is for late training: a loss of 0.01 may well be 0.1
    after a restart of the learning rate, at another size or with other mixing, but not as high as
    when nothing was learned yet. The slow mean begins with the loss of a network that knows
    nothing, which stands for 20 steps. In the first 100 steps ``factor`` is ten times as high,
    since a start without warm-up may be wild and yet end well. A single step counts a tenth,
    whatever the length of a window.
    """

    fast: float = 0.0
    slow: float = 0.0
    highest: float = 0.0
    steps: float = 0.0

    @classmethod
    def from_ignorance(cls, loss: float) -> "Course":
        """Return the course before the first step, given the loss of knowing nothing."""
        return cls(slow=loss, highest=loss)

    def after(self, loss: float, steps: float) -> "Course":
        """Return the course after some more steps with this mean loss."""
        total = self.steps + steps
        fast = self.fast + (loss - self.fast) * _share(steps / _FAST_STEPS, total / _FAST_STEPS)
        slow = self.slow + (loss - self.slow) * _share(
            steps / _SLOW_STEPS, (total + _PRIOR_STEPS) / _SLOW_STEPS
        )
        return Course(fast, slow, max(self.highest, slow), total)

    def explodes(self, then: "Course", factor: float) -> bool:
        """Return whether the loss explodes on the way from here to ``then``."""
        lenience = _LENIENCE if self.steps < _LENIENT_STEPS else 1.0
        limit = max(lenience * factor * self.slow, self.highest / 2)
        return factor > 0 and self.slow > 0 and then.fast > limit


@dataclass(slots=True)
class Trouble:
    """What was wrong lately; carried by the state, and by its checkpoints."""

    course: Course = field(default_factory=Course)
    row: int = 0
    """Updates just skipped in a row because the loss or the gradient was not finite."""
    longest: int = 0
    """The longest such row since the last report."""
    idle: int = 0
    """Updates just skipped in a row, for this or because fp16 overflowed."""
    skipped: list[int] = field(default_factory=list)
    """The steps since the last report whose updates were skipped because of bad numbers."""
    overflows: int = 0
    """Those skipped since the last report because fp16 overflowed."""
    detour: int = 0
    """How often the run has rolled back: which draws it is trained with."""

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Trouble":
        """Return what ``asdict`` was given."""
        return cls(**{**plain, "course": Course(**plain["course"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def take(self, ends: Iterable[StepEnd], steps_done: int, *, scaled: bool) -> None:
        """Take note of how the last steps ended, the last of which was update ``steps_done``."""
        ends = list(ends)
        for step, end in enumerate(ends, start=steps_done - len(ends) + 1):
            if not end.skipped:
                self.row = self.idle = 0
                continue
            self.idle += 1
            if end.is_fault(scaled=scaled):
                self.row += 1
                self.skipped.append(step)
            else:
                self.overflows += 1
            self.longest = max(self.longest, self.row)

    def counts(self) -> dict[str, int]:
        """Return, for the record, how many updates were skipped since the last report, if any."""
        counts = {"skipped": len(self.skipped), "overflows": self.overflows}
        return {name: count for name, count in counts.items() if count}

    def warnings(self) -> list[str]:
        """Return what is to be said of the steps since the last report."""
        if not self.skipped:
            return []
        named = ", ".join(f"{step:,}" for step in self.skipped[:_NAMED])
        more = len(self.skipped) - _NAMED
        of = f"steps {named}" if len(self.skipped) > 1 else f"step {named}"
        return [
            f"the loss or the gradient was not finite at {of}{f' and {more} more' * (more > 0)}: "
            "the updates were left out"
        ]

    def judge(self, run: Run, window: Totals, step: int) -> None:
        """Judge what came since the last report, and begin anew.

        Every process must call it at the same step.

        Args:
            run: What is too much.
            window: Loss and images since the last report.
            step: Updates done.

        Raises:
            TroubleError: It was too much.
        """
        self.judge_loss(run, window, step)
        trusted = step - run.log.every_steps - max(self.longest, self.idle)
        if self.longest > run.guard.skip_updates:
            raise TroubleError(
                f"the loss or the gradient was not finite in {self.longest} updates in a row, by "
                f"step {step:,}; none of them was done; guard.skip_updates allows "
                f"{run.guard.skip_updates}",
                trusted,
            )
        if self.idle > MOST_OVERFLOWS:
            raise TroubleError(
                f"the gradient overflowed fp16 in {self.idle} updates in a row, by step {step:,}: "
                "no loss scale is low enough",
                trusted,
            )
        if window.images:
            self.course = self.course.after(window.loss, window.images / run.images.batch_size)
        self.longest, self.overflows = self.row, 0
        self.skipped = []

    def judge_loss(self, run: Run, window: Totals, step: int) -> None:
        """Judge the loss alone and change nothing: a state that loses so much is not to be saved.

        Raises:
            TroubleError: The loss explodes.
        """
        if not window.images:
            return
        steps = window.images / run.images.batch_size
        then = self.course.after(window.loss, steps)
        if self.course.explodes(then, run.guard.explosion):
            raise TroubleError(
                f"the loss exploded to {window.loss:.4g} in the {steps:.0f} steps up to {step:,}; "
                f"the mean before was {self.course.slow:.4g}, and guard.explosion is "
                f"{run.guard.explosion:g}",
                step - max(run.log.every_steps, int(_FAST_STEPS)),
            )


def _share(new: float, total: float) -> float:
    """Return the share of the newest in an exponential mean that begins without a past.

    Args:
        new: How long the newest lasted, in time constants.
        total: How long all has lasted, the newest included.
    """
    return math.expm1(-new) / math.expm1(-total)
