"""The weights files of a run: which there are, and that they are those the checkpoints tell of.

A checkpoint is published before its weights files are written, so a run that is killed in between
leaves older ones; a run that goes back, or that goes on from a checkpoint of another folder, has
those of steps that are not its own. Whoever goes on from a checkpoint first writes anew what is not
as the checkpoint says, and removes what cannot be had: no file is of another step than it is told.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from rn50 import durable
from rn50.config import Run
from rn50.errors import DataError, UserError
from rn50.model import weights
from rn50.observe import record
from rn50.train import checkpoint
from rn50.train.remote_run import open_run
from rn50.train.schedule import Timeline

BEST = "best.safetensors"


@dataclass(frozen=True, slots=True)
class Export:
    """A weights file: of which network, after which step."""

    file: str
    network: str
    """One of ``record.NETWORKS``."""
    step: int


@dataclass(frozen=True, slots=True)
class Exports:
    """The weights files of one run."""

    run: Run
    classes: tuple[tuple[str, str], ...]
    """Identifier and name of each, by output."""
    timeline: Timeline

    def at(self, step: int, networks: Iterable[str]) -> list[Export]:
        """Return the files that are written after a step, of such ``networks`` as there are then.

        They are written at the end of an epoch; where only the best is saved, of the run. That of
        the best comes on top.
        """
        ends_run = step == self.timeline.total_steps
        if not self.timeline.ends_epoch(step):
            return []
        if self.run.storage.save_best_only and not ends_run:
            return []
        there = set(networks)
        if not self.timeline.swa_count(step):
            there.discard("swa")
        return [
            Export(f"{name}.safetensors", name, step) for name in record.NETWORKS if name in there
        ]

    def header(self, export: Export) -> dict[str, Any]:
        """Return what the file says of itself."""
        told = {"recipe": self.run.recipe, "step": export.step, "network": export.network}
        return weights.header(
            model=self.run.model, images=self.run.images, classes=self.classes, about=told
        )

    def mend(
        self,
        place: Path,
        saved: dict[str, Any],
        step: int,
        *,
        is_open: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Write the files anew that are not those of the checkpoint that a run goes on from.

        What neither the checkpoints here nor the mirror's hold is removed where it is of a later
        step, or is the best weights of another network or step than the best.

        Args:
            place: The run's folder.
            saved: What the checkpoint told.
            step: Of the checkpoint.
            is_open: Whether it is of an epoch left open, at which only the best is written.
            say: Shows the user a line.

        Raises:
            UsageError: The disk cannot be written.
        """
        folder = checkpoint.path(place, step)
        there = [n for n in record.NETWORKS if (folder / f"{n}.safetensors").exists()]
        due = [] if is_open else self.at(step, there)
        best = saved.get("best")
        if best:
            due.append(Export(BEST, best["network"], best["step"]))
        for export in due:
            if weights.told(place / export.file) != self.header(export):
                self._restore(place, export)
        for path in (place / f"{name}.safetensors" for name in record.NETWORKS):
            if (of := _told(path)) and of[0] > step:
                _remove(path, f"it is of step {of[0]:,}, and the run goes on from {step:,}", say)
        if (place / BEST).exists():
            _remove_other(place / BEST, best, say)

    def _restore(self, place: Path, export: Export) -> None:
        """Write a file anew, if a checkpoint here or in the mirror holds its network."""
        try:
            snapshot = checkpoint.load(checkpoint.path(place, export.step)).snapshot
            tensors = checkpoint.parts(snapshot).get(export.network)
        except DataError:  # It is gone: of another folder, or not kept.
            tensors = self._mirrored(place, export)
        if tensors is not None:
            weights.save(place / export.file, tensors, self.header(export))

    def _mirrored(self, place: Path, export: Export) -> dict[str, Tensor] | None:
        if not self.run.storage.mirror:
            return None
        try:
            with (
                durable.explained(place),
                TemporaryDirectory(prefix=durable.TEMPORARY_PREFIX, dir=place) as aside,
            ):
                mirror = open_run(self.run.storage.mirror)
                return mirror.fetch_network(export.step, export.network, Path(aside))
        except UserError:  # It is not there, or the mirror cannot be reached.
            return None


def _told(path: Path) -> tuple[int, str] | None:
    """Return the step and the network that a weights file is of, where it tells them."""
    about = (weights.told(path) or {}).get("about")
    if not isinstance(about, dict) or not isinstance(about.get("step"), int):
        return None
    return about["step"], str(about.get("network"))


def _remove_other(path: Path, best: dict[str, Any] | None, say: Callable[[str], None]) -> None:
    """Remove the best weights where they are not those of the best."""
    of = _told(path)
    was = "its step cannot be read" if of is None else f"it is of step {of[0]:,} ({of[1]})"
    if not best:
        _remove(path, f"{was}, and no step of this run is the best yet", say)
    elif of != (best["step"], best["network"]):
        named = f"step {best['step']:,} ({best['network']})"
        _remove(path, f"{was}; the best so far is {named}, whose weights are gone", say)


def _remove(path: Path, why: str, say: Callable[[str], None]) -> None:
    with durable.explained(path):
        path.unlink()
    say(f"removed {path}: {why}")
