"""Runs of the command line in processes of their own, for the tests of what a run promises."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

SETTINGS = (
    *("--arch", "resnet18", "--model.num-classes", "4", "--epochs", "3", "--warmup-epochs", "1"),
    *("--batch-size", "16", "--train-px", "32", "--images.test-px", "32"),
    *("--images.test-resize-px", "36", "--lr", "0.05", "--log-every", "1"),
    *("--storage.checkpoint-steps", "4", "--precision", "fp32", "--workers", "2"),
)
"""A network, a batch and an image size with which a step takes a tenth of a second."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rn50.cli", "rn50.train.run", "torchvision"])
_PLAIN = ["-m", "rn50"]
"""How ``command`` starts a single process."""

AVERAGED_AND_ACCUMULATED = ("--ema-horizon", "0.1", "--micro-batch", "8", "--clip-grad-norm", "1")


def command(data: Path, place: Path, *more: str, processes: int = 1) -> list[str]:
    program = ["-m", "rn50"]
    if processes > 1:
        program = ["-m", "torch.distributed.run", "--standalone"]
        program += ["--nproc-per-node", str(processes), "-m", "rn50"]
    arguments = (
        "train",
        "demo",
        "--data",
        str(data),
        "--output-dir",
        str(place),
        "--device",
        "cpu",
    )
    return [sys.executable, *program, *arguments, *SETTINGS, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Forked:
    """A run in a process forked from one that has imported everything: a start costs no seconds.

    It has what these tests use of ``subprocess.Popen``.
    """

    def __init__(self, words: list[str], output: str) -> None:
        self._process = SERVER.Process(target=_run, args=(words, environment(), output))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired("rn50", timeout)
        return code


def _run(words: list[str], variables: dict[str, str], output: str) -> None:
    """Be the process that ``words`` would have started, writing to a file."""
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    from rn50.cli import main

    main(words)


def finish(words: list[str], *, code: int = 0) -> str:
    with tempfile.NamedTemporaryFile() as file:
        if words[1:3] == _PLAIN:
            ended = Forked(words[3:], file.name).wait(timeout=240)
        else:
            ended = subprocess.run(
                words, env=environment(), stdout=file, stderr=subprocess.STDOUT, timeout=240
            ).returncode
        output = Path(file.name).read_text()
    assert ended == code, output
    return output


def begin(words: list[str]) -> "Forked | subprocess.Popen[bytes]":
    if words[1:3] == _PLAIN:
        return Forked(words[3:], os.devnull)
    return subprocess.Popen(
        words,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def begin_pair(
    words: list[str], urls: Sequence[str] = ("", ""), folders: Sequence[Path | None] = (None, None)
) -> list[subprocess.Popen[str]]:
    """Start both processes of a run without torchrun, as on two machines, to see either's end.

    ``urls`` are of their metadata services, ``folders`` what they start in.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank, (url, folder) in enumerate(zip(urls, folders, strict=True)):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RN50_METADATA_URL": url}
        variables = environment() | {name: str(value) for name, value in place.items()}
        processes.append(
            subprocess.Popen(
                words,
                cwd=folder,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    return processes


def steps_recorded(place: Path) -> int:
    try:
        lines = (place / "metrics.jsonl").read_bytes().splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith(b"}")), default=0)
    except (FileNotFoundError, ValueError):
        return 0


def descendants(pid: int) -> list[int]:
    """Return a process and all that it began, as far as they are alive."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            found += [int(child) for child in children.split()]
    return found


def kill_at(words: list[str], place: Path, step: int, number: int = signal.SIGKILL) -> int:
    """Start a run, and send it (all its processes, for a kill) a signal once it reaches a step."""
    process = begin(words)
    deadline = time.monotonic() + 120
    while steps_recorded(place) < step and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGKILL:
        for pid in descendants(process.pid):  # torchrun's workers have sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    else:
        process.send_signal(number)
    return process.wait(timeout=60)


def assert_same_end(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same tensors and told the same history, bit for bit."""
    from rn50.observe import record

    last = sorted((one / "checkpoints").glob("step-*"))[-1].name
    names = sorted(p.name for p in (one / "checkpoints" / last).glob("*.safetensors"))
    assert names == sorted(p.name for p in (other / "checkpoints" / last).glob("*.safetensors"))
    for name in names:
        first = safetensors.torch.load_file(one / "checkpoints" / last / name)
        second = safetensors.torch.load_file(other / "checkpoints" / last / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
    histories = [
        record.without_timing(record.read(place / "metrics.jsonl")) for place in (one, other)
    ]
    assert histories[0] == histories[1]
    assert not list(other.rglob(".tmp-*"))
