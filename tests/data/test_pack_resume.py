"""An interrupted prepare goes on where its last shard ended, and ends as if nothing had been."""

import json
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from image_trees import class_tree, jpeg, names, write_folder, write_tar, write_zip

from rn50.data.encoding import Encoding
from rn50.data.journal import workplace
from rn50.data.pack import Options, pack
from rn50.data.sources.base import ClassName, Skipped, SourceImage
from rn50.data.sources.detect import open_source
from rn50.data.verify import verify
from rn50.errors import DataError, UsageError

SHARD_BYTES = 40_000
SMALLER = Options(encoding=Encoding(resize_short=32), workers=2)

CHILD = """
import sys, time
from pathlib import Path
from rn50.data.encoding import Encoding
from rn50.data.pack import Options, pack
from rn50.data.sources.detect import open_source

def report(done, total):
    print(done, flush=True)
    time.sleep(0.02)

source, dest, workers = sys.argv[1:]
options = Options(encoding=Encoding(resize_short=32), workers=int(workers))
pack(open_source(source), Path(dest), shard_bytes=40_000, options=options, skip_bad=True,
     report=report)
"""


def tree():
    """Two hundred images with all that may befall one between them."""
    images = class_tree(("ant", "bee"), per_class=100)
    odd = {
        "train/ant/ant_33b.jpg": jpeg(1, "CMYK", (60, 50)),
        "train/ant/ant_34b.jpg": jpeg(0, size=(200, 200))[:-400],
        "train/bee/bee_1b.txt": b"text",
        "train/bee/bee_2.jpg": jpeg(3, size=(64, 48)),
        "val/ant/zz.jpg": jpeg(4, size=(100, 90)),
    }
    return dict(sorted((images | odd).items(), key=lambda item: item[0]))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Watched:
    """A source of 120 numbered images that knows which were read, and may break at one."""

    kind = "watched"
    classes = (ClassName("a", "A"), ClassName("b", "B"))
    skipped = Skipped()

    def __init__(self, breaks_at: int = -1, error: BaseException | None = None, change=None):
        self.read: set[str] = set()
        self._breaks_at = breaks_at
        self._error = error
        self._change = change or {}
        self._lock = threading.Lock()

    def count(self) -> int:
        return 120

    def images(self):
        for i in range(120):
            split = "val" if i % 10 == 9 else "train"
            path = self._change.get(f"path {i}", f"{split}/{'ab'[i % 2]}/{i:03}.jpg")
            yield SourceImage(split, "ab"[i % 2], path, partial(self._read, i, path))

    def _read(self, i: int, path: str) -> bytes:
        if i == self._breaks_at:
            raise self._error
        with self._lock:
            self.read.add(path)
        return self._change.get(f"data {i}", jpeg(i, size=(48, 40)))


def interrupted(dest: Path, at: int = 90, error: BaseException | None = None, **options) -> Watched:
    """Pack up to an image that breaks; return the source."""
    error = error or KeyboardInterrupt()
    source = Watched(at, error)
    with pytest.raises(type(error)):
        pack(source, dest, shard_bytes=SHARD_BYTES, **options)
    return source


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kind", ["folder", "tgz"])
def test_a_prepare_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, kind):
    if kind == "folder":
        source = write_folder(tmp_path / "source", tree())
    else:
        source = write_tar(tmp_path / "a.tgz", tree(), "w:gz")
    whole = tmp_path / "whole"
    options = {"shard_bytes": SHARD_BYTES, "skip_bad": True, "options": SMALLER}
    pack(open_source(source), whole, **options)

    dest, draws, shards, starts = tmp_path / "packed", random.Random(0), set(), []
    for kill_after in (0, 3, 2, 3, 2, None):
        command = [sys.executable, "-c", CHILD, source, dest, str(draws.choice((1, 2, 3)))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for number, line in enumerate(child.stdout):
                if number == 0:
                    starts.append(int(line))
                if kill_after is not None and number >= kill_after:
                    break
            if kill_after is not None:
                child.send_signal(signal.SIGKILL)
        if kill_after is not None:
            assert not dest.exists()
            shards.add(len(names(tmp_path / ".packed.partial" / "data")))
    assert child.returncode == 0
    assert len(shards) > 2, "it was killed at several places"
    assert starts[1:] == sorted(starts[1:])
    assert starts[-1] > 40, "what was finished was not done again"
    assert content(dest) == content(whole)
    assert names(tmp_path) == sorted([source.name, "packed", "whole"])
    verify(dest)


def test_images_of_finished_shards_are_not_read_again_but_for_a_few(tmp_path):
    first = interrupted(tmp_path / "d")
    said = []
    second = Watched()
    manifest = pack(second, tmp_path / "d", shard_bytes=SHARD_BYTES, say=said.append)
    assert manifest == pack(Watched(), tmp_path / "whole", shard_bytes=SHARD_BYTES)
    assert content(tmp_path / "d") == content(tmp_path / "whole")
    shards = manifest["splits"]["train"]["shards"]
    assert 0 < len(first.read & second.read) < 60
    assert len(shards) > 4
    assert said == [f"continuing in {tmp_path / '.d.partial'} after 60 images in finished shards"]


def test_a_name_that_a_finished_shard_has_taken_stays_taken(tmp_path):
    interrupted(tmp_path / "d")
    change = {"path 100": "train/a/000.png"}  # its key would be that of image 0
    pack(Watched(change=change), tmp_path / "d", shard_bytes=SHARD_BYTES)
    pack(Watched(change=change), tmp_path / "whole", shard_bytes=SHARD_BYTES)
    assert content(tmp_path / "d") == content(tmp_path / "whole")
    assert "a/000-2\n" in (tmp_path / "d" / "train.keys.txt").read_text()


def test_the_progress_goes_on_where_it_was(tmp_path):
    interrupted(tmp_path / "d")
    reports = []
    pack(
        Watched(),
        tmp_path / "d",
        shard_bytes=SHARD_BYTES,
        report=lambda *counts: reports.append(counts),
    )
    assert reports == [(60, 120), (64, 120), (80, 120), (96, 120), (112, 120), (120, 120)]


def test_the_error_says_what_is_kept_and_where(tmp_path):
    source = Watched(90, DataError("the source is gone; put it back"))
    match = (
        r"gone; put it back; 4 finished shards \(0\.2 MB\) are kept in .*/\.d\.partial; the same"
    )
    with pytest.raises(DataError, match=match):
        pack(source, tmp_path / "d", shard_bytes=SHARD_BYTES)
    assert names(tmp_path) == [".d.partial"]
    assert names(tmp_path / ".d.partial" / "data") == [f"train-{i:06}.tar" for i in range(4)]
    assert names(tmp_path / ".d.partial") == ["data", "journal"]


def test_other_options_start_over_and_say_so(tmp_path):
    interrupted(tmp_path / "d")
    said = []
    pack(Watched(), tmp_path / "d", shard_bytes=SHARD_BYTES, options=SMALLER, say=said.append)
    assert len(said) == 1
    assert "with another way of storing; starting over" in said[0]
    pack(Watched(), tmp_path / "whole", shard_bytes=SHARD_BYTES, options=SMALLER)
    assert content(tmp_path / "d") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"path 3": "train/b/new.jpg"}, {"data 0": jpeg(999)}], ids=["name", "content"]
)
def test_another_source_starts_over_and_says_so(tmp_path, change):
    interrupted(tmp_path / "d")
    said = []
    source = Watched(change=change)
    pack(source, tmp_path / "d", shard_bytes=SHARD_BYTES, say=said.append)
    assert said[1:] == ["the source has changed since the run that was interrupted; starting over"]
    pack(Watched(change=change), tmp_path / "whole", shard_bytes=SHARD_BYTES)
    assert content(tmp_path / "d") == content(tmp_path / "whole")


def test_an_archive_that_was_replaced_starts_over(tmp_path):
    broken = class_tree(per_class=60) | {"val/bee/z.jpg": jpeg(0, size=(200, 200))[:-400]}
    archive = write_zip(tmp_path / "a.zip", broken)
    with pytest.raises(DataError, match="finished shards"):
        pack(open_source(archive), tmp_path / "d", shard_bytes=20_000)
    write_zip(archive, class_tree(per_class=61))
    said = []
    pack(open_source(archive), tmp_path / "d", shard_bytes=20_000, say=said.append)
    assert "with another source; starting over" in said[0]
    verify(tmp_path / "d")


def test_a_bad_image_may_be_skipped_or_replaced_without_starting_over(tmp_path):
    path = "train/bee/bee_50.JPEG"
    good = class_tree(per_class=60)
    source = write_folder(tmp_path / "source", good | {path: b""})
    with pytest.raises(DataError, match=f"{path} cannot be decoded"):
        pack(open_source(source), tmp_path / "d", shard_bytes=20_000)
    copy = tmp_path / ".copy.partial"
    (tmp_path / ".d.partial").rename(copy)
    said = []
    manifest = pack(
        open_source(source), tmp_path / "copy", shard_bytes=20_000, skip_bad=True, say=said.append
    )
    assert manifest["skipped"]["a bad image"]["count"] == 1
    assert len(said) == 1
    assert said[0].startswith("continuing")


def test_what_was_skipped_is_not_taken_over_when_nothing_may_be_skipped(tmp_path):
    source = write_folder(tmp_path / "source", class_tree(per_class=60))
    (source / "train/ant/ant_1.JPEG").write_bytes(b"")
    (source / "val/bee/v_1.jpg").unlink()
    (source / "val/ant/v_0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no images .*finished shards"):
        pack(open_source(source), tmp_path / "d", shard_bytes=20_000, skip_bad=True)
    said = []
    with pytest.raises(DataError, match=r"ant_1\.JPEG cannot be decoded"):
        pack(open_source(source), tmp_path / "d", shard_bytes=20_000, say=said.append)
    assert said == [
        "an interrupted run left out bad images, which --skip-bad asks for; starting over"
    ]


@pytest.mark.parametrize("damage", ["shard gone", "shard cut", "journal cut", "journal gone"])
def test_a_shard_that_is_not_whole_is_made_again_and_those_after_it(tmp_path, damage):
    interrupted(tmp_path / "d")
    place = tmp_path / ".d.partial"
    file = place / ("data/train-000002.tar" if "shard" in damage else "journal/train-000002.json")
    data = file.read_bytes()
    file.unlink() if "gone" in damage else file.write_bytes(data[:-100])
    said = []
    pack(Watched(), tmp_path / "d", shard_bytes=SHARD_BYTES, say=said.append)
    pack(Watched(), tmp_path / "whole", shard_bytes=SHARD_BYTES)
    assert content(tmp_path / "d") == content(tmp_path / "whole")
    assert "after 30 images" in said[0]


def test_two_processes_do_not_make_the_same_folder(tmp_path):
    with (
        workplace(tmp_path / "d"),
        pytest.raises(
            UsageError, match=r"d is being made by process \d+ on .*; wait until it ends"
        ),
    ):
        pack(Watched(), tmp_path / "d")
    pack(Watched(), tmp_path / "d")
    assert names(tmp_path) == ["d"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from rn50.data.journal import workplace\n"
        "with workplace(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, tmp_path / "d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with pytest.raises(UsageError, match=f"is being made by process {child.pid} on"):
            pack(Watched(), tmp_path / "d")
        child.kill()
    pack(Watched(), tmp_path / "d")
    assert names(tmp_path) == ["d"]


def test_the_journal_does_not_appear_in_the_result(tmp_path):
    interrupted(tmp_path / "d")
    manifest = pack(Watched(), tmp_path / "d", shard_bytes=SHARD_BYTES)
    listed = {
        part["file"]
        for split in manifest["splits"].values()
        for part in (*split["shards"], split["index"], split["keys"])
    }
    assert set(names(tmp_path / "d")) == {*listed, "manifest.json"}
    assert json.loads((tmp_path / "d" / "manifest.json").read_text()) == manifest
