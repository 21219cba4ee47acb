"""All that is to be measured on a GPU, in one command of under eight minutes.

    python benchmarks/gpu.py --out results/h100          # writes gpu.json and gpu.md there
    PYTHONPATH=src python benchmarks/gpu.py --out DIR    # where only the checkout is there
    python benchmarks/gpu.py --out DIR --cpu-smoke       # a miniature that tests this script

Sections: the device's ceilings; whether our network computes what torchvision's does; the training
step against torchvision's, eager and compiled; what augmentation adds to a step; whether two
deterministic runs agree bit for bit and what that costs; training from JPEG shards to the step at
224 and at 64 px; the loader against torchvision's on this host. Each runs in a process of its own
with a limit of time, so that one that fails or hangs is recorded and the others still run. Results
are written after every section.

Exit codes: 0, all sections done; 1, one failed or was cut short; 2, no CUDA device.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms import v2

import augment
import ceilings
import loader
import machine
import pictures
import step
from machine import Row
from rn50 import config, hardware
from rn50.augment.device import Normalise, flip
from rn50.config import Log, Storage
from rn50.data.pack import pack
from rn50.hardware import available_cores
from rn50.model import resnet
from rn50.observe import record
from rn50.train import optim
from rn50.train import run as runs


@dataclass(frozen=True)
class Job:
    """What a section is given."""

    device: config.Device
    scratch: Path
    small: bool
    """Sizes for a test of the script on a CPU."""
    images: Path | None
    """JPEGs for the comparison of the loaders; None: made ones."""
    deadline: float
    """When the section is stopped, in seconds of ``time.time``."""
    matmul_tflops: dict[str, float]
    """By precision; empty where the ceilings were not measured."""

    def seconds_left(self) -> float:
        """Return the seconds until the section is stopped."""
        return self.deadline - time.time()

    def case(self, **changes: Any) -> step.Case:
        """Return the usual case of the step's sections, or its miniature."""
        if self.small:
            changes |= {"px": 32, "batch_size": 4, "precision": "fp32", "arch": "resnet18"}
        return step.Case(**{"px": 224, "batch_size": 256, "precision": "bf16", **changes})


def about_machine(job: Job) -> Iterator[Row]:
    """Yield the facts of the machine as one row."""
    yield machine.describe(torch.device(job.device))


def measure_ceilings(job: Job) -> Iterator[Row]:
    """Yield what the device can do at most."""
    yield from ceilings.measure(torch.device(job.device), small=job.small)


def compare_numerics(job: Job) -> Iterator[Row]:
    """Yield differences between our network and torchvision's with the same weights and input."""
    device = torch.device(job.device)
    torch.backends.cudnn.deterministic = True
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    case = job.case(batch_size=32)
    run = step.run_of(case, device=job.device)
    batch = step.synthetic_batch(run, device)
    normalise = Normalise(run.images.mean, run.images.std).to(device)
    inputs = normalise(flip(batch.images, batch.flips))
    reference = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(run.images.mean, run.images.std)]
    )
    mirrored = batch.images.clone()
    mirrored[batch.flips] = v2.functional.horizontal_flip(batch.images[batch.flips])
    yield _difference("flip and normalisation", inputs, reference(mirrored), tolerance=1e-5)

    settings = dataclasses.replace(run.model, zero_init_residual=False)
    ours = resnet.build(settings, seed=0).to(device).train()
    theirs = getattr(torchvision.models, case.arch)().to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(device).train()
    on_cpu = resnet.build(settings, seed=0).train()
    with torch.no_grad():
        yield _difference(
            "logits, fp32, from those of the CPU",
            ours(inputs[:8]).cpu(),
            on_cpu(inputs[:8].cpu()),
            tolerance=1e-3,
        )
    for precision, dtype, tolerance in (
        ("fp32", None, 1e-4),
        ("bf16", torch.bfloat16, 2e-2),
        *([("fp16", torch.float16, 5e-3)] if device.type == "cuda" else []),
    ):
        results = []
        for net in (ours, theirs):
            net.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = net(inputs)
            (1024 * F.cross_entropy(logits.float(), batch.labels)).backward()
            gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
            results.append((logits.detach(), gradients))
        for name, ours_part, theirs_part in zip(("logits", "gradients"), *results, strict=True):
            yield _difference(f"{name}, {precision}", ours_part, theirs_part, tolerance=tolerance)


def _difference(what: str, ours: torch.Tensor, theirs: torch.Tensor, *, tolerance: float) -> Row:
    """Return the greatest difference as a share of the greatest value."""
    ours, theirs = ours.float(), theirs.float()
    share = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return {
        "what": what,
        "largest difference / largest value": share,
        "tolerance": tolerance,
        "agrees": share <= tolerance,
    }


def compare_eager_steps(job: Job) -> Iterator[Row]:
    """Yield images per second of the eager step, ours and torchvision's."""
    kinds = itertools.product(("bf16", "fp16"), (256, 128))
    yield from _compare_steps(
        job, [job.case(precision=p, batch_size=b) for p, b in kinds], need_s=12
    )


def compare_compiled_steps(job: Job) -> Iterator[Row]:
    """Yield images per second of the compiled step; the most wanted cases come first."""
    kinds = (("bf16", 256), ("fp16", 256), ("bf16", 128), ("fp16", 128))
    cases = [job.case(precision=p, batch_size=b, compile=not job.small) for p, b in kinds]
    yield from _compare_steps(job, cases, need_s=50)


def _compare_steps(job: Job, cases: list[step.Case], *, need_s: float) -> Iterator[Row]:
    for case in cases[:1] if job.small else cases:
        if job.seconds_left() < need_s and not job.small:
            yield step.skipped(case, "out of time")
            continue
        yield from step.compare_all(
            [case],
            ceiling_of=job.matmul_tflops,
            rounds=2 if job.small else 5,
            seconds=0.01 if job.small else 0.8,
            device=job.device,
        )


def measure_augmentation(job: Job) -> Iterator[Row]:
    """Yield what each augmentation takes, and adds to the eager training step."""
    timing = {"rounds": 1, "seconds": 0.01} if job.small else {"rounds": 3, "seconds": 0.4}
    yield from augment.share_of_step(job.case(), job.device, **timing)


def check_determinism(job: Job) -> Iterator[Row]:
    """Yield whether two processes train to the same bits, and how much slower that makes them."""
    case = job.case(batch_size=128)
    names = ("deterministic, first process", "deterministic, second process", "default")
    found = []
    for name in names:
        path = job.scratch / f"{name}.json"
        _run_apart(job, _train_and_hash, case, name != "default", path)
        found.append(json.loads(path.read_text()))
        yield {"run": name, **found[-1]}
    first, second, default = found
    yield {
        "run": "summary",
        "bit-identical": first["hash of weights and momentum"]
        == second["hash of weights and momentum"],
        "speed of deterministic / default": round(
            max(first["img/s"], second["img/s"]) / default["img/s"], 3
        ),
    }


def _train_and_hash(job: Job, case: step.Case, deterministic: bool, path: Path) -> None:
    run = step.run_of(case, deterministic=deterministic, device=job.device)
    compute = hardware.resolve(run.hardware)
    batch = step.synthetic_batch(run, compute.device)
    take, state = step.our_step(run, compute, batch)
    count = 3 if job.small else 20
    for _ in range(count):
        take()
    digest = hashlib.blake2b(digest_size=8)
    momentum = optim.momentum_buffers(state.model, state.optimizer)
    for tensor in (*state.model.state_dict().values(), *momentum.values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    state.meter.drain()
    rates = []
    for _ in range(1 if job.small else 5):
        ceilings.wait(compute.device)
        start = time.perf_counter()
        for _ in range(count):
            take()
        ceilings.wait(compute.device)
        rates.append(count * case.batch_size / (time.perf_counter() - start))
    row = {
        "steps": count,
        "hash of weights and momentum": digest.hexdigest(),
        "loss": round(state.meter.window.loss, 6),
        "img/s": machine.spread(rates)["median"],
        **{f"img/s {part}": machine.spread(rates)[part] for part in ("min", "max")},
    }
    path.write_text(json.dumps(row))


def train_at_224(job: Job) -> Iterator[Row]:
    """Yield the speed of training at 224 px from 500x375 JPEGs to the step."""
    yield _trained(job, _photos(job), px=224, compiled=False, epochs=16)


def train_compiled_at_224(job: Job) -> Iterator[Row]:
    """Yield the same with the model compiled."""
    yield _trained(job, _photos(job), px=224, compiled=not job.small, epochs=16)


def train_at_64(job: Job) -> Iterator[Row]:
    """Yield the speed of training the small stem at 64 px from 64x64 JPEGs."""
    folder = job.scratch / "thumbnails"
    if not folder.exists():
        pack(pictures.MadePictures(16 if job.small else 8192, 64, 64), folder)
    yield _trained(job, folder, px=64, compiled=False, epochs=10)


def _photos(job: Job) -> Path:
    folder = job.scratch / "photos"
    if not folder.exists():
        pack(pictures.MadePictures(16 if job.small else 4096, 500, 375), folder)
    return folder


def _trained(job: Job, data: Path, *, px: int, compiled: bool, epochs: int) -> Row:
    """Train a run of ``rn50 train`` in a process of its own and return its speed by epoch."""
    base = step.run_of(job.case(px=px, compile=compiled), device=job.device)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=job.scratch))
    run = dataclasses.replace(
        base,
        epochs=3 if job.small else epochs,
        model=dataclasses.replace(
            base.model, num_classes=8, stem="small" if px == 64 else "imagenet"
        ),
        storage=Storage(
            data=str(data),
            output_dir=str(place),
            checkpoint_epochs=0,
            checkpoint_minutes=0,
        ),
        log=Log(every_steps=1000, eval_epochs=epochs),
    )
    code = _run_apart(job, _train, run)
    records = record.read(place / record.FILE_NAME)
    timings = [r["timing"] for r in records if r["kind"] == "epoch"]
    if len(timings) < 3:
        raise RuntimeError(f"only {len(timings)} epochs were trained; exit code {code}")
    steady = timings[2:]  # the first choose kernels or compile
    speeds = machine.spread([t["images_per_second"] for t in steady])
    facts = next(r for r in records if r["kind"] == "start")
    return {
        "px": run.images.train_px,
        "arch": run.model.arch,
        "stem": run.model.stem,
        "batch": run.images.batch_size,
        "precision": facts["precision"],
        "compiled": compiled,
        **{f"img/s {part}": value for part, value in speeds.items()},
        "data wait %": round(
            100 * machine.spread([t["data_wait"] for t in steady], 4)["median"], 2
        ),
        "cores": available_cores(),
        "decoder": facts["decoder"],
        "epochs measured": len(steady),
        "finished": code == 0,
    }


def _train(job: Job, run: config.Run) -> None:
    runs.start(run, say=print)


def compare_loaders(job: Job) -> Iterator[Row]:
    """Yield images per second of the loaders on this host's cores, without the GPU."""
    if job.images is None:
        folder = _photos(job)
        split = pictures.PackedDataset.open(folder).split("train")
        class_folders = pictures.unpack(split, job.scratch / "class-folders")
    else:
        folder, class_folders, _ = loader.prepare(job.images, 2000, job.scratch / "given")
    task = loader.Task(
        packed=folder,
        folder=class_folders,
        px=32 if job.small else 224,
        batch_size=8 if job.small else 256,
        workers=available_cores(),
        seconds=0.1 if job.small else 4,
        core=None,
    )
    chosen = loader.methods(task, {})
    for row in loader.compare(chosen, rounds=1 if job.small else 2):
        yield {**row, "cores": task.workers, "images": (job.images or Path("made")).name}


Section = Callable[[Job], Iterator[Row]]

SECTIONS: dict[str, tuple[Section, float]] = {
    "machine": (about_machine, 40),
    "ceilings": (measure_ceilings, 45),
    "numerics": (compare_numerics, 45),
    "step-eager": (compare_eager_steps, 100),
    "determinism": (check_determinism, 75),
    "augment": (measure_augmentation, 45),
    "train-224": (train_at_224, 80),
    "train-64": (train_at_64, 60),
    "step-compiled": (compare_compiled_steps, 160),
    "loader": (compare_loaders, 80),
    "train-224-compiled": (train_compiled_at_224, 90),
}
"""Name -> what it yields, and its limit in seconds; the most wanted first."""

_LEAST_S = 20
"""A section is not begun with less time than this."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all sections together")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--images", type=Path, help="JPEGs for the loaders, as for loader.py")
    parser.add_argument("--cpu-smoke", action="store_true", help="a miniature on the CPU")
    args = parser.parse_args(arguments)
    if not args.cpu_smoke and not torch.cuda.is_available():
        print("there is no CUDA device; give --cpu-smoke to test this script on the CPU")
        sys.exit(2)
    end = time.time() + 60 * args.minutes
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rn50-gpu-", ignore_cleanup_errors=True) as scratch:
        job = Job(
            device="cpu" if args.cpu_smoke else "cuda",
            scratch=Path(scratch),
            small=args.cpu_smoke,
            images=args.images,
            deadline=0,
            matmul_tflops={},
        )
        for name in dict.fromkeys(("machine", *args.only)):
            report[name] = _section(name, job, end)
            if name == "ceilings":
                limits = step.matmul_ceilings(report[name]["rows"])
                job = dataclasses.replace(job, matmul_tflops=limits)
            machine.write(args.out / "gpu.json", report, _markdown(report))
            print(f"{name}: {_outcome(report[name])}", flush=True)
    print(f"wrote {args.out / 'gpu.json'} and {args.out / 'gpu.md'}")
    sys.exit(any(section["problem"] for section in report.values()))


def _section(name: str, job: Job, end: float) -> Row:
    """Run one section and return its rows, its seconds, and its problem or None."""
    left = end - time.time()
    if left < _LEAST_S:
        return {"rows": [], "seconds": 0, "problem": "skipped: out of time"}
    start = time.time()
    limit = min(SECTIONS[name][1], left)
    # The section is told to be done earlier than it is stopped, so that it can say what it skips.
    job = dataclasses.replace(job, deadline=start + limit - 8)
    rows_file, log_file = job.scratch / f"{name}.jsonl", job.scratch / f"{name}.log"
    process = _context(job).Process(target=_work, args=(name, job, rows_file, log_file))
    process.start()
    process.join(limit)
    problem = None
    if process.is_alive():
        problem = f"stopped after {limit:.0f} s"
        _stop(process)
    elif process.exitcode:
        log = log_file.read_text(errors="replace") if log_file.exists() else ""
        problem = f"failed with exit code {process.exitcode}: {log[-3000:].strip()}"
    lines = rows_file.read_text().splitlines() if rows_file.exists() else []
    seconds = round(time.time() - start, 1)
    return {"rows": [json.loads(line) for line in lines], "seconds": seconds, "problem": problem}


def _work(name: str, job: Job, rows_file: Path, log_file: Path) -> None:
    """Run a section in this process, writing each row as it comes."""
    os.setsid()
    with log_file.open("w", buffering=1) as log, rows_file.open("w", buffering=1) as out:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            for row in SECTIONS[name][0](job):
                out.write(json.dumps(row) + "\n")
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)


def _run_apart(job: Job, work: Callable[..., None], *args: Any) -> int | None:
    """Run ``work(job, *args)`` in a process of its own until the section's deadline."""
    process = _context(job).Process(target=work, args=(job, *args))
    process.start()
    process.join(max(1.0, job.seconds_left()))
    if process.is_alive():
        process.terminate()  # a run of rn50 saves itself and ends
        process.join(5)
        process.kill()
        process.join()
    return process.exitcode


def _context(job: Job) -> Any:
    # CUDA does not survive a fork, so processes are forked from a server that never touches it and
    # has imported torch once; the miniature saves that server's import, too.
    context = multiprocessing.get_context("fork" if job.small else "forkserver")
    if not job.small:
        context.set_forkserver_preload(["torch", "torchvision", "rn50.train.run"])
    return context


def _stop(process: Any) -> None:
    """End a section and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it has ended, or does not yet lead a group
            process.kill()
        process.join(5)


def _outcome(section: Row) -> str:
    problem = f", {section['problem']}" if section["problem"] else ""
    return f"{len(section['rows'])} rows in {section['seconds']} s{problem}"


def _markdown(report: dict[str, Any]) -> str:
    parts = ["# Measured on a GPU"]
    for name, section in report.items():
        parts.append(f"## {name}")
        if name == "machine":
            parts += [machine.facts_list(row) for row in section["rows"]]
        elif section["rows"]:
            rows = [{k: v for k, v in row.items() if k != "rounds"} for row in section["rows"]]
            parts.append(machine.table(rows))
        if section["problem"]:
            parts.append(f"```\n{section['problem']}\n```")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
