import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import filelock
import numpy as np
import pytest

from rn50.cli import main
from rn50.data import download
from rn50.data.download import ARCHIVES, Archive, archive, fetch, next_command
from rn50.errors import DataError, UsageError
from servers import serving

CONTENT = b"\x1f\x8b" + np.random.default_rng(0).bytes(1_500_000)
WANTED = Archive(
    name="small",
    url="http://nowhere.invalid/small.tgz",
    md5=hashlib.md5(CONTENT).hexdigest(),
    about_mb=1,
    holds="two classes",
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with serving({"/small.tgz": CONTENT}) as faulty:
        yield faulty


def got(server, dest, wanted=WANTED, **more):
    """Fetch from the server; return the file and the lines that were said."""
    lines = []
    url = f"{server.url}/small.tgz"
    return fetch(wanted, dest, url=url, say=lines.append, wait_s=0.0, **more), lines


def ranges(server):
    return [wanted for _, wanted in server.requests]


def test_an_archive_arrives_whole_and_alone(server, tmp_path):
    seen = []
    file, _ = got(server, tmp_path / "new", report=lambda done, total: seen.append((done, total)))
    assert file.read_bytes() == CONTENT
    assert os.listdir(tmp_path / "new") == ["small.tgz"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_archive_that_is_there_is_checked_and_not_fetched_again(server, tmp_path):
    (tmp_path / "small.tgz").write_bytes(CONTENT)
    _, lines = got(server, tmp_path)
    assert "already there and whole" in lines[-1]
    assert server.requests == []


def test_another_file_of_that_name_is_not_overwritten(server, tmp_path):
    (tmp_path / "small.tgz").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"has the MD5 .*; it must be .*rename or remove it"):
        got(server, tmp_path)
    assert (tmp_path / "small.tgz").read_bytes() == b"precious"


def test_a_cut_connection_is_continued_where_it_was_cut(server, tmp_path):
    server.cut_after = [600_000, 300_000]
    file, lines = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert ranges(server) == ["", "bytes=600000-", "bytes=900000-"]
    assert sum("the connection was cut" in line for line in lines) == 2


def test_a_cut_connection_is_found_by_the_checksum_where_the_size_is_not_told(server, tmp_path):
    server.tells_size = False
    server.cut_after = [600_000]
    with pytest.raises(DataError, match="has the MD5"):
        got(server, tmp_path)
    file, _ = got(server, tmp_path)
    assert file.read_bytes() == CONTENT


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cut_after = [600_000]
    server.statuses = [200, 503, 503, 503]
    with pytest.raises(DataError, match=r"503.* 3 times in a row.* 0.6 MB are kept .*again to go"):
        got(server, tmp_path, retries=2)
    assert not (tmp_path / "small.tgz").exists()
    file, lines = got(server, tmp_path)
    assert "going on with" in lines[0]
    assert file.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=600000-"


def test_a_process_that_was_killed_is_continued(server, tmp_path):
    server.cut_after = [600_000]
    server.on_request = lambda path: time.sleep(60) if len(server.requests) == 2 else None
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from rn50.data.download import ARCHIVES, fetch\n"
        "wanted = replace(ARCHIVES['imagenette'], url='http://x/small.tgz', about_mb=1)\n"
        "fetch(wanted, Path(sys.argv[1]), url=sys.argv[2], say=print, wait_s=0.0)\n"
    )
    url = f"{server.url}/small.tgz"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), url])
    while len(server.requests) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.on_request = lambda path: None
    file, _ = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=600000-"
    assert os.listdir(tmp_path) == ["small.tgz"]


def test_what_had_arrived_entirely_is_only_checked(server, tmp_path):
    note = {"url": f"{server.url}/small.tgz", "total": len(CONTENT), "validator": '"one"'}
    (tmp_path / "small.tgz.part").write_bytes(CONTENT)
    (tmp_path / "small.tgz.part.json").write_text(json.dumps(note))
    file, _ = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert server.requests == []


def test_a_server_that_ignores_the_range_is_read_from_the_first_byte(server, tmp_path):
    server.cut_after = [600_000]
    server.ignores_range = True
    file, lines = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert any("beginning again" in line for line in lines)


def test_a_server_that_always_cuts_and_never_resumes_does_not_hold_one_for_ever(server, tmp_path):
    server.cut_after = [600_000] * 9
    server.ignores_range = True
    with pytest.raises(DataError, match="the connection was cut, 4 times in a row"):
        got(server, tmp_path, retries=3)


def test_a_file_that_changed_on_the_server_is_read_from_the_first_byte(server, tmp_path):
    server.cut_after = [600_000]
    server.statuses = [200, 503]
    with pytest.raises(DataError, match="503"):
        got(server, tmp_path, retries=1)
    new = b"\x1f\x8b" + bytes(len(CONTENT) - 2)  # as long as the old one
    server.files["/small.tgz"], server.etag = new, '"two"'
    file, _ = got(server, tmp_path, replace(WANTED, md5=hashlib.md5(new).hexdigest()))
    assert file.read_bytes() == new


def test_a_file_that_became_shorter_than_what_is_there_is_read_from_the_first_byte(
    server, tmp_path
):
    server.cut_after = [600_000]
    server.statuses = [200, 503, 503]
    with pytest.raises(DataError, match="503"):
        got(server, tmp_path, retries=1)
    new = b"\x1f\x8b" + bytes(1000)
    server.files["/small.tgz"] = new
    file, _ = got(server, tmp_path, replace(WANTED, md5=hashlib.md5(new).hexdigest()))
    assert file.read_bytes() == new


def test_a_server_that_goes_on_at_another_byte_spoils_nothing(server, tmp_path):
    server.cut_after = [600_000]
    server.shift = -7
    file, lines = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert any("went on at another place" in line for line in lines)


def test_a_part_of_another_url_is_not_continued(server, tmp_path):
    (tmp_path / "small.tgz.part").write_bytes(b"x" * 600_000)
    note = {"url": "http://elsewhere/small.tgz", "total": len(CONTENT), "validator": ""}
    (tmp_path / "small.tgz.part.json").write_text(json.dumps(note))
    got(server, tmp_path)
    assert ranges(server) == [""]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, status):
    server.statuses = [status, status]
    file, lines = got(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert sum(str(status) in line for line in lines) == 2


def test_the_pause_that_a_server_names_is_kept(server, tmp_path):
    server.statuses = [503]
    server.headers = {"Retry-After": "1"}
    start = time.monotonic()
    _, lines = got(server, tmp_path)
    assert time.monotonic() - start >= 1
    assert "trying again in 1 s" in lines[0]


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "not there"), (410, "not there any more"), (403, "refuses"), (407, "https_proxy=")],
)
def test_a_refusal_is_final_and_says_what_to_do(server, tmp_path, status, words):
    server.statuses = [status]
    with pytest.raises(DataError, match=rf"{status}.*{words}.*--url"):
        got(server, tmp_path)
    assert len(server.requests) == 1


def test_a_page_of_a_proxy_is_not_taken_for_the_archive(server, tmp_path):
    server.page = b"<!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(DataError, match=r"a web page instead of the archive: a proxy or a login"):
        got(server, tmp_path)
    assert os.listdir(tmp_path) == []


def test_wrong_content_is_put_aside_and_fetched_anew_by_the_next_call(server, tmp_path):
    server.files["/small.tgz"] = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=r"has the MD5 .* kept as .*small.tgz.wrong; run the same"):
        got(server, tmp_path)
    assert os.listdir(tmp_path) == ["small.tgz.wrong"]
    server.files["/small.tgz"] = CONTENT
    file, _ = got(server, tmp_path)
    assert file.read_bytes() == CONTENT


def test_an_archive_of_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(DataError, match=r"has 1,500,002 bytes; it must have 1,500,003"):
        got(server, tmp_path, replace(WANTED, num_bytes=1_500_003))
    assert not list(tmp_path.glob("*.tgz*"))


def test_an_archive_without_a_checksum_is_fetched_and_told_so(server, tmp_path):
    file, lines = got(server, tmp_path, replace(WANTED, md5=None))
    assert file.read_bytes() == CONTENT
    assert "no checksum of small.tgz is published" in lines[-1]


def test_a_name_without_an_address_is_told_at_once(tmp_path):
    with pytest.raises(DataError, match=r"no address is known for nowhere.invalid .*name server"):
        fetch(WANTED, tmp_path, say=print)


def test_a_server_that_is_down_is_told_after_some_attempts(tmp_path):
    lines = []
    with pytest.raises(DataError, match=r"127.0.0.1:9 cannot be reached .*, 3 times in a row"):
        fetch(
            *(WANTED, tmp_path),
            url="http://127.0.0.1:9/small.tgz",
            say=lines.append,
            retries=2,
            wait_s=0.0,
        )
    assert len(lines) == 2


def test_something_that_is_no_url_is_refused(tmp_path):
    with pytest.raises(UsageError, match="it must begin with https://"):
        fetch(WANTED, tmp_path, url="mirror/small.tgz", say=print)


def test_too_little_room_is_told_before_anything_is_written(server, tmp_path):
    vast = replace(WANTED, about_mb=10**9)
    server.tells_size = False
    with pytest.raises(UsageError, match=r"MB free; .* needs 1,000,000,000 MB more; make room"):
        got(server, tmp_path, vast)
    assert not list(tmp_path.glob("*.tgz*"))


def test_a_disk_that_fills_up_keeps_what_has_arrived(server, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        server.tells_size = False
        with pytest.raises(UsageError, match=r"the disk is full .*run the same command again"):
            got(server, place, replace(WANTED, about_mb=0))
        server.tells_size = True
        with pytest.raises(UsageError, match=r"needs 2 MB more; make room"):
            got(server, place)
    finally:
        subprocess.run(["umount", place], check=True)


def test_two_processes_do_not_write_one_file(server, tmp_path):
    with (
        filelock.FileLock(tmp_path / "small.tgz.part.lock"),
        pytest.raises(UsageError, match=r"another process is fetching .*wait until it ends"),
    ):
        got(server, tmp_path)


def test_every_archive_has_a_checksum_and_a_kind_that_is_recognised():
    for name, one in ARCHIVES.items():
        assert name == one.name
        assert one.md5 is not None
        assert len(bytes.fromhex(one.md5)) == 16
        assert one.file.endswith((".tgz", ".zip"))


def test_imagenet_is_explained_in_one_message():
    with pytest.raises(UsageError) as told:
        archive("imagenet")
    for words in ("https://image-net.org", "ILSVRC2012_img_train.tar", "rn50 prepare FOLDER DEST"):
        assert words in str(told.value)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'imagenete' cannot be fetched; what can: imagenette, "):
        archive("imagenete")


def _miniature():
    """Return an archive with the layout of Imagenette: 2 classes, 3 train and 1 val images each."""
    from conftest import _jpeg

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for label, wnid in enumerate(("n01440764", "n02102040")):
            for split, count in (("train", 3), ("val", 1)):
                for i in range(count):
                    content = _jpeg(label, i, split)
                    member = tarfile.TarInfo(f"imagenette2-160/{split}/{wnid}/{i}.JPEG")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_the_command_fetches_and_names_a_next_command_that_works(
    monkeypatch, tmp_path, capsys, server
):
    content = _miniature()
    server.files["/a/imagenette2-160.tgz"] = content
    small = replace(ARCHIVES["imagenette-160"], md5=hashlib.md5(content).hexdigest(), about_mb=1)
    monkeypatch.setitem(download.ARCHIVES, "imagenette-160", small)
    url = f"{server.url}/a/imagenette2-160.tgz"
    main(["download", "imagenette-160", str(tmp_path), "--url", url])
    told = capsys.readouterr().out
    command = next_command(small, tmp_path / "imagenette2-160.tgz")
    assert command in told
    main(shlex.split(command)[1:])
    assert "6 train, 2 val images of 2 classes" in capsys.readouterr().out


def test_the_command_lists_what_can_be_fetched(capsys):
    main(["download"])
    told = capsys.readouterr().out
    for name in (*ARCHIVES, "imagenet"):
        assert name in told


def test_the_command_exits_2_for_imagenet(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["download", "imagenet"])
    assert stop.value.code == 2
    assert "https://image-net.org" in capsys.readouterr().err
