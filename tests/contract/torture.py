"""Kill runs at random instants, many times, and compare what they end with.

    scripts/torture                      # 200 kills, about 20 minutes on two cores
    scripts/torture --kills 20 --only "SWA tail" --seed 7

Each case is run once in peace. Then it is run again and again, killed with signal 9 after a random
time and started anew with the same command, until it ends; its weights, averages, momentum and
history must be those of the peaceful run to the last bit, with no file left over. Where a kill hit
is read from a page of memory shared with the victim, in which it notes what it is doing.

Processes are forked from this one, which has imported everything, so that a start costs no seconds.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).parents[2])]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from benchmarks import machine  # noqa: E402

import rn50.cli  # noqa: E402
import rn50.data.pack  # noqa: E402
import rn50.train.run  # noqa: E402
from conftest import Pictures  # noqa: E402
from contract import runs  # noqa: E402
from rn50.data.pack import pack  # noqa: E402
from rn50.train import checkpoint  # noqa: E402

SAVING, EVALUATING, TRAINING = 1, 2, 4
PATIENCE_S = 120


@dataclass(frozen=True)
class Case:
    """What is run and killed."""

    options: tuple[str, ...] = ()
    processes: int = 1
    packs: bool = False


CASES = {
    "EMA, accumulation, clipping": Case(
        ("--ema-horizon", "0.1", "--micro-batch", "8", "--clip-grad-norm", "1")
    ),
    "SWA tail and EMA": Case(
        (
            *("--epochs", "4", "--schedule.tail-epochs", "2", "--schedule.tail-lr", "0.1"),
            *("--swa-epochs", "2", "--average.swa-every-steps", "2"),
            *("--average.swa-bn-images", "32", "--ema-horizon", "0.1"),
        )
    ),
    "growing images, mixing, policies": Case(
        (
            *("--train-px", "64", "--images.sizes", "0", "32", "1", "64", "--loss", "bce"),
            *("--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--auto-augment", "trivialaugment"),
            *("--random-erase", "0.3", "--optimizer", "lamb", "--lr", "0.005"),
        )
    ),
    "two processes": Case(("--ema-horizon", "0.1", "--mixup-alpha", "0.2"), processes=2),
    "packing": Case(packs=True),
}


@dataclass
class Tally:
    """What came of the kills of one case."""

    kills: int = 0
    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Notes:
    """A page that victims write what they are doing into, and that outlives them."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @contextmanager
    def doing(self, what: int) -> Iterator[None]:
        self._page[what] = 1
        try:
            yield
        finally:
            self._page[what] = 0

    def wrap(self, function: Callable[..., Any], what: int) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            with self.doing(what):
                return function(*args, **kwargs)

        return noted

    def take(self, packs: bool) -> str:
        """Return what the dead were doing, and forget it."""
        if packs:
            return "packing"
        told = "starting"
        for what, name in ((TRAINING, "training"), (EVALUATING, "evaluating"), (SAVING, "saving")):
            if self._page[what]:
                told = name
            self._page[what] = 0
        return told


def watched(notes: Notes) -> None:
    """Have the parts of a run note that they are at work; in a child only."""
    checkpoint.publish = notes.wrap(checkpoint.publish, SAVING)  # type: ignore[assignment]
    rn50.train.run.evaluate = notes.wrap(rn50.train.run.evaluate, EVALUATING)
    rn50.train.run.train = notes.wrap(rn50.train.run.train, TRAINING)


def fork(arguments: Sequence[str], log: Path, notes: Notes, rank: dict[str, str]) -> int:
    """Start a command in a process of its own and return its number."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.environ.update(rank)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        watched(notes)
        rn50.cli.main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def begin(case: Case, arguments: Sequence[str], log: Path, notes: Notes) -> list[int]:
    """Start all processes of a case."""
    if case.processes == 1:
        return [fork(arguments, log, notes, {})]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    world = {"WORLD_SIZE": str(case.processes), "LOCAL_WORLD_SIZE": str(case.processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        fork(arguments, log, notes, {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(case.processes)
    ]


def outcome(pids: Sequence[int], seconds: float) -> list[int] | None:
    """Wait so long, and return the exit codes if all have ended."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            kill([pid for pid in pids if pid not in codes])
            return [*codes.values()]
        if time.monotonic() > deadline and len(codes) < len(pids):
            if codes:  # The others are about to end, too.
                deadline += 1
                continue
            return None
        time.sleep(0.002)
    return [*codes.values()]


def kill(pids: Sequence[int]) -> None:
    """Kill processes, one a moment before the others, as the kernel's out-of-memory killer does."""
    for pid in random.sample(list(pids), len(pids)):
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for pid in pids:
        os.waitpid(pid, 0)


def arguments_of(case: Case, data: Path, source: Path, place: Path) -> list[str]:
    """Return the command line, the same for the first start and every other."""
    if case.packs:
        words = ["prepare", str(source), str(place), "--workers", "2", "--resize-short", "64"]
        return words
    words = runs.command(data, place, *case.options, "--resume")[3:]
    words[words.index("--storage.checkpoint-steps") + 1] = "2"
    return words


def differences(case: Case, peaceful: Path, tortured: Path) -> str:
    """Return what is not as it must be, or nothing."""
    left = [path.name for path in tortured.parent.rglob(".tmp-*")]
    left += [p.name for p in tortured.parent.glob(f".{tortured.name}*") if case.packs]
    if left:
        return f"left over: {left}"
    try:
        if case.packs:
            files = sorted(p.name for p in peaceful.iterdir())
            assert files == sorted(p.name for p in tortured.iterdir()), "other files"
            for name in files:
                one, other = (p / name for p in (peaceful, tortured))
                assert one.read_bytes() == other.read_bytes(), name
        else:
            runs.assert_same_end(peaceful, tortured)
            for path in peaceful.glob("*.safetensors"):
                assert path.read_bytes() == (tortured / path.name).read_bytes(), path.name
    except (AssertionError, FileNotFoundError) as error:
        return str(error)
    return ""


def torture(
    name: str, case: Case, kills: int, data: Path, source: Path, scratch: Path, draw: random.Random
) -> Tally:
    """Kill one case so often, and compare every run that came to its end."""
    notes, tally = Notes(), Tally()
    peaceful = scratch / "peaceful" / "run"
    peaceful.parent.mkdir(parents=True)
    start = time.monotonic()
    pids = begin(case, arguments_of(case, data, source, peaceful), scratch / "log", notes)
    if (codes := outcome(pids, PATIENCE_S)) is None or any(codes):
        raise SystemExit(f"{name}: the run in peace ended with {codes}; see {scratch / 'log'}")
    duration = time.monotonic() - start
    while tally.kills < kills and not tally.failures:
        tally.runs += 1
        place = scratch / f"{tally.runs}" / "run"
        place.parent.mkdir()
        arguments, log = arguments_of(case, data, source, place), place.parent / "log"
        while True:
            seconds = draw.uniform(0, duration / 2) if tally.kills < kills else PATIENCE_S
            pids = begin(case, arguments, log, notes)
            codes = outcome(pids, seconds)
            if codes is not None:
                break
            kill(pids)
            tally.kills += 1
            tally.hits[notes.take(case.packs)] += 1
        problem = f"ended with {codes}" if any(codes) else differences(case, peaceful, place)
        if problem:
            tally.failures.append(f"{problem}; see {log}")
        else:
            shutil.rmtree(place.parent)
    return tally


def report(tallies: dict[str, Tally], seed: int, seconds: float) -> str:
    """Return the outcome as Markdown."""
    columns = ("starting", "training", "evaluating", "saving", "packing")
    rows = [
        {
            "case": name,
            "kills": tally.kills,
            **{f"in {column}": tally.hits[column] or "" for column in columns},
            "runs compared": tally.runs,
            "not identical": len(tally.failures),
        }
        for name, tally in tallies.items()
    ]
    facts = machine.describe(torch.device("cpu")) | {
        "seed": seed,
        "minutes": round(seconds / 60, 1),
    }
    return f"# Torture\n\n{machine.table(rows)}\n\n{machine.facts_list(facts)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Torture as the command line says; end with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="over all cases")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=20, help="begin no further case then")
    parser.add_argument("--out", type=Path, help="write the table here, as .md and .json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draw, start = random.Random(args.seed), time.monotonic()
    print(f"seed {args.seed}", flush=True)
    tallies = {}
    scratch = Path(tempfile.mkdtemp(prefix="rn50-torture-"))
    data, source = scratch / "packed", scratch / "pictures"
    pack(Pictures(), data, shard_bytes=100_000)
    for image in Pictures().images():
        path = source / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.read())
    for number, name in enumerate(args.only):
        if time.monotonic() - start > 60 * args.minutes:
            print(f"no time is left for: {name}", flush=True)
            continue
        kills = args.kills * (number + 1) // len(args.only) - args.kills * number // len(args.only)
        place = scratch / f"case-{number}"
        tallies[name] = torture(name, CASES[name], kills, data, source, place, draw)
        told = tallies[name]
        print(
            f"{name}: {told.kills} kills, {told.runs} runs, {told.failures or 'identical'}",
            flush=True,
        )
    markdown = report(tallies, args.seed, time.monotonic() - start)
    print(markdown)
    if args.out is not None:
        args.out.with_suffix(".md").write_text(markdown + "\n")
        plain = {name: {**vars(tally)} for name, tally in tallies.items()}
        args.out.with_suffix(".json").write_text(json.dumps(plain, indent=2) + "\n")
    if any(tally.failures for tally in tallies.values()):
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
