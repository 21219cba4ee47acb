"""Fetch the archives that may be had freely: cut-off ones are continued, whole ones are checked.

What has arrived lies in ``<archive>.part``; the archive gets its name only after its size and MD5
were found right.
"""

import hashlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from rn50 import durable
from rn50.data import transfer
from rn50.data.transfer import Part, Report, Say
from rn50.errors import DataError, UsageError

_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas"
_MAGIC = {".tgz": b"\x1f\x8b", ".zip": b"PK\x03\x04"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive that anyone may fetch."""

    name: str
    """What the user calls it."""
    url: str
    md5: str | None
    """None where none could be confirmed."""
    num_bytes: int | None = None
    """Where it is known exactly."""
    about_mb: int
    """Its size, roughly, to decide by."""
    holds: str
    """Classes and images."""

    @property
    def file(self) -> str:
        """Return the name of the file."""
        return self.url.rpartition("/")[2]


def _fast_ai(name: str, file: str, md5: str, about_mb: int, holds: str) -> Archive:
    return Archive(name=name, url=f"{_FAST_AI}/{file}.tgz", md5=md5, about_mb=about_mb, holds=holds)


_NETTE = "10 easy classes, 9,469 train and 3,925 val images, "
_WOOF = "10 breeds of dogs, 9,025 train and 3,929 val images, "

# The MD5s: Imagenette's are torchvision's; Imagewoof's and Tiny-ImageNet's are those on which
# several independent libraries agree. fast.ai repacked its archives once: older MD5s go around.
ARCHIVES = {
    archive.name: archive
    for archive in (
        _fast_ai(
            *("imagenette", "imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612", 1557),
            _NETTE + "full size",
        ),
        _fast_ai(
            *("imagenette-320", "imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3", 342),
            _NETTE + "short side 320 px",
        ),
        _fast_ai(
            *("imagenette-160", "imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412", 99),
            _NETTE + "short side 160 px",
        ),
        _fast_ai(
            *("imagewoof", "imagewoof2", "9aafe18bcdb1632c4249a76c458465ba", 1340),
            _WOOF + "full size",
        ),
        _fast_ai(
            *("imagewoof-320", "imagewoof2-320", "0f46d997ec2264e97609196c95897a44", 330),
            _WOOF + "short side 320 px",
        ),
        _fast_ai(
            *("imagewoof-160", "imagewoof2-160", "3d200a7be99704a0d7509be2a9fbfe15", 92),
            _WOOF + "short side 160 px",
        ),
        Archive(
            name="tiny-imagenet",
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
            num_bytes=248_100_043,
            about_mb=248,
            holds="200 classes, 100,000 train and 10,000 val images of 64 px",
        ),
    )
}
"""What may be fetched, by name."""

_IMAGENET = """\
ImageNet may not be fetched without an account; take it from one of these, then run `rn50 prepare`:
  https://image-net.org/download-images  register, then download into one folder:
    ILSVRC2012_img_train.tar (147.9 GB), ILSVRC2012_img_val.tar (6.7 GB) and
    ILSVRC2012_devkit_t12.tar.gz; next: rn50 prepare FOLDER DEST
  https://www.kaggle.com/c/imagenet-object-localization-challenge  accept the rules, download
    the zip (about 160 GB); next: rn50 prepare ZIP DEST
  https://huggingface.co/datasets/ILSVRC/imagenet-1k  accept the terms, download the parquet
    files of data/ into one folder; next: rn50 prepare FOLDER DEST"""


def archive(name: str) -> Archive:
    """Return the archive of that name.

    Raises:
        UsageError: There is none; for ImageNet the message says where to register.
    """
    if name.lower() in ("imagenet", "imagenet-1k", "imagenet1k", "ilsvrc2012"):
        raise UsageError(_IMAGENET)
    if name not in ARCHIVES:
        raise UsageError(
            f"{name!r} cannot be fetched; what can: {', '.join(ARCHIVES)}; for anything else give "
            "its file or folder to `rn50 prepare`"
        )
    return ARCHIVES[name]


def next_command(archive: Archive, file: Path) -> str:
    """Return the command that packs what was fetched."""
    return shlex.join(["rn50", "prepare", str(file), str(file.parent / f"{archive.name}-packed")])


def fetch(
    archive: Archive,
    dest: Path,
    *,
    url: str = "",
    say: Say,
    report: Report | None = None,
    retries: int = 6,
    wait_s: float = 1.0,
) -> Path:
    """Fetch an archive into the folder ``dest``, from where an earlier call was stopped.

    Args:
        archive: What to fetch.
        dest: Folder to put it in; made where it is absent.
        url: Another place to fetch the same archive from, such as a mirror.
        say: Shows the user a line.
        report: Called with the numbers of bytes there and in all.
        retries: As ``transfer.receive`` takes it.
        wait_s: Likewise.

    Returns:
        The archive's file, whose size and MD5 are right.

    Raises:
        DataError: It cannot be had, or is not what it should be.
        UsageError: There is no room for it, or another process is fetching it.
    """
    place = dest / archive.file
    part = Part(
        place.with_name(f"{place.name}.part"),
        url or archive.url,
        num_bytes=archive.num_bytes,
        about_bytes=archive.about_mb * 1_000_000,
        magic=_MAGIC.get(place.suffix, b""),
    )
    with durable.explained(place):
        dest.mkdir(parents=True, exist_ok=True)
    with _alone(part.path):
        if place.exists():
            _check_existing(archive, place)
            say(f"{place} is already there and whole")
            return place
        with durable.explained(part.path):
            transfer.receive(part, say=say, report=report, retries=retries, wait_s=wait_s)
            _check(archive, part, place)
            durable.sync_file(part.path)
            os.replace(part.path, place)
            durable.sync_folder(dest)
        part.note.unlink(missing_ok=True)
    if archive.md5 is None:
        say(f"no checksum of {archive.file} is published: only its size was checked")
    return place


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    try:
        with durable.explained(lock), filelock.FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows does not remove what is open.
                    lock.unlink()
    except filelock.Timeout as error:
        raise UsageError(
            f"another process is fetching {path}; two cannot write one file; wait until it ends"
        ) from error


def _check(archive: Archive, part: Part, place: Path) -> None:
    """Raise ``DataError`` unless all of a file is there and right; what is wrong is put aside."""
    problem = _problem(archive, part.path)
    if problem is None:
        return
    aside = place.with_name(f"{place.name}.wrong")
    os.replace(part.path, aside)
    part.clear()
    raise DataError(
        f"what came from {part.url} {problem}; it was kept as {aside}; run the same command again "
        "to fetch it anew; if it is the same again, the file there is another one: give another "
        "source with --url"
    )


def _check_existing(archive: Archive, place: Path) -> None:
    if problem := _problem(archive, place):
        raise DataError(
            f"{place} {problem}; rename or remove it, and run the same command again to fetch it"
        )


def _problem(archive: Archive, path: Path) -> str | None:
    size = path.stat().st_size
    if archive.num_bytes is not None and size != archive.num_bytes:
        return f"has {size:,} bytes; it must have {archive.num_bytes:,}"
    if archive.md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != archive.md5:
            return f"has the MD5 {found}; it must be {archive.md5}"
    return None
