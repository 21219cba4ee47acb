import errno
import json
import os
import subprocess
import sys
import threading

import filelock
import pytest

from rn50.errors import UsageError
from rn50.train import lock

HOLD = """
import sys, time
from pathlib import Path
from rn50.train import lock
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_and_told_who_the_first_is(holder, tmp_path):
    with pytest.raises(UsageError, match=f"process {holder.pid} on "):
        lock.locked(tmp_path / "run", patience_s=0).__enter__()


def test_a_writer_about_to_end_is_waited_for(holder, tmp_path):
    threading.Timer(0.5, holder.kill).start()
    said = []
    with lock.locked(tmp_path / "run", say=said.append):
        assert len(said) == 1
        assert "waiting up to 30 s" in said[0]


def test_a_killed_writer_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    with lock.locked(tmp_path / "run"):
        told = json.loads((tmp_path / "run" / ".lock.json").read_text())
        assert told["pid"] == os.getpid()
    with lock.locked(tmp_path / "run"):
        pass


def test_without_the_systems_lock_the_note_decides(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    alive = {**lock.myself(), "pid": os.getppid()}
    (tmp_path / ".lock.json").write_text(json.dumps(alive))
    with pytest.raises(UsageError, match="is being written by process"):
        lock.locked(tmp_path, patience_s=0).__enter__()
    for dead in ({**alive, "boot": "another"}, {**alive, "pid": 2**22 + 1}):
        (tmp_path / ".lock.json").write_text(json.dumps(dead))
        with lock.locked(tmp_path):
            pass
    (tmp_path / ".lock.json").write_text(json.dumps({**alive, "host": "another"}))
    with pytest.raises(UsageError, match="on another, since"):
        lock.locked(tmp_path, patience_s=0).__enter__()


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "x", "host": 3}'])
def test_a_damaged_note_does_not_stand_in_the_way(tmp_path, note):
    (tmp_path / ".lock.json").write_text(note)
    with lock.locked(tmp_path):
        pass
