"""Measure how near packing comes to what decoder and encoder alone reach on the same cores.

    uv run benchmarks/pack.py --images FOLDER_OR_TAR --resize-short 352 256 none

The bound is one process per core that decodes, resizes and encodes the files, which lie in its
memory, and does nothing else: nothing is read, hashed or written; where the original bytes are
kept it decodes them in full. Packing reads the same files from
a folder and does all that ``rn50 prepare`` does, from starting its processes to flushing the last
shard. The two take turns, and a ratio is that of two measurements of the same round.
"""

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import machine
import pictures
from machine import Row
from rn50.data.encoding import NONE, Encoding, encoding
from rn50.data.jpeg import to_jpeg, warnings_ignored
from rn50.data.pack import Options, pack
from rn50.data.sources.base import ClassName, Skipped, SourceImage, Split
from rn50.hardware import available_cores


class Files:
    """A source of files, each several times over; the first one is also the validation split.

    Args:
        paths: JPEGs.
        repeat: How often each is packed.
    """

    kind = "benchmark"
    classes = (ClassName("a", "a"),)
    skipped = Skipped()

    def __init__(self, paths: Sequence[Path], repeat: int) -> None:
        self._paths = paths
        self._repeat = repeat

    def count(self) -> int:
        """Return the number of images of both splits."""
        return len(self._paths) * self._repeat + 1

    def images(self) -> Iterator[SourceImage]:
        """Yield all files in turn, again and again, then the first one for validation."""
        splits: list[tuple[Split, Path]] = [
            *(("train", path) for path in self._paths * self._repeat),
            ("val", self._paths[0]),
        ]
        for i, (split, path) in enumerate(splits):
            yield SourceImage(split, "a", f"{split}/a/{i:07d}.jpg", partial(path.read_bytes))


def bound(files: Sequence[bytes], repeat: int, chosen: Encoding | None, workers: int) -> float:
    """Return the images per second of decoder and encoder alone."""
    context = multiprocessing.get_context("fork")
    # Each process takes every so many files, so that all have as much to do.
    barrier = context.Barrier(workers + 1)
    processes = [
        context.Process(target=_convert, args=(files[i::workers], repeat, chosen, barrier))
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    return len(files) * repeat / (time.perf_counter() - start)


def _convert(files: Sequence[bytes], repeat: int, chosen: Encoding | None, barrier) -> None:
    with warnings_ignored():
        barrier.wait()
        for _ in range(repeat):
            for data in files:
                if chosen is not None:
                    to_jpeg(data, chosen)
                else:  # packing itself checks files at an eighth of their pixels, which is faster
                    Image.open(io.BytesIO(data), formats=("JPEG",)).load()


def packing(
    paths: Sequence[Path], repeat: int, chosen: Encoding | None, workers: int, scratch: Path
) -> float:
    """Return the images per second of ``pack``, from its start to its end."""
    source = Files(paths, repeat)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start = time.perf_counter()
        pack(source, Path(folder) / "packed", options=Options(encoding=chosen, workers=workers))
        return source.count() / (time.perf_counter() - start)


def compare(
    paths: Sequence[Path], repeat: int, workers: int, rounds: int, settings: Sequence[str]
) -> list[Row]:
    """Measure both sides for each setting of ``--resize-short``, in turn."""
    files = [path.read_bytes() for path in paths]
    rates: dict[str, dict[str, list[float]]] = {
        setting: {"bound": [], "pack": []} for setting in settings
    }
    scratch = paths[0].parent.parent
    for number in range(rounds):
        for setting, found in rates.items():
            chosen = encoding(setting)
            found["bound"].append(bound(files, repeat, chosen, workers))
            found["pack"].append(packing(paths, repeat, chosen, workers, scratch))
            last = {side: round(values[-1], 1) for side, values in found.items()}
            print(f"round {number + 1}: short side {setting}: {last}", file=sys.stderr, flush=True)
    return [
        {
            "short side": setting,
            **{
                f"{side} img/s {part}": value
                for side, values in found.items()
                for part, value in machine.spread(values).items()
            },
            "ratio": machine.ratio(found["pack"], found["bound"]),
            "rounds": found,
        }
        for setting, found in rates.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="by default 500x375 images are made")
    parser.add_argument("--count", type=int, default=300, help="images used; 0: all")
    parser.add_argument("--repeat", type=int, default=4, help="times that each is packed")
    parser.add_argument("--resize-short", nargs="+", default=["352", "256", NONE])
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rn50-pack-") as scratch:
        split = pictures.packed(args.images, args.count, Path(scratch) / "source").split("train")
        folder = pictures.unpack(split, Path(scratch) / "files")
        paths = sorted(folder.rglob("*.jpg"))
        about = {
            "images": len(paths),
            "times": args.repeat,
            "mean bytes": round(float(split.index["length"].mean())),
            "workers": args.workers,
            "rounds": args.rounds,
        }
        rows = compare(paths, args.repeat, args.workers, args.rounds, args.resize_short)
    report = {"machine": machine.describe(torch.device("cpu")), "settings": about, "pack": rows}
    markdown = "\n\n".join(
        [
            "# Packing against decoder and encoder alone: images per second",
            machine.table([{k: v for k, v in row.items() if k != "rounds"} for row in rows]),
            "Settings: " + json.dumps(about) + ".",
            machine.facts_list(report["machine"]),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
