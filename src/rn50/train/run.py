"""From settings to a finished run: open the data, find where to go on, train, export."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from rn50 import distributed, hardware
from rn50.config import Run
from rn50.data.bad_images import BadImages
from rn50.data.decode import decoder_name
from rn50.data.loader import Loader
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.distributed import Group
from rn50.errors import DataError, DivergedError, InterruptedRunError
from rn50.evaluate import evaluate, num_batches
from rn50.model import weights
from rn50.observe import record, trackers
from rn50.observe.cost import Meter
from rn50.observe.record import TIMING, Record
from rn50.remote_files import is_remote
from rn50.train import (
    changes,
    checkpoint,
    first_batch,
    folder,
    histograms,
    lock,
    origin,
    probe,
    rollback,
    saving,
    swa,
)
from rn50.train import resume as resumes
from rn50.train import state as states
from rn50.train.checkpoint import Saved
from rn50.train.clouds import notice_service
from rn50.train.exports import BEST, Exports
from rn50.train.inputs import open_data, plan_of
from rn50.train.loop import Surroundings, train
from rn50.train.mirroring import Mirrored, mirroring
from rn50.train.notices import Watch
from rn50.train.observing import Observing, now
from rn50.train.origin import Origin
from rn50.train.preempt import Requests, StopRequest
from rn50.train.saving import Saver
from rn50.train.schedule import Timeline
from rn50.train.state import TrainState
from rn50.train.step import Engine
from rn50.train.stoppable import LeftOffError, StoppableLoader
from rn50.train.store import Store
from rn50.train.versions import versions


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run has come to."""

    folder: Path
    files: tuple[Path, ...]
    scores: dict[str, dict[str, float]] | None
    """Of the last evaluation, by network."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A run on this process: settings, data, place and machine."""

    run: Run
    dataset: PackedDataset
    train_split: PackedSplit
    val_split: PackedSplit
    place: Path
    compute: hardware.Compute
    group: Group
    meter: Meter
    """What this process costs."""
    say: Callable[[str], None]
    """Shows the user a line; on the first process alone."""
    begun: Origin | None = None
    """The weights that the run began from, where they were not random."""
    changes: list[str] = field(default_factory=list)
    """What a resumption was told to change, for the record."""


def start(
    run: Run,
    *,
    resume: bool | str = False,
    allow_change: tuple[str, ...] = (),
    say: Callable[[str], None],
) -> Finished:
    """Train ``run`` to its end, from the start or from the newest checkpoint of its folder.

    Under ``torchrun`` every process calls it; the first one writes.

    Args:
        run: All settings.
        resume: Go on with the run in the folder or its mirror; where there is none, start it. Or
            where to go on from, see ``resume.choose``.
        allow_change: Settings, such as ``"optim.peak_lr"``, that may differ from the run resumed.
        say: Shows the user a line; used on the first process alone.

    Raises:
        UsageError, DataError, DivergedError, InterruptedRunError: As their classes say.
    """
    meter = Meter()
    with ExitStack() as stack:
        group = stack.enter_context(distributed.group(hardware.device_type(run.hardware)))
        say = say if group.is_first else _silently
        asked = resumes.AUTO if resume is True else resume or ""
        job = _prepare(run, group, asked, meter, say)
        if group.is_first:
            stack.enter_context(lock.locked(job.place, say=say))
        saved = _to_resume(job, asked, allow_change) if asked else None
        if group.is_first:
            checkpoint.clean(job.place)
        stop = stack.enter_context(StopRequest())
        mirror = stack.enter_context(
            mirroring(
                *(run, job.place, group),
                resumed_from=None if saved is None else saved.path,
                stopping=lambda: bool(stop.requested),
                say=say,
            )
        )
        if saved is not None and _is_finished(job, saved):
            _mend(job, saved.about, saved.snapshot.step, is_open=False)
            say(f"the run in {job.place} is finished; nothing is left to do")
            return group.share(partial(_finished, job.place))
        state, job = _state(job, saved)
        job = _with_micro_batch(job, state, saved)
        told = None if saved is None else saved.about
        saved = None  # its tensors are in the state now
        back = rollback.RollBack(run, job.place, group, mirror.forget_after, say)
        back.until_through(partial(_train, job, stop, mirror), state, told)
        return group.share(partial(_finished, job.place))


def _prepare(run: Run, group: Group, asked: str, meter: Meter, say: Callable[[str], None]) -> _Job:
    compute = hardware.resolve(
        run.hardware, local_rank=group.local_rank, local_world_size=group.local_world_size
    )
    if compute.note:
        say(compute.note)
    if not asked:
        trackers.check(run.log)
    dataset = open_data(run, group, say)
    # The others must not look for themselves: by then the first may have made its folder.
    place = Path(group.from_first(str(resumes.run_folder(run, asked)) if group.is_first else ""))
    if group.is_first and not asked:
        resumes.refuse_taken(run.storage.mirror)
    return _Job(
        run=run,
        dataset=dataset,
        train_split=dataset.split("train"),
        val_split=dataset.split("val"),
        place=place,
        compute=compute,
        group=group,
        meter=meter,
        say=say,
    )


def _to_resume(job: _Job, asked: str, allow_change: tuple[str, ...]) -> Saved | None:
    """Return the checkpoint to go on from, after checking that it is of the same run."""
    saved = resumes.choose(job.place, asked, job.run.storage.mirror, job.group, job.say)
    if saved is None:
        trackers.check(job.run.log)
        return None
    changes.refuse_other_data(saved, job.dataset, job.place)
    num_train = job.train_split.num_images
    changed = changes.refuse(saved, job.run, job.place, num_train=num_train, allowed=allow_change)
    steps_per_epoch = plan_of(job.run, job.train_split, job.group).steps_per_epoch
    lines = changes.told(saved, changed, job.run, steps_per_epoch=steps_per_epoch)
    for line in lines:
        job.say(line)
    job.changes.extend(lines)
    return saved


def _state(job: _Job, saved: Saved | None) -> tuple[TrainState, _Job]:
    """Return the state to go on from, and the job with the weights that it began from."""
    state = states.new(job.run, job.compute, job.group)
    if saved is None:
        class_ids = tuple(c.id for c in job.dataset.classes)
        begun = origin.begin(state, job.run, job.group, class_ids, job.say)
        return state, replace(job, begun=begun)
    try:
        states.restore(state, saved.snapshot)
    except ValueError as error:
        raise DataError(f"cannot resume from {saved.path}: {error}") from error
    return state, replace(job, begun=saved.about.get("init_from"))


def _with_micro_batch(job: _Job, state: TrainState, saved: Saved | None) -> _Job:
    """Return the job with the number of images that each process takes at once."""
    chosen = probe.micro_batch(
        *(job.run, state.model, job.compute, job.group),
        plan_of(job.run, job.train_split, job.group),
        begun_with=saved.about.get("micro_batch", 0) if saved is not None else 0,
        say=job.say,
    )
    return replace(job, compute=replace(job.compute, micro_batch=chosen))


def _train(
    job: _Job,
    stop: StopRequest,
    mirror: Mirrored,
    state: TrainState,
    resumed: dict[str, Any] | None,
    news: list[Record],
) -> None:
    """Train to the end; ``resumed`` is what the checkpoint told that the run goes on from."""
    run, group, compute = job.run, job.group, job.compute
    plan = rollback.detoured(plan_of(run, job.train_split, group), state.trouble.detour)
    timeline = Timeline(run, plan.steps_per_epoch)
    engine = Engine.of(state, run, compute, group)
    with ExitStack() as stack:
        stack.enter_context(probe.full_memory_explained(compute))
        loader = stack.enter_context(
            Loader(
                compute.device,
                workers=compute.workers,
                prefetch=compute.prefetch_batches,
                verify_reads=run.storage.verify_reads,
            )
        )
        kind = "start" if resumed is None else "resume"
        facts = {"kind": kind, "step": state.step, **_facts(job, state, timeline)}
        if resumed is not None:
            facts |= {"epoch_is_open": state.is_left_open(timeline), "changes": job.changes}
        observing = Observing(run, job.place, group, compute.device, job.meter)
        observed = stack.enter_context(observing.begun(facts))
        saver = _saver(job, state, stack, observed.sync, mirror, resumed)
        write = saver.told(mirror.told(observed.write))
        if group.is_first:
            write = histograms.told(write, state.model, run.log.histogram_epochs)
        rollback.tell(news, write, observed.sync)
        bad = BadImages(run.storage, job.dataset.classes, group, write)
        bad.recall(job.place / record.FILE_NAME)
        read = partial(loader.read, job.train_split, on_bad=bad.in_training)
        if group.is_first and resumed is None:
            first_batch.show(job.place, run, engine, plan.request(0), read, write)
        # One process of a machine asks for all.
        watched = run.storage.spot_notices if group.local_rank == 0 else "off"
        watch = stack.enter_context(Watch(notice_service(watched)))
        requests = Requests(stop, watch, group, write)

        def stopping() -> bool:
            return requests.stopping(state.step)

        stoppable = StoppableLoader(
            loader, num_batches(job.val_split.num_images, group.world_size), stopping
        )
        surroundings = Surroundings(
            batches=partial(bad.batches, loader, job.train_split, plan, timeline.total_steps),
            px=plan.px,
            settle=partial(
                swa.estimate_statistics,
                *(state, engine, timeline, plan, read, stopping),
            ),
            evaluate=partial(_evaluate, job, state, timeline, stoppable, bad),
            save=saver.save,
            asked=requests.agree,
            record=write,
        )
        try:
            train(run, state, engine, timeline, surroundings)
        except (InterruptedRunError, DivergedError):
            saver.finish(write, state.step)
            # As soon as one process ends, torchrun ends the others: not before the save is done.
            group.wait()
            raise
        saver.finish(write, state.step)
        write({"kind": "end", "step": state.step, TIMING: {"time": now()}})


def _networks(state: TrainState, timeline: Timeline) -> dict[str, nn.Module]:
    """Return what there is to evaluate and to export, by ``record.NETWORKS``."""
    taken = state.swa if timeline.swa_count(state.step) else None
    nets = zip(record.NETWORKS, (state.model, state.average, taken), strict=True)
    return {name: net for name, net in nets if net is not None}


def _evaluate(
    job: _Job, state: TrainState, timeline: Timeline, loader: StoppableLoader, bad: BadImages
) -> dict[str, dict[str, float]] | None:
    nets = _networks(state, timeline)
    job.group.share_buffers(*nets.values())
    told = bad.in_evaluation(job.val_split, state.step)
    try:
        return evaluate(nets, job.val_split, job.run.images, loader, job.compute, job.group, told)
    except LeftOffError:
        return None


def _saver(
    job: _Job,
    state: TrainState,
    stack: ExitStack,
    sync: Callable[[], None],
    mirror: Mirrored,
    resumed: dict[str, Any] | None,
) -> Saver:
    data = job.run.storage.data
    about = {
        "data": data if is_remote(data) else str(job.dataset.folder),
        "fingerprint": job.dataset.fingerprint,
        "init_from": job.begun,
        "world_size": job.group.world_size,
        "micro_batch": job.compute.micro_batch,
        "versions": versions(),
    }
    store = None
    if job.group.is_first:
        saving.check_space(job.place, states.num_bytes(state), job.run.storage)
        store = stack.enter_context(
            closing(Store(job.place, sync=sync, published=mirror.published))
        )
    before = None
    if resumed is not None:
        _mend(job, resumed, state.step, is_open=state.is_left_open(_exports(job).timeline))
        if not (job.place / BEST).exists():  # and so the next that is evaluated is the best
            resumed = {**resumed, "best": None}
        before = (resumed, state.step)
    saver = Saver(_exports(job), about, store, before)
    mirror.keep_by(saver.kept)
    return saver


def _exports(job: _Job) -> Exports:
    plan = plan_of(job.run, job.train_split, job.group)
    classes = tuple((one.id, one.name) for one in job.dataset.classes)
    return Exports(job.run, classes, Timeline(job.run, plan.steps_per_epoch))


def _mend(job: _Job, resumed: dict[str, Any], step: int, *, is_open: bool) -> None:
    if job.group.is_first:
        _exports(job).mend(job.place, resumed, step, is_open=is_open, say=job.say)


def _facts(job: _Job, state: TrainState, timeline: Timeline) -> dict[str, Any]:
    return {
        "recipe": job.run.recipe,
        "arch": job.run.model.arch,
        "parameters": weights.parameters(state.model),
        "epochs": job.run.epochs,
        "steps_per_epoch": timeline.steps_per_epoch,
        "total_steps": timeline.total_steps,
        "num_train": job.train_split.num_images,
        "num_val": job.val_split.num_images,
        "num_classes": len(job.dataset.classes),
        "fingerprint": job.dataset.fingerprint,
        "world_size": job.group.world_size,
        "device": hardware.describe(job.compute.device),
        "device_type": job.compute.device.type,
        "profile": job.compute.profile,
        "precision": job.compute.precision,
        "init_from": job.begun,
        "detour": state.trouble.detour,
        "micro_batch": job.compute.micro_batch,
        "decoder": decoder_name(),
        "versions": versions(),
    }


def _is_finished(job: _Job, saved: Saved) -> bool:
    plan = plan_of(job.run, job.train_split, job.group)
    timeline, taken = Timeline(job.run, plan.steps_per_epoch), saved.snapshot
    if taken.step < timeline.total_steps or taken.is_left_open(timeline):
        return False
    # A process that was killed after its last checkpoint has not told of the end.
    return job.group.share(partial(folder.has_ended, job.place, taken.step))


def _finished(place: Path) -> Finished:
    names = (
        *("training_log.md", "train.log", "history.json"),
        *(f"{name}.png" for name in ("augmented", "loss", "accuracy", "lr", "throughput")),
        *(record.FILE_NAME, folder.CONFIG),
        *(f"{name}.safetensors" for name in (*record.NETWORKS, "best")),
    )
    records = record.read(place / record.FILE_NAME)
    evaluated = [r["val"] for r in records if r["kind"] == "epoch" and r["val"]]
    files = tuple(place / name for name in names if (place / name).exists())
    return Finished(folder=place, files=files, scores=evaluated[-1] if evaluated else None)


def _silently(_: str) -> None:
    pass
