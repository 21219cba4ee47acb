import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from rn50.data.pack import pack
from rn50.data.shard_files import ShardFiles, unreadable
from rn50.data.shards import PackedDataset
from rn50.errors import DataError


@pytest.fixture
def files(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.tar").write_bytes(bytes([i]) * 1000 + bytes(range(200)))
    return ShardFiles([tmp_path / f"{i}.tar" for i in range(3)])


def test_any_part_of_any_file_is_read_by_any_thread(files):
    found = []

    def read() -> None:
        for i in range(300):
            found.append(files.read(i % 3, 998, 5) == bytes([i % 3] * 2 + [0, 1, 2]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1200
    assert all(found)
    assert files.sizes == [1200] * 3


def test_without_positioned_reads_threads_take_turns(files, monkeypatch):
    monkeypatch.delattr(os, "pread", raising=False)
    test_any_part_of_any_file_is_read_by_any_thread(files)


def test_a_file_that_was_cut_short_is_told(files, tmp_path):
    os.truncate(tmp_path / "1.tar", 1100)
    assert files.read(1, 1000, 100) == bytes(range(100))
    match = r"1\.tar now ends at byte 1100, and had 1200.*--resume"
    with pytest.raises(DataError, match=match):
        files.read(1, 1000, 101)


def test_a_file_that_was_removed_is_read_on(files, tmp_path):
    (tmp_path / "2.tar").unlink()
    assert files.read(2, 0, 3) == b"\2\2\2"


def test_a_disk_that_fails_is_told(files, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DataError, match=r"cannot read .*0\.tar at byte 7: Input/output error; the"):
        files.read(0, 7, 1)


def test_reads_that_bring_a_part_are_continued(files, monkeypatch):
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, start: whole(fd, min(count, 7), start))
    assert files.read(0, 1000, 200) == bytes(range(200))


def test_files_are_closed_with_the_object(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    files = ShardFiles([tmp_path / "a"])
    descriptor = int(files.descriptors[0])
    os.fstat(descriptor)
    del files
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_file_that_cannot_be_opened_is_named_and_the_others_are_closed(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with pytest.raises(DataError, match=r"cannot read .*missing: No such file"):
        ShardFiles([tmp_path / "a", tmp_path / "missing"])
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_limit_of_open_files_that_is_too_low_is_told_with_the_way_out():
    error = OSError(errno.EMFILE, "Too many open files", "train-000900.tar")
    match = r"train-000900\.tar: too many open files; each shard is one.*ulimit -Hn.*larger shards"
    assert_matches(match, unreadable(error))


def assert_matches(pattern: str, error: Exception) -> None:
    with pytest.raises(type(error), match=pattern):
        raise error


TOO_FEW = """
import resource, sys
from pathlib import Path
from rn50.data.shards import PackedDataset
from rn50.errors import DataError
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    PackedDataset.open(Path(sys.argv[1])).split("train")
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of this kind")
def test_more_shards_than_may_ever_be_open_are_refused_in_one_line(tmp_path):
    from conftest import Pictures

    pack(Pictures(), tmp_path / "packed", shard_bytes=1)
    words = [sys.executable, "-c", TOO_FEW, str(tmp_path / "packed")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "too many open files" in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_shard_cut_short_under_an_open_split_is_an_error_and_not_the_end(packed, tmp_path):
    import shutil

    folder = shutil.copytree(packed, tmp_path / "copy")
    train = PackedDataset.open(folder).split("train")
    last = int(np.argmax(train.index["offset"] + train.index["shard"].astype(np.uint64) * 10**9))
    shard, offset = train.place(last)
    os.truncate(folder / shard, offset + 10)
    with pytest.raises(DataError, match=rf"{shard} now ends at byte {offset + 10}"):
        train.jpeg(last)
