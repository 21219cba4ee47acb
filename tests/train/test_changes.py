import dataclasses
from pathlib import Path

import pytest
import torch

from rn50 import config, durable
from rn50.config import Average, Run, Schedule
from rn50.errors import UsageError
from rn50.recipes import recipe
from rn50.train import changes
from rn50.train.checkpoint import Saved
from rn50.train.schedule import Timeline
from rn50.train.state import Snapshot

IMAGES = 960
RUN = dataclasses.replace(
    recipe("demo"),
    epochs=10,
    schedule=Schedule(warmup_epochs=1, tail_epochs=4),
    average=Average(ema_horizon=0.1, swa_epochs=4),
)
STEPS = IMAGES // RUN.images.batch_size
"""An epoch's; the SWA takes its first weights at the end of the seventh epoch."""


def averages(**changes) -> Run:
    return dataclasses.replace(RUN, average=dataclasses.replace(RUN.average, **changes))


def saved_by(former: Run, *, after: float, began: dict | None = None) -> Saved:
    snapshot = Snapshot(
        step=round(after * STEPS),
        model={"w": torch.zeros(1)},
        average=None,
        swa=None,
        momentum={},
        scaler={},
        window=(0, 0, 0),
        epoch=(0, 0, 0),
    )
    return Saved(Path("a"), snapshot, {"run": config.to_dict(former), "init_from": began})


def resume(now: Run, *allow: str, after: float, began: dict | None = None, former: Run = RUN):
    saved = saved_by(former, after=after, began=began)
    return changes.refuse(saved, now, Path("runs/a"), num_train=IMAGES, allowed=allow)


def test_the_same_settings_are_accepted_and_what_is_not_mathematics_may_change():
    resume(RUN, after=8)
    resume(dataclasses.replace(RUN, recipe="another"), after=8)


def test_a_change_is_refused_with_both_values_unless_it_is_named():
    now = averages(ema_horizon=0.2)
    with pytest.raises(UsageError, match=r"average\.ema_horizon: 0\.1 -> 0\.2; .*--allow-change"):
        resume(now, after=8)
    resume(now, "average.ema_horizon", after=8)


@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("after", [1 / STEPS, 5, 8])
def test_a_batch_size_that_would_misread_the_step_is_refused_even_where_it_is_named(factor, after):
    one = RUN.images.batch_size
    other = round(one * factor)
    now = dataclasses.replace(RUN, images=dataclasses.replace(RUN.images, batch_size=other))
    said = rf"batch_size was {one} and is {other}, .* --batch-size {one}, or .* --init-from runs/a"
    for allow in ((), ("images.batch_size",)):
        with pytest.raises(UsageError, match=said):
            resume(now, *allow, after=after)


def test_both_learning_rates_are_told_as_they_are_at_the_step():
    higher = dataclasses.replace(RUN, optim=dataclasses.replace(RUN.optim, peak_lr=0.02))
    changed = resume(higher, "optim.peak_lr", after=5)
    lines = changes.told(saved_by(RUN, after=5), changed, higher, steps_per_epoch=STEPS)
    before, now = (Timeline(one, STEPS).at(5 * STEPS).lr for one in (RUN, higher))
    assert lines[-1] == f"learning rate at step {5 * STEPS}: {before:.4g} -> {now:.4g}"
    assert before != now


@pytest.mark.parametrize(
    "change", [{"swa_epochs": 3}, {"swa_epochs": 3, "swa_every_steps": 2}, {"swa_every_steps": 3}]
)
def test_once_the_swa_holds_weights_it_cannot_be_laid_out_anew(change):
    names = [f"average.{name}" for name in change]
    resume(averages(**change), *names, after=5)
    with pytest.raises(UsageError, match="the SWA holds 2 weights after step"):
        resume(averages(**change), *names, after=8)


def test_a_run_whose_end_is_moved_keeps_the_weights_that_its_swa_holds():
    longer = dataclasses.replace(RUN, epochs=12)
    resume(longer, "epochs", after=5)
    with pytest.raises(UsageError, match=r"the SWA holds 2 weights after step .*, and 0 by"):
        resume(longer, "epochs", after=8)


@pytest.mark.parametrize("name", ["ema_horizon", "swa_epochs"])
def test_an_average_neither_begins_nor_ends_with_a_resumption(name):
    without = averages(**{name: 0.0})
    told = rf"average\.{name} was .*; an average can neither begin nor end with a resumption"
    with pytest.raises(UsageError, match=told):
        resume(without, f"average.{name}", after=2)
    with pytest.raises(UsageError, match=told):
        resume(RUN, f"average.{name}", after=2, former=without)


def test_weights_to_begin_from_are_known_by_their_content(tmp_path):
    one, same, other = (tmp_path / name for name in ("one.pth", "same.pth", "other.pth"))
    for path, content in ((one, b"a"), (same, b"a"), (other, b"b")):
        path.write_bytes(content)
    began = {"file": str(one), "blake2b": durable.file_digest(one)}
    former = dataclasses.replace(RUN, init_from=str(one))

    def now(path: Path | str) -> Run:
        return dataclasses.replace(RUN, init_from=str(path))

    resume(now(same), after=1, began=began, former=former)
    for path in (other, "", tmp_path / "absent.pth"):
        with pytest.raises(UsageError, match=r"init_from: .*one\.pth"):
            resume(now(path), after=1, began=began, former=former)
    resume(now(other), "init_from", after=1, began=began, former=former)
    with pytest.raises(UsageError, match="init_from: random weights -> "):
        resume(now(one), after=1)
    one.write_bytes(b"c")  # under the same name, other weights
    with pytest.raises(UsageError, match=r"one\.pth \(content .* -> .*one\.pth \(content "):
        resume(now(one), after=1, began=began, former=former)
    one.unlink()
    resume(now(one), after=1, began=began, former=former)
