"""How long training waits for a checkpoint of ResNet-50, and how long until it is on the disk.

    python benchmarks/saving.py --folder /where/runs/are --json saving.json

The state is that of a run with momentum and an EMA: 307 MB. ``stall`` is what the training thread
waits for, which is the copy; ``whole`` is until every file is written, flushed, read back, compared
and published, in the background. ``write and flush`` puts as many bytes into one file of the same
folder with nothing else, and ``torch.save`` writes the same tensors as most programs do, without
flushing: both stand beside it in each round.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import machine
from machine import Row
from rn50 import hardware
from rn50.config import Average, Hardware
from rn50.distributed import Group
from rn50.recipes import recipe
from rn50.train import checkpoint
from rn50.train import state as states
from rn50.train.state import Snapshot
from rn50.train.store import Order, Store


def snapshot_of(arch: str, compute: hardware.Compute) -> Snapshot:
    """Return a state after the first step of a run of ImageNet's recipe with an EMA."""
    run = recipe("ladder-90")
    run = replace(run, model=replace(run.model, arch=arch), average=Average(ema_horizon=0.1))
    state = states.new(run, compute, Group())
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return states.snapshot(state)


def newest_two(steps: list[int]) -> set[int]:
    """Return which checkpoints stay."""
    return set(steps[-2:])


def measure(snapshot: Snapshot, folder: Path, rounds: int) -> list[Row]:
    """Return a row for each way."""
    store = Store(folder / "run", sync=lambda: None, published=lambda path: None)
    order = Order({"run": {}}, newest_two, newest_two, ())
    num_bytes = sum(t.nbytes for part in checkpoint.parts(snapshot).values() for t in part.values())
    blank, one = os.urandom(2**20), folder / "one-file"
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    def write_and_flush() -> None:
        with one.open("wb") as file:
            for _ in range(num_bytes // len(blank)):
                file.write(blank)
            file.flush()
            os.fsync(file.fileno())

    # The first two saves take memory for their copies and are left out.
    for number in range(rounds + 2):
        if number == 2:
            seconds.clear()
        taken = replace(snapshot, step=number)
        start = time.perf_counter()
        timed("stall", lambda taken=taken: store.save(taken, order))
        store.wait()
        seconds.setdefault("whole", []).append(time.perf_counter() - start)
        timed("write and flush", write_and_flush)
        timed("torch.save", lambda: torch.save(checkpoint.parts(snapshot), one))
    store.close()
    base = seconds["write and flush"]
    return [
        {
            "what": name,
            **{f"ms {part}": ms for part, ms in machine.spread([1e3 * s for s in values]).items()},
            "times write and flush": machine.ratio(values, base),
        }
        for name, values in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    compute = hardware.resolve(Hardware())
    scratch = Path(tempfile.mkdtemp(prefix="rn50-saving-", dir=args.folder))
    try:
        rows = measure(snapshot_of(args.arch, compute), scratch, args.rounds)
    finally:
        shutil.rmtree(scratch)
    facts = machine.describe(compute.device)
    markdown = "\n\n".join(
        ["# Saving a checkpoint", machine.table(rows), machine.facts_list(facts)]
    )
    machine.publish({"machine": facts, "saving": rows}, markdown, args.json)


if __name__ == "__main__":
    main()
