"""What a run does for its mirror: start it, tell it of checkpoints, and wait for it at the end.

A run that is through waits until its copy is complete, within a limit, and ends with code 33 where
it lacks something: running the same command again then sends the rest.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rn50 import config, remote_files
from rn50.config import Run
from rn50.distributed import Group
from rn50.errors import InterruptedRunError, UsageError
from rn50.observe.record import Record
from rn50.train import checkpoint
from rn50.train.mirror import STOP_LIMIT_S, Kept, Mirror

END_LIMIT_S = 600.0
"""How long a run that is through waits for its mirror."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What a run does for its mirror; without one, nothing."""

    published: Callable[[Path], None] = lambda path: None
    """To be called with the folder of each checkpoint that was published."""
    notices: Callable[[], list[Record]] = list
    keep_by: Callable[[Kept], None] = lambda kept: None
    """Takes the policy by which the run's checkpoints are kept."""
    forget_after: Callable[[int], None] = lambda step: None
    """To be called with the step that the run goes back to."""

    def told(self, write: Callable[[Record], None]) -> Callable[[Record], None]:
        """Return ``write``, followed by what the mirror has to tell."""

        def both(one: Record) -> None:
            write(one)
            for notice in self.notices():
                write({**notice, "step": one["step"]})

        return both


@contextmanager
def mirroring(
    run: Run,
    place: Path,
    group: Group,
    *,
    resumed_from: Path | None,
    stopping: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[Mirrored]:
    """Mirror a run's folder meanwhile, if its settings say so; every process calls it.

    To be entered before whatever writes into the folder, so that on leaving all is written.

    Args:
        run: All settings.
        place: The run's folder.
        group: The first process mirrors; the others wait for it, since torchrun ends them together.
        resumed_from: The checkpoint that the run goes on from, if any; sent if it must be.
        stopping: Whether the run is asked to stop.
        say: Shows the user a line.

    Raises:
        UserError: The URL cannot be written, and waiting does not help.
        InterruptedRunError: In the end the mirror lacks something.
    """
    url = run.storage.mirror
    if not url:
        yield Mirrored()
        return
    if not group.is_first:
        with _ending(group, None, say, stopping):
            yield Mirrored()
        return
    _refuse_inside(url, place)
    source = None if resumed_from is None else checkpoint.step_of(resumed_from.name)
    mirror = Mirror(place, url, source=source)
    mirror.begin(json.dumps(config.to_dict(run), indent=2).encode() + b"\n")
    if resumed_from is not None:
        mirror.published(resumed_from)
    # A daemon: what hangs in it must not keep the process alive.
    threading.Thread(target=mirror.run, name="rn50-mirror", daemon=True).start()
    try:
        with _ending(group, mirror, say, stopping):
            yield Mirrored(mirror.published, mirror.notices, mirror.keep_by, mirror.forget_after)
    finally:
        mirror.stop()


@contextmanager
def _ending(
    group: Group,
    mirror: Mirror | None,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Iterator[None]:
    try:
        yield
    except InterruptedRunError:
        if mirror is not None and not mirror.finish(STOP_LIMIT_S):
            say(_lacking(mirror))
        group.wait()
        raise
    except BaseException:
        # The others may be gone: not waited for.
        if mirror is not None and not mirror.finish(STOP_LIMIT_S):
            say(_lacking(mirror))
        raise
    lacking = ""
    if mirror is not None:
        if mirror.is_behind:
            say("waiting for the mirror …")
        lacking = "" if mirror.finish(END_LIMIT_S, stopping) else _lacking(mirror)
    if lacking := group.from_first(lacking):
        raise InterruptedRunError(
            f"{lacking}; the run is through and whole here: "
            "run the same command with --resume to send the rest"
        )


def _lacking(mirror: Mirror) -> str:
    why = mirror.reason or "there was not time enough"
    return f"the mirror lacks part of this run ({why})"


def _refuse_inside(url: str, place: Path) -> None:
    if not remote_files.is_remote(url) and Path(url).resolve().is_relative_to(place.resolve()):
        raise UsageError(
            f"storage.mirror is {url}, which lies in the folder of the run ({place}); "
            "give a URL, or a folder on another disk"
        )
