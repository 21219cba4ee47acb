"""``rn50 find-lr``: the range test of a recipe on its data, and its report."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rn50 import distributed, durable, hardware
from rn50.config import Run, to_dict
from rn50.data.loader import Batch, Loader
from rn50.model import resnet
from rn50.train import probe
from rn50.train.inputs import open_data, plan_of
from rn50.train.lr_finder import Finding, Range, find

CURVES = "lr_finder.png"
VALUES = "lr_finder.json"

_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")


def find_lr(
    run: Run,
    place: Path,
    *,
    swept: Range,
    num_sweeps: int,
    say: Callable[[str], None],
    report: Callable[[int, int], None],
) -> Finding:
    """Sweep the learning rate of a run, and write curves and values into a folder.

    Under ``torchrun`` every process calls it; the first one writes.

    Args:
        run: All settings; its learning rate and schedule are not used.
        place: The folder; made if it is not there.
        swept: The learning rates.
        num_sweeps: How many sweeps.
        say: Shows the user a line.
        report: Called with the number of sweeps done and in all.

    Raises:
        UsageError, DataError: As for a run; or the loss does not fall in the range.
    """
    with ExitStack() as stack:
        group = stack.enter_context(distributed.group(hardware.device_type(run.hardware)))
        say = say if group.is_first else _silently
        compute = hardware.resolve(
            run.hardware, local_rank=group.local_rank, local_world_size=group.local_world_size
        )
        split = open_data(run, group, say).split("train")
        compute = replace(
            compute,
            micro_batch=probe.micro_batch(
                *(run, resnet.build(run.model, seed=run.seed).to(compute.device), compute, group),
                plan_of(run, split, group),
                say=say,
            ),
        )
        stack.enter_context(probe.full_memory_explained(compute))
        loader = stack.enter_context(
            Loader(compute.device, workers=compute.workers, prefetch=compute.prefetch_batches)
        )

        def batches(of_seed: Run) -> Iterator[Batch]:
            plan = plan_of(of_seed, split, group)
            return loader.read(split, (plan.request(step) for step in range(swept.steps)))

        found = find(
            run, compute, group, batches, swept=swept, num_sweeps=num_sweeps, report=report
        )
        if group.is_first:
            with durable.explained(place):
                place.mkdir(parents=True, exist_ok=True)
            durable.write_json(place / VALUES, {**found.to_json(), "run": to_dict(run)})
            durable.write_bytes(place / CURVES, curves(found, run.recipe))
    return found


def _silently(_: str) -> None:
    pass


def curves(found: Finding, title: str) -> bytes:
    """Return a PNG of all sweeps and of what they suggest."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log")
    for i, sweep in enumerate(found.sweeps):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(sweep.lrs, sweep.losses, color=colour, alpha=0.25, linewidth=1)
        axes.plot(sweep.lrs, sweep.smoothed, color=colour, label=f"seed {sweep.seed}, smoothed")
    for value, name, style in (
        (found.steepest.geometric_mean, "steepest descent", ":"),
        (found.minimum_tenth.geometric_mean, "a tenth of the minimum's", "--"),
        (found.suggested, "suggested", "-"),
    ):
        axes.axvline(value, color="#444444", linestyle=style, label=f"{name}: {value:.3g}")
    smooth = [loss for sweep in found.sweeps for loss in sweep.smoothed]
    least, start = min(smooth), max(sweep.smoothed[0] for sweep in found.sweeps)
    axes.set_ylim(least - 0.1 * (start - least), start + 0.5 * (start - least))
    axes.set(
        title=f"{title}: learning rate range test",
        xlabel="learning rate, for the whole batch",
        ylabel="training loss",
    )
    axes.grid(color="#e8e8e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
