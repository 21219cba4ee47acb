"""What a run trains on: its data set, opened, and the plan of its batches."""

from collections.abc import Callable
from pathlib import Path

from rn50.config import Run
from rn50.data import cache, remote
from rn50.data.plan import TrainPlan
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.distributed import Group
from rn50.errors import UsageError
from rn50.evaluate import labelled


def open_data(run: Run, group: Group, say: Callable[[str], None]) -> PackedDataset:
    """Open the data set of a run, making or fetching it first where it is not there."""
    data = run.storage.data
    if not data:
        if group.is_first:
            data = str(_demo_data(run, say))
        data = group.from_first(data)
    return labelled(PackedDataset.open(remote.local_folder(data, say=say)), run.model)


def plan_of(run: Run, split: PackedSplit, group: Group) -> TrainPlan:
    """Return this process's plan of a run over ``split``."""
    return TrainPlan(
        images=run.images,
        seed=run.seed,
        widths=split.widths,
        heights=split.heights,
        rank=group.rank,
        world_size=group.world_size,
        augment=run.augment,
        mix=run.mix,
    )


def _demo_data(run: Run, say: Callable[[str], None]) -> Path:
    if run.recipe != "demo":
        raise UsageError(
            f"the recipe {run.recipe} needs data; give --data FOLDER, made by "
            "`rn50 prepare SOURCE FOLDER`"
        )
    return cache.demo_data(say)
