"""The training loop, top to bottom.

What changes training is a line here, in reading order; what only observes is given values. The loop
runs in every process alike. One that resumes starts at ``state.step`` and does exactly what the
uninterrupted one would have done from there.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rn50.config import Run
from rn50.data.loader import Batch
from rn50.errors import InterruptedRunError
from rn50.observe.record import Record
from rn50.train import health, records
from rn50.train import state as states
from rn50.train.meter import Totals
from rn50.train.pace import Pace
from rn50.train.preempt import Asked
from rn50.train.schedule import Timeline
from rn50.train.state import Snapshot, TrainState
from rn50.train.step import Engine, train_step

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop calls on: all of it may communicate, so every process calls it alike."""

    batches: Callable[[int], Iterator[Batch]]
    """Batches from a step on."""
    px: Callable[[int], int]
    """Side of the images of a step."""
    settle: Callable[[], bool]
    """Estimate the SWA's BatchNorm statistics anew, where there is one; False: asked to stop."""
    evaluate: Callable[[], Scores | None]
    """Scores of the model and its averages on the validation split; None: asked to stop."""
    save: Callable[[Snapshot], None]
    """Have a checkpoint written, on the first process only; it may go on meanwhile."""
    asked: Callable[[int, bool], Asked]
    """What any process was asked after a step; given whether a save is due here by the clock."""
    record: Callable[[Record], None]
    """Hand a record to whoever observes; on the first process only."""


def train(
    run: Run, state: TrainState, engine: Engine, timeline: Timeline, to: Surroundings
) -> None:
    """Take ``state`` from its step to the end of the run.

    Raises:
        DivergedError: Numbers were bad for too long; every checkpoint is from before that.
        InterruptedRunError: A stop was requested; the state has been saved.
    """
    window, epoch, last_save = Pace(), Pace(), time.monotonic()
    left_open: list[Batch | None] = [None] if state.is_left_open(timeline) else []
    for batch in chain(left_open, to.batches(state.step)):
        if batch is not None:
            if batch.request.step != state.step:
                raise RuntimeError(f"batch {batch.request.step} came at step {state.step}")
            train_step(state, engine, batch, timeline.at(state.step), run)
            for pace in (window, epoch):
                pace.step(run.images.batch_size, batch.wait_s, batch.request.px)

        done = state.step
        ends_epoch = timeline.ends_epoch(done)
        if batch is not None and (done % run.log.every_steps == 0 or ends_epoch):
            states.drain(state)
            now = _facts(timeline, to, done) | state.trouble.counts()
            to.record(records.train(state.meter.window, timeline, now, window))
            _warn(to, done, state.trouble.warnings())
            state.trouble.judge(run, state.meter.window, done)
            state.meter.window = Totals()
            window.restart()

        if ends_epoch:
            _end_epoch(run, state, timeline, to, epoch.timing())
            epoch.restart()
            window.restart()

        asked = to.asked(done, _is_late(run, last_save))
        if asked.stop or asked.save or _saves(run, timeline, done):
            states.drain(state)
            state.trouble.judge_loss(run, state.meter.window, done)
            start = time.monotonic()
            to.save(states.snapshot(state))
            last_save = time.monotonic()
            for pace in (window, epoch):
                pace.pause(last_save - start)
        if asked.stop and (done < timeline.total_steps or state.is_left_open(timeline)):
            raise InterruptedRunError(
                f"stopped as asked after step {done} of {timeline.total_steps} and saved; "
                "run the same command with --resume to go on"
            )


def _end_epoch(
    run: Run,
    state: TrainState,
    timeline: Timeline,
    to: Surroundings,
    timing: dict[str, Any],
) -> None:
    """Evaluate where it is time, and record the epoch; leave it open if asked to stop meanwhile."""
    scores, start = None, time.perf_counter()
    if not to.settle():
        return
    if _evaluates(run, state.step // timeline.steps_per_epoch):
        scores = to.evaluate()
        timing["eval_seconds"] = round(time.perf_counter() - start, 3)
        if scores is None:
            return
    facts = _facts(timeline, to, state.step)
    to.record(records.epoch(state.meter.epoch, timeline, facts, scores, timing))
    _warn(to, state.step, health.warnings(scores or {}, timeline, state.step))
    state.meter.epoch = Totals()


def _facts(timeline: Timeline, to: Surroundings, done: int) -> dict[str, Any]:
    """Return what a record tells of the last step done."""
    return {"step": done, "lr": timeline.at(done - 1).lr, "px": to.px(done - 1)}


def _warn(to: Surroundings, step: int, messages: list[str]) -> None:
    for message in messages:
        to.record({"kind": "warning", "step": step, "message": message})


def _evaluates(run: Run, epochs_done: int) -> bool:
    return epochs_done % run.log.eval_epochs == 0 or epochs_done == run.epochs


def _saves(run: Run, timeline: Timeline, done: int) -> bool:
    every_steps = run.storage.checkpoint_steps
    every_epochs = run.storage.checkpoint_epochs * timeline.steps_per_epoch
    return (
        done == timeline.total_steps
        or (every_steps > 0 and done % every_steps == 0)
        or (every_epochs > 0 and done % every_epochs == 0)
    )


def _is_late(run: Run, last_save: float) -> bool:
    limit_s = 60 * run.storage.checkpoint_minutes
    return limit_s > 0 and time.monotonic() - last_save > limit_s
