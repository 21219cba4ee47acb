"""The weights files of a run: which there are, and that they are those the checkpoints tell of.

A checkpoint is published before its weights files are written, so a run that is killed in between
leaves older ones; a run that goes back leaves those of steps that were given up. Whoever goes on
from a checkpoint first writes anew what is not as the checkpoint says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn50.config import Run
from rn50.errors import DataError
from rn50.model import weights
from rn50.observe import record
from rn50.train import checkpoint
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

    def mend(self, place: Path, saved: dict[str, Any], step: int) -> None:
        """Write the files anew that are not those of the checkpoint that a run goes on from.

        Args:
            place: The run's folder. What its checkpoints do not hold stays as it is.
            saved: What the checkpoint told.
            step: Of the checkpoint.

        Raises:
            UsageError: The disk cannot be written.
        """
        folder = checkpoint.path(place, step)
        there = [n for n in record.NETWORKS if (folder / f"{n}.safetensors").exists()]
        due = self.at(step, there)
        if best := saved.get("best"):
            due.append(Export(BEST, best["network"], best["step"]))
        for export in due:
            if weights.told(place / export.file) != self.header(export):
                self._restore(place, export)

    def _restore(self, place: Path, export: Export) -> None:
        try:
            snapshot = checkpoint.load(checkpoint.path(place, export.step)).snapshot
        except DataError:  # It is gone: of another folder, or not kept.
            return
        tensors = checkpoint.parts(snapshot).get(export.network)
        if tensors is not None:
            weights.save(place / export.file, tensors, self.header(export))
