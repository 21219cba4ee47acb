"""Which checkpoint a run goes on from: of its own folder, of its mirror, or of a place it is told.

The newest one that verifies, wherever it lies, is the answer; what lies elsewhere is first fetched
into the run's folder, with the record of the run through its step.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rn50 import config, remote_files
from rn50.config import Run
from rn50.distributed import Group
from rn50.errors import DataError, InterruptedRunError, UsageError
from rn50.remote_files import UnreachableError
from rn50.train import checkpoint, folder
from rn50.train.checkpoint import Saved
from rn50.train.remote_run import TERMS, RemoteRun, open_run

AUTO = "auto"
"""What ``--resume`` alone stands for: the run's folder and its mirror."""

Say = Callable[[str], None]


class Place(NamedTuple):
    """Where to resume from."""

    run: str
    """URL or path of a run's folder."""
    step: int | None
    """The step of one checkpoint, where one was named."""

    @classmethod
    def of(cls, asked: str) -> "Place":
        """Read what follows ``--resume``: a run's folder, or one checkpoint's in it."""
        rest, _, name = asked.rstrip("/").rpartition("/")
        above, _, middle = rest.rpartition("/")
        step = checkpoint.step_of(name)
        if step is None or middle != checkpoint.FOLDER:
            return cls(asked.rstrip("/"), None)
        return cls(above or ".", step)

    def is_folder(self, place: Path) -> bool:
        """Return whether it is this folder of this machine."""
        return not remote_files.is_remote(self.run) and Path(self.run).resolve() == place.resolve()


def run_folder(run: Run, asked: str) -> Path:
    """Return the folder that a run writes to.

    Args:
        run: All settings.
        asked: Empty for a new run, ``AUTO``, or the place to resume from, which names the folder
            where the settings do not.

    Raises:
        UsageError: As ``folder.choose`` says.
    """
    if not asked or asked == AUTO or run.storage.output_dir:
        return folder.choose(run, resume=bool(asked))
    there = Place.of(asked).run
    if remote_files.is_remote(there):
        return Path("runs") / there.rpartition("/")[2]
    return Path(there)


def settings(asked: str) -> Run | None:
    """Return the settings of the run at a place, or None where it holds none.

    Raises:
        UserError: It cannot be read.
    """
    run = open_run(Place.of(asked).run)
    if folder.CONFIG not in remote_files.retried(partial(run.sizes, ""), run.url, TERMS):
        return None
    content = run.folder.read(folder.CONFIG)
    try:
        return config.from_dict(json.loads(content))
    except ValueError as error:
        raise DataError(
            f"{run.folder.url_of(folder.CONFIG)} holds no settings: {error}; it must be the "
            "config.json of a run"
        ) from error


def refuse_taken(mirror: str) -> None:
    """Refuse to mirror a new run where another one is.

    Raises:
        UserError: There is one, or it cannot be told.
    """
    if not mirror:
        return
    run = open_run(mirror)
    sizes = remote_files.retried(partial(run.sizes, ""), run.url, TERMS)
    if folder.CONFIG in sizes or any(name.startswith(checkpoint.FOLDER) for name in sizes):
        raise UsageError(
            f"{mirror} already holds a run; add --resume to go on with it, or give another --mirror"
        )


def choose(place: Path, asked: str, mirror: str, group: Group, say: Say) -> Saved | None:
    """Return the checkpoint to go on from, or None to start from the first step.

    Every process calls it. The first one, which holds the folder's lock, fetches what is needed
    into the run's folder, chooses and reads; the others are given the same, so that no two go on
    from different ones and the folder need be on the first one's machine alone.

    Args:
        place: The run's folder.
        asked: ``AUTO``, or a run's folder or checkpoint, as path or URL.
        mirror: The run's mirror; empty: it has none.
        group: The processes.
        say: Shows the user a line.

    Raises:
        UserError: There are checkpoints, but none is whole; or what was asked for is not there.
        InterruptedRunError: It cannot be known now whether there is one: later it can.
    """
    sources = [] if asked == AUTO else [Place.of(asked)]
    if mirror and Place.of(mirror) not in sources:
        sources.append(Place.of(mirror))
    return group.share(partial(_choose, place, sources, asked, say))


def _choose(place: Path, sources: list[Place], asked: str, say: Say) -> Saved | None:
    checkpoint.recover(place)
    if sources:
        _bring_newest(place, sources, asked, say)
    saved, refused = checkpoint.newest(place)
    for reason in refused:
        say(f"passed over: {reason}")
    if saved is None and refused:
        raise DataError(
            f"none of the checkpoints in {place} is whole; they are left as they are: look at "
            "that disk, or start a new run with another --output-dir"
        )
    if saved is None:
        say(f"no checkpoint in {place}: starting from the first step")
    return saved


def _bring_newest(place: Path, sources: list[Place], asked: str, say: Say) -> None:
    """Fetch the newest of all checkpoints into the run's folder, if it is not there."""
    saved, _ = checkpoint.newest(place)
    here = None if saved is None else saved.snapshot.step
    saved = None  # its tensors are many
    for source in sources:
        if source.is_folder(place):
            _refuse_rewinding(source, place, here)
            continue
        try:
            here = _bring(source, place, here, say)
        except UnreachableError as error:
            if here is None:
                raise InterruptedRunError(
                    f"{error}; nothing is known yet of where to resume from: {place} holds no "
                    "checkpoint"
                ) from error
            say(f"{error}; going on from step {here:,} in {place}, without asking there")
    if here is None and asked != AUTO:
        raise DataError(
            f"{asked} holds no checkpoint; give the folder or URL of a run, or of one of its "
            "checkpoints (…/checkpoints/step-00001234); --resume alone starts a run that has none"
        )


def _bring(source: Place, place: Path, here: int | None, say: Say) -> int | None:
    """Return the newest step there is in the run's folder, having fetched what is newer."""
    remote = open_run(source.run)
    steps = remote_files.retried(remote.steps, remote.url, TERMS)
    if source.step is not None:
        if source.step not in steps:
            raise DataError(
                f"{source.run} holds no checkpoint of step {source.step:,}; it has "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        steps = [source.step]
    for step in steps:
        if here is not None and step <= here:
            say(f"going on from step {here:,} in {place}: {source.run} has none that is newer")
            return here
        try:
            checkpoint.publish(place, step, partial(_fetch, remote, step, place))
        except UnreachableError:
            raise
        except DataError as error:
            say(f"passed over: {error}")
            continue
        was = "it holds none" if here is None else f"it holds step {here:,}"
        say(f"fetched the checkpoint of step {step:,} from {source.run} into {place}: {was}")
        return step
    if steps and here is None:
        raise DataError(
            f"none of the checkpoints in {source.run} is whole; they are left as they are: name "
            "another place to resume from, or start a new run with another --output-dir and "
            "--mirror"
        )
    return here


def _fetch(remote: RemoteRun, step: int, place: Path, into: Path) -> None:
    remote.fetch(step, into, place)
    remote.fetch_files(place)


def _refuse_rewinding(source: Place, place: Path, here: int | None) -> None:
    if source.step is not None and here != source.step:
        raise UsageError(
            f"the newest checkpoint in {place} is of step {here}, not {source.step}; to go on from "
            "an older one beside it, give another --output-dir"
        )
