import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rn50.cli import main
from rn50.errors import UsageError
from rn50.supervise import supervise

PROGRAM = """
import os, pathlib, sys
count = pathlib.Path(sys.argv[1])
done = int(count.read_text()) if count.exists() else 0
count.write_text(str(done + 1))
code = [int(word) for word in sys.argv[2:]][done]
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


def scripted(count: Path, *codes: int) -> list[str]:
    """A command that ends with each of the codes in turn; below 0, by that signal."""
    return [sys.executable, "-c", PROGRAM, str(count), *map(str, codes)]


def supervised(command: list[str], *, restarts: int = 5) -> tuple[int, list[str]]:
    lines: list[str] = []
    return supervise(command, restarts=restarts, wait_s=0.0, say=lines.append), lines


def test_a_run_that_was_interrupted_or_crashed_is_started_until_it_is_done(tmp_path):
    command = scripted(tmp_path / "count", 33, 1, -signal.SIGKILL, 0)
    code, lines = supervised(command)
    assert code == 0
    ended = [line.split(";")[0] for line in lines]
    assert ended == [f"the run ended with {code}" for code in (33, 1, 137)]


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_what_is_done_or_no_restart_mends_is_not_started_again(code, tmp_path):
    assert supervised(scripted(tmp_path / "count", code))[0] == code
    assert (tmp_path / "count").read_text() == "1"


OUTAGE = """
import pathlib, sys
import rn50.cli as cli
from rn50 import remote_files
from rn50.data.remote import local_folder
remote_files._FIRST_WAIT_S = 0.0
count = pathlib.Path(sys.argv[1])
def train(given):
    if count.exists():
        sys.exit()
    count.touch()
    local_folder("http://127.0.0.1:9/data")
cli.train_command = train
cli.main(["train"])
"""


def test_a_run_that_cannot_reach_its_data_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RN50_CACHE", str(tmp_path / "cache"))
    code, lines = supervised([sys.executable, "-c", OUTAGE, str(tmp_path / "count")], restarts=1)
    assert [line.split(";")[0] for line in lines] == ["the run ended with 1"]
    assert code == 0


def test_restarts_are_bounded(tmp_path):
    code, lines = supervised(scripted(tmp_path / "count", *[33] * 9), restarts=2)
    assert code == 33
    assert (tmp_path / "count").read_text() == "3"
    assert "started 3 times, as allowed" in lines[-1]


TORCHRUN = """
import os, subprocess, sys
for rank, code in enumerate(sys.argv[1:]):
    program = f"from rn50.errors import *; from rn50.cli import main; import rn50.cli as c\\n"
    program += "kinds = {2: UsageError, 3: DataError, 4: DivergedError, 33: InterruptedRunError}\\n"
    program += f"def fails(given): raise kinds[{code}]('told')\\n"
    program += "c.train_command = fails; main(['train'])"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "RANK": str(rank)})
sys.exit(1)
"""


@pytest.mark.parametrize(("codes", "told"), [((33, 33), 33), ((33, 3), 3), ((2,), 2), ((), 1)])
def test_the_codes_of_workers_come_through_a_launcher_that_ends_with_1(codes, told):
    command = [sys.executable, "-c", TORCHRUN, *map(str, codes)]
    assert supervised(command, restarts=0)[0] == told


SAYS_SIGNAL = """
import pathlib, signal, sys, time
def handle(number, _):
    with open(sys.argv[1], "a") as file: file.write(f"{number} ")
    time.sleep(0.3)
    sys.exit(33)
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
    signal.signal(getattr(signal, name), handle)
with open(sys.argv[1], "a") as file: file.write("ready ")
time.sleep(60)
"""


def begin(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rn50", "supervise", *words],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_is_handed_on_once_and_nothing_is_started_again(name, tmp_path):
    number = getattr(signal, name)
    told = tmp_path / "told"
    process = begin("--", sys.executable, "-c", SAYS_SIGNAL, str(told))
    wait_for(told, "ready")
    os.killpg(process.pid, number)  # as a terminal does: the whole foreground group
    process.communicate(timeout=60)
    assert process.returncode == 33
    assert told.read_text() == f"ready {number:d} "


def test_a_signal_ends_the_wait_for_the_next_start(tmp_path):
    count = tmp_path / "count"
    process = begin("--wait-s", "600", "--", *scripted(count, 33, 0))
    assert b"starting it again in 600 s, 10 left" in process.stderr.readline()
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, count.read_text()) == (33, "1")


def test_a_command_that_would_begin_anew_is_refused(capsys):
    for command in (["rn50", "train"], ["torchrun", "-m", "rn50", "train", "imagenet-90"]):
        with pytest.raises(SystemExit, match="2"):
            main(["supervise", "--", *command])
        assert "without which every restart would begin anew; add it" in capsys.readouterr().err


def test_no_command_and_none_that_exists_are_refused():
    with pytest.raises(UsageError, match="give the command after --"):
        supervised([])
    with pytest.raises(UsageError, match="cannot start no-such-program: No such file"):
        supervised(["no-such-program"])


def test_numbers_below_0_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["supervise", "--restarts", "-1", "--", "true"])
    assert "restarts is -1" in capsys.readouterr().err
