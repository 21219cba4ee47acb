"""Checkpoints: folders that are whole, verified and free of pickle, or not there.

``checkpoints/step-00001234/`` holds ``model``, ``momentum`` and (where there are) ``average`` and
``swa`` as safetensors, ``state.json`` with everything that is not a tensor, and ``manifest.json``
with the size and hash of each. It is written aside, flushed, read back and compared, and only then
renamed into place. A reader takes the newest one that verifies.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from rn50 import durable
from rn50.errors import DataError
from rn50.train.state import Snapshot
from rn50.train.trouble import Trouble

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "LATEST"
"""The file with the name of the newest checkpoint: for people; a reader looks for itself."""
_NAME = re.compile(r"step-(\d{8,})")
_REPLACED = "replaced-"
_MISFITS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What is raised by a file that is absent, no JSON, or JSON of another form than ours."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint read from the disk and verified."""

    path: Path
    snapshot: Snapshot
    about: dict[str, Any]
    """What ``save`` was given: the run's settings, the data's fingerprint, versions."""


def save(run_dir: Path, snapshot: Snapshot, about: dict[str, Any]) -> Path:
    """Write a checkpoint, and publish it once it verifies.

    Only one process may call it.

    Raises:
        UsageError: The disk is full or cannot be written; the earlier checkpoints are untouched.
        DataError: What was read back is not what was written: the disk is failing.
    """
    return publish(run_dir, snapshot.step, lambda aside: _write(aside, snapshot, about))


def prune(run_dir: Path, keep: Callable[[list[int]], set[int]]) -> None:
    """Remove the checkpoints of a run but those whose steps ``keep`` returns.

    The newest one that verifies is kept in any case.

    Args:
        run_dir: The run's folder.
        keep: Given all steps, ascending.

    Raises:
        UsageError: The disk cannot be written.
    """
    folders = {path: step for path in _folders(run_dir) if (step := step_of(path.name)) is not None}
    kept = keep(sorted(folders.values()))
    doomed = [path for path, step in folders.items() if step not in kept]
    newest_whole = next((path for path in folders if _verifies(path)), None) if doomed else None
    with durable.explained(run_dir / FOLDER):
        for path in doomed:
            if path != newest_whole:
                _discard(path)


def parts(snapshot: Snapshot) -> dict[str, dict[str, Tensor]]:
    """Return a snapshot's tensors by the names of the files that hold them."""
    every = {
        "model": snapshot.model,
        "average": snapshot.average,
        "swa": snapshot.swa,
        "momentum": snapshot.momentum,
    }
    return {name: tensors for name, tensors in every.items() if tensors is not None}


def publish(run_dir: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Publish, once it verifies, the checkpoint whose files ``fill`` puts into an empty folder.

    One of the same step is replaced, and is moved back where that fails; ``recover`` does so where
    the process was killed between the two renames.

    Raises:
        UsageError, DataError: As ``save`` says.
    """
    folder = run_dir / FOLDER
    target = path(run_dir, step)
    aside = folder / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{target.name}"
    replaced = folder / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{_REPLACED}{target.name}"
    with durable.explained(target):
        folder.mkdir(parents=True, exist_ok=True)
        _discard(aside)
        try:
            aside.mkdir()
            fill(aside)
            verify(aside)
            if target.exists():
                os.rename(target, replaced)
            os.rename(aside, target)
        except BaseException:
            recover(run_dir)
            _discard(aside)
            raise
        durable.sync_folder(folder)
        durable.write_text(folder / LATEST, target.name + "\n")
        _discard(replaced)
    return target


def recover(run_dir: Path) -> None:
    """Put back a checkpoint that was about to be replaced by one of its step, which did not come.

    Only the process that writes there may call it.
    """
    folder = run_dir / FOLDER
    for replaced in folder.glob(f"{durable.TEMPORARY_PREFIX}*-{_REPLACED}step-*"):
        target = folder / replaced.name.partition(_REPLACED)[2]
        if not target.exists():
            with durable.explained(target):
                os.rename(replaced, target)


def path(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` lies."""
    return run_dir / FOLDER / f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder by its name, or None where it names none."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def steps(run_dir: Path) -> list[int]:
    """Return the steps of the published checkpoints, whole or not, the newest first."""
    return [step for path in _folders(run_dir) if (step := step_of(path.name)) is not None]


def forget_after(run_dir: Path, step: int) -> None:
    """Remove the checkpoints after that of a step, which is the newest then.

    Raises:
        UsageError: The disk cannot be written.
    """
    with durable.explained(run_dir / FOLDER):
        for later in steps(run_dir):
            if later > step:
                _discard(path(run_dir, later))
        durable.write_text(run_dir / FOLDER / LATEST, path(run_dir, step).name + "\n")


def newest(run_dir: Path) -> tuple[Saved | None, list[str]]:
    """Return the newest checkpoint that verifies, and why each newer one was passed over."""
    refused: list[str] = []
    for found in _folders(run_dir):
        try:
            return load(found), refused
        except DataError as error:
            refused.append(str(error))
    return None, refused


def load(path: Path) -> Saved:
    """Verify and read one checkpoint folder.

    Raises:
        DataError: A file is missing, cut off or altered.
    """
    try:
        verify(path)
        state = json.loads((path / "state.json").read_bytes())
        if state["format"] != FORMAT:
            raise DataError(f"{path} has format {state['format']}; this version reads {FORMAT}")
        averages = {
            name: safetensors.torch.load_file(file) if file.exists() else None
            for name in ("average", "swa")
            for file in [path / f"{name}.safetensors"]
        }
        snapshot = Snapshot(
            step=state["step"],
            model=safetensors.torch.load_file(path / "model.safetensors"),
            average=averages["average"],
            swa=averages["swa"],
            momentum=safetensors.torch.load_file(path / "momentum.safetensors"),
            scaler=state["scaler"],
            window=tuple(state["window"]),
            epoch=tuple(state["epoch"]),
            trouble=Trouble.from_dict(state["trouble"]) if state.get("trouble") else None,
        )
        return Saved(path=path, snapshot=snapshot, about=state["about"])
    except (*_MISFITS, safetensors.SafetensorError) as error:
        raise DataError(f"{path} is not a whole checkpoint: {error}") from error


def clean(run_dir: Path) -> None:
    """Remove what interrupted writers left in a run's folders, but the only one of its step."""
    recover(run_dir)
    for folder in (run_dir, run_dir / FOLDER):
        if folder.is_dir():
            for path in folder.glob(f"{durable.TEMPORARY_PREFIX}*"):
                _discard(path)


def _write(folder: Path, snapshot: Snapshot, about: dict[str, Any]) -> None:
    contents = {f"{name}.safetensors": _bytes(part) for name, part in parts(snapshot).items()}
    state = {
        "format": FORMAT,
        "step": snapshot.step,
        "scaler": snapshot.scaler,
        "window": snapshot.window,
        "epoch": snapshot.epoch,
        "trouble": None if snapshot.trouble is None else snapshot.trouble.to_dict(),
        "about": about,
    }
    contents["state.json"] = json.dumps(state, indent=2).encode()
    manifest = {
        name: {"bytes": len(data), "blake2b": durable.digest(data)}
        for name, data in contents.items()
    }
    for name, data in contents.items():
        durable.write_bytes(folder / name, data)
    durable.write_json(folder / MANIFEST, manifest)


def verify(folder: Path) -> None:
    """Compare each file of a checkpoint's folder with its manifest.

    Raises:
        DataError: A file is missing, cut off or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        read = {"state.json", *(path.name for path in folder.glob("*.safetensors"))}
        if unlisted := sorted(read - manifest.keys()):
            raise DataError(f"{folder} is not a whole checkpoint: {unlisted[0]} has no hash")
        for name, part in manifest.items():
            path = folder / name
            if path.stat().st_size != part["bytes"]:
                raise DataError(f"{path} is cut off")
            if durable.file_digest(path) != part["blake2b"]:
                raise DataError(f"{path} was altered after it was written")
    except _MISFITS as error:
        raise DataError(f"{folder} is not a whole checkpoint: {error}") from error


def _verifies(folder: Path) -> bool:
    try:
        verify(folder)
    except DataError:
        return False
    return True


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})


def _folders(run_dir: Path) -> list[Path]:
    """Return the published checkpoints, newest first."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return []
    found = [(step, p) for p in folder.iterdir() if (step := step_of(p.name)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def _discard(path: Path) -> None:
    """Remove a folder or file; a folder loses its name first, so no reader meets half of it."""
    if path.is_dir():
        doomed = path.with_name(f"{durable.TEMPORARY_PREFIX}{os.getpid()}-old-{path.name}")
        if path.name.startswith(durable.TEMPORARY_PREFIX):
            doomed = path
        else:
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
