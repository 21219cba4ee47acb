"""How fast JPEGs become batches: ours against its peers on the same images and cores.

    python benchmarks/loader.py --images imagenet-samples-300.tar --resize-short 352 256
    python benchmarks/loader.py --images PACKED --px 64 --workers 1     # one pinned core
    uv run --with nvidia-dali-cuda130 benchmarks/loader.py …            # with DALI as well

``--images`` takes a folder of JPEGs, a tar of flat JPEGs or a folder made by ``rn50 prepare``;
without it, 500x375 images are made. All sides read the same bytes, from a warm page cache: ours
and DALI from shards, torchvision from class folders. ``--resize-short`` adds shards whose images
were made smaller, as ``rn50 prepare --resize-short`` does; ratios stay those to torchvision on the
originals. Every measurement is a process of its own; the methods take turns (A B C A B C …), and a
ratio is that of two measurements of the same round. The sampler never ends, so that no epoch's
start is timed. With ``--workers 1`` everything is pinned to one core, and torchvision loads in the
main process, which saves it the transfer.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import dali
import machine
import pictures
from machine import Row
from rn50.config import Images
from rn50.data import native, turbojpeg
from rn50.data.decode import Decoder
from rn50.data.encoding import Encoding
from rn50.data.loader import Loader
from rn50.data.plan import TrainPlan
from rn50.data.shards import PackedDataset
from rn50.hardware import available_cores

CPU = torch.device("cpu")
PREFETCH = 4
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

Batches = Iterator[Any]


@dataclass(frozen=True)
class Task:
    """What all methods are given."""

    packed: Path
    """Shards."""
    folder: Path
    """The original images in class folders."""
    px: int
    batch_size: int
    workers: int
    seconds: float
    """Least duration of a measurement after the warm-up."""
    core: int | None
    """The only core that may be used, or None for all."""


class _EndlessBatches:
    """A batch sampler that shuffles again and again without ending an epoch."""

    def __init__(self, count: int, batch_size: int) -> None:
        self._count = count
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        draws = np.random.default_rng(0)
        ids = itertools.chain.from_iterable(
            draws.permutation(self._count).tolist() for _ in itertools.count()
        )
        while True:
            yield list(itertools.islice(ids, self._batch_size))


def _torchvision(task: Task, images: ImageFolder, workers: int) -> Batches:
    several = {"persistent_workers": True, "prefetch_factor": PREFETCH} if workers else {}
    return iter(
        DataLoader(
            images,
            batch_sampler=_EndlessBatches(len(images), task.batch_size),
            num_workers=workers,
            **several,
        )
    )


def _pil_folder(task: Task) -> ImageFolder:
    crop = T.RandomResizedCrop(task.px, scale=CROP_AREA, ratio=CROP_RATIO)
    transform = T.Compose([crop, T.RandomHorizontalFlip(), T.PILToTensor()])
    return ImageFolder(str(task.folder), transform)


def _processes(task: Task) -> int:
    return 0 if task.core is not None else task.workers


def torchvision_pil(task: Task) -> Batches:
    """Load as most people do: ImageFolder, PIL, RandomResizedCrop (bilinear), flip, uint8."""
    return _torchvision(task, _pil_folder(task), _processes(task))


def torchvision_pil_worker(task: Task) -> Batches:
    """Do the same in one worker process."""
    return _torchvision(task, _pil_folder(task), 1)


def torchvision_tensor(task: Task) -> Batches:
    """Decode with torchvision.io and transform tensors."""
    crop = v2.RandomResizedCrop(task.px, scale=CROP_AREA, ratio=CROP_RATIO, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
    images = ImageFolder(str(task.folder), transform, loader=_decoded)
    return _torchvision(task, images, _processes(task))


def ours(task: Task) -> Batches:
    """Load with rn50, which leaves the flip to the device."""
    split, requests = _requests(task)
    with Loader(CPU, workers=task.workers, prefetch=PREFETCH) as loader:
        yield from loader.read(split, requests)


def ours_on_one_core(task: Task) -> Batches:
    """Load with rn50 by one thread, pinned to one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return ours(replace(task, workers=1))


def ours_without_compiler(task: Task) -> Batches:
    """Load with rn50 as on a machine that has no C compiler."""
    os.environ[turbojpeg.DECODER_VARIABLE] = "turbojpeg"
    return ours(task)


def ours_without_turbojpeg(task: Task) -> Batches:
    """Load with rn50 as on a machine that has no TurboJPEG 3 library."""
    os.environ[turbojpeg.DECODER_VARIABLE] = "pillow"
    return ours(task)


def dali_cpu(task: Task) -> Batches:
    """Load with DALI: the same shards, order and boxes."""
    split, requests = _requests(task)
    return dali.batches(split, requests, task.px, task.workers, PREFETCH)


def floor(task: Task) -> Batches:
    """Decode rn50's regions and do no more: nothing is resized, no batch is made."""
    split, requests = _requests(task)
    nothing = torch.empty(task.batch_size, 0, 0, 3, dtype=torch.uint8)
    libraries = native.libraries()
    decoders: list[Any] = [
        Decoder() if libraries is None else native.NativeDecoder(*libraries)
        for _ in range(task.workers)
    ]
    with ThreadPoolExecutor(task.workers) as pool:
        for request in requests:
            jobs = native.make_jobs(split, request, nothing)

            def decode(worker: int, request: Any = request, jobs: Any = jobs) -> None:
                rows = range(worker, len(request.ids), task.workers)
                if libraries is not None:
                    assert decoders[worker].decode(np.ascontiguousarray(jobs[rows]), 0) == []
                    return
                for row in rows:
                    jpeg = split.jpeg(int(request.ids[row]))
                    decoders[worker].pixels(jpeg, request.boxes[row])

            yield list(pool.map(decode, range(task.workers)))


def _requests(task: Task) -> tuple[Any, Iterator[Any]]:
    split = PackedDataset.open(task.packed).split("train")
    images = Images(
        batch_size=task.batch_size,
        train_px=task.px,
        test_px=task.px,
        test_resize_px=task.px,
        crop_area=CROP_AREA,
        crop_ratio=CROP_RATIO,
    )
    plan = TrainPlan(images=images, seed=0, widths=split.widths, heights=split.heights)
    return split, (plan.request(step) for step in itertools.count())


def _decoded(path: str) -> torch.Tensor:
    return torchvision.io.decode_image(path, mode=torchvision.io.ImageReadMode.RGB)


Method = Callable[[Task], Batches]

BASE = "torchvision PIL"
"""What the others are compared with."""


def methods(task: Task, made_smaller: Mapping[int, Path]) -> dict[str, tuple[Method, Task]]:
    """Return by name what is to be measured, on the originals and on what was made smaller."""
    chosen: dict[str, tuple[Method, Task]] = {
        BASE: (torchvision_pil, task),
        "torchvision tensor": (torchvision_tensor, task),
    }
    if task.core is not None:
        chosen["torchvision PIL, worker process"] = (torchvision_pil_worker, task)
    elif hasattr(os, "sched_setaffinity"):
        chosen["rn50, one thread on one core"] = (ours_on_one_core, task)
    chosen["rn50, no C compiler"] = (ours_without_compiler, task)
    chosen["rn50, no TurboJPEG 3"] = (ours_without_turbojpeg, task)
    stored = {"": task.packed} | {f", {px} px": path for px, path in made_smaller.items()}
    for suffix, packed in stored.items():
        there = replace(task, packed=packed)
        chosen[f"rn50{suffix}"] = (ours, there)
        if dali.INSTALLED:
            chosen[f"DALI{suffix}"] = (dali_cpu, there)
        chosen[f"floor: decode only{suffix}"] = (floor, there)
    return chosen


def compare(chosen: Mapping[str, tuple[Method, Task]], rounds: int) -> list[Row]:
    """Measure all methods in turn, ``rounds`` times."""
    measured: dict[str, list[Row]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name, (method, task) in chosen.items():
            measured[name].append(_measured_apart(method, task))
            rate = measured[name][-1]["images_per_second"]
            print(f"round {number + 1}: {name}: {rate:.0f} img/s", file=sys.stderr, flush=True)
    rates = {name: [row["images_per_second"] for row in rows] for name, rows in measured.items()}
    return [
        {
            "method": name,
            **{f"img/s {part}": value for part, value in machine.spread(rates[name]).items()},
            "ratio": machine.ratio(rates[name], rates[BASE]),
            "memory MB": max(row["memory_mb"] for row in rows),
            "rounds": rates[name],
        }
        for name, rows in measured.items()
    ]


def _measured_apart(method: Method, task: Task) -> Row:
    """Measure in a process of its own, which starts without anyone's threads or buffers."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(method, task, sender))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        raise SystemExit(f"measuring {method.__name__} failed; its error stands above") from None
    process.join()
    return row


def _report(method: Method, task: Task, sender: Connection) -> None:
    if task.core is not None:
        os.sched_setaffinity(0, {task.core})
        torch.set_num_threads(1)
    sender.send(_measure(method(task), task))


def _measure(batches: Batches, task: Task) -> Row:
    # Each worker process makes whole batches, so they come in bunches of as many as there are
    # workers: warm up until each has delivered twice (and our buffers are all in use), and stop at
    # the end of a bunch.
    bunch = max(1, _processes(task))
    for _ in range(max(2 * bunch, PREFETCH + 2)):
        next(batches)
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < task.seconds or done % bunch:
        next(batches)
        done += 1
    memory_mb = _memory_mb()
    return {
        "images_per_second": round(done * task.batch_size / seconds, 1),
        "memory_mb": memory_mb,
    }


def _memory_mb() -> int:
    """Return the anonymous and shared memory of this process and its children, shared parts once.

    0 where the system does not tell.
    """
    total_kb, pids = 0, [os.getpid()]
    try:
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total_kb += int(line.split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    except OSError:
        return 0
    return total_kb // 1024


def prepare(images: Path | None, count: int, scratch: Path) -> tuple[Path, Path, Row]:
    """Make the packed set and the class folders in ``scratch``; return them and what they hold."""
    dataset = pictures.packed(images, count, scratch / "packed")
    split = dataset.split("train")
    folder = pictures.unpack(split, scratch / "folder")
    about = {
        "from": "made" if images is None else images.name,
        "images": split.num_images,
        "mean bytes": round(float(split.index["length"].mean())),
        "mean width": round(float(split.widths.mean())),
        "mean height": round(float(split.heights.mean())),
    }
    return dataset.folder, folder, about


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="images used; 0: all")
    parser.add_argument("--resize-short", type=int, nargs="*", default=[], metavar="PX")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--core", type=int, help="core to pin to with --workers 1; default: last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    core = None
    if args.workers == 1 and hasattr(os, "sched_getaffinity"):
        core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    with tempfile.TemporaryDirectory(prefix="rn50-loader-") as scratch:
        packed, folder, about = prepare(args.images, args.count, Path(scratch))
        batch_size = min(args.batch_size, about["images"])
        task = Task(packed, folder, args.px, batch_size, args.workers, args.seconds, core)
        made_smaller = {
            px: pictures.packed(
                packed, 0, Path(scratch) / f"short-{px}", Encoding(resize_short=px)
            ).folder
            for px in args.resize_short
        }
        rows = compare(methods(task, made_smaller), args.rounds)
    settings = {
        name: value for name, value in asdict(task).items() if name not in ("packed", "folder")
    } | {"rounds": args.rounds}
    report = {
        "machine": machine.describe(CPU),
        "images": about,
        "settings": settings,
        "loader": rows,
    }
    markdown = "\n\n".join(
        [
            f"# Loader at {args.px} px: images per second",
            machine.table([{k: v for k, v in row.items() if k != "rounds"} for row in rows]),
            "Images: " + json.dumps(about) + ". Settings: " + json.dumps(settings) + ".",
            machine.facts_list(report["machine"]),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
