import json
import os
import shutil
import subprocess
import sys
import time
import uuid

import fsspec
import pytest

from rn50 import durable, remote_files
from rn50.cli import main
from rn50.data import cache, remote
from rn50.data.remote import local_folder
from rn50.data.shards import MANIFEST, PackedDataset, files
from rn50.errors import DataError, UsageError
from rn50.evaluate import score
from rn50.remote_files import UnreachableError
from servers import s3_store, serving


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Let nothing of this machine's settings reach the tests, and let nobody wait."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.0)


@pytest.fixture
def web(packed):
    """Serve the packed data set below ``/data`` of a web server."""
    with serving({f"/data/{p.name}": p.read_bytes() for p in packed.iterdir()}) as server:
        yield server


def url(server):
    return f"{server.url}/data"


def fetched(server):
    """Return the names of the files that were asked for, the manifest left out."""
    names = [path.rpartition("/")[2] for path, _ in server.requests]
    return sorted(name for name in names if name != MANIFEST)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_path_is_returned_untouched(tmp_path):
    assert local_folder(str(tmp_path / "anywhere")) == tmp_path / "anywhere"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("data", ["data", "/data", "./s3:/x", "C:\\data", "C://data", "a:b"])
def test_a_path_is_no_url(data):
    assert not remote_files.is_remote(data)


def test_what_a_url_names_becomes_an_equal_local_folder(web, packed):
    lines = []
    folder = local_folder(url(web), say=lines.append)
    assert contents(folder) == contents(packed)
    assert PackedDataset.open(folder).split("train").num_images == 96
    assert cache.folder() in folder.parents
    assert "fetching http://127.0.0.1" in lines[0]


def test_a_trailing_slash_makes_no_difference(web):
    assert local_folder(f"{url(web)}/") == local_folder(url(web))


def test_what_is_there_is_not_fetched_again(web):
    folder = local_folder(url(web))
    web.requests.clear()
    assert local_folder(url(web)) == folder
    assert [path for path, _ in web.requests] == [f"/data/{MANIFEST}"]


def test_a_file_that_was_lost_or_cut_is_fetched_again_and_the_others_are_not(web, packed):
    folder = local_folder(url(web))
    web.requests.clear()
    (folder / "train.index.npy").unlink()
    (folder / "val-000000.tar").write_bytes(b"cut")
    local_folder(url(web))
    assert fetched(web) == ["train.index.npy", "val-000000.tar"]
    assert contents(folder) == contents(packed)


def test_a_killed_process_leaves_whole_files_that_the_next_one_keeps(web, packed):
    slow = "/data/train-000000.tar"
    web.on_request = lambda path: time.sleep(60) if path == slow else None
    code = "import sys; from rn50.data.remote import local_folder; local_folder(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, url(web)])
    whole = {p.name for p in packed.iterdir()} - {MANIFEST, "train-000000.tar"}
    place = cache.folder() / "remote"
    while {p.name for p in place.glob("*/*/*") if not p.name.startswith(".")} != whole:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    web.requests.clear()
    web.on_request = lambda path: None
    folder = local_folder(url(web))
    assert fetched(web) == ["train-000000.tar"]
    assert contents(folder) == contents(packed)


def test_of_several_processes_one_fetches_while_the_others_wait(web, packed):
    web.on_request = lambda path: time.sleep(0.3) if path.endswith(".tar") else None
    code = "import sys; from rn50.data.remote import local_folder\n"
    code += "print(local_folder(sys.argv[1], say=lambda line: print(line, file=sys.stderr)))"
    command = [sys.executable, "-c", code, url(web)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in outputs}) == 1
    names = sorted(p.name for p in packed.iterdir() if p.name != MANIFEST)
    assert fetched(web) == names


def test_content_that_was_damaged_on_the_way_once_is_fetched_again(web, packed):
    shard = "/data/train-000000.tar"
    good = web.files[shard]
    web.files[shard] = good[:-1] + b"?"

    def heal(path):
        if fetched(web).count("train-000000.tar") == 2:
            web.files[shard] = good

    web.on_request = heal
    assert contents(local_folder(url(web))) == contents(packed)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda good: good[:-1] + b"?", "has another hash"),
        (lambda good: good[:-1], "it must have"),
        (lambda good: good + bytes(1 << 20), "has more than the"),
    ],
)
def test_content_that_is_wrong_twice_is_an_error_and_not_kept(web, damage, words):
    shard = "/data/train-000000.tar"
    web.files[shard] = damage(web.files[shard])
    with pytest.raises(DataError, match=rf"train-000000.tar.*{words}.*, twice; .*copy the whole"):
        local_folder(url(web))
    place = cache.folder() / "remote"
    left = {p.name for p in place.glob("*/*/*")}
    assert not left & {MANIFEST, "train-000000.tar"}
    assert not [name for name in left if name.startswith(durable.TEMPORARY_PREFIX)]


def test_a_cut_or_busy_connection_is_tried_again(web, packed):
    web.cut_after = [10**9, 100, 100]
    web.statuses = [503, 200, 200, 200, 500]
    assert contents(local_folder(url(web))) == contents(packed)


def test_data_that_changed_is_fetched_anew_and_told(web, packed):
    before = local_folder(url(web))
    manifest = json.loads(web.files[f"/data/{MANIFEST}"])
    manifest["fingerprint"] = "0" * 32
    web.files[f"/data/{MANIFEST}"] = json.dumps(manifest).encode()
    lines = []
    now = local_folder(url(web), say=lines.append)
    assert now != before
    assert "was changed since it was last fetched" in lines[0]
    assert str(before) in lines[0]
    assert PackedDataset.open(now).fingerprint == "0" * 32


def test_too_little_room_is_told_before_anything_is_fetched(web):
    manifest = json.loads(web.files[f"/data/{MANIFEST}"])
    manifest["splits"]["train"]["shards"][0]["bytes"] = 10**18
    web.files[f"/data/{MANIFEST}"] = json.dumps(manifest).encode()
    with pytest.raises(UsageError, match=r"MB free; .* needs 1,000,000,.*RN50_CACHE"):
        local_folder(url(web))
    assert fetched(web) == []


def test_a_disk_that_fills_up_is_told(web, monkeypatch, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(place))
    try:
        shard = "/data/train-000000.tar"
        manifest = json.loads(web.files[f"/data/{MANIFEST}"])
        web.files[shard] += bytes(2_000_000)  # more than the manifest had told
        manifest["splits"]["train"]["shards"][0]["bytes"] = 900_000
        web.files[f"/data/{MANIFEST}"] = json.dumps(manifest).encode()
        (place / "other").write_bytes(bytes(100_000))
        monkeypatch.setattr(remote, "_check_space", lambda *_: None)
        with pytest.raises(UsageError, match=r"the disk is full .*run the same command again"):
            local_folder(url(web))
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once(web, status):
    web.statuses = [status]
    with pytest.raises(DataError, match=rf"manifest.json may not be read \({status}.*credentials"):
        local_folder(url(web))
    assert len(web.requests) == 1


def test_a_url_with_nothing_there_is_told(web):
    with pytest.raises(DataError, match=r"nothing/manifest.json is not there .*`rn50 prepare`"):
        local_folder(f"{web.url}/nothing")


def test_a_shard_that_is_missing_there_is_named(web):
    del web.files["/data/val-000000.tar"]
    with pytest.raises(DataError, match=r"val-000000.tar is not there"):
        local_folder(url(web))


def test_a_server_that_is_down_is_told_and_a_supervisor_may_try_again():
    with pytest.raises(
        UnreachableError, match=r"http://127.0.0.1:9/data.* cannot be read: .*\(4 attempts\)"
    ) as told:
        local_folder("http://127.0.0.1:9/data")
    assert told.value.exit_code == 1


def test_while_a_server_is_down_a_whole_copy_will_do_and_that_is_said(web):
    folder, lines = local_folder(url(web)), []
    web.statuses = [503] * 4
    assert local_folder(url(web), say=lines.append) == folder
    (line,) = lines
    assert f"{url(web)} cannot be reached (503" in line
    assert f"using its whole copy in {folder}" in line


def test_while_a_server_is_down_a_copy_that_lacks_something_will_not_do(web):
    folder = local_folder(url(web))
    (folder / "train.index.npy").unlink()
    web.statuses = [503] * 4
    with pytest.raises(UnreachableError):
        local_folder(url(web))
    local_folder(url(web))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "tool": "another"}))
    web.statuses = [503] * 4
    with pytest.raises(UnreachableError):
        local_folder(url(web))


def test_of_several_whole_copies_the_one_that_was_used_last_will_do(web):
    first = web.files[f"/data/{MANIFEST}"]
    one = local_folder(url(web))
    web.files[f"/data/{MANIFEST}"] = first + b"\n"
    other = local_folder(url(web))
    assert other != one
    web.statuses = [503] * 4
    assert local_folder(url(web)) == other
    web.files[f"/data/{MANIFEST}"] = first
    local_folder(url(web))
    web.statuses = [503] * 4
    assert local_folder(url(web)) == one


def test_what_may_not_be_read_is_not_taken_from_a_copy(web):
    local_folder(url(web))
    web.statuses = [403]
    with pytest.raises(DataError, match="may not be read"):
        local_folder(url(web))


@pytest.mark.parametrize(
    "content", [b"<html>log in</html>", b"{}", b"[]", b'{"format": 1, "splits": 3}']
)
def test_something_else_than_a_manifest_is_refused(web, content):
    web.files[f"/data/{MANIFEST}"] = content
    with pytest.raises(DataError, match="is not the manifest of a packed data set"):
        local_folder(url(web))


def test_a_manifest_of_another_format_is_refused(web):
    web.files[f"/data/{MANIFEST}"] = b'{"format": 99, "tool": "rn50 9.9"}'
    with pytest.raises(DataError, match=r"has format 99; this version reads .*rn50 9.9"):
        local_folder(url(web))


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", ".hidden", "a/b", "", "a\n"])
def test_a_manifest_cannot_write_elsewhere(web, name):
    manifest = json.loads(web.files[f"/data/{MANIFEST}"])
    manifest["splits"]["train"]["shards"][0]["file"] = name
    web.files[f"/data/{MANIFEST}"] = json.dumps(manifest).encode()
    with pytest.raises(DataError, match="is not the manifest"):
        local_folder(url(web))
    assert fetched(web) == []


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(UsageError, match=r"s4://bucket cannot be read: .*s3://bucket/prefix"):
        local_folder("s4://bucket")


def test_a_missing_package_is_named_with_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from rn50.data.remote import local_folder\n"
        "try: local_folder('s3://bucket/data')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UsageError s3://bucket/data cannot be read: ")
    assert "pip install 'rn50[s3]'" in done.stdout


def test_a_file_system_in_memory_and_a_mounted_one_are_read_likewise(packed, tmp_path):
    memory = fsspec.filesystem("memory")
    place = f"/{uuid.uuid4()}"
    memory.put(str(packed), place, recursive=True)
    for data in (f"memory:/{place}", f"file://{packed}"):
        assert contents(local_folder(data)) == contents(packed)
    memory.rm(place, recursive=True)


@pytest.fixture(scope="module")
def moto():
    """Return the URL of an S3 server on the loopback device."""
    with s3_store() as url:
        yield url


@pytest.fixture
def s3(moto, packed, monkeypatch):
    """Put the packed data set to ``s3://images/data``; return the client."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if not fs.exists("images"):
        fs.mkdir("images")
        for path in packed.iterdir():
            fs.put_file(str(path), f"images/data/{path.name}")
    yield fs
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_read_through_the_cache(s3, packed):
    folder = local_folder("s3://images/data")
    assert contents(folder) == contents(packed)


def test_a_bucket_that_is_not_there_is_told(s3):
    with pytest.raises(DataError, match=r"s3://imagez/data/manifest.json is not there .*bucket"):
        local_folder("s3://imagez/data")


def test_a_prefix_that_is_not_there_is_told(s3):
    with pytest.raises(DataError, match=r"s3://images/date/manifest.json is not there"):
        local_folder("s3://images/date")


def test_missing_credentials_are_told(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    type(s3).clear_instance_cache()
    with pytest.raises(UsageError, match=r"needs credentials: run `aws configure`.*S3_ANON=true"):
        local_folder("s3://images/data")


def test_an_object_with_wrong_content_is_told(s3, packed):
    for path in packed.iterdir():
        s3.put_file(str(path), f"images/damaged/{path.name}")
    shard = (packed / "val-000000.tar").read_bytes()
    s3.pipe_file("images/damaged/val-000000.tar", shard[:-1] + b"?")
    with pytest.raises(DataError, match=r"val-000000.tar has another hash .*, twice"):
        local_folder("s3://images/damaged")


def test_verify_reads_a_bucket(s3, capsys):
    main(["verify", "s3://images/data"])
    assert "is whole: 96 train, 36 val images" in capsys.readouterr().out


def test_what_is_fetched_is_all_that_the_manifest_lists(web, packed):
    folder = local_folder(url(web))
    listed = {entry["file"] for entry in files(json.loads((packed / MANIFEST).read_bytes()))}
    assert {p.name for p in folder.iterdir()} == listed | {MANIFEST}


@pytest.mark.long
def test_a_run_on_a_url_resumes_on_it_and_is_evaluated_on_it(web, packed, tmp_path, capsys):
    words = ["train", "demo", "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--model.num-classes", "4", "--batch-size", "32", "--workers", "1"]
    words += ["--epochs", "1", "--warmup-epochs", "0", "--lr", "0.01"]
    main([*words, "--data", url(web)])
    saved = score(tmp_path / "run", local_folder(url(web)), _cpu())
    shutil.rmtree(cache.folder())
    for same in (url(web), str(packed)):
        main([*words, "--data", same, "--resume"])
        assert "is finished; nothing is left to do" in capsys.readouterr().out
    shutil.rmtree(cache.folder())
    main(["eval", str(tmp_path / "run"), "--hardware.device", "cpu", "--json"])
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["model"]["top1"] == saved["model"]["top1"]


def _cpu():
    from rn50.config import Hardware

    return Hardware(device="cpu")
