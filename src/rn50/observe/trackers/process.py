"""The process beside a training that feeds its trackers: ``python -m rn50.observe.trackers``.

Trackers' libraries take seconds to import, have threads and processes of their own, wait for the
network, and some wait at exit for as long as it is down. Here none of that can reach the training:
not its interpreter, not its memory, not its end.

It ends when its standard input does, which is when the training's process has ended, however that
ended.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock

from rn50 import config
from rn50.config import Log
from rn50.errors import UsageError
from rn50.observe.history import CONFIG
from rn50.observe.trackers.feed import Feed
from rn50.observe.trackers.identity import Identity
from rn50.observe.trackers.mlflow_run import MLflow
from rn50.observe.trackers.sink import Sink, Tracked
from rn50.observe.trackers.tensorboard_events import TensorBoard
from rn50.observe.trackers.trackio_run import Trackio
from rn50.observe.trackers.wandb_run import WandB

FINISH, HURRY = b"finish\n", b"hurry\n"
"""Said on standard input where somebody waits: the run has come to its end, or not."""
HURRY_S = 10.0
_ABANDONED_S = 30.0
_PREDECESSOR_S = 60.0


def sinks(log: Log, missing: Callable[[UsageError], None] | None = None) -> list[Sink]:
    """Return the trackers that settings ask for, none of them begun.

    Args:
        log: The settings.
        missing: Told of each whose library is not installed, which is then left out.

    Raises:
        UsageError: The library of one is not installed, and ``missing`` is None.
    """
    asked: list[Callable[[], Sink]] = []
    if log.tensorboard:
        asked.append(TensorBoard)
    if log.wandb != "off":
        asked.append(partial(WandB, log.wandb))
    if log.trackio:
        asked.append(Trackio)
    if log.mlflow:
        asked.append(partial(MLflow, log.mlflow))
    found: list[Sink] = []
    for make in asked:
        try:
            found.append(make())
        except UsageError as error:
            if missing is None:
                raise
            missing(error)
    return found


def main(place: Path, resumed_at: int | None) -> None:
    """Feed the trackers of a run until standard input ends, and end the process.

    Args:
        place: The run's folder, with its settings, its record and its identity.
        resumed_at: The step that the run goes on from; None: a new run.
    """
    tell = _speaking()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever stops a whole group of processes means the training, which saves first.
        signal.signal(number, lambda *_: None)
    if hasattr(os, "nice"):
        os.nice(10)
    run = config.load(place / CONFIG)
    identity = Identity.read(place)
    lock = filelock.FileLock(place / ".trackers.lock")
    try:
        lock.acquire(timeout=_PREDECESSOR_S)
    except (filelock.Timeout, OSError) as error:
        tell("notice", f"the trackers of this run may have another writer ({error})")
    tracked = Tracked(
        id=identity.id,
        name=identity.name,
        project=run.log.project,
        place=place,
        hparams={"recipe": run.recipe, **config.mathematics(run)},
        resumed_at=resumed_at,
        say=lambda message: tell("notice", message),
    )
    ending = threading.Event()
    there = sinks(run.log, missing=lambda _: None)  # which the training has told of
    feeds = [Feed(sink, tracked, run.storage, ending, tell) for sink in there]
    for feed in feeds:
        feed.start()
    limits = {FINISH: math.inf, HURRY: HURRY_S}
    most_s = limits.get(sys.stdin.buffer.readline(), _ABANDONED_S)
    start = time.monotonic()
    ending.set()
    for feed in feeds:
        limit_s = min(most_s, feed.sink.closing_s)
        feed.join(max(0.0, limit_s - (time.monotonic() - start)))
        if feed.is_alive():
            tell(
                "warning",
                f"{feed.sink.name} did not take all within {limit_s:.0f} s: "
                f"{feed.undelivered():,} steps told of are missing there; they are in the run's "
                "record, from which a resumed run sends them",
            )
    # Not through the libraries' own ends, which may wait for the network.
    os._exit(0)


def _speaking() -> Callable[[str, str], None]:
    """Return how to tell the training something; what libraries print goes to the log instead."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, message: str) -> None:
        with lock:
            channel.write(json.dumps({"kind": kind, "message": message}) + "\n")
            channel.flush()

    return tell
