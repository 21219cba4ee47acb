"""What a resumed run may change of the run that it goes on with."""

from pathlib import Path

from rn50 import config
from rn50.config import Run
from rn50.data.shards import PackedDataset
from rn50.errors import UsageError
from rn50.train import origin
from rn50.train.checkpoint import Saved
from rn50.train.schedule import Timeline


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


def refuse(
    saved: Saved, run: Run, place: Path, *, num_train: int, allowed: tuple[str, ...]
) -> None:
    """Refuse settings that would change what is trained, but those that ``allowed`` names.

    Args:
        saved: The checkpoint.
        run: The settings given now.
        place: The folder of the run.
        num_train: Training images.
        allowed: Names of settings, such as ``"optim.peak_lr"``.

    Raises:
        UsageError: With each change, and how to allow it where it can be.
    """
    former = config.from_dict(saved.about["run"])
    before, now = config.mathematics(former), config.mathematics(run)
    changed = {n: (before.get(n), now[n]) for n in now if before.get(n) != now[n]}
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
        _refuse_other_averages(former, run, saved.snapshot.step, num_train)


def _refuse_other_averages(former: Run, run: Run, step: int, num_train: int) -> None:
    """Refuse changes after which an average would not be what its settings say."""
    for name in ("ema_horizon", "swa_epochs"):
        one, other = getattr(former.average, name), getattr(run.average, name)
        if (one > 0) != (other > 0):
            raise UsageError(
                f"average.{name} was {one:g} and is {other:g}; an average can neither begin nor "
                f"end with a resumption: resume with the former value"
            )
    held, wanted = (
        Timeline(one, num_train // one.images.batch_size).swa_count(step) for one in (former, run)
    )
    if held != wanted:
        raise UsageError(
            f"the SWA holds {held} weights after step {step}, and {wanted} by the settings as they "
            "are changed; once it holds some, resume with the former epochs, batch size and "
            "average.swa_*"
        )
