"""The weights that a run began from, known by their content when it is resumed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rn50 import durable
from rn50.config import Run
from rn50.distributed import Group
from rn50.errors import DataError
from rn50.model import pretrained
from rn50.train import state as states
from rn50.train.state import TrainState

Origin = dict[str, str]
"""``file``, and ``blake2b`` of its bytes; stored with every checkpoint."""


def begin(
    state: TrainState,
    run: Run,
    group: Group,
    class_ids: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Origin | None:
    """Put the weights of ``run.init_from``, where it names any, into a new state.

    Every process must call it; the first one reads.

    Raises:
        UsageError: They are of another network or of other classes.
        DataError: They cannot be read.
    """
    if not run.init_from:
        return None
    found = group.share(partial(pretrained.read, Path(run.init_from)))
    states.begin_from(state, found, run, class_ids)
    say(f"beginning from {found.file}")
    return {"file": str(found.file), "blake2b": found.digest}


def change(before: str, now: str, origin: Origin | None) -> tuple[str, str] | None:
    """Return what is other about the weights to begin from, or None where they are the same.

    A moved file is the same. One that is no longer there, under the path of before, is taken for
    the same: a resumed run needs it no more.

    Args:
        before: ``init_from`` of the run that is resumed.
        now: ``init_from`` as it is given now.
        origin: What ``begin`` returned then.
    """
    if origin is None or not now:
        return None if now == before else (before or "random weights", now or "random weights")
    try:
        digest = durable.file_digest(pretrained.file_of(Path(now)))
    except (DataError, OSError):
        return None if now == before else (before, now)
    if digest == origin["blake2b"]:
        return None
    return f"{before} (content {origin['blake2b'][:8]})", f"{now} (content {digest[:8]})"
