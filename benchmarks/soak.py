"""Load for minutes on end, and see whether memory or open files grow.

    python benchmarks/soak.py --minutes 10 --json soak.json

Training passes that are broken off at random, whole evaluation passes, loaders closed and opened
anew: what a long run does. Memory is the process's resident set; what matters is its slope over the
second half of the time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import machine
import pictures
from machine import Row
from rn50.config import Images
from rn50.data.loader import Loader
from rn50.data.plan import TrainPlan, evaluation_requests
from rn50.data.shards import PackedDataset

CPU = torch.device("cpu")


def sample(start: float, images: int) -> Row:
    """Return what the process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        "minutes": round((time.monotonic() - start) / 60, 2),
        "images": images,
        "memory MB": round(int(fields["RssAnon"].split()[0]) / 1024, 1),
        "threads": int(fields["Threads"]),
        "open files": len(os.listdir("/proc/self/fd")),
    }


def soak(packed: Path, minutes: float, px: int, batch_size: int) -> list[Row]:
    """Return a sample for every twentieth of the time."""
    split = PackedDataset.open(packed).split("train")
    settings = Images(batch_size=batch_size, train_px=px, test_px=px, test_resize_px=px + px // 7)
    plan = TrainPlan(images=settings, seed=0, widths=split.widths, heights=split.heights)
    draws = np.random.default_rng(0)
    start, images, rows = time.monotonic(), 0, []
    step = 0
    while (elapsed := time.monotonic() - start) < 60 * minutes:
        with Loader(CPU, workers=int(draws.integers(1, 8)), prefetch=3) as loader:
            for _ in range(4):
                stop = int(draws.integers(2, 40))
                for batch in loader.read(split, (plan.request(step + i) for i in range(60))):
                    images += len(batch.labels)
                    step += 1
                    stop -= 1
                    if stop == 0:
                        break
                for batch in loader.read(
                    split, evaluation_requests(settings, split.num_images, batch_size)
                ):
                    images += len(batch.labels)
        if elapsed >= len(rows) * 3 * minutes:
            rows.append(sample(start, images))
    return [*rows, sample(start, images)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=600, help="images used; 0: all")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rn50-soak-") as scratch:
        packed = pictures.packed(args.images, args.count, Path(scratch) / "packed").folder
        rows = soak(packed, args.minutes, args.px, args.batch_size)
    late = rows[len(rows) // 2 :]
    slope = np.polyfit([r["minutes"] for r in late], [r["memory MB"] for r in late], 1)[0]
    report = {"machine": machine.describe(CPU), "soak": rows, "MB per minute": round(slope, 3)}
    markdown = "\n\n".join(
        [
            "# Soak of the loader",
            machine.table(rows),
            f"Memory over the second half: {slope:+.2f} MB a minute.",
            machine.facts_list(report["machine"]),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
