import errno
import hashlib
import json
import os

import pytest

from rn50 import durable
from rn50.errors import UsageError


def fail(code: int):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.bin"
    durable.write_bytes(path, b"old")
    durable.write_bytes(path, b"new\x00")
    assert path.read_bytes() == b"new\x00"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def recorded_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    durable.write_bytes(tmp_path / "a.bin", b"new")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.bin"
    durable.write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail(code))
        with pytest.raises(UsageError if code == errno.ENOSPC else OSError):
            durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            durable.write_bytes(tmp_path / "a.bin", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission is denied"),
        (errno.EPERM, "permission is denied"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_what_the_system_refuses_is_said_in_one_line(tmp_path, code, reason):
    path = tmp_path / "absent" / "a.bin"
    with (
        pytest.raises(UsageError, match=rf"cannot write .*a\.bin: {reason} \(.* MB free") as caught,
        durable.explained(path),
    ):
        fail(code)()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(IsADirectoryError), durable.explained(tmp_path):
        fail(errno.EISDIR)()
    with pytest.raises(ZeroDivisionError), durable.explained(tmp_path):
        raise ZeroDivisionError


def test_json_keeps_its_order_and_ends_with_a_line_feed(tmp_path):
    durable.write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text).items()) == [("b", 1), ("a", [0.1, None])]


def test_text_is_written_as_utf_8(tmp_path):
    durable.write_text(tmp_path / "a.txt", "± ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "± ä\n".encode()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a.bin").write_bytes(data)
    expected = hashlib.blake2b(data, digest_size=16).hexdigest()
    assert durable.file_digest(tmp_path / "a.bin") == durable.digest(data) == expected
    assert durable.digest(memoryview(data)) == expected
