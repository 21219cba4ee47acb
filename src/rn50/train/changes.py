"""What a resumed run may change of the run that it goes on with."""

from pathlib import Path
from typing import Any

from rn50 import config
from rn50.config import Run
from rn50.data.shards import PackedDataset
from rn50.errors import UsageError
from rn50.train import origin
from rn50.train.checkpoint import Saved
from rn50.train.schedule import Timeline
from rn50.train.versions import MATHEMATICS, versions


def refuse_other_data(saved: Saved, data: PackedDataset, place: Path) -> None:
    """Refuse to go on with other data than the run began with, by its fingerprint.

    Raises:
        UsageError: It is other data.
    """
    if saved.about["fingerprint"] != data.fingerprint:
        raise UsageError(
            f"the run in {place} was trained on other data ({saved.about['data']}) than "
            f"{data.folder}; give --data with the former, or another --output-dir to start a new "
            "run"
        )


Changed = dict[str, tuple[Any, Any]]
"""By the name of a setting: its former value and the one now."""


def refuse(
    saved: Saved, run: Run, place: Path, *, num_train: int, allowed: tuple[str, ...]
) -> Changed:
    """Refuse settings that would change what is trained, but those that ``allowed`` names.

    Args:
        saved: The checkpoint.
        run: The settings given now.
        place: The folder of the run.
        num_train: Training images.
        allowed: Names of settings, such as ``"optim.peak_lr"``.

    Returns:
        The changes that were allowed.

    Raises:
        UsageError: With each change, and how to allow it where it can be; the batch size cannot
            change.
    """
    former = config.from_dict(saved.about["run"])
    _refuse_other_steps(former, run, saved.snapshot.step, place)
    steps_per_epoch = num_train // run.images.batch_size
    before, now = config.mathematics(former), config.mathematics(run)
    changed: Changed = {n: (before.get(n), now[n]) for n in now if before.get(n) != now[n]}
    released = saved.about.get("versions", {}).get("mathematics", "1")
    if released != str(MATHEMATICS):
        changed["versions.mathematics"] = (released, str(MATHEMATICS))
    changed.pop("init_from", None)
    if began := origin.change(former.init_from, run.init_from, saved.about.get("init_from")):
        changed["init_from"] = began
    if refused := {name: pair for name, pair in changed.items() if name not in allowed}:
        diff = ", ".join(f"{name}: {one} -> {other}" for name, (one, other) in refused.items())
        raise UsageError(
            f"these settings would change what the run in {place} trains: {diff}; resume with "
            f"the former values, or name the change: --allow-change {' '.join(refused)}"
        )
    if changed:
        _refuse_other_averages(former, run, saved.snapshot.step, steps_per_epoch)
    if run.epochs < former.epochs and run.epochs * steps_per_epoch < saved.snapshot.step:
        raise UsageError(
            f"epochs is {run.epochs}, but the run in {place} has done {saved.snapshot.step} steps "
            f"of {steps_per_epoch} an epoch; give more epochs, by --extend-to or --epochs"
        )
    return changed


def told(saved: Saved, changed: Changed, run: Run, *, steps_per_epoch: int) -> list[str]:
    """Return what a user is to know of changes: the settings, the learning rate, the versions.

    Args:
        saved: The checkpoint.
        changed: What ``refuse`` returned.
        run: The settings now.
        steps_per_epoch: Of both runs: ``refuse`` allows no change of it.
    """
    lines = [f"changed: {name}: {one} -> {other}" for name, (one, other) in changed.items()]
    if changed:
        former, step = config.from_dict(saved.about["run"]), saved.snapshot.step
        rates = [
            Timeline(one, steps_per_epoch).at(min(step, one.epochs * steps_per_epoch - 1)).lr
            for one in (former, run)
        ]
        lines.append(f"learning rate at step {step}: {rates[0]:.4g} -> {rates[1]:.4g}")
    now = versions()
    others = [
        f"{name} {before} -> {now[name]}"
        for name, before in saved.about.get("versions", {}).items()
        if name in now and now[name] != before
    ]
    if others:
        lines.append(
            f"other versions than before ({', '.join(others)}): the plan is the same, but the last "
            "digits of the numbers may differ"
        )
    return lines


def _refuse_other_steps(former: Run, run: Run, step: int, place: Path) -> None:
    """Refuse what changes the steps per epoch, by which a checkpoint's step is read."""
    one, other = former.images.batch_size, run.images.batch_size
    if one != other:
        raise UsageError(
            f"images.batch_size was {one} and is {other}, but the {step} steps that the run in "
            f"{place} has done are batches of {one}: with others they would be another part of the "
            f"run; resume with --batch-size {one}, or begin a new run with these weights: "
            f"--init-from {place} and another --output-dir"
        )


def _refuse_other_averages(former: Run, run: Run, step: int, steps_per_epoch: int) -> None:
    """Refuse changes after which an average would not be what its settings say."""
    for name in ("ema_horizon", "swa_epochs"):
        one, other = getattr(former.average, name), getattr(run.average, name)
        if (one > 0) != (other > 0):
            raise UsageError(
                f"average.{name} was {one:g} and is {other:g}; an average can neither begin nor "
                f"end with a resumption: resume with the former value"
            )
    held, wanted = (Timeline(one, steps_per_epoch).swa_count(step) for one in (former, run))
    if held != wanted:
        raise UsageError(
            f"the SWA holds {held} weights after step {step}, and {wanted} by the settings as they "
            "are changed; once it holds some, resume with the former epochs and average.swa_*"
        )
