"""How fast a training step is: ours against torchvision's network in torchvision's plain style.

    python benchmarks/step.py --json step.json                     # the usual sizes of the device
    python benchmarks/step.py --px 64 --batch-sizes 32 --precisions fp32 bf16 --rounds 3

Both sides train ResNet-50 on the same uint8 batch, which lies on the device already, channels-last,
and include its normalisation, autocast, forward, label-smoothed loss, backward and SGD with
Nesterov momentum. Ours also flips half of the images and counts loss and accuracy on the device,
as it always does; the other side does neither. They take turns (A B A B …), and a ratio is that
of two measurements of the same round.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ceilings
import machine
from machine import Row
from rn50 import config, hardware
from rn50.config import Hardware, Images, Loss, Model, Optim, Run, Schedule
from rn50.data.loader import Batch
from rn50.data.plan import TrainPlan
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.model import resnet
from rn50.train import state as states
from rn50.train.schedule import Timeline
from rn50.train.state import TrainState
from rn50.train.step import Engine, train_step

STEPS_PER_EPOCH = 1000


@dataclass(frozen=True)
class Case:
    """One configuration that both sides train in."""

    px: int
    batch_size: int
    precision: str
    compile: bool = False
    arch: config.Arch = "resnet50"


Step = Callable[[], None]
"""Does one update; the host does not wait."""


def run_of(case: Case, *, deterministic: bool = False, device: config.Device = "auto") -> Run:
    """Return the settings of a run that trains as ``case`` says."""
    return Run(
        recipe="benchmark",
        epochs=1,
        model=Model(arch=case.arch),
        images=Images(
            batch_size=case.batch_size,
            train_px=case.px,
            test_px=case.px,
            test_resize_px=case.px,
        ),
        optim=Optim(peak_lr=0.1, weight_decay=1e-4),
        schedule=Schedule(warmup_epochs=0.5),
        loss=Loss(label_smoothing=0.1),
        hardware=Hardware(
            precision=case.precision,
            compile=case.compile,
            deterministic=deterministic,
            device=device,
        ),
    )


def synthetic_batch(run: Run, device: torch.device) -> Batch:
    """Return a batch of noise on the device, with the flips that a run would draw."""
    sides = np.full(run.images.batch_size * STEPS_PER_EPOCH, 500, np.int64)
    request = TrainPlan(images=run.images, seed=0, widths=sides, heights=sides).request(0)
    count, px = len(request.ids), request.px
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, px, px, 3), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, run.model.num_classes, (count,), generator=draws)
    return Batch(
        request=request,
        images=images.to(device).permute(0, 3, 1, 2),
        labels=labels.to(device),
        flips=torch.from_numpy(request.flips).to(device),
        wait_s=0.0,
    )


def our_step(run: Run, compute: Compute, batch: Batch) -> tuple[Step, TrainState]:
    """Return rn50's training step on one batch, and the state it updates."""
    state = states.new(run, compute, Group())
    engine = Engine.of(state, run, compute, Group())
    timeline = Timeline(run, STEPS_PER_EPOCH)

    def step() -> None:
        train_step(state, engine, batch, timeline.at(state.step), run)

    return step, state


def torchvision_step(run: Run, compute: Compute, batch: Batch) -> Step:
    """Return the step of torchvision's references/classification, with SGD in its Nesterov form."""
    device = compute.device
    model = getattr(torchvision.models, run.model.arch)(num_classes=run.model.num_classes)
    model = model.to(device, memory_format=torch.channels_last).train()
    net = torch.compile(model) if run.hardware.compile else model
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=run.optim.peak_lr,
        momentum=run.optim.momentum,
        nesterov=run.optim.nesterov,
        weight_decay=run.optim.weight_decay,
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=run.loss.label_smoothing)
    scaler = torch.amp.GradScaler(device.type) if compute.scales_loss else None
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (run.images.mean, run.images.std)
    )
    dtype = compute.autocast_dtype

    def step() -> None:
        inputs = batch.images.float().div(255).sub(mean).div(std)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = criterion(net(inputs), batch.labels)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return step


def compare(
    case: Case,
    *,
    rounds: int,
    seconds: float,
    matmul_ceiling: float | None = None,
    device: config.Device = "auto",
) -> Iterator[Row]:
    """Yield a row for torchvision and one for rn50.

    Args:
        case: What is trained.
        rounds: How often each side is measured.
        seconds: About how long a measurement takes.
        matmul_ceiling: TFLOP/s of the device's matrix products in the case's precision.
        device: As in a run's settings.
    """
    run = run_of(case, device=device)
    compute = hardware.resolve(run.hardware)
    torch._dynamo.reset()
    batch = synthetic_batch(run, compute.device)
    gflops = forward_backward_gflops(case)
    sides: dict[str, Callable[[], Step]] = {
        "torchvision": lambda: torchvision_step(run, compute, batch),
        "rn50": lambda: our_step(run, compute, batch)[0],
    }
    steps: dict[str, Step] = {}
    memory: dict[str, float] = {}
    warm_up_s: dict[str, float] = {}
    for name, build in sides.items():
        start = time.perf_counter()
        steps[name], memory[name] = _warm(build, compute.device)
        warm_up_s[name] = time.perf_counter() - start
    count = _steps_lasting(seconds, steps["torchvision"], compute.device)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            rates[name].append(case.batch_size * count / _duration(step, count, compute.device))
    peak = ceilings.known_peak(compute.device) if compute.precision != "fp32" else None
    for name in steps:
        spread = machine.spread(rates[name])
        tflops = spread["median"] * gflops / 1e3
        yield {
            "side": name,
            "arch": case.arch,
            "px": case.px,
            "batch": case.batch_size,
            "precision": case.precision,
            "compiled": case.compile,
            **{f"img/s {part}": value for part, value in spread.items()},
            "ratio": machine.ratio(rates[name], rates["torchvision"]),
            "memory MB": memory[name],
            "TFLOP/s": round(tflops, 3),
            "of measured matmul": _share(tflops, matmul_ceiling),
            "of stated peak": _share(tflops, peak),
            "warm-up s": round(warm_up_s[name], 1),
            "rounds": [round(rate, 1) for rate in rates[name]],
        }


def forward_backward_gflops(case: Case) -> float:
    """Return the model's GFLOP per image for forward and backward (a multiply-add is two)."""
    net = resnet.build(Model(arch=case.arch), seed=0)
    counter = FlopCounterMode(display=False)
    with counter:
        net(torch.zeros(2, 3, case.px, case.px)).sum().backward()
    return counter.get_total_flops() / 2 / 1e9


def release() -> None:
    """Return the memory of sides that are no longer used to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def skipped(case: Case, reason: str) -> Row:
    """Return the row of a case that was not measured."""
    return {
        "side": "both",
        "arch": case.arch,
        "px": case.px,
        "batch": case.batch_size,
        "precision": case.precision,
        "compiled": case.compile,
        "skipped": reason,
    }


def compare_all(
    cases: Sequence[Case], *, ceiling_of: dict[str, float], **settings: Any
) -> Iterator[Row]:
    """Yield the rows of all cases; one that does not fit in memory is said to be skipped."""
    for case in cases:
        reason = ""
        try:
            yield from compare(case, matmul_ceiling=ceiling_of.get(case.precision), **settings)
        except torch.OutOfMemoryError:
            reason = "out of memory"
        if reason:  # after the except clause, whose traceback holds the tensors
            yield skipped(case, reason)
        release()


def matmul_ceilings(rows: Sequence[Row]) -> dict[str, float]:
    """Return TFLOP/s by precision from the rows of ``ceilings.measure``."""
    found = {row["what"].split()[0]: row["median"] for row in rows if row["unit"] == "TFLOP/s"}
    if "tf32" in found:
        found["fp32"] = found["tf32"]
    return found


def _warm(build: Callable[[], Step], device: torch.device) -> tuple[Step, float]:
    """Build a side and let it choose its kernels; return its step and its peak memory in MB."""
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    step = build()
    for _ in range(5 if device.type == "cuda" else 1):
        step()
    ceilings.wait(device)
    if device.type != "cuda":
        return step, 0
    return step, round((torch.cuda.max_memory_allocated(device) - before) / 1e6)


def _steps_lasting(seconds: float, step: Step, device: torch.device) -> int:
    return max(1, round(seconds / _duration(step, 1, device)))


def _duration(step: Step, count: int, device: torch.device) -> float:
    ceilings.wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    ceilings.wait(device)
    return time.perf_counter() - start


def _share(tflops: float, ceiling: float | None) -> float | str:
    return "" if ceiling is None else round(tflops / ceiling, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--px", type=int, default=224 if on_gpu else 64)
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[128, 256] if on_gpu else [32]
    )
    parser.add_argument(
        "--precisions", nargs="+", default=["bf16", "fp16"] if on_gpu else ["fp32", "bf16"]
    )
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--compiled", action="store_true", default=on_gpu)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0 if on_gpu else 6.0)
    parser.add_argument("--small-ceilings", action="store_true", help="to test the script")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if on_gpu else "cpu")
    limits = list(ceilings.measure(device, small=args.small_ceilings))
    cases = [
        Case(args.px, batch_size, precision, compiled, args.arch)
        for compiled in (*([] if args.no_eager else [False]), *([True] if args.compiled else []))
        for precision in args.precisions
        for batch_size in args.batch_sizes
    ]
    rows = list(
        compare_all(
            cases,
            ceiling_of=matmul_ceilings(limits),
            rounds=args.rounds,
            seconds=args.seconds,
        )
    )
    facts = machine.describe(device)
    report = {"machine": facts, "ceilings": limits, "step": rows}
    markdown = "\n\n".join(
        [
            "# Training step: images per second",
            machine.table([{k: v for k, v in row.items() if k != "rounds"} for row in rows]),
            machine.table(limits),
            machine.facts_list(facts),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
