"""What reading ahead is worth where the shards are not in memory yet.

    python benchmarks/cold.py --count 3000 --json cold.json

Each measurement is one pass over the images in a process of its own, after the system was asked to
forget the shards' pages (``posix_fadvise``; Linux only). With and without read-ahead take turns; a
warm pass stands beside them. What the disk, or the host of a virtual machine, keeps in its own
memory cannot be emptied from here.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import machine
import pictures
from machine import Row
from rn50.config import Images
from rn50.data import native
from rn50.data.loader import Loader
from rn50.data.plan import TrainPlan
from rn50.data.shards import PackedDataset
from rn50.hardware import available_cores

CPU = torch.device("cpu")
WAYS = {"cold, no read-ahead": (True, False), "cold": (True, True), "warm": (False, True)}


def forget(folder: Path) -> None:
    """Drop the pages of all files in ``folder`` from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_pass(packed: Path, batch_size: int, ahead: bool, sender: Connection) -> None:
    """Load every image once, and send the images per second."""
    if not ahead:
        native.read_ahead = lambda jobs: None
    split = PackedDataset.open(packed).split("train")
    images = Images(batch_size=batch_size)
    plan = TrainPlan(images=images, seed=0, widths=split.widths, heights=split.heights)
    start = time.perf_counter()
    with Loader(CPU, workers=available_cores(), prefetch=4) as loader:
        for _ in loader.read(split, (plan.request(i) for i in range(plan.steps_per_epoch))):
            pass
    sender.send(plan.steps_per_epoch * batch_size / (time.perf_counter() - start))


def measure(packed: Path, batch_size: int, rounds: int) -> list[Row]:
    """Return a row for each way."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for name, (cold, ahead) in WAYS.items():
            if cold:
                forget(packed)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=one_pass, args=(packed, batch_size, ahead, sender))
            process.start()
            rates[name].append(receiver.recv())
            process.join()
    base = rates[next(iter(WAYS))]
    return [
        {
            "way": name,
            **{f"img/s {part}": value for part, value in machine.spread(values).items()},
            "ratio": machine.ratio(values, base),
        }
        for name, values in rates.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=3000, help="images used; 0: all")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    if not hasattr(os, "posix_fadvise"):
        raise SystemExit("this system cannot be asked to forget files")
    with tempfile.TemporaryDirectory(prefix="rn50-cold-", dir=".") as scratch:
        packed = pictures.packed(args.images, args.count, Path(scratch) / "packed").folder
        rows = measure(packed, args.batch_size, args.rounds)
    report = {"machine": machine.describe(CPU), "cold": rows}
    markdown = "\n\n".join(
        ["# Reading cold shards", machine.table(rows), machine.facts_list(report["machine"])]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
