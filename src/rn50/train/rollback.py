"""Going back after bad numbers: to a checkpoint from before them, and on with other draws.

Resumed alone, a run would meet the same batches and, mostly, the same trouble. So each time that it
goes back it makes a detour: from there on order, crops, augmentation and mixing are those of a seed
that is a function of (seed, number of the detour). The number lies in the checkpoints, and in the
record of the run from the instant on which it goes back, so that a run that has rolled back is
resumed as exactly as any other.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rn50 import rng
from rn50.config import Run
from rn50.data.plan import TrainPlan
from rn50.distributed import Group
from rn50.errors import DataError, DivergedError
from rn50.observe import record
from rn50.observe.record import Record
from rn50.train import checkpoint
from rn50.train import state as states
from rn50.train.checkpoint import Saved
from rn50.train.state import TrainState
from rn50.train.trouble import TroubleError

KIND = "rollback"
"""Of the record of a run's going back to the record's step."""

Attempt = Callable[[TrainState, dict[str, Any] | None, list[Record]], None]
"""Trains to the end, given what the checkpoint told that it goes on from, and what to record."""


def detoured(plan: TrainPlan, detour: int) -> TrainPlan:
    """Return the plan with the draws of a detour; 0: as it is."""
    return replace(plan, seed=rng.key(plan.seed, "detour", detour)) if detour else plan


def recorded_detour(place: Path, step: int, group: Group) -> int:
    """Return the number of the detour that a run's record knows at a step; 0 for none.

    Every process must call it; the first one reads.
    """
    known = [0]
    if group.is_first and (place / record.FILE_NAME).exists():
        told = record.read(place / record.FILE_NAME)
        known += [r["detour"] for r in told if r.get("kind") == KIND and r["step"] <= step]
    return int(group.from_first(str(max(known))))


def tell(news: list[Record], write: Callable[[Record], None], sync: Callable[[], None]) -> None:
    """Write what an attempt begins with to the disk, before it goes on."""
    for one in news:
        write(one)
    if news:
        sync()


@dataclass(frozen=True, slots=True)
class RollBack:
    """Goes back as often as the settings allow; every process alike."""

    run: Run
    place: Path
    """The run's folder."""
    group: Group
    forget: Callable[[int], None]
    """Tells the mirror that checkpoints after a step are void."""
    say: Callable[[str], None]
    """Shows the user a line."""

    def until_through(
        self, attempt: Attempt, state: TrainState, about: dict[str, Any] | None
    ) -> None:
        """Attempt to train to the end, and after bad numbers go back and attempt it again.

        Args:
            attempt: Called with the state, what the checkpoint told that it is from (None: a new
                run), and records to begin with.
            state: Where to begin; overwritten when it goes back.
            about: What its checkpoint told.

        Raises:
            DivergedError: There is nowhere to go back to, or it is not allowed, or not again.
        """
        if about is not None:
            recorded = recorded_detour(self.place, state.step, self.group)
            state.trouble.detour = max(state.trouble.detour, recorded)
        news: list[Record] = []
        while True:
            try:
                attempt(state, about, news)
                return
            except TroubleError as error:
                saved = self._source(error, state.trouble.detour)
                detour = state.trouble.detour + 1
                news = [_told(error, saved.snapshot.step, detour, self.run.guard.max_rollbacks)]
            # Only here, outside the handler, is the attempt's network wrapper no longer held.
            gc.collect()
            states.restore(state, saved.snapshot)
            state.trouble.detour = detour
            about = saved.about

    def _source(self, error: TroubleError, detour: int) -> Saved:
        """Return the checkpoint to go back to, the newest of all from now on."""
        if self.run.guard.on_divergence != "roll-back":
            raise error
        most = self.run.guard.max_rollbacks
        if detour >= most:
            raise DivergedError(
                f"{error} (it has rolled back {detour} times; guard.max_rollbacks allows {most})"
            ) from error
        saved = self.group.share(lambda: self._saved_before(error))
        if saved is None:
            raise DivergedError(
                f"{error} (there is no checkpoint of step {error.trusted:,} or before to roll back "
                "to)"
            ) from error
        return saved

    def _saved_before(self, error: TroubleError) -> Saved | None:
        for step in checkpoint.steps(self.place):
            if step > error.trusted:
                continue
            try:
                saved = checkpoint.load(checkpoint.path(self.place, step))
            except DataError as reason:
                self.say(f"passed over: {reason}")
                continue
            checkpoint.forget_after(self.place, step)
            self.forget(step)  # only now, or it would send what lies here again
            return saved
        return None


def _told(error: TroubleError, step: int, detour: int, most: int) -> Record:
    message = (
        f"rolled back to step {step:,} and going on with other draws, for time {detour} of at "
        f"most {most}: {error.fault}"
    )
    return {"kind": KIND, "step": step, "detour": detour, "message": message}
