"""What it costs to be observed: the time of training, and memory over 100,000 steps.

    python benchmarks/observation.py --json observation.json

A training is imitated by a loop in the interpreter that takes a fixed time for a step, as the host
of a fast GPU does; everything that observes is real: the record, the live line, the log, the
reports and all four trackers (W&B offline, stores on this disk). Shares of the training time are
measured in the same run:

- what the training's own thread spends in writing records;
- the processor time of all other threads of its process, which compete for its interpreter;
- the reports after an epoch of 5,004 steps, which a thread makes of the whole record;
- the processor time of the trackers' process, which has another interpreter and a low priority.

The same loop is timed with and without a record to write, window by window, which other work on the
machine disturbs more.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import machine
from machine import Row
from rn50.config import Log, Run
from rn50.distributed import Group
from rn50.observe.cost import Meter
from rn50.observe.files import write_reports
from rn50.observe.record import Record
from rn50.recipes import recipe
from rn50.train.observing import Observing

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 5004
"""Of ImageNet in batches of 256."""
EVERY = 20


class Terminal(io.StringIO):
    """A terminal that nobody looks at; so the live line is drawn too."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True

    def write(self, text: str) -> int:
        """Forget what is shown."""
        return len(text)


def settings(place: Path, *, trackers: bool) -> Run:
    """Return a run that reports to all there is."""
    log = Log(
        every_steps=EVERY,
        tensorboard=trackers,
        wandb="offline" if trackers else "off",
        trackio=trackers,
        mlflow=str(place / "mlruns") if trackers else "",
    )
    return replace(recipe("imagenet-90"), log=log)


@contextlib.contextmanager
def observed(place: Path, *, trackers: bool) -> Iterator[Callable[[Record], None]]:
    """Yield how to write a record of a run that has just begun."""
    facts: Record = {"kind": "start", "step": 0, "recipe": "imagenet-90", "arch": "resnet50"}
    facts |= {"epochs": 90, "steps_per_epoch": STEPS_PER_EPOCH, "total_steps": 90 * STEPS_PER_EPOCH}
    facts |= {"num_train": 1_281_167, "num_val": 50_000, "num_classes": 1000, "world_size": 1}
    facts |= {"device": "none", "device_type": "cpu", "precision": "fp32", "versions": {}}
    run = settings(place, trackers=trackers)
    observing = Observing(run, place / "run", Group(), CPU, Meter())
    with contextlib.redirect_stdout(Terminal()), observing.begun(facts) as seen:
        yield seen.write


def train_record(step: int, seconds: float) -> Record:
    """Return the record of a window that ends with a step."""
    timing = {"seconds": seconds, "images_per_second": 256 * EVERY / max(1e-9, seconds)}
    timing |= {"data_wait": 0.01, "saving_s": 0.0, "slowest_s": 0.06, "slowest_wait_s": 0.0}
    scores = {"loss": 7 / (1 + step / 5000), "top1": 0.5}
    facts = {"kind": "train", "step": step, "lr": 0.4, "px": 224, "epoch": step / STEPS_PER_EPOCH}
    return {**facts, **scores, "timing": timing}


def epoch_record(step: int) -> Record:
    """Return the record of an epoch that ends with a step."""
    scores = {"loss": 1.5, "top1": 0.6, "top5": 0.8, "images": 50_000}
    timing = {"seconds": 250.0, "images_per_second": 5124.0, "data_wait": 0.0, "saving_s": 0.1}
    facts = {"kind": "epoch", "step": step, "lr": 0.4, "px": 224, "epoch": step // STEPS_PER_EPOCH}
    scores_of = {"train_loss": 2.0, "train_top1": 0.5, "val": {"model": scores, "average": scores}}
    return {**facts, **scores_of, "timing": {**timing, "eval_seconds": 20.0}}


def compute(loops: int) -> int:
    """Keep the interpreter busy for a fixed number of loops."""
    total = 0
    for i in range(loops):
        total += i * i % 7
    return total


def loops_of(step_ms: float) -> int:
    """Return how many loops take so long."""
    count = 100_000
    times = []
    for _ in range(9):
        start = time.perf_counter()
        compute(count)
        times.append(time.perf_counter() - start)
    return max(1, round(count * step_ms / 1000 / min(times)))


def processes_of(parent: int) -> list[int]:
    """Return the processes that one began, and those that they began, and so on."""
    found = [parent]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found[1:]


def processor_s(pids: Sequence[int]) -> float:
    """Return the processor time that processes have taken."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the memory of a process that is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return round(int(fields["RssAnon"].split()[0]) / 1024, 1)


def until_shown(place: Path, step: int) -> None:
    """Wait until TensorBoard has a step, and a moment more for the others."""
    position = place / "run" / "tensorboard" / "last-step"
    deadline = time.monotonic() + 300
    while not (position.exists() and position.read_text().strip() == str(step)):
        if time.monotonic() > deadline:
            raise SystemExit((place / "run" / "trackers.log").read_text())
        time.sleep(0.1)
    time.sleep(3)


def measure(place: Path, long_run: Path, step_ms: float, windows: int) -> tuple[list[Row], float]:
    """Return the shares, and the ratio of a window's times with and without being observed.

    Args:
        place: An empty folder.
        long_run: Folder of a run whose reports are made.
        step_ms: Time of a step.
        windows: How many are observed.
    """
    loops = loops_of(step_ms)

    def window(write: Callable[[Record], None], step: int) -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(EVERY):
            compute(loops)
        middle = time.perf_counter()
        write(train_record(step, middle - start))
        return middle - start, time.perf_counter() - middle

    trained = written = others = beside = 0.0
    ratios = []
    with observed(place, trackers=True) as write:
        step = EVERY
        write(train_record(step, 1.0))
        until_shown(place, step)
        children = processes_of(os.getpid())
        for _ in range(windows):
            alone = sum(window(lambda one: None, 0))
            before = time.process_time(), time.thread_time(), processor_s(children)
            step += EVERY
            in_training, in_writing = window(write, step)
            trained += in_training
            written += in_writing
            beyond = time.process_time() - before[0] - (time.thread_time() - before[1])
            others += max(0.0, beyond)
            beside += processor_s(children) - before[2]
            ratios.append((in_training + in_writing) / alone)
    start = time.process_time()
    write_reports(long_run)
    reports_s = time.process_time() - start
    parts = [
        ("writing records, on the training's thread", written, trained),
        ("all other threads of its process", others, trained),
        ("reports after an epoch, in a thread", reports_s, STEPS_PER_EPOCH * step_ms / 1000),
    ]
    rows: list[Row] = [
        {"what": name, "seconds": s, "of": of, "share": f"{s / of:.3%}"} for name, s, of in parts
    ]
    total = sum(s / of for _, s, of in parts)
    share = f"{beside / trained:.3%}"
    rows += [
        {"what": "together", "share": f"{total:.3%}"},
        {"what": "beside it, the trackers", "seconds": beside, "of": trained, "share": share},
    ]
    return rows, statistics.median(ratios)


def grow(place: Path, steps: int) -> list[Row]:
    """Return the memory after a tenth of the steps and after all, written as fast as can be."""
    rows: list[Row] = []
    with observed(place, trackers=True) as write:
        for step in range(EVERY, steps + 1, EVERY):
            write(train_record(step, 1.0))
            if step % STEPS_PER_EPOCH < EVERY:
                write(epoch_record(step))
            if step in (steps // 10, steps):
                until_shown(place, step)
                rows.append(_memory(step))
    growth = {name: f"{rows[1][name] - rows[0][name]:+.1f}" for name in rows[0] if name != "steps"}
    return [*rows, {"steps": "growth", **growth}]


def _memory(step: int) -> Row:
    row: Row = {"steps": step, "training's process, MB": memory_mb(os.getpid())}
    for pid in processes_of(os.getpid()):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            for word, name in ((b"rn50.observe.trackers", "trackers"), (b"wandb-core", "W&B")):
                if word in command:
                    row[f"process of {name}, MB"] = memory_mb(pid)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step-ms", type=float, default=50, help="time of a step")
    parser.add_argument("--windows", type=int, default=30, help="of 20 steps that are observed")
    parser.add_argument("--steps", type=int, default=100_000, help="over which memory may grow")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rn50-observation-") as scratch:
        os.environ["TRACKIO_DIR"] = str(Path(scratch) / "trackio")
        for name in ("time", "memory"):
            (Path(scratch) / name).mkdir()
        memory = grow(Path(scratch) / "memory", args.steps)
        shares, ratio = measure(
            *(Path(scratch) / "time", Path(scratch) / "memory" / "run", args.step_ms, args.windows)
        )
    report: dict[str, Any] = {
        "machine": machine.describe(CPU),
        "shares": shares,
        "ratio": round(ratio, 4),
        "memory": memory,
    }
    markdown = "\n\n".join(
        [
            "# Observation",
            f"Shares of the training time, at {args.step_ms:g} ms a step and a record every "
            f"{EVERY} steps:",
            machine.table(shares),
            f"A window of {EVERY} steps that is observed takes {ratio:.4f} times as long as one "
            f"that is not (median of {args.windows} pairs).",
            machine.table(memory),
            machine.facts_list(report["machine"]),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
