"""A run's folder at a URL: what lies there, how it gets there verified, and how it comes back.

It is laid out as on the disk, so that a copy of it is a run's folder. Only, a checkpoint there
holds one file more, the record as it was then, so that each can be resumed by itself. Every file
that is sent is read back and compared by size and hash; a checkpoint's manifest is sent after all
else and makes it count; when one is removed, its manifest goes first.

A checkpoint of a step that is there with other content counts until the new one does: what differs
is sent by other names first, a manifest tells of them (``at``), and only then do files and manifest
of the usual names follow. At each instant one of the two is whole.
"""

import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from rn50 import durable, remote_files
from rn50.errors import DataError
from rn50.observe import record
from rn50.observe.progress import progress
from rn50.remote_files import Count, Folder, Terms, WrongContentError
from rn50.train import checkpoint

TERMS = Terms(
    must_be="the folder of a run, such as `rn50 train --mirror` makes",
    remedy="the checkpoint before it may be whole",
    used="read or written",
    rights="s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject",
)

_WITHOUT_FOLDERS = ("s3", "gs", "gcs", "abfs", "az", "memory")
"""File systems that need no folder made before a file; some would make a bucket of it."""
_PART_BYTES = 8 << 20
"""What is sent anew when a connection breaks; four parts are in memory at a time."""

Manifest = dict[str, dict[str, Any]]


@dataclass
class Parcel:
    """A checkpoint on its way, which can be sent in several attempts."""

    step: int
    folder: Path
    history: bytes
    """The run's record, through the step at least."""
    is_newest: bool = True
    """Whether ``LATEST`` is to name it."""
    verified: set[str] = field(default_factory=set)
    """Names of the files that are known to be there."""

    def manifest(self) -> Manifest:
        """Return size and hash of each file to send.

        Raises:
            OSError, ValueError: There is no checkpoint in the folder any more.
        """
        parts: Manifest = json.loads((self.folder / checkpoint.MANIFEST).read_bytes())
        return {record.FILE_NAME: _part(self.history), **parts}

    @property
    def is_whole(self) -> bool:
        """Return whether it verifies on this disk."""
        try:
            checkpoint.verify(self.folder)
        except Exception:
            return False
        return True


class RemoteRun:
    """The folder of one run at a URL.

    Its methods raise what the file system raises, unless they say otherwise.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        """Return the address that the user gave."""
        return self.folder.url

    def sizes(self, below: str = checkpoint.FOLDER) -> dict[str, int]:
        """Return the size of each file, by its path from the run's folder."""
        fs = self.folder.fs
        fs.invalidate_cache()
        path = f"{self.folder.path}/{below}".rstrip("/")
        if self.folder.speaks(*_WITHOUT_FOLDERS):
            found = fs.find(path, detail=True)
        else:
            # By itself it would take a disk or server that fails for an empty folder.
            try:
                found = fs.find(path, detail=True, on_error="raise")
            except FileNotFoundError:
                if fs.exists(path):
                    raise
                return {}
        start = len(self.folder.path) + 1
        return {name[start:]: info["size"] for name, info in found.items()}

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that count, the newest first."""
        return sorted(_published(self.sizes()), reverse=True)

    def holds(self, parcel: Parcel) -> bool:
        """Return whether just this checkpoint is there already."""
        base, here = _base(parcel.step), parcel.manifest()
        sizes = self.sizes(base)
        there = self._manifest(base, sizes)
        return _without_history(there) == _without_history(here) and all(
            sizes.get(f"{base}/{name}") == part["bytes"] for name, part in there.items()
        )

    def _manifest(self, base: str, sizes: dict[str, int]) -> Manifest:
        """Return the manifest of a checkpoint that is there; empty where none can be read."""
        name = f"{base}/{checkpoint.MANIFEST}"
        if name not in sizes:
            return {}
        with suppress(ValueError):
            told = json.loads(self.folder.fs.cat_file(self.folder.of(name)))
            if isinstance(told, dict) and all(isinstance(part, dict) for part in told.values()):
                return told
        return {}

    def send(self, parcel: Parcel) -> None:
        """Send a checkpoint, publish it, and then point ``LATEST`` to it if it is the newest.

        Raises:
            WrongContentError: What is there now is not what was sent.
        """
        base, manifest = _base(parcel.step), parcel.manifest()
        if not self.holds(parcel):
            if there := self._manifest(base, self.sizes(base)):
                self._publish(parcel, self._beside(there, parcel))
            self._publish(parcel, manifest)
        if parcel.is_newest:
            latest = f"{checkpoint.path(Path(), parcel.step).name}\n".encode()
            self.put(f"{checkpoint.FOLDER}/{checkpoint.LATEST}", latest)
        known = {f"{base}/{name}" for name in (*manifest, checkpoint.MANIFEST)}
        for name in self.sizes(base):
            if name not in known:
                self.folder.fs.rm_file(self.folder.of(name))

    def _beside(self, there: Manifest, parcel: Parcel) -> Manifest:
        """Return a parcel's manifest with other names for what differs from a checkpoint there."""
        manifest, base = parcel.manifest(), _base(parcel.step)
        for name, part in manifest.items():
            old = there.get(name, {})
            at = str(old.get("at", name))
            if {**old, "at": at} == {**part, "at": at} and self._is_right(f"{base}/{at}", part):
                parcel.verified.add(at)
            else:
                at = f"{name}.{part['blake2b'][:8]}"
            if at != name:
                manifest[name] = {**part, "at": at}
        return manifest

    def _publish(self, parcel: Parcel, manifest: Manifest) -> None:
        """Send what is not known to be there, and after it the manifest."""
        base = _base(parcel.step)
        names = {name: part.get("at", name) for name, part in manifest.items()}
        for name, part in manifest.items():
            if names[name] not in parcel.verified:
                source = parcel.folder / name
                is_lent = name == record.FILE_NAME and not source.exists()
                self.put(f"{base}/{names[name]}", parcel.history if is_lent else source, part)
                parcel.verified.add(names[name])
        sizes = self.sizes(base)
        if any(sizes.get(f"{base}/{names[n]}") != part["bytes"] for n, part in manifest.items()):
            parcel.verified.clear()
            raise WrongContentError("was changed by someone else while it was sent")
        self.put(f"{base}/{checkpoint.MANIFEST}", json.dumps(manifest, indent=2).encode())

    def put(self, name: str, source: Path | bytes, part: dict[str, Any] | None = None) -> None:
        """Send one file and read it back.

        On S3 a file of 16 MiB or more goes in parts, and each part with a checksum.

        Args:
            name: Its path from the run's folder.
            source: A file or its content.
            part: Size and hash; worked out where they are not given.

        Raises:
            WrongContentError: What is read back is not what was sent.
        """
        folder, fs = self.folder, self.folder.fs
        target = folder.of(name)
        parent, _, base = target.rpartition("/")
        if not folder.speaks(*_WITHOUT_FOLDERS):
            fs.makedirs(parent, exist_ok=True)
        # Object storage shows an object when it is whole; a disk would show half a file.
        is_disk = folder.speaks("file", "local")
        to = f"{parent}/{durable.TEMPORARY_PREFIX}{base}" if is_disk else target
        if isinstance(source, bytes):
            fs.pipe_file(to, source)
        else:
            parts = {"chunksize": _PART_BYTES, "max_concurrency": 4}
            options = parts if folder.speaks("s3") else {}
            fs.put_file(str(source), to, **options)
        if is_disk:
            durable.sync_file(Path(to))
            os.replace(to, target)
            durable.sync_folder(Path(parent))
        part = part or _part(source)
        remote_files.check(folder, name, part["bytes"], part["blake2b"])

    def has(self, name: str, source: Path) -> bool:
        """Return whether a file is there with this content already, as after a restart."""
        return self._is_right(name, _part(source))

    def _is_right(self, name: str, part: dict[str, Any]) -> bool:
        try:
            remote_files.check(self.folder, name, part["bytes"], part["blake2b"])
        except (WrongContentError, FileNotFoundError):
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove one file, if it is there."""
        with suppress(FileNotFoundError):
            self.folder.fs.rm_file(self.folder.of(name))

    def retire(self, kept: Collection[int]) -> None:
        """Remove the other checkpoints, and what is left of interrupted sendings and removals."""
        sizes = self.sizes()
        found = {step for name in sizes if (step := _step(name)) is not None}
        for step in found - set(kept):
            manifest = f"{_base(step)}/{checkpoint.MANIFEST}"
            if manifest in sizes:
                self.folder.fs.rm_file(self.folder.of(manifest))
            self.folder.fs.rm(self.folder.of(_base(step)), recursive=True)

    def clean(self) -> None:
        """Remove what interrupted writers left: parts of checkpoints and of files, open uploads."""
        sizes = self.sizes("")
        for name in sizes:
            if name.rpartition("/")[2].startswith(durable.TEMPORARY_PREFIX):
                self.folder.fs.rm_file(self.folder.of(name))
        self.retire(_published(sizes))
        if self.folder.speaks("s3"):
            with suppress(PermissionError):  # A right that mirroring does without.
                self._abort_uploads()

    def _abort_uploads(self) -> None:
        fs = self.folder.fs
        bucket, key, _ = fs.split_path(self.folder.path)
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/" if key else "")
        for upload in found.get("Uploads") or ():
            names = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            fs.call_s3("abort_multipart_upload", Bucket=bucket, **names)

    def fetch(self, step: int, into: Path, run_dir: Path) -> None:
        """Fetch a checkpoint's files into an empty folder, and the record into the run's folder.

        Raises:
            UserError: It cannot be read, or is not what its manifest says.
        """
        manifest = self._fetch_parts(step, into, lambda name: True)
        durable.write_json(into / checkpoint.MANIFEST, manifest)
        history = into / record.FILE_NAME
        newest = self._record()
        if history.exists() and not newest.startswith(history.read_bytes()):
            newest = history.read_bytes()
        if newest:
            durable.write_bytes(run_dir / record.FILE_NAME, newest)

    def fetch_network(self, step: int, name: str, into: Path) -> dict[str, Tensor] | None:
        """Return a network of a checkpoint, its file fetched into an empty folder.

        Args:
            step: Of the checkpoint.
            name: One of ``record.NETWORKS``.
            into: The folder.

        Returns:
            Its tensors, or None where the checkpoint has no such network.

        Raises:
            UserError: It cannot be read, or is not what the manifest says.
        """
        file = f"{name}.safetensors"
        self._fetch_parts(step, into, lambda other: other == file)
        try:
            return safetensors.torch.load_file(into / file) if (into / file).exists() else None
        except safetensors.SafetensorError as error:
            url = self.folder.url_of(f"{_base(step)}/{file}")
            raise DataError(f"{url} holds no weights: {error}") from error

    def _fetch_parts(self, step: int, into: Path, wanted: Callable[[str], bool]) -> Manifest:
        """Fetch some of a checkpoint's files, and return the manifest by the usual names."""
        base = _base(step)
        url = self.folder.url_of(base)
        content = self.folder.read(f"{base}/{checkpoint.MANIFEST}")
        try:
            manifest: Manifest = json.loads(content)
            names = {name: part.pop("at", name) for name, part in manifest.items()}
            if not all(map(remote_files.is_plain_name, (*names, *names.values()))):
                raise ValueError("a file has no plain name")
            entries = [{"file": at, **manifest[name]} for name, at in names.items() if wanted(name)]
            num_bytes = sum(int(entry["bytes"]) for entry in entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{url} is not a whole checkpoint: {error}") from error
        there = replace(self.folder, url=url, path=self.folder.of(base))
        with progress("fetching the checkpoint", in_bytes=True) as report:
            remote_files.fetch_all(there, into, entries, Count(0, num_bytes, report))
        with durable.explained(into):
            for name, at in names.items():
                if wanted(name) and at != name:
                    os.replace(into / at, into / name)
        return manifest

    def _record(self) -> bytes:
        """Return the record as it was sent last, which may tell of later steps; none: empty."""
        if record.FILE_NAME not in self._retried_sizes():
            return b""
        return self.folder.read(record.FILE_NAME)

    def fetch_files(self, run_dir: Path) -> None:
        """Fetch the reports, the log and the weights that are not in the run's folder."""
        for name in self._retried_sizes():
            if not remote_files.is_plain_name(name) or (run_dir / name).exists():
                continue
            aside = run_dir / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-{name}"
            work = partial(self.folder.fs.get_file, self.folder.of(name), str(aside))
            with durable.explained(aside):
                remote_files.retried(work, self.folder.url_of(name), TERMS)
                os.replace(aside, run_dir / name)

    def _retried_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = remote_files.retried(partial(self.sizes, ""), self.url, TERMS)
        return sizes


def open_run(url: str) -> RemoteRun:
    """Return the run at a URL or path, with a session and credentials of its own.

    Raises:
        UsageError: As ``remote_files.open_folder`` says.
    """
    return RemoteRun(remote_files.open_folder(url, TERMS, skip_instance_cache=True))


def _base(step: int) -> str:
    return checkpoint.path(Path(), step).as_posix()


def _step(name: str) -> int | None:
    """Return the step of the checkpoint that a file belongs to."""
    folder, _, rest = name.partition("/")
    owner, inside, _ = rest.partition("/")
    return checkpoint.step_of(owner) if folder == checkpoint.FOLDER and inside else None


def _published(sizes: Collection[str]) -> set[int]:
    ended = (name for name in sizes if name.endswith(f"/{checkpoint.MANIFEST}"))
    return {step for name in ended if (step := _step(name)) is not None}


def _without_history(manifest: Manifest) -> Manifest:
    return {name: part for name, part in manifest.items() if name != record.FILE_NAME}


def _part(source: Path | bytes) -> dict[str, Any]:
    if isinstance(source, bytes):
        return {"bytes": len(source), "blake2b": durable.digest(source)}
    return {"bytes": source.stat().st_size, "blake2b": durable.file_digest(source)}
